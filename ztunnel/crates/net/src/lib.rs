//! The tunnel's I/O: listeners in pod namespaces, TLS, HBONE tunnels, relay, drain, counters, logs.
//!
//! Everything of a connection lives on the worker thread that serves it; threads share only the snapshot, the
//! certificates, the log queue and the job channels. Owns no decision: those are `ztunnel-core`'s.

pub mod config;
mod csr;
pub mod identity;
pub mod log;
pub mod mailbox;
pub mod netns;
pub mod pool;
pub mod relay;
pub mod tls;
pub mod tunnel;
mod verify;
