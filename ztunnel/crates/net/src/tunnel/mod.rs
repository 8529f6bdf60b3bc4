//! One HBONE connection: HTTP/2 in TLS on one TCP connection, driven and used on one thread.
//!
//! Owns the connection's state and what its users may do with it; `intake` receives, `forward` and `outbox` send,
//! `driver` runs them.
//! Knows nothing of pools, policies or routes.

mod driver;
mod first;
mod forward;
mod intake;
mod outbox;
mod request;
mod stream;

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::{Shutdown, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use socket2::SockRef;
use tokio::net::TcpStream;
use tokio::time::Instant;
use ztunnel_core::h2::{self, StreamId};
use ztunnel_core::ids::SpiffeId;

use crate::handshakes::Crowded;
use crate::identity::{Credentials, Lease};
use crate::tls::{Opener, Rekey, Secured};
use crate::verify::Peer;
pub(crate) use driver::drive;
pub use first::{FirstWords, Speaker};
pub(crate) use forward::read_once;
use outbox::Outbox;
pub(crate) use request::RequestError;
pub(crate) use stream::Failure;
pub use stream::{Incoming, Stream};
use stream::{StreamState, WakerSlot};

/// Unsent bytes of one tunnel above which applications are not read: what a stalled peer can make us hold.
const OUTBOX_LIMIT: usize = 1 << 20;
/// What an offender may still say, bytes.
const PARTING_READ: usize = 2 << 20;

/// Why serving a connection ended otherwise than by the peer's orderly close.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("the TLS handshake did not end within {0:?}")]
    HandshakeTimeout(Duration),
    #[error("TLS: {0}")]
    Tls(String),
    #[error("no certificate of ours: {0}")]
    Identity(String),
    #[error(transparent)]
    Crowded(#[from] Crowded),
    #[error("TLS: the peer does not speak TLS, and this port takes nothing else")]
    Plaintext,
    /// The peer broke the rules or ran out of our patience. `reason`: one of a few, for counting.
    #[error("tunnel: {why}")]
    Offence {
        reason: &'static str,
        why: String,
        peer: SpiffeId,
    },
    #[error("tunnel: {0}")]
    Tunnel(String),
}

impl ServeError {
    /// What is counted of a peer that was turned away; `None`: nobody's fault.
    pub fn reason(&self) -> Option<&'static str> {
        match self {
            Self::HandshakeTimeout(_) => Some("handshake_timeout"),
            Self::Tls(_) => Some("tls"),
            Self::Crowded(Crowded::Pending | Crowded::PendingFromThere) => {
                Some("handshakes_pending")
            }
            Self::Crowded(Crowded::TooFast | Crowded::TooFastFromThere) => Some("handshake_rate"),
            Self::Plaintext => Some("plaintext"),
            Self::Offence { reason, .. } => Some(reason),
            Self::Identity(_) | Self::Tunnel(_) => None,
        }
    }
}

pub(crate) struct Tunnel {
    tcp: TcpStream,
    pub(crate) peer: SpiffeId,
    pub(crate) peer_addr: SocketAddr,
    pub(crate) local_addr: SocketAddr,
    /// When either certificate ends, and with it the tunnel.
    expires: Instant,
    lease: Lease,
    state: RefCell<State>,
    streams: RefCell<HashMap<StreamId, Rc<StreamState>>>,
    /// Streams with something to send and no room in the outbox, first come first served.
    parked: RefCell<VecDeque<Rc<StreamState>>>,
    driver: WakerSlot,
    /// Something waits to be flushed.
    dirty: Cell<bool>,
    heard: Cell<bool>,
    settings_seen: Cell<bool>,
    /// Either side said GOAWAY.
    leaving: Cell<bool>,
    /// The peer's doing, if that ended the tunnel.
    offence: Cell<Option<&'static str>>,
    dead: RefCell<Option<Rc<str>>>,
}

struct State {
    h2: h2::Connection,
    outbox: Outbox,
    opener: Opener,
    rekey: Box<dyn Rekey>,
    /// The beginning of a record whose rest has not come.
    tail: Vec<u8>,
    /// The beginning of a handshake message whose rest has not come.
    message: Vec<u8>,
    /// KeyUpdates that came without much between them.
    hasty_updates: u32,
    records_since_update: u32,
    /// Since the last flush.
    helpings: u32,
    /// So many bytes of output, from its beginning, can wait a little for others to go with; see `patiently`.
    patient: usize,
    /// How often something was sent: tells what waits now from what waited before.
    sent: u32,
}

impl State {
    /// Control frames go before the payload that follows them.
    fn collect(&mut self) -> Result<(), String> {
        self.patient = 0;
        let waiting = self.h2.output();
        if waiting.is_empty() {
            return Ok(());
        }
        let pushed = self.outbox.push(waiting);
        waiting.clear();
        pushed
    }

    /// True: nothing waits any more.
    fn flush(&mut self, tcp: &TcpStream) -> io::Result<bool> {
        self.helpings = 0;
        if !self.outbox.is_empty() {
            self.sent = self.sent.wrapping_add(1);
        }
        self.outbox.flush(|bytes| tcp.try_write(bytes))
    }
}

impl Tunnel {
    /// `own`: what we showed.
    pub(crate) fn new(
        tcp: TcpStream,
        secured: Secured,
        config: h2::Config,
        own: &Credentials,
    ) -> io::Result<(Rc<Self>, Early)> {
        let peer = match config.role {
            h2::Role::Client => Peer::Server,
            h2::Role::Server => Peer::Client,
        };
        let lease = Lease::new(own, secured.peer_chain, peer);
        let state = State {
            h2: h2::Connection::new(config),
            outbox: Outbox::new(secured.sealer),
            opener: secured.opener,
            rekey: secured.rekey,
            tail: Vec::new(),
            message: Vec::new(),
            hasty_updates: 0,
            records_since_update: 0,
            helpings: 0,
            patient: 0,
            sent: 0,
        };
        let tunnel = Self {
            peer_addr: tcp.peer_addr()?,
            local_addr: tcp.local_addr()?,
            tcp,
            peer: secured.peer,
            expires: Instant::now() + lease.remaining(),
            lease,
            state: RefCell::new(state),
            streams: RefCell::default(),
            parked: RefCell::default(),
            driver: WakerSlot::default(),
            dirty: Cell::new(true),
            heard: Cell::new(false),
            settings_seen: Cell::new(false),
            leaving: Cell::new(false),
            offence: Cell::new(None),
            dead: RefCell::default(),
        };
        Ok((
            Rc::new(tunnel),
            Early {
                plaintext: secured.plaintext,
                ciphertext: secured.ciphertext,
            },
        ))
    }

    /// May a new stream be opened here?
    pub(crate) fn is_usable(&self) -> bool {
        !self.is_over() && self.state.borrow().h2.may_open()
    }

    /// No stream is open.
    pub(crate) fn is_idle(&self) -> bool {
        self.streams.borrow().is_empty()
    }

    /// No new stream will ever be opened here.
    pub(crate) fn is_over(&self) -> bool {
        self.leaving.get() || self.dead.borrow().is_some() || Instant::now() >= self.expires
    }

    /// The peer has spoken HTTP/2: it accepted our certificate.
    pub(crate) fn is_introduced(&self) -> bool {
        self.settings_seen.get()
    }

    pub(crate) fn offence(&self) -> Option<&'static str> {
        self.offence.get()
    }

    fn consumed(&self, id: StreamId, len: usize) {
        let mut state = self.state.borrow_mut();
        state.h2.consumed(id, len);
        let news = !state.h2.output().is_empty();
        drop(state);
        if news {
            self.touch();
        }
    }

    fn reset(&self, id: StreamId, code: u32) {
        self.state.borrow_mut().h2.reset(id, code);
        self.touch();
    }

    /// The user of the stream is done with it.
    fn forget(&self, id: StreamId, code: u32) {
        if self.streams.borrow_mut().remove(&id).is_none() || self.dead.borrow().is_some() {
            return;
        }
        if !self.state.borrow().h2.is_finished(id) {
            self.reset(id, code);
        }
        if self.leaving.get() {
            self.driver.wake();
        }
    }

    /// No new streams; what is open goes on. The driver ends when nothing is open any more.
    pub(crate) fn leave(&self) {
        if !self.leaving.replace(true) {
            self.state.borrow_mut().h2.go_away(h2::code::NO_ERROR);
            self.touch();
        }
    }

    /// What is trusted has changed: who would be refused today is cut.
    pub(crate) fn judge_again(&self) {
        if let Some(why) = self.lease.doubt() {
            self.die(&why);
        }
    }

    /// The end, for everybody at once. Only the first reason counts.
    pub(crate) fn die(&self, why: &str) {
        if self.dead.borrow().is_some() {
            return;
        }
        let why: Rc<str> = why.into();
        *self.dead.borrow_mut() = Some(why.clone());
        for (id, stream) in self.streams.take() {
            // A stream that has ended both ways has all it needs: what waits for the application is here.
            if !self.state.borrow().h2.is_finished(id) {
                stream.fail(Failure::Tunnel(why.clone()));
            }
        }
        self.parked.borrow_mut().clear();
        // Streams keep the socket alive until their relays have noticed; the peer should not have to wait for that.
        let how = match self.offence.get() {
            Some(_) => Shutdown::Write, // see `part`
            None => Shutdown::Both,
        };
        let _ = SockRef::from(&self.tcp).shutdown(how);
        self.driver.wake();
    }

    /// Reads a little of what an offender has already sent. Closing with that unread would make the kernel answer with
    /// RST, and RST destroys the GOAWAY on its way.
    pub(crate) async fn part(&self) {
        let (mut ignored, mut left) = (vec![0; 64 << 10], PARTING_READ);
        while left > 0 {
            let ready = self.tcp.readable().await;
            match ready.and_then(|()| self.tcp.try_read(&mut ignored)) {
                Err(why) if why.kind() == io::ErrorKind::WouldBlock => {}
                Ok(read @ 1..) => left = left.saturating_sub(read),
                Ok(0) | Err(_) => return,
            }
        }
    }

    /// Something waits to be sent: the driver's next turn, after everything that is ready now, sends it in one go.
    fn touch(&self) {
        if !self.dirty.replace(true) {
            self.driver.wake();
        }
    }
}

/// What arrived together with the end of the handshake.
pub(crate) struct Early {
    plaintext: Vec<u8>,
    ciphertext: Vec<u8>,
}
