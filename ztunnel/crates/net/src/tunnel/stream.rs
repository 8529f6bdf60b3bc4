//! One CONNECT stream as its two users see it: the tunnel that fills it, the relay that empties it.
//!
//! Owns the bytes that the application has not taken yet, and what became of the stream. Both users run on one thread.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::ops::Range;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use socket2::SockRef;
use tokio::net::TcpStream;
use ztunnel_core::h2::{Headers, RequestHead, StreamId, code};
use ztunnel_core::ids::SpiffeId;

use super::{RequestError, Tunnel};
use crate::relay::Bytes2;

/// A piece of payload by its place in the bytes of one read.
pub(super) type Segment = (StreamId, Range<usize>);

/// Segments of one write to an application.
const GATHER: usize = 64;
/// Less than what a client of ours says before it has an answer.
const FEW_WORDS: usize = 4 << 10;
/// An emptied queue larger than this is given back.
const KEEP_QUEUE: usize = 4 << 10;

/// Who is to be woken; at most one task.
#[derive(Default)]
pub(super) struct WakerSlot(RefCell<Option<Waker>>);

impl WakerSlot {
    pub(super) fn set(&self, waker: &Waker) {
        let mut slot = self.0.borrow_mut();
        if !slot.as_ref().is_some_and(|old| old.will_wake(waker)) {
            *slot = Some(waker.clone());
        }
    }

    pub(super) fn wake(&self) {
        if let Some(waker) = &*self.0.borrow() {
            waker.wake_by_ref();
        }
    }
}

/// How a stream ended before its time.
#[derive(Clone, Debug)]
pub(crate) enum Failure {
    /// The peer reset it with this code.
    Reset(u32),
    /// The tunnel is gone, for this reason.
    Tunnel(Rc<str>),
}

pub(crate) struct StreamState {
    pub(super) id: StreamId,
    /// Where payload goes at once, as long as nothing waits in `inbox`.
    pub(super) app: RefCell<Option<(Rc<TcpStream>, Rc<Bytes2>)>>,
    pub(super) inbox: RefCell<VecDeque<u8>>,
    /// What goes to the peer before anything else is read from the application.
    pub(super) ahead: RefCell<Vec<u8>>,
    pub(super) remote_end: Cell<bool>,
    pub(super) failure: RefCell<Option<Failure>>,
    pub(super) app_failure: Cell<Option<io::ErrorKind>>,
    /// The application has been written to, or its socket was full.
    pub(super) tried: Cell<bool>,
    /// The application went on speaking after the peer's end.
    pub(super) speaks_on: Cell<bool>,
    pub(super) response: RefCell<Option<(u16, Headers)>>,
    pub(super) waker: WakerSlot,
    /// Waits in the tunnel's line for room in the outbox.
    pub(super) parked: Cell<bool>,
    /// How much to ask of the application's socket; follows what it had the last time.
    pub(super) appetite: Cell<usize>,
}

impl StreamState {
    pub(super) fn new(id: StreamId) -> Rc<Self> {
        Rc::new(Self {
            id,
            app: RefCell::default(),
            inbox: RefCell::default(),
            ahead: RefCell::default(),
            remote_end: Cell::new(false),
            failure: RefCell::default(),
            app_failure: Cell::new(None),
            tried: Cell::new(false),
            speaks_on: Cell::new(false),
            response: RefCell::default(),
            waker: WakerSlot::default(),
            parked: Cell::new(false),
            appetite: Cell::new(super::forward::SMALL_READ),
        })
    }

    pub(super) fn fail(&self, why: Failure) {
        self.failure.borrow_mut().get_or_insert(why);
        self.waker.wake();
    }

    /// Payload that lies in `bytes` at `ranges`: to the application as far as it takes it, the rest into the queue.
    /// Returns how much the application took.
    pub(super) fn deliver(&self, bytes: &[u8], ranges: &[Segment]) -> usize {
        let written = self.write_through(bytes, ranges);
        let mut inbox = self.inbox.borrow_mut();
        let mut skip = written;
        for (_, range) in ranges {
            let passed = skip.min(range.len());
            skip -= passed;
            inbox.extend(&bytes[range.start + passed..range.end]);
        }
        if !inbox.is_empty() {
            self.waker.wake();
        }
        written
    }

    fn write_through(&self, bytes: &[u8], ranges: &[Segment]) -> usize {
        let app = self.app.borrow();
        let Some((tcp, counts)) = &*app else { return 0 };
        if !self.inbox.borrow().is_empty() || self.app_failure.get().is_some() {
            return 0;
        }
        let mut total = 0;
        for group in ranges.chunks(GATHER) {
            let mut slices = [IoSlice::new(&[]); GATHER];
            slices
                .iter_mut()
                .zip(group)
                .for_each(|(slice, (_, range))| *slice = IoSlice::new(&bytes[range.clone()]));
            let written = self.write(tcp, &slices[..group.len()]);
            total += written;
            if written < group.iter().map(|(_, range)| range.len()).sum() {
                break;
            }
        }
        counts.received.set(counts.received.get() + total as u64);
        total
    }

    /// A failed write is noted for the relay, which knows what it means for the connection.
    fn write(&self, tcp: &TcpStream, slices: &[IoSlice<'_>]) -> usize {
        let written = match slices {
            [slice] => tcp.try_write(slice), // send costs the kernel less than sendmsg
            _ => tcp.try_write_vectored(slices),
        };
        match written {
            Ok(written) => written,
            Err(why) if why.kind() == io::ErrorKind::WouldBlock => 0,
            Err(why) => {
                self.app_failure.set(Some(why.kind()));
                self.waker.wake();
                0
            }
        }
    }
}

/// One open CONNECT stream. Dropping it resets it, unless both sides have ended.
pub struct Stream {
    pub(super) tunnel: Rc<Tunnel>,
    pub(super) state: Rc<StreamState>,
}

impl Stream {
    /// From now on the tunnel writes payload to `app` by itself and counts it in `counts.received`.
    pub(crate) fn attach(&self, app: Rc<TcpStream>, counts: Rc<Bytes2>) {
        *self.state.app.borrow_mut() = Some((app, counts));
    }

    /// `bytes` were read from the application and have not been sent.
    pub fn begin_with(&self, bytes: Vec<u8>) {
        *self.state.ahead.borrow_mut() = bytes;
    }

    pub(super) fn say(&self, bytes: &[u8]) -> usize {
        self.tunnel.say(self.state.id, bytes)
    }

    /// Everything that happens to the stream wakes this task.
    pub(crate) fn register(&self, cx: &Context<'_>) {
        self.state.waker.set(cx.waker());
    }

    pub(crate) fn failure(&self) -> Option<Failure> {
        self.state.failure.borrow().clone()
    }

    pub(crate) fn app_failure(&self) -> Option<io::ErrorKind> {
        self.state.app_failure.get()
    }

    /// The peer's answer to our request.
    pub(super) fn poll_answer(
        &self,
        cx: &Context<'_>,
    ) -> Poll<Result<(u16, Headers), RequestError>> {
        self.register(cx);
        if let Some(answer) = self.state.response.take() {
            return Poll::Ready(Ok(answer));
        }
        Poll::Ready(Err(match self.failure() {
            None => return Poll::Pending,
            Some(Failure::Reset(code::REFUSED_STREAM)) => {
                RequestError::Unanswered("the peer refused the stream".to_owned())
            }
            Some(Failure::Reset(code)) => RequestError::Reset(code),
            Some(Failure::Tunnel(why)) => RequestError::Lost(why.to_string()),
        }))
    }

    /// Hands the application what waits for it. Ready: nothing waits.
    pub(crate) fn poll_drain(&self, cx: &mut Context<'_>, app: &TcpStream) -> Poll<io::Result<()>> {
        while !self.state.inbox.borrow().is_empty() {
            let ready = app.poll_write_ready(cx)?.is_ready();
            if self.state.tried.replace(true) && !ready {
                return Poll::Pending;
            }
            let taken = {
                let inbox = self.state.inbox.borrow();
                let (first, _) = inbox.as_slices(); // seldom in two parts; send costs the kernel less than sendmsg
                let written = if ready {
                    app.try_write(first)
                } else {
                    // A new socket takes something before the event loop has heard that it does.
                    SockRef::from(app).send(first)
                };
                match written {
                    Err(why) if why.kind() == io::ErrorKind::WouldBlock => continue,
                    other => other?,
                }
            };
            self.taken(taken);
        }
        Poll::Ready(Ok(()))
    }

    fn taken(&self, len: usize) {
        let mut inbox = self.state.inbox.borrow_mut();
        inbox.drain(..len);
        if inbox.is_empty() && inbox.capacity() > KEEP_QUEUE {
            *inbox = VecDeque::new();
        }
        if let Some((_, counts)) = &*self.state.app.borrow() {
            counts.received.set(counts.received.get() + len as u64);
        }
        self.tunnel.consumed(self.state.id, len);
    }

    /// The peer sends nothing more.
    pub(crate) fn remote_ended(&self) -> bool {
        self.state.remote_end.get()
    }

    /// Carries one helping from the application to the peer. Ready(n): so much went; 0: it sends nothing more, and the
    /// peer has been told. Pending: nothing to carry, or no room; the task is woken when that changes.
    pub(crate) fn poll_forward(
        &self,
        cx: &mut Context<'_>,
        app: &TcpStream,
    ) -> Poll<io::Result<usize>> {
        self.tunnel.poll_forward(cx, &self.state, app)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        *self.state.app.borrow_mut() = None;
        self.tunnel.forget(self.state.id, code::CANCEL);
    }
}

/// A request that waits for its answer. Dropping it resets the stream.
pub struct Incoming {
    pub head: RequestHead,
    /// Verified by the handshake.
    pub peer: SpiffeId,
    pub peer_addr: SocketAddr,
    pub local_addr: SocketAddr,
    pub(super) stream: Stream,
}

impl Incoming {
    /// Resolves when the peer does not wait for the answer any more, with why.
    pub async fn given_up(&self) -> String {
        let gone = std::future::poll_fn(|cx| {
            self.stream.register(cx);
            self.stream.failure().map_or(Poll::Pending, Poll::Ready)
        });
        match gone.await {
            Failure::Reset(_) => "the peer gave the request up before its answer".to_owned(),
            Failure::Tunnel(why) => format!("the tunnel ended before the answer: {why}"),
        }
    }

    /// Answers 200: at once, or along with the application's answer to what the client has said already.
    pub fn accept(self, headers: &[(&str, &str)]) -> Stream {
        let Stream { tunnel, state } = &self.stream;
        // Who has much to say waits for the answer, to say the rest.
        let may_wait = (1..FEW_WORDS).contains(&state.inbox.borrow().len());
        if may_wait {
            tunnel.respond_patiently(state.id, headers);
        } else {
            tunnel.respond(state.id, 200, headers, false);
        }
        self.stream
    }

    /// Answers with an error status and ends the stream.
    pub fn refuse(self, status: u16) {
        let Stream { tunnel, state } = &self.stream;
        tunnel.respond(state.id, status, &[], true);
        // RFC 9113 §8.1: a complete answer to an incomplete request, then a reset without error.
        tunnel.forget(state.id, code::NO_ERROR);
    }
}
