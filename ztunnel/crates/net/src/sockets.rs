//! The listening sockets of a pod: new ones, or those that the tunnel before us left with the node agent, and copies for the
//! one after us. A connection that arrives in between waits in their queue. Owns the question whether a descriptor is what
//! it is said to be; who accepts is `pod`'s and `dns`'s.

use crate::dns;
use crate::netns::{self, EnrolError, NetNs, cookie_of, listener, listener_at};
use crate::pod::{Pod, SIDES, Side};
use socket2::{Socket, Type};
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

pub type Sockets = (Vec<(Side, TcpListener)>, dns::Sockets);

/// On a thread of its own that ends afterwards: it is the only one that is ever in the pod's namespace for longer than a
/// socket takes.
pub fn open(
    pod: &Arc<Pod>,
    ipv6: bool,
    inherited: Option<Vec<OwnedFd>>,
) -> Result<Sockets, EnrolError> {
    let inside = pod.clone();
    let make = move || {
        let keep = inherited.is_some();
        let mut left = Inherited::sort(inherited.unwrap_or_default(), &inside.netns);
        let made = inside
            .netns
            .enter(|| Ok(opened(&inside.own, ipv6, &mut left)));
        let sockets = made.map_err(EnrolError::NamespaceGone)??;
        if keep {
            let listeners = sockets.0.iter().map(|(_, listener)| listener.as_fd());
            let all: Vec<_> = listeners.chain(sockets.1.descriptors()).collect();
            inside.heirlooms.keep(&all)?;
        }
        Ok(sockets)
    };
    let thread = thread::Builder::new()
        .name("mesh-enrol".into())
        .spawn(make)?;
    thread.join().unwrap_or_else(|_| {
        Err(EnrolError::Other(io::Error::other(
            "the enrolling thread panicked",
        )))
    })
}

/// In the calling thread's namespace: what is left of an earlier tunnel, and for the rest new ones.
fn opened(own: &[IpAddr], ipv6: bool, left: &mut Inherited) -> Result<Sockets, EnrolError> {
    let mut listeners = Vec::with_capacity(SIDES.len());
    for (side, port) in SIDES {
        if own.is_empty() {
            let ours = |at: SocketAddr| at.port() == port && at.ip().is_unspecified();
            let made = || listener(port, ipv6, side.callers());
            listeners.push((side, left_or(left, ours, side, made)?));
        }
        for ip in own {
            let ours = |at: SocketAddr| at == (*ip, port).into();
            let made = || listener_at((*ip, port).into(), side.callers());
            listeners.push((side, left_or(left, ours, side, made)?));
        }
    }
    Ok((listeners, dns::Sockets::open(ipv6, own, left)?))
}

fn left_or(
    left: &mut Inherited,
    ours: impl Fn(SocketAddr) -> bool,
    side: Side,
    made: impl FnOnce() -> Result<TcpListener, EnrolError>,
) -> Result<TcpListener, EnrolError> {
    let Some(found) = left.take(Type::STREAM, ours) else {
        return made();
    };
    netns::prepare(&found, side.callers())?;
    Ok(found.into())
}

/// Bound sockets of one namespace that nobody has claimed yet; closed when dropped.
#[derive(Debug, Default)]
pub struct Inherited(Vec<(Type, SocketAddr, Socket)>);

impl Inherited {
    /// Closes what is no bound TCP or UDP socket of `netns`: another pod's would lend it another pod's identity. On a
    /// kernel that does not say whose a socket is, the node agent's word counts, as it does for the namespace.
    pub fn sort(descriptors: Vec<OwnedFd>, netns: &NetNs) -> Self {
        if descriptors.is_empty() {
            return Self::default();
        }
        let cookie = netns.cookie();
        let ours = |fd: &OwnedFd| cookie.is_none() || cookie_of(fd.as_fd()) == cookie;
        let sockets = descriptors.into_iter().filter(ours);
        Self(sockets.filter_map(|fd| known(fd.into())).collect())
    }

    /// The one that listens, or of datagrams is bound, at such an address.
    pub fn take(&mut self, kind: Type, at: impl Fn(SocketAddr) -> bool) -> Option<Socket> {
        let found = self
            .0
            .iter()
            .position(|(its, address, _)| *its == kind && at(*address))?;
        Some(self.0.swap_remove(found).2)
    }
}

fn known(socket: Socket) -> Option<(Type, SocketAddr, Socket)> {
    let kind = socket.r#type().ok()?;
    let ready = kind == Type::DGRAM || kind == Type::STREAM && socket.is_listener().ok()?;
    let address = socket.local_addr().ok()?.as_socket()?;
    socket.set_nonblocking(true).ok()?;
    ready.then_some((kind, address, socket))
}

/// Copies for whoever comes after us. Cleared when the pod is no longer served, else its ports stayed taken.
#[derive(Debug, Default)]
pub struct Heirlooms(Mutex<Vec<OwnedFd>>);

impl Heirlooms {
    pub fn keep(&self, sockets: &[BorrowedFd<'_>]) -> io::Result<()> {
        *self.all() = copies(sockets.iter().copied())?;
        Ok(())
    }

    pub fn copies(&self) -> io::Result<Vec<OwnedFd>> {
        copies(self.all().iter().map(AsFd::as_fd))
    }

    pub fn clear(&self) {
        self.all().clear();
    }

    fn all(&self) -> MutexGuard<'_, Vec<OwnedFd>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn copies<'a>(of: impl Iterator<Item = BorrowedFd<'a>>) -> io::Result<Vec<OwnedFd>> {
    of.map(|fd| fd.try_clone_to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::net::{TcpStream, UdpSocket};

    fn here() -> NetNs {
        let file = File::open("/proc/thread-self/ns/net").expect("procfs");
        NetNs::of(file.as_fd()).expect("a namespace")
    }

    #[test]
    fn listeners_and_datagram_sockets_are_known_by_kind_and_address() {
        let tcp = TcpListener::bind("127.0.0.1:0").expect("loopback");
        let udp = UdpSocket::bind("127.0.0.1:0").expect("loopback");
        let (stream_at, datagram_at) = (
            tcp.local_addr().expect("bound"),
            udp.local_addr().expect("bound"),
        );
        let mut all = Inherited::sort(vec![udp.into(), tcp.into()], &here());
        assert!(all.take(Type::DGRAM, |at| at == stream_at).is_none());
        assert!(all.take(Type::STREAM, |at| at == stream_at).is_some());
        assert!(
            all.take(Type::STREAM, |at| at == stream_at).is_none(),
            "once"
        );
        assert!(all.take(Type::DGRAM, |at| at == datagram_at).is_some());
    }

    #[test]
    fn what_does_not_listen_and_what_is_no_socket_is_closed() {
        let tcp = TcpListener::bind("127.0.0.1:0").expect("loopback");
        let open = TcpStream::connect(tcp.local_addr().expect("bound")).expect("reaches");
        let file = File::open("/proc/self/status").expect("procfs");
        let all = Inherited::sort(vec![open.into(), file.into()], &here());
        assert!(all.0.is_empty());
    }

    /// In another namespace, where nobody holds the ports of a tunnel.
    #[test]
    fn what_was_bound_at_an_address_of_its_own_is_taken_over_and_the_rest_is_made() {
        let test = || {
            let loopback = "127.0.0.1:15001";
            let before =
                netns::listener_at(loopback.parse().expect("one"), Side::Outbound.callers())?;
            let cookie = |l: &TcpListener| socket2::SockRef::from(l).cookie().expect("SO_COOKIE");
            let mut left = Inherited::sort(vec![before.try_clone()?.into()], &here());
            let (listeners, _) = opened(&[IpAddr::from([127, 0, 0, 1])], true, &mut left)?;
            let same: Vec<_> = listeners
                .iter()
                .map(|(_, l)| cookie(l) == cookie(&before))
                .collect();
            assert_eq!(same, [true, false, false]);
            Ok::<_, EnrolError>(())
        };
        let alone = move || {
            // SAFETY: no pointers; only this thread's namespace changes.
            (unsafe { libc::unshare(libc::CLONE_NEWNET) } == 0).then(test)
        };
        match thread::spawn(alone).join().expect("a thread") {
            Some(done) => done.expect("sockets"),
            None => eprintln!("not root: no namespace of its own, nothing tested"),
        }
    }
}
