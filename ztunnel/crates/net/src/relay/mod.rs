//! Bytes between two ends until both have ended, with everything TCP tells about an end kept.
//!
//! Owns the meaning of FIN, RST, END_STREAM and RST_STREAM for each other; not the moving of bytes inside a tunnel.

mod plain;
mod splice;
mod tunnel;

use std::cell::Cell;
use std::io;
use std::time::Duration;

use socket2::SockRef;
use tokio::net::TcpStream;

pub use plain::{relay_both, relay_plain};
pub use tunnel::relay_tunnel;

/// A connection with one direction closed and nothing moving in the other is given up after this time.
const HALF_CLOSED: Duration = Duration::from_secs(300);

/// What went through, in bytes of the application; readable while the relay runs.
#[derive(Default, Debug)]
pub struct Bytes2 {
    /// From the first end to the second: from the application into the tunnel.
    pub sent: Cell<u64>,
    pub received: Cell<u64>,
    /// Both ends have said all they had to say, and have it.
    pub complete: Cell<bool>,
}

impl Bytes2 {
    fn total(&self) -> u64 {
        self.sent.get() + self.received.get()
    }
}

/// Why a relay ended before both ends had said all they had to say. Both ends have then been reset.
#[derive(Debug, thiserror::Error)]
pub enum RelayError {
    #[error("the application broke the connection: {0}")]
    App(io::Error),
    #[error("the other end broke the connection: {0}")]
    Peer(io::Error),
    #[error("the peer reset the stream (HTTP/2 code {0})")]
    PeerReset(u32),
    #[error("the tunnel ended: {0}")]
    Tunnel(String),
    #[error("half closed and silent for {HALF_CLOSED:?}")]
    HalfClosedIdle,
}

/// The next close of this socket is a reset.
fn reset_on_close(tcp: &TcpStream) {
    // Fails only on a socket that is already gone.
    let _ = SockRef::from(tcp).set_linger(Some(Duration::ZERO));
}

/// Runs while exactly one direction is closed.
#[derive(Default)]
struct HalfClosed {
    timer: Option<std::pin::Pin<Box<tokio::time::Sleep>>>,
    moved: u64,
}

impl HalfClosed {
    /// Ready: `moved` has not changed for too long.
    fn poll(&mut self, cx: &mut std::task::Context<'_>, moved: u64) -> std::task::Poll<()> {
        let timer = self.timer.get_or_insert_with(|| {
            self.moved = moved;
            Box::pin(tokio::time::sleep(HALF_CLOSED))
        });
        while timer.as_mut().poll(cx).is_ready() {
            if self.moved == moved {
                return std::task::Poll::Ready(());
            }
            self.moved = moved;
            timer
                .as_mut()
                .reset(tokio::time::Instant::now() + HALF_CLOSED);
        }
        std::task::Poll::Pending
    }
}
