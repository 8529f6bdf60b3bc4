//! The tunnels of one worker (bodies follow).
use crate::identity::Identities;
use crate::tunnel::{Incoming, ServeError, Stream};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use ztunnel_core::h2::Headers;
use ztunnel_core::ids::SpiffeId;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    pub from: SpiffeId,
    pub want: Vec<SpiffeId>,
    pub dial: SocketAddr,
    /// The pod's own address: two pods never share a tunnel.
    pub source: IpAddr,
}

#[derive(Clone, Debug)]
pub struct Limits {
    pub connect: Duration,
    pub handshake: Duration,
    /// An idle tunnel is closed after this time (by itself: nobody has to sweep).
    pub pool_idle: Duration,
    pub streams_per_tunnel: u32,
    /// Per listening address.
    pub pending_handshakes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            handshake: Duration::from_secs(5),
            pool_idle: Duration::from_secs(300),
            streams_per_tunnel: 100,
            pending_handshakes: 256,
        }
    }
}

/// A stream the peer answered with 200.
pub struct Opened {
    pub stream: Stream,
    pub peer: SpiffeId,
    /// Our end of the tunnel's TCP connection.
    pub local: SocketAddr,
    pub headers: Headers,
}

#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("connect: {0}")]
    Connect(io::Error),
    #[error("no answer in time: {0}")]
    Timeout(&'static str),
    #[error("TLS: {0}")]
    Tls(String),
    #[error("no certificate of ours: {0}")]
    Identity(String),
    #[error("tunnel: {0}")]
    H2(String),
    #[error("the peer answered {0}")]
    Status(u16),
}

pub type Dialer<'a> = &'a dyn Fn() -> io::Result<socket2::Socket>;

pub struct Tunnels {}

#[allow(unused_variables)]
impl Tunnels {
    pub fn new(identities: Arc<Identities>, limits: Limits) -> Rc<Self> {
        todo!()
    }
    pub async fn open(
        self: &Rc<Self>,
        key: Key,
        dialer: Dialer<'_>,
        authority: &str,
        headers: &[(&str, &str)],
    ) -> Result<Opened, OpenError> {
        todo!()
    }
    /// Ends when the tunnel ends; dropping the future cuts the tunnel and resets its streams.
    pub async fn serve(
        self: &Rc<Self>,
        tcp: tokio::net::TcpStream,
        me: &SpiffeId,
        on_request: Rc<dyn Fn(Incoming)>,
    ) -> Result<(), ServeError> {
        todo!()
    }
    /// GOAWAY on every tunnel: open streams go on, new ones are refused.
    pub fn drain(&self) {
        todo!()
    }
    /// Closes our tunnels to others at once where `which` says so (a pod left, an identity was taken away).
    pub fn cut(&self, which: &dyn Fn(&Key) -> bool) {
        todo!()
    }
}
