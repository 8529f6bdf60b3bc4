//! HBONE connections (bodies follow).
use std::net::SocketAddr;
use ztunnel_core::h2::RequestHead;
use ztunnel_core::ids::SpiffeId;

/// One CONNECT stream. Dropping it resets it unless both sides have ended.
pub struct Stream {}

/// A request that waits for its answer. Dropping it resets the stream.
pub struct Incoming {
    pub head: RequestHead,
    pub peer: SpiffeId,
    pub peer_addr: SocketAddr,
    pub local_addr: SocketAddr,
}

#[allow(unused_variables)]
impl Incoming {
    /// Answers 200.
    pub fn accept(self, headers: &[(&str, &str)]) -> Stream {
        todo!()
    }
    /// Answers with an error status and ends the stream.
    pub fn refuse(self, status: u16) {
        todo!()
    }
}

/// Why serving a connection ended otherwise than by the peer's orderly close.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("the TLS handshake did not end within {0:?}")]
    HandshakeTimeout(std::time::Duration),
    #[error("TLS: {0}")]
    Tls(String),
    #[error("no certificate of ours: {0}")]
    Identity(String),
    #[error("too many handshakes are pending")]
    Busy,
    #[error("tunnel: {0}")]
    Tunnel(String),
}
