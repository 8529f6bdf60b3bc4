//! On which terms a stream is opened: how long for, and why it may come to nothing.

use std::io;
use std::time::Duration;

/// Deadlines and sizes.
#[derive(Clone, Debug)]
pub struct Limits {
    pub connect: Duration,
    /// All of TLS.
    pub handshake: Duration,
    /// From CONNECT to its answer; the far side connects to its application in between.
    pub answer: Duration,
    /// A tunnel without streams closes itself after this time.
    pub pool_idle: Duration,
    pub streams_per_tunnel: u32,
    /// A peer that acknowledges nothing for so long is gone (RFC 5482), also one that acknowledges but does not read.
    pub unread: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            handshake: Duration::from_secs(5),
            answer: Duration::from_secs(20),
            pool_idle: Duration::from_secs(300),
            streams_per_tunnel: 100,
            unread: Duration::from_secs(20),
        }
    }
}

/// Why no stream was opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("connect: {0}")]
    Connect(io::Error),
    #[error("no {0} in time")]
    Timeout(&'static str),
    #[error("TLS: {0}")]
    Tls(String),
    #[error("no certificate of ours: {0}")]
    Identity(String),
    #[error("tunnel: {0}")]
    H2(String),
    #[error("the peer answered {0}")]
    Status(u16),
    #[error("the application broke the connection: {0}")]
    App(io::Error),
}

impl Clone for OpenError {
    /// One failed attempt is the answer to everybody who waited for it.
    fn clone(&self) -> Self {
        match self {
            Self::Connect(why) => Self::Connect(again(why)),
            Self::App(why) => Self::App(again(why)),
            Self::Timeout(what) => Self::Timeout(what),
            Self::Tls(why) => Self::Tls(why.clone()),
            Self::Identity(why) => Self::Identity(why.clone()),
            Self::H2(why) => Self::H2(why.clone()),
            Self::Status(status) => Self::Status(*status),
        }
    }
}

fn again(why: &io::Error) -> io::Error {
    match why.raw_os_error() {
        Some(code) => io::Error::from_raw_os_error(code),
        None => io::Error::new(why.kind(), why.to_string()),
    }
}
