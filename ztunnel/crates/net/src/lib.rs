//! placeholder

mod csr;
pub mod identity;
pub mod pool;
pub mod relay;
pub mod tunnel;
