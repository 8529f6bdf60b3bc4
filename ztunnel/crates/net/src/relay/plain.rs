//! Between two sockets, for what goes without a tunnel.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{self, IoSliceMut};
use std::rc::Rc;
use std::task::{Context, Poll};

use socket2::SockRef;
use tokio::net::TcpStream;

use super::splice::Pipe;
use super::{Bytes2, HalfClosed, RelayError, reset_on_close};
use crate::tunnel::read_once;

/// One helping. Who fills it is given a pipe.
const READ: usize = 256 << 10;
/// Below it a pipe costs more than a copy.
const SMALL: usize = 32 << 10;

thread_local! {
    /// One per thread, in use only between a read and the write behind it.
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Carries bytes until both ends have ended; a half-closed connection goes on. Otherwise, and when the future is
/// dropped, both ends get a RST. `counts.sent`: from `a` to `b`.
pub async fn relay_plain(
    a: TcpStream,
    b: TcpStream,
    counts: &Rc<Bytes2>,
) -> Result<(), RelayError> {
    relay_both(a, b, Vec::new(), counts, None).await
}

/// `relay_plain` where both ends are ours to count: `counts` as `a` sees it, `other` as `b` does. `first`: was read from
/// `a` already.
pub async fn relay_both(
    a: TcpStream,
    b: TcpStream,
    first: Vec<u8>,
    counts: &Bytes2,
    other: Option<&Bytes2>,
) -> Result<(), RelayError> {
    for end in [&a, &b] {
        // Fails only on a socket that is already gone, which the first read will say.
        let _ = end.set_nodelay(true);
    }
    let mut relay = Relay {
        a,
        b,
        there: Way {
            kept: first.into(),
            ..Way::default()
        },
        back: Way::default(),
        complete: false,
    };
    let mut half_closed = HalfClosed::default();
    std::future::poll_fn(|cx| {
        let ended = relay.poll(cx, counts, &mut half_closed);
        if let Some(other) = other {
            other.sent.set(counts.received.get());
            other.received.set(counts.sent.get());
        }
        ended
    })
    .await
}

struct Relay {
    a: TcpStream,
    b: TcpStream,
    there: Way,
    back: Way,
    complete: bool,
}

/// One direction. `kept` and then `pipe` hold what the reader has not taken; nothing more is read until it has.
#[derive(Default)]
struct Way {
    kept: VecDeque<u8>,
    /// As long as helpings are large.
    pipe: Option<Pipe>,
    ended: bool,
}

/// Which of the two sockets broke.
enum Broken {
    Reader(io::Error),
    Writer(io::Error),
}

impl Relay {
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        counts: &Bytes2,
        half_closed: &mut HalfClosed,
    ) -> Poll<Result<(), RelayError>> {
        let there = self
            .there
            .poll(cx, &self.a, &self.b)
            .map_err(|broken| match broken {
                Broken::Reader(why) => RelayError::App(why),
                Broken::Writer(why) => RelayError::Peer(why),
            })?;
        counts.sent.set(counts.sent.get() + there);
        let back = self
            .back
            .poll(cx, &self.b, &self.a)
            .map_err(|broken| match broken {
                Broken::Reader(why) => RelayError::Peer(why),
                Broken::Writer(why) => RelayError::App(why),
            })?;
        counts.received.set(counts.received.get() + back);
        if self.there.ended && self.back.ended {
            self.complete = true;
            return Poll::Ready(Ok(()));
        }
        if self.there.ended != self.back.ended && half_closed.poll(cx, counts.total()).is_ready() {
            return Poll::Ready(Err(RelayError::HalfClosedIdle));
        }
        Poll::Pending
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        if !self.complete {
            reset_on_close(&self.a);
            reset_on_close(&self.b);
        }
    }
}

impl Way {
    /// Moves at most one large helping; returns how much was written. The task is woken when there is more to do.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &TcpStream,
        to: &TcpStream,
    ) -> Result<u64, Broken> {
        let mut written = 0;
        while !self.ended {
            if self.holds() {
                match self.flush(cx, to).map_err(Broken::Writer)? {
                    Some(some) => written += some,
                    None => return Ok(written),
                }
                continue;
            }
            match from.poll_read_ready(cx) {
                Poll::Pending => return Ok(written),
                Poll::Ready(ready) => ready.map_err(Broken::Reader)?,
            }
            let (read, passed_on) = self.carry(from, to)?;
            written += passed_on;
            if read >= READ {
                cx.waker().wake_by_ref(); // others have their turn first
                return Ok(written);
            }
        }
        Ok(written)
    }

    fn holds(&self) -> bool {
        !self.kept.is_empty() || self.pipe.as_ref().is_some_and(|pipe| !pipe.is_empty())
    }

    /// None: `to` takes nothing now.
    fn flush(&mut self, cx: &mut Context<'_>, to: &TcpStream) -> io::Result<Option<u64>> {
        if to.poll_write_ready(cx)?.is_pending() {
            return Ok(None);
        }
        if self.kept.is_empty() {
            let drained = self.pipe.as_mut().map(|pipe| pipe.drain(to));
            return or_nothing(drained.unwrap_or(Ok(0))).map(|some| Some(some as u64));
        }
        let some = or_nothing(to.try_write(self.kept.as_slices().0))?;
        self.kept.drain(..some);
        if self.kept.is_empty() {
            self.kept = VecDeque::new();
        }
        Ok(Some(some as u64))
    }

    /// One read, and one write of what it brought. Returns how much each moved. Nothing is held before.
    fn carry(&mut self, from: &TcpStream, to: &TcpStream) -> Result<(usize, u64), Broken> {
        let Some(pipe) = &mut self.pipe else {
            return self.carry_through_us(from, to);
        };
        let read = match pipe.fill(from) {
            Ok(0) => {
                self.end(to);
                return Ok((0, 0));
            }
            other => or_nothing(other).map_err(Broken::Reader)?,
        };
        let written = match read {
            0 => 0,
            _ => or_nothing(pipe.drain(to)).map_err(Broken::Writer)?,
        };
        if pipe.is_empty() && read < SMALL {
            self.pipe = None;
        }
        Ok((read, written as u64))
    }

    fn carry_through_us(
        &mut self,
        from: &TcpStream,
        to: &TcpStream,
    ) -> Result<(usize, u64), Broken> {
        SCRATCH.with_borrow_mut(|scratch| {
            scratch.resize(READ, 0);
            let read = match read_once(from, &mut [IoSliceMut::new(scratch)]) {
                Ok(0) => {
                    self.end(to);
                    return Ok((0, 0));
                }
                other => or_nothing(other).map_err(Broken::Reader)?,
            };
            if read == 0 {
                return Ok((0, 0));
            }
            let written = or_nothing(to.try_write(&scratch[..read])).map_err(Broken::Writer)?;
            self.kept.extend(&scratch[written..read]);
            if read == READ {
                self.pipe = Pipe::new().ok(); // without one it goes on like this
            }
            Ok((read, written as u64))
        })
    }

    fn end(&mut self, to: &TcpStream) {
        self.ended = true;
        // Fails on a socket that was reset: the next read from it says so.
        let _ = SockRef::from(to).shutdown(std::net::Shutdown::Write);
    }
}

fn or_nothing(result: io::Result<usize>) -> io::Result<usize> {
    match result {
        Err(why)
            if matches!(
                why.kind(),
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
            ) =>
        {
            Ok(0)
        }
        other => other,
    }
}
