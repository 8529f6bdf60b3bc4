//! The tunnel's I/O: listeners in pod namespaces, TLS, HBONE tunnels, relay, drain, counters, logs.
//!
//! Everything of a connection lives on the worker thread that serves it; threads share only the snapshot, the
//! certificates, the log queue and the job channels. Owns no decision: those are `ztunnel-core`'s.

pub mod account;
mod ahead;
mod beyond;
pub mod config;
mod csr;
pub mod dataplane;
pub mod direct;
mod distance;
pub mod dns;
pub mod drain;
pub mod dump;
pub mod explain;
pub mod handshakes;
pub mod hits;
pub mod identity;
pub mod inbound;
pub mod kept;
mod key;
pub mod labels;
pub mod log;
pub mod mailbox;
pub mod meter;
pub mod names;
pub mod netns;
pub mod outbound;
mod pace;
pub mod places;
pub mod pod;
pub mod pool;
pub mod registry;
pub mod relay;
pub mod runtime;
pub mod scrape;
pub mod sockets;
pub mod spans;
pub mod tls;
pub mod tunnel;
mod vault;
pub mod verdict;
mod verify;

#[cfg(test)]
mod fuzz;
