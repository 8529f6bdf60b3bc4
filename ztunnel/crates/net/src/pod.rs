//! A pod that is served here, and the accept loops of its listeners. Owns who accepts and which worker gets the
//! connection; not what is done with it (`outbound`, `inbound`).

use crate::ahead::Ahead;
use crate::config::Config;
use crate::dataplane::Who;
use crate::dns;
use crate::log::{Level, Line};
use crate::netns::{self, NetNs};
use crate::runtime::{Load, Worker};
use crate::sockets::Heirlooms;
use crate::tunnel::{FirstWords, Speaker};
use crate::{inbound, outbound};
use socket2::{SockAddr, SockRef, Socket};
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::task::spawn_local;
use tokio::time::{sleep, timeout};
use ztunnel_core::addr::{HBONE_PORT, INBOUND_PORT, OUTBOUND_PORT, canonical};
use ztunnel_core::ids::SpiffeId;
use ztunnel_core::tables::{Tables, Workload};

const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub struct Pod {
    /// Distinguishes two enrolments of one uid.
    pub number: u64,
    pub uid: Arc<str>,
    pub name: String,
    pub namespace: String,
    pub service_account: String,
    pub netns: NetNs,
    /// Its addresses in a namespace that it shares; empty: every address of the namespace is its own.
    pub own: Vec<IpAddr>,
    /// Set before its connections are cut: what is still on its way to a worker must not begin.
    pub gone: AtomicBool,
    /// Search domains of its resolver, besides those that the cluster gives.
    pub search: Vec<Box<str>>,
    pub dns: dns::Status,
    pub heirlooms: Heirlooms,
    ahead: Ahead,
    /// An address that the namespace was seen to have.
    address: OnceLock<IpAddr>,
}

impl Pod {
    pub fn new(number: u64, who: Who, netns: NetNs, config: &Config) -> Self {
        let Who {
            uid,
            name,
            namespace,
            service_account,
            search,
            addresses,
        } = who;
        Self {
            number,
            uid: uid.into(),
            name,
            namespace,
            service_account,
            netns,
            own: addresses,
            gone: AtomicBool::new(false),
            search: dns::resolv::search(&search, &config.cluster_domain),
            dns: dns::Status::default(),
            heirlooms: Heirlooms::default(),
            ahead: Ahead::default(),
            address: OnceLock::new(),
        }
    }

    /// Asks the namespace once for the address that nearly everybody asks about.
    pub fn has(&self, address: IpAddr) -> bool {
        if !self.own.is_empty() {
            return self.own.contains(&address);
        }
        if self.address.get() == Some(&address) {
            return true;
        }
        let has = self.netns.owns(address);
        if has {
            let _ = self.address.set(address); // Err: it has two
        }
        has
    }

    /// Whom a client of this pod is taken for: in a shared namespace the kernel chooses any of the host's addresses.
    fn seen_as(&self, mut client: SocketAddr) -> SocketAddr {
        if let Some(own) = self.own_of(client.ip()) {
            client.set_ip(own);
        }
        client
    }

    /// Its own address in a shared namespace, of that family.
    fn own_of(&self, family: IpAddr) -> Option<IpAddr> {
        let same = |ip: &&IpAddr| ip.is_ipv4() == family.is_ipv4();
        self.own.iter().find(same).copied()
    }

    /// Its record in the mesh; `None` also when the record speaks of another service account than the node agent does.
    pub fn workload<'a>(&self, tables: &'a Tables) -> Option<&'a Arc<Workload>> {
        let found = tables.workload_by_name(&self.namespace, &self.name)?;
        (found.identity().service_account() == self.service_account).then_some(found)
    }

    /// Waits until the control plane has told about it.
    pub async fn known(&self, worker: &Worker) -> Option<Arc<Workload>> {
        worker.until(|tables| self.workload(tables).cloned()).await
    }

    /// See `netns::dial_socket`; in a shared namespace it speaks from the pod's own address. `from`: the address that the
    /// other side shall see though it is not ours; it must be of `to`'s family.
    pub fn dial_socket(
        &self,
        to: SocketAddr,
        mark: u32,
        from: Option<IpAddr>,
    ) -> io::Result<Socket> {
        if let Some(address) = from {
            let socket = self.ahead.take(&self.netns, address, mark)?;
            socket.bind(&SocketAddr::new(address, 0).into())?;
            return Ok(socket);
        }
        let socket = self.netns.enter(|| netns::dial_socket(to.ip(), mark))?;
        if let Some(own) = self.own_of(to.ip()) {
            netns::speak_from(&socket, own)?;
        }
        Ok(socket)
    }

    /// A connection of ours out of the pod's namespace. `from`: see `dial_socket`.
    pub async fn connect(
        &self,
        worker: &Worker,
        to: SocketAddr,
        from: Option<IpAddr>,
    ) -> io::Result<tokio::net::TcpStream> {
        let config = &worker.shared.config;
        let socket = self.dial_socket(to, config.packet_mark, from)?;
        let connecting = connected(socket, to);
        let late = |_| Err(io::Error::new(io::ErrorKind::TimedOut, "no answer in time"));
        timeout(config.connect_timeout(), connecting)
            .await
            .unwrap_or_else(late)
    }
}

/// Within a namespace the handshake is over when connect(2) returns, whatever it says; then there is nothing to wait for.
async fn connected(socket: Socket, to: SocketAddr) -> io::Result<tokio::net::TcpStream> {
    if let Err(why) = socket.connect(&to.into())
        && why.raw_os_error() != Some(libc::EINPROGRESS)
    {
        return Err(why);
    }
    let tcp = tokio::net::TcpStream::from_std(socket.into())?;
    if tcp.peer_addr().is_ok() {
        return Ok(tcp);
    }
    tcp.writable().await?;
    match tcp.take_error()? {
        Some(why) => Err(why),
        None => Ok(tcp),
    }
}

/// What arrives on which of our ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    Outbound,
    Plaintext,
    Hbone,
}

impl Side {
    pub fn callers(self) -> netns::Callers {
        match self {
            Self::Outbound => netns::Callers::Inside,
            Self::Plaintext | Self::Hbone => netns::Callers::Outside,
        }
    }
}

/// The ports of a pod, in the order in which they are bound.
pub const SIDES: [(Side, u16); 3] = [
    (Side::Outbound, OUTBOUND_PORT),
    (Side::Plaintext, INBOUND_PORT),
    (Side::Hbone, HBONE_PORT),
];

/// A connection that was accepted; not yet tied to a worker. Addresses are canonical.
#[derive(Debug)]
pub struct Accepted {
    pub tcp: TcpStream,
    pub peer: SocketAddr,
    pub local: SocketAddr,
}

impl Accepted {
    /// Where the client wanted to go; the local address if nothing redirected it (TPROXY, or it meant this port).
    pub fn destination(&self) -> SocketAddr {
        netns::original_dst(SockRef::from(&self.tcp), self.peer.ip()).map_or(self.local, canonical)
    }
}

/// Begins to serve the pod; this worker owns its listeners from now on.
pub fn serve(
    worker: &Rc<Worker>,
    pod: &Arc<Pod>,
    listeners: Vec<(Side, TcpListener)>,
    dns: dns::Sockets,
) {
    let begin = |(side, listener)| spawn_local(accept(worker.clone(), pod.clone(), side, listener));
    let mut accepting: Vec<_> = listeners.into_iter().map(begin).collect();
    accepting.extend(dns::serve(worker, pod, dns));
    worker.accepting.borrow_mut().insert(pod.number, accepting);
}

/// Accepts until the task is aborted. One worker owns a listener, so an arriving connection wakes one thread; it goes to
/// the worker with the fewest open connections, and stays where it is when that is no worse.
async fn accept(worker: Rc<Worker>, pod: Arc<Pod>, side: Side, listener: TcpListener) {
    let Some(mut listener) = watched(&worker, &pod, listener) else {
        return;
    };
    let mut pause = FIRST_PAUSE;
    loop {
        match listener.async_io(Interest::READABLE, accept_one).await {
            Ok(mut accepted) => {
                pause = FIRST_PAUSE;
                if side == Side::Outbound {
                    accepted.peer = pod.seen_as(accepted.peer);
                }
                place(&worker, &pod, side, accepted);
            }
            Err(e) if is_the_peers(&e) => {}
            Err(e) => {
                report(&worker, &pod, &e, pause == FIRST_PAUSE);
                sleep(pause).await;
                pause = LONGEST_PAUSE.min(pause * 2);
                // One that somebody destroyed has hung up, which the runtime would believe for ever; it may listen again.
                match watched(&worker, &pod, listener.into_inner()) {
                    Some(again) => listener = again,
                    None => return,
                }
            }
        }
    }
}

fn watched(worker: &Worker, pod: &Pod, listener: TcpListener) -> Option<AsyncFd<TcpListener>> {
    // SAFETY: the listener is moved in and keeps its one descriptor until the AsyncFd is dropped.
    let watched = unsafe { AsyncFd::register_with_interest(listener, Interest::READABLE) };
    let fault = |e| {
        let why = format!("{}: {}", pod.uid, io::Error::from(e));
        worker.shared.mailbox.fault("accept", &why);
    };
    watched.map_err(fault).ok()
}

/// accept(2): what went wrong with that one connection; the next one may be fine. Anything else (no descriptors, no memory)
/// will not be better at once.
fn is_the_peers(e: &io::Error) -> bool {
    use libc::{
        ECONNABORTED, EHOSTDOWN, EHOSTUNREACH, EINTR, ENETDOWN, ENETUNREACH, EPERM, EPROTO,
        ETIMEDOUT,
    };
    let one = [
        ECONNABORTED,
        EHOSTDOWN,
        EHOSTUNREACH,
        EINTR,
        ENETDOWN,
        ENETUNREACH,
        EPERM,
        EPROTO,
        ETIMEDOUT,
    ];
    e.raw_os_error().is_some_and(|code| one.contains(&code))
}

fn report(worker: &Worker, pod: &Pod, e: &io::Error, first: bool) {
    worker
        .shared
        .accept_failures
        .fetch_add(1, Ordering::Relaxed);
    if first {
        let fields = |line: Line| {
            line.text("workload", &pod.name)
                .text("namespace", &pod.namespace)
                .show("error", e)
        };
        worker
            .shared
            .log
            .core(Level::Error, "cannot accept connections", fields);
    }
}

fn accept_one(listener: &TcpListener) -> io::Result<Accepted> {
    // SAFETY: `try_init` hands out a zeroed buffer as large as any address; the kernel writes at most `length` bytes of it.
    let (fd, peer) = unsafe {
        SockAddr::try_init(|storage, length| {
            let flags = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
            let fd = libc::accept4(listener.as_raw_fd(), storage.cast(), length, flags);
            if fd < 0 {
                Err(io::Error::last_os_error())
            } else {
                Ok(OwnedFd::from_raw_fd(fd))
            }
        })
    }?;
    let tcp = TcpStream::from(fd);
    let peer = peer.as_socket().ok_or(io::ErrorKind::InvalidData)?;
    let local = canonical(tcp.local_addr()?);
    Ok(Accepted {
        tcp,
        peer: canonical(peer),
        local,
    })
}

fn place(worker: &Rc<Worker>, pod: &Arc<Pod>, side: Side, accepted: Accepted) {
    let chosen = worker.least_loaded();
    let load = Load::on(&worker.peers[chosen]);
    if chosen == worker.index {
        return start(worker, pod.clone(), side, accepted, load);
    }
    let pod = pod.clone();
    worker.peers[chosen].submit(move |there| start(there, pod, side, accepted, load));
}

fn start(worker: &Rc<Worker>, pod: Arc<Pod>, side: Side, accepted: Accepted, load: Load) {
    let worker = worker.clone();
    spawn_local(async move {
        let _load = load;
        match side {
            Side::Outbound => outbound::handle(worker, pod, accepted).await,
            Side::Plaintext => inbound::handle_plaintext(worker, pod, accepted).await,
            Side::Hbone => inbound::handle_tunnel(worker, pod, accepted).await,
        }
    });
}

/// The client's connection until it is relayed: whatever goes wrong before, it sees a reset, not an orderly end.
pub struct Client {
    tcp: Option<tokio::net::TcpStream>,
    words: FirstWords,
}

impl Client {
    pub fn of(tcp: TcpStream) -> io::Result<Self> {
        Ok(Self {
            tcp: Some(tokio::net::TcpStream::from_std(tcp)?),
            words: FirstWords::default(),
        })
    }

    /// Has nothing of it been relayed yet?
    pub fn is_waiting(&self) -> bool {
        self.tcp.is_some() && self.words.may_be_repeated()
    }

    /// What it says meanwhile goes to `to` with the request.
    pub fn speaker(&mut self, to: SpiffeId) -> Option<Speaker<'_>> {
        Some(Speaker {
            app: self.tcp.as_ref()?,
            words: &mut self.words,
            to,
        })
    }

    /// With what was read of it so far.
    pub fn relayed(&mut self) -> io::Result<(tokio::net::TcpStream, Vec<u8>)> {
        let tcp = self.tcp.take();
        let tcp = tcp.ok_or(io::ErrorKind::NotConnected)?;
        Ok((tcp, self.words.take()))
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        if let Some(tcp) = &self.tcp {
            // Fails only on a socket that is closed already.
            let _ = SockRef::from(tcp).set_linger(Some(Duration::ZERO));
        }
    }
}
