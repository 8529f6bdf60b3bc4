//! Between an application's socket and a stream of a tunnel.

use std::io;
use std::rc::Rc;
use std::task::{Context, Poll};

use socket2::SockRef;
use tokio::net::TcpStream;
use tokio::task::yield_now;
use ztunnel_core::h2::code;

use super::{Bytes2, HalfClosed, RelayError, reset_on_close};
use crate::tunnel::{Failure, Stream};

/// Carries bytes until both sides have ended; a half-closed connection goes on. Otherwise, and when the future is
/// dropped, the application gets a RST and the stream a RST_STREAM. `counts.sent`: from the application.
///
/// `app` has TCP_NODELAY set. `counts` is shared because the tunnel itself writes to the application's socket.
pub async fn relay_tunnel(
    app: TcpStream,
    tunnel: Stream,
    counts: &Rc<Bytes2>,
) -> Result<(), RelayError> {
    let app = Rc::new(app);
    tunnel.attach(app.clone(), counts.clone());
    let mut relay = Relay {
        app,
        tunnel,
        counts: counts.clone(),
        app_ended: false,
        peer_ended: false,
        half_closed: HalfClosed::default(),
        complete: false,
    };
    let ended = std::future::poll_fn(|cx| relay.poll(cx)).await;
    if ended.is_ok() {
        counts.complete.set(true);
        yield_now().await; // nobody waits for the close: first whoever is ready, and what the tunnel has to send
    }
    ended
}

struct Relay {
    app: Rc<TcpStream>,
    tunnel: Stream,
    counts: Rc<Bytes2>,
    /// The application sends nothing more, and END_STREAM has gone.
    app_ended: bool,
    /// The peer sends nothing more, the application has everything and its FIN.
    peer_ended: bool,
    half_closed: HalfClosed,
    complete: bool,
}

impl Relay {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), RelayError>> {
        match self.step(cx) {
            Ok(false) => Poll::Pending,
            Ok(true) => {
                self.complete = true;
                Poll::Ready(Ok(()))
            }
            Err(why) => Poll::Ready(Err(why)),
        }
    }

    /// True: both sides have ended.
    fn step(&mut self, cx: &mut Context<'_>) -> Result<bool, RelayError> {
        self.tunnel.register(cx);
        let stopped = match self.tunnel.failure() {
            // "I need nothing more from you", RFC 9113 §8.1: an orderly end for whoever has all its bytes.
            Some(Failure::Reset(code::NO_ERROR)) => true,
            Some(Failure::Reset(code)) => return Err(RelayError::PeerReset(code)),
            Some(Failure::Tunnel(why)) => return Err(RelayError::Tunnel(why.to_string())),
            None => false,
        };
        let drained = self.feed_app(cx)?;
        if stopped {
            return Ok(drained);
        }
        self.feed_peer(cx)?;
        if self.app_ended != self.peer_ended
            && self.half_closed.poll(cx, self.counts.total()).is_ready()
        {
            return Err(RelayError::HalfClosedIdle);
        }
        Ok(self.app_ended && self.peer_ended)
    }

    /// True: nothing waits for the application.
    fn feed_app(&mut self, cx: &mut Context<'_>) -> Result<bool, RelayError> {
        if let Some(why) = self.tunnel.app_failure() {
            return Err(RelayError::App(why.into()));
        }
        if self
            .tunnel
            .poll_drain(cx, &self.app)
            .map_err(RelayError::App)?
            .is_pending()
        {
            return Ok(false);
        }
        if self.tunnel.remote_ended() && !self.peer_ended {
            self.peer_ended = true;
            if self.app_ended {
                return Ok(true); // the close that follows says it, too
            }
            // Fails on a socket that was reset: the next read says so.
            let _ = SockRef::from(&*self.app).shutdown(std::net::Shutdown::Write);
        }
        Ok(true)
    }

    fn feed_peer(&mut self, cx: &mut Context<'_>) -> Result<(), RelayError> {
        if self.app_ended {
            return Ok(());
        }
        match self.tunnel.poll_forward(cx, &self.app) {
            Poll::Pending => Ok(()),
            Poll::Ready(Ok(0)) => {
                self.app_ended = true;
                Ok(())
            }
            Poll::Ready(Ok(read)) => {
                self.counts.sent.set(self.counts.sent.get() + read as u64);
                // One helping per turn: the tunnel sends it, other streams have theirs, then it is our turn again.
                cx.waker().wake_by_ref();
                Ok(())
            }
            Poll::Ready(Err(why)) if why.kind() == io::ErrorKind::Interrupted => {
                cx.waker().wake_by_ref();
                Ok(())
            }
            Poll::Ready(Err(why)) => Err(RelayError::App(why)),
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        if !self.complete {
            reset_on_close(&self.app);
        }
    }
}
