//! Bytes between two ends (bodies follow).
use crate::tunnel::Stream;
use std::cell::Cell;
use std::io;
use std::rc::Rc;
use tokio::net::TcpStream;

/// What went through, in bytes of the application; readable while the relay runs.
#[derive(Default, Debug)]
pub struct Bytes2 {
    /// From the first end to the second: from the application into the tunnel.
    pub sent: Cell<u64>,
    pub received: Cell<u64>,
}

#[derive(Debug, thiserror::Error)]
pub enum RelayError {
    #[error("the application reset the connection: {0}")]
    App(io::Error),
    #[error("the peer reset the stream (HTTP/2 code {0})")]
    PeerReset(u32),
    #[error("the tunnel ended: {0}")]
    Tunnel(String),
    #[error("half closed and silent for five minutes")]
    HalfClosedIdle,
}

/// `counts` is shared because the tunnel itself writes to the application's socket.
#[allow(unused_variables)]
pub async fn relay_tunnel(app: TcpStream, tunnel: Stream, counts: &Rc<Bytes2>) -> Result<(), RelayError> {
    todo!()
}

#[allow(unused_variables)]
pub async fn relay_plain(a: TcpStream, b: TcpStream, counts: &Rc<Bytes2>) -> Result<(), RelayError> {
    todo!()
}
