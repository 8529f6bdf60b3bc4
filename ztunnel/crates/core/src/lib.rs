//! placeholder
pub mod h2;
