//! The corpus of hostile peers against the real tunnel: for each what it does, the limit that it hits, and the reason that
//! is told and counted. What a request asks for (authorities, headers) is in `tests/boundary/test_ssrf.py`.

mod attacks;
mod client_role;
mod corpus;
mod frames;
#[path = "../../../core/tests/h2_common/mod.rs"]
mod h2_common;
mod handshakes;
mod peer;
mod streams;
#[path = "../transport_support/mod.rs"]
mod transport_support;
