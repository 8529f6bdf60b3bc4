//! From an application's socket into the tunnel: how much, when, and in whose turn.
//!
//! Owns fairness between streams and the size of a read; the layout of what was read is the outbox's.

use std::io::{self, IoSliceMut};
use std::rc::Rc;
use std::task::{Context, Poll};

use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::TcpStream;

use super::stream::StreamState;
use super::{OUTBOX_LIMIT, State, Tunnel};

/// One helping from an application that is alone on the tunnel.
const LONE_READ: usize = 256 << 10;
/// One helping where others wait too: what a small message may have to wait behind.
const SHARED_READ: usize = 64 << 10;
/// The first helping: most connections never say more at once. Fits into one record with its frame's header, so that it
/// is one plain read.
pub(super) const SMALL_READ: usize = (16 << 10) - 64;
/// What is read of an application that is expected to say nothing more.
const LAST_WORDS: usize = 1 << 10;
/// Helpings that one write gathers. With many busy streams, waiting for all of them delays the first: 8 instead of no
/// limit gives a fifth more requests per second at 128 connections, for the same CPU.
const GATHERED: u32 = 8;

impl Tunnel {
    pub(super) fn poll_forward(
        &self,
        cx: &mut Context<'_>,
        stream: &Rc<StreamState>,
        app: &TcpStream,
    ) -> Poll<io::Result<usize>> {
        loop {
            let Some(limit) = self.helping(stream) else {
                return Poll::Pending;
            };
            if !stream.ahead.borrow().is_empty() {
                return Poll::Ready(Ok(self.forward_ahead(stream, limit)));
            }
            if app.poll_read_ready(cx)?.is_pending() {
                return Poll::Pending;
            }
            let winds_up = stream.remote_end.get() && !stream.speaks_on.get();
            let forwarded = if winds_up {
                self.wind_up(stream, app, limit)
            } else {
                self.forward(stream, app, limit)
            };
            match forwarded {
                Err(why) if why.kind() == io::ErrorKind::WouldBlock => {}
                other => return Poll::Ready(other),
            }
        }
    }

    fn forward_ahead(&self, stream: &StreamState, limit: usize) -> usize {
        let mut ahead = stream.ahead.borrow_mut();
        let some = limit.min(ahead.len());
        let said = self.say(stream.id, &ahead[..some]);
        if said == ahead.len() {
            *ahead = Vec::new();
        } else {
            ahead.drain(..said);
        }
        said
    }

    /// How much may be read for this stream now. None: nothing; whatever changes that wakes the stream.
    fn helping(&self, stream: &Rc<StreamState>) -> Option<usize> {
        let state = self.state.borrow();
        let room = state.h2.send_room(stream.id);
        if room == 0 {
            return None;
        }
        if state.outbox.unsent() >= OUTBOX_LIMIT {
            if !stream.parked.replace(true) {
                self.parked.borrow_mut().push_back(stream.clone());
            }
            return None;
        }
        let alone = state.h2.open_streams() == 1;
        let fair = if alone { LONE_READ } else { SHARED_READ };
        Some(room.min(fair).min(stream.appetite.get()))
    }

    /// The peer has ended, and so most likely will the application, without another word. Then nobody waits to be told:
    /// a packet for that alone is the dearest part of a short connection.
    fn wind_up(&self, stream: &StreamState, app: &TcpStream, limit: usize) -> io::Result<usize> {
        let mut words = [0; LAST_WORDS];
        let room = limit.min(LAST_WORDS);
        let read = read_once(app, &mut [IoSliceMut::new(&mut words[..room])])?;
        if read == 0 {
            self.end_patiently(stream.id);
        } else {
            stream.speaks_on.set(true);
            self.say(stream.id, &words[..read]);
        }
        Ok(read)
    }

    /// One read from the application into DATA frames; an end becomes END_STREAM.
    fn forward(&self, stream: &StreamState, app: &TcpStream, limit: usize) -> io::Result<usize> {
        let mut state = self.state.borrow_mut();
        state.collect().map_err(io::Error::other)?;
        let State { h2, outbox, .. } = &mut *state;
        let max_frame = h2.max_frame_send();
        let header = |len| h2.data(stream.id, len, false);
        let read = outbox.read_from(limit, max_frame, |slices| read_once(app, slices), header)?;
        if read == 0 {
            let end = h2.data(stream.id, 0, true);
            outbox.push(&end).map_err(io::Error::other)?;
        }
        let next = if read == limit { limit * 4 } else { read };
        stream.appetite.set(next.clamp(SMALL_READ, LONE_READ));
        state.helpings += 1;
        if state.helpings >= GATHERED {
            let _ = state.flush(&self.tcp); // a failure lasts: the driver meets it again
        }
        drop(state);
        self.touch();
        Ok(read)
    }
}

/// Reads what is there. A read that was not filled has emptied the socket, so its readiness is cleared at once: that
/// saves the read that would only say so (tokio's own `poll_read` does the same).
pub(crate) fn read_once(tcp: &TcpStream, slices: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
    let room: usize = slices.iter().map(|slice| slice.len()).sum();
    let mut result = Ok(0);
    let emptied = tcp.try_io(Interest::READABLE, || {
        let socket = SockRef::from(tcp);
        result = match slices {
            [slice] => io::Read::read(&mut &*socket, slice), // recv costs the kernel less than recvmsg
            _ => io::Read::read_vectored(&mut &*socket, slices),
        };
        match &result {
            Ok(read) if *read > 0 && *read < room => Err(io::ErrorKind::WouldBlock.into()),
            Err(why) => Err(why.kind().into()),
            Ok(read) => Ok(*read),
        }
    });
    match (&result, emptied) {
        // try_io did not call us: tokio knows that nothing is there.
        (Ok(0), Err(why)) => Err(why),
        _ => result,
    }
}
