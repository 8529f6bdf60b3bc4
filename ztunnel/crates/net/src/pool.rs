//! The tunnels of one worker: those we opened, shared by everybody with the same key, and those we serve.
//!
//! Owns which tunnel a stream goes into, when a new one is dialled and what is given up when; not routes, not policies.

mod terms;

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;

use socket2::SockRef;
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use ztunnel_core::h2::{Config, Headers, Role};
use ztunnel_core::ids::SpiffeId;

use crate::distance;
use crate::handshakes::{Allowed, Handshakes};
use crate::identity::Identities;
use crate::tls;
use crate::tunnel::{Early, Incoming, RequestError, ServeError, Speaker, Stream, Tunnel, drive};

pub use terms::{Limits, OpenError};

/// New tunnels one stream waits for, each filled by others before it comes to its turn.
const MAX_DIALS: usize = 16;

/// Who shares a tunnel: same identity, same expectation, same place, same pod.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    pub from: SpiffeId,
    pub want: Vec<SpiffeId>,
    pub dial: SocketAddr,
    /// The pod's own address: two pods never share a tunnel.
    pub source: IpAddr,
}

/// A stream the peer answered with 200.
pub struct Opened {
    pub stream: Stream,
    /// Verified by the handshake; one of `Key::want`.
    pub peer: SpiffeId,
    /// Our end of the tunnel's TCP connection.
    pub local: SocketAddr,
    pub headers: Headers,
    /// How much of the client's first words has been told; the rest comes before anything else.
    pub told: usize,
}

/// Makes the socket of a new tunnel: in the pod's namespace, marked, bound, non-blocking, not connected.
pub type Dialer<'a> = &'a dyn Fn() -> io::Result<socket2::Socket>;

type Attempt = watch::Receiver<Option<Result<Rc<Tunnel>, OpenError>>>;

#[derive(Default)]
struct Slot {
    tunnels: Vec<Rc<Tunnel>>,
    dialling: Option<Attempt>,
}

/// Every tunnel of one worker. Not `Send`: all of it runs on one `LocalSet`.
pub struct Tunnels {
    pub(crate) identities: Arc<Identities>,
    pub(crate) limits: Limits,
    pool: RefCell<HashMap<Key, Slot>>,
    served: RefCell<Vec<std::rc::Weak<Tunnel>>>,
    handshakes: Arc<Handshakes>,
}

impl Tunnels {
    pub fn new(identities: Arc<Identities>, limits: Limits) -> Rc<Self> {
        Self::sharing(identities, limits, Handshakes::new(Allowed::default()))
    }

    /// `handshakes`: of all workers of the node.
    pub fn sharing(
        identities: Arc<Identities>,
        limits: Limits,
        handshakes: Arc<Handshakes>,
    ) -> Rc<Self> {
        Rc::new(Self {
            identities,
            limits,
            pool: RefCell::default(),
            served: RefCell::default(),
            handshakes,
        })
    }

    /// A CONNECT stream to `authority`, on a tunnel of this key or a new one. Concurrent first calls share one attempt.
    ///
    /// A pooled tunnel that turns out dead before it answered is replaced once, unless an application may have heard the
    /// client's first words: the worst a second CONNECT can do is to open a connection that is closed again.
    pub async fn open(
        self: &Rc<Self>,
        key: Key,
        dialer: Dialer<'_>,
        authority: &str,
        headers: &[(&str, &str)],
        mut speaker: Option<Speaker<'_>>,
    ) -> Result<Opened, OpenError> {
        let mut may_retry = true;
        for _ in 0..MAX_DIALS {
            let (tunnel, fresh) = self.checkout(&key, dialer).await?;
            let asking = tunnel.request(authority, headers, speaker.as_mut());
            let request = timeout(self.limits.answer, asking);
            match request
                .await
                .map_err(|_| OpenError::Timeout("answer to CONNECT"))?
            {
                Ok((stream, headers, told)) => {
                    let (peer, local) = (tunnel.peer.clone(), tunnel.local_addr);
                    return Ok(Opened {
                        stream,
                        peer,
                        local,
                        headers,
                        told,
                    });
                }
                Err(RequestError::Full) => {}
                Err(RequestError::Unanswered(_)) if may_retry && !fresh => may_retry = false,
                Err(RequestError::Lost(_))
                    if may_retry && !fresh && speaker.as_ref().is_none_or(Speaker::may_repeat) =>
                {
                    may_retry = false;
                }
                Err(RequestError::Unanswered(why) | RequestError::Lost(why)) => {
                    return Err(match tunnel.is_introduced() {
                        true => OpenError::H2(why),
                        false => OpenError::Tls(why),
                    });
                }
                Err(RequestError::App(why)) => return Err(OpenError::App(why)),
                Err(RequestError::Reset(code)) => {
                    return Err(OpenError::H2(format!(
                        "the peer reset the stream (HTTP/2 code {code})"
                    )));
                }
                Err(RequestError::Status(status)) => return Err(OpenError::Status(status)),
            }
        }
        Err(OpenError::H2(
            "the peer accepts tunnels but no streams in them".to_owned(),
        ))
    }

    /// A tunnel to open a stream on, and whether it was dialled just now, for this caller or for one before it.
    async fn checkout(
        self: &Rc<Self>,
        key: &Key,
        dialer: Dialer<'_>,
    ) -> Result<(Rc<Tunnel>, bool), OpenError> {
        if let Some(tunnel) = self.usable(key) {
            return Ok((tunnel, false));
        }
        let mut attempt = self.attempt(key, dialer)?;
        let outcome = attempt
            .wait_for(Option::is_some)
            .await
            .map(|outcome| outcome.clone());
        let tunnel = outcome
            .ok()
            .flatten()
            .unwrap_or_else(|| Err(OpenError::H2("it was cut".to_owned())))?;
        Ok((tunnel, true))
    }

    fn usable(&self, key: &Key) -> Option<Rc<Tunnel>> {
        let mut pool = self.pool.borrow_mut();
        let slot = pool.get_mut(key)?;
        slot.tunnels.retain(|tunnel| !tunnel.is_over());
        // A peer that allows no streams at all would make us hoard a tunnel for each attempt.
        let useless = slot
            .tunnels
            .iter()
            .filter(|t| t.is_idle() && !t.is_usable());
        useless.for_each(|tunnel| tunnel.leave());
        slot.tunnels
            .iter()
            .find(|tunnel| tunnel.is_usable())
            .cloned()
    }

    /// The attempt that is under way, or a new one. It does not end with the caller: others may wait for it too.
    fn attempt(self: &Rc<Self>, key: &Key, dialer: Dialer<'_>) -> Result<Attempt, OpenError> {
        let under_way = self
            .pool
            .borrow()
            .get(key)
            .and_then(|slot| slot.dialling.clone());
        if let Some(attempt) = under_way.filter(|attempt| attempt.has_changed().is_ok()) {
            return Ok(attempt);
        }
        let socket = dialer().map_err(OpenError::Connect)?;
        let (outcome, attempt) = watch::channel(None);
        self.pool
            .borrow_mut()
            .entry(key.clone())
            .or_default()
            .dialling = Some(attempt.clone());
        let (tunnels, key) = (self.clone(), key.clone());
        tokio::task::spawn_local(async move {
            let dialled = tunnels.dial(&key, socket).await;
            let result = dialled
                .as_ref()
                .map(|(tunnel, _)| tunnel.clone())
                .map_err(OpenError::clone);
            tunnels.settle(&key, result.as_ref().ok());
            outcome.send_replace(Some(result));
            if let Ok((tunnel, early)) = dialled {
                let idle = tunnels.limits.pool_idle;
                // Whoever has a stream on the tunnel learns the reason from the stream.
                let _ = drive(tunnel.clone(), early, Role::Client, idle, &|_| {}).await;
                tunnels.retire(&key);
            }
        });
        Ok(attempt)
    }

    fn settle(&self, key: &Key, tunnel: Option<&Rc<Tunnel>>) {
        if let Some(slot) = self.pool.borrow_mut().get_mut(key) {
            slot.dialling = None;
            slot.tunnels.extend(tunnel.cloned());
        }
        self.retire(key);
    }

    /// A key without tunnels is forgotten: the pool is as large as what is in use.
    fn retire(&self, key: &Key) {
        let mut pool = self.pool.borrow_mut();
        if let Some(slot) = pool.get_mut(key) {
            slot.tunnels.retain(|tunnel| !tunnel.is_over());
            if slot.tunnels.is_empty() && slot.dialling.is_none() {
                pool.remove(key);
            }
        }
    }

    async fn dial(
        &self,
        key: &Key,
        socket: socket2::Socket,
    ) -> Result<(Rc<Tunnel>, Early), OpenError> {
        let credentials = self
            .identities
            .ready(&key.from)
            .await
            .map_err(OpenError::Identity)?;
        let connecting = TcpSocket::from_std_stream(socket.into()).connect(key.dial);
        let connected = timeout(self.limits.connect, connecting).await;
        let mut tcp = connected
            .map_err(|_| OpenError::Timeout("TCP connection"))?
            .map_err(OpenError::Connect)?;
        let window = self.tune(&tcp).map_err(OpenError::Connect)?;
        let shaking = tls::connect(&mut tcp, credentials.configs.client_for(&key.want));
        let shaken = timeout(self.limits.handshake, shaking).await;
        let secured = shaken
            .map_err(|_| OpenError::Timeout("TLS handshake"))?
            .map_err(OpenError::Tls)?;
        let config = Config {
            max_streams: self.limits.streams_per_tunnel,
            stream_window: window,
            ..Config::client()
        };
        Tunnel::new(tcp, secured, config, &credentials).map_err(OpenError::Connect)
    }

    /// Serves one accepted connection until it ends; each request goes to `on_request`. Dropping the future cuts the
    /// tunnel and resets its streams.
    pub async fn serve(
        self: &Rc<Self>,
        tcp: TcpStream,
        me: &SpiffeId,
        on_request: Rc<dyn Fn(Incoming)>,
    ) -> Result<(), ServeError> {
        let (tunnel, early) = self.admit(tcp, me).await?;
        self.remember(&tunnel);
        let served = drive(
            tunnel.clone(),
            early,
            Role::Server,
            self.limits.pool_idle,
            &*on_request,
        )
        .await;
        let Err(why) = served else { return Ok(()) };
        let Some(reason) = tunnel.offence() else {
            return Err(ServeError::Tunnel(why));
        };
        let _ = timeout(tls::PARTING, tunnel.part()).await;
        let peer = tunnel.peer.clone();
        Err(ServeError::Offence { reason, why, peer })
    }

    async fn admit(
        &self,
        mut tcp: TcpStream,
        me: &SpiffeId,
    ) -> Result<(Rc<Tunnel>, Early), ServeError> {
        let broken = |why: io::Error| ServeError::Tunnel(format!("the connection broke: {why}"));
        let source = tcp.peer_addr().map_err(broken)?.ip().to_canonical();
        let deadline = Instant::now() + self.limits.handshake;
        let (_place, wait) = self.handshakes.begin(source, self.limits.handshake)?;
        if !wait.is_zero() {
            sleep(wait).await;
        }
        let window = self.tune(&tcp).map_err(broken)?;
        let credentials = self
            .identities
            .ready(me)
            .await
            .map_err(ServeError::Identity)?;
        let shaking = tls::accept(&mut tcp, credentials.configs.server.clone());
        let shaken = timeout_at(deadline, shaking).await;
        let secured = shaken.map_err(|_| ServeError::HandshakeTimeout(self.limits.handshake))?;
        let secured = secured.map_err(|why| {
            if why == tls::PLAINTEXT {
                ServeError::Plaintext
            } else {
                ServeError::Tls(why)
            }
        })?;
        let config = Config {
            stream_window: window,
            ..Config::server()
        };
        Tunnel::new(tcp, secured, config, &credentials).map_err(broken)
    }

    /// Returns the window for its streams.
    fn tune(&self, tcp: &TcpStream) -> io::Result<u32> {
        tcp.set_nodelay(true)?;
        SockRef::from(tcp).set_tcp_user_timeout(Some(self.limits.unread))?;
        Ok(distance::window(tcp))
    }

    /// One that no key leads to, so that it is drained and judged with the others.
    pub(crate) fn remember(&self, tunnel: &Rc<Tunnel>) {
        let mut served = self.served.borrow_mut();
        if served.len() == served.capacity() {
            served.retain(|tunnel| tunnel.strong_count() > 0); // amortised: only when the list would grow
        }
        served.push(Rc::downgrade(tunnel));
    }

    /// GOAWAY on every tunnel: open streams go on, new ones are refused; each tunnel ends with its last stream.
    pub fn drain(&self) {
        for slot in self.pool.borrow().values() {
            slot.tunnels.iter().for_each(|tunnel| tunnel.leave());
        }
        self.served
            .borrow()
            .iter()
            .filter_map(std::rc::Weak::upgrade)
            .for_each(|tunnel| tunnel.leave());
    }

    /// What is trusted has changed: tunnels with peers that would be refused today are cut, in both directions.
    pub fn judge_again(&self) {
        for slot in self.pool.borrow().values() {
            slot.tunnels.iter().for_each(|tunnel| tunnel.judge_again());
        }
        let served: Vec<_> = self
            .served
            .borrow()
            .iter()
            .filter_map(std::rc::Weak::upgrade)
            .collect();
        served.iter().for_each(|tunnel| tunnel.judge_again());
    }

    /// Cuts our tunnels to others where `which` says so (a pod has left, an identity was taken away).
    pub fn cut(&self, which: &dyn Fn(&Key) -> bool) {
        for (key, slot) in self.pool.borrow().iter() {
            if which(key) {
                slot.tunnels
                    .iter()
                    .for_each(|tunnel| tunnel.die("it was cut"));
            }
        }
    }
}
