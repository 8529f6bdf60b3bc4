//! A pod's network namespace and the sockets that are born in it. A socket keeps the namespace that it was created in, a
//! thread must not: whoever enters comes back before anything else runs, or the process ends.
//!
//! Origin: setns(2), namespaces(7); socket options of ip(7), ipv6(7).

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

/// The kernel cuts it to `net.core.somaxconn`.
const BACKLOG: i32 = 1024;
/// Istio's: a dead peer is noticed after about half an hour, and idle connections cost one packet in three minutes.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(180);
const KEEPALIVE_RETRIES: u32 = 9;
/// `_IO(0xb7, 0x3)`, ioctl_ns(2).
const NS_GET_NSTYPE: libc::c_ulong = 0xb703;
/// linux/in.h; the port is chosen at connect(), where the whole 4-tuple counts, not at bind().
const IP_BIND_ADDRESS_NO_PORT: libc::c_int = 24;
/// asm-generic/socket.h, Linux 5.14: never used twice since boot.
const SO_NETNS_COOKIE: libc::c_int = 71;
/// linux/netfilter_ipv4.h and linux/netfilter_ipv6/ip6_tables.h.
const ORIGINAL_DST: libc::c_int = 80;

#[derive(Debug, thiserror::Error)]
pub enum EnrolError {
    #[error("the descriptor is no live network namespace: {0}")]
    NamespaceGone(io::Error),
    #[error("port {port} is taken in the pod's namespace")]
    AddressTaken { port: u16 },
    #[error("{ip} is no address of this host")]
    NoSuchAddress { ip: IpAddr },
    #[error(transparent)]
    Other(#[from] io::Error),
}

/// Which side of a pod's network a connection comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Callers {
    /// Its own applications.
    Inside,
    Outside,
}

/// Holds the namespace alive, so its (device, inode) cannot come to mean another one.
#[derive(Debug)]
pub struct NetNs {
    pod: OwnedFd,
    home: OwnedFd,
    id: (u64, u64),
}

impl NetNs {
    /// Duplicates `fd`. The calling thread's own namespace is where `enter` comes back to.
    pub fn of(fd: BorrowedFd<'_>) -> Result<Self, EnrolError> {
        let pod = fd.try_clone_to_owned().map_err(EnrolError::NamespaceGone)?;
        // SAFETY: an ioctl without argument on a descriptor that we own.
        let kind = unsafe { libc::ioctl(pod.as_raw_fd(), NS_GET_NSTYPE as _) };
        if kind != libc::CLONE_NEWNET {
            let why = if kind < 0 {
                io::Error::last_os_error()
            } else {
                io::Error::from(io::ErrorKind::InvalidInput)
            };
            return Err(EnrolError::NamespaceGone(why));
        }
        let home = File::open("/proc/thread-self/ns/net")?.into();
        let id = number(pod.try_clone()?)?;
        Ok(Self { pod, home, id })
    }

    pub fn is_same_as(&self, other: &Self) -> bool {
        self.id == other.id
    }

    /// Tells the namespace's sockets from others, without a privilege. `None`: Linux before 5.14.
    pub fn cookie(&self) -> Option<u64> {
        let here = (Ipv4Addr::UNSPECIFIED, 0);
        let socket = self.enter(|| std::net::UdpSocket::bind(here)).ok()?;
        cookie_of(socket.as_fd())
    }

    /// Runs `make` inside the namespace. Not for anything that waits: the thread's other work would see the wrong network.
    pub fn enter<T>(&self, make: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        set_ns(&self.pod)?;
        let _back = Back(&self.home);
        make()
    }

    /// Is it an address of one of the namespace's interfaces?
    pub fn owns(&self, ip: IpAddr) -> bool {
        self.enter(|| std::net::UdpSocket::bind((ip, 0))).is_ok()
    }
}

/// Of the namespace that the socket was made in; `None` also of what is no socket.
pub fn cookie_of(socket: BorrowedFd<'_>) -> Option<u64> {
    let mut cookie = 0_u64;
    let mut size = size_of_val(&cookie) as libc::socklen_t;
    // SAFETY: the kernel writes at most `size` bytes at `cookie`, which outlives the call.
    let done = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut size,
        )
    };
    (done == 0).then_some(cookie)
}

/// What tells two namespaces apart while both are held open.
fn number(namespace: OwnedFd) -> io::Result<(u64, u64)> {
    let about = File::from(namespace).metadata()?;
    Ok((about.dev(), about.ino()))
}

struct Back<'a>(&'a OwnedFd);

impl Drop for Back<'_> {
    fn drop(&mut self) {
        if let Err(why) = set_ns(self.0) {
            // A thread that stayed would open one tenant's sockets in another tenant's network.
            eprintln!("ztunnel: cannot leave a pod's network namespace: {why}");
            std::process::abort();
        }
    }
}

fn set_ns(fd: &OwnedFd) -> io::Result<()> {
    // SAFETY: plain system call on a descriptor that we own.
    check(unsafe { libc::setns(fd.as_raw_fd(), libc::CLONE_NEWNET) })
}

pub(crate) fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// A listening, nonblocking socket in the calling thread's namespace: `[::]` for both families where IPv6 exists, else
/// `0.0.0.0`. Never SO_REUSEPORT: a process of the pod could take a share of the connections.
///
/// `who`: who connects to it.
pub fn listener(port: u16, ipv6: bool, who: Callers) -> Result<TcpListener, EnrolError> {
    let v4 = || listen_on((Ipv4Addr::UNSPECIFIED, port).into(), who);
    let made = if ipv6 {
        listen_on((Ipv6Addr::UNSPECIFIED, port).into(), who)
            .or_else(|e| if no_such_family(&e) { v4() } else { Err(e) })
    } else {
        v4()
    };
    made.map_err(|e| named(e, port))
}

/// The same on one address, for a pod that shares its namespace.
pub fn listener_at(address: SocketAddr, who: Callers) -> Result<TcpListener, EnrolError> {
    listen_on(address, who).map_err(|e| match e.raw_os_error() {
        Some(libc::EADDRNOTAVAIL) => EnrolError::NoSuchAddress { ip: address.ip() },
        _ => named(e, address.port()),
    })
}

fn named(e: io::Error, port: u16) -> EnrolError {
    match e.raw_os_error() {
        Some(libc::EADDRINUSE) => EnrolError::AddressTaken { port },
        _ => EnrolError::Other(e),
    }
}

fn no_such_family(e: &io::Error) -> bool {
    matches!(
        e.raw_os_error(),
        Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL)
    )
}

fn listen_on(address: SocketAddr, who: Callers) -> io::Result<TcpListener> {
    let socket = stream_socket(address.ip())?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    // Best effort: only a TPROXY redirection needs it, and only it tells us the original address by local_addr().
    let _ = transparent(&socket, address.ip());
    prepare(&socket, who)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Accepted connections inherit it (tcp_create_openreq_child), which saves five system calls on each.
pub fn prepare(listener: &Socket, who: Callers) -> io::Result<()> {
    tune(SockRef::from(listener))?;
    if who == Callers::Inside {
        do_not_pace(listener);
    }
    Ok(())
}

fn stream_socket(family_of: IpAddr) -> io::Result<Socket> {
    let domain = if family_of.is_ipv4() {
        Domain::IPV4
    } else {
        Domain::IPV6
    };
    Socket::new(
        domain,
        Type::STREAM.cloexec().nonblocking(),
        Some(Protocol::TCP),
    )
}

fn transparent(socket: &Socket, family_of: IpAddr) -> io::Result<()> {
    match family_of {
        IpAddr::V4(_) => set_int(socket, libc::SOL_IP, libc::IP_TRANSPARENT, 1),
        IpAddr::V6(_) => set_int(socket, libc::SOL_IPV6, libc::IPV6_TRANSPARENT, 1),
    }
}

pub(crate) fn set_int(
    socket: &impl AsRawFd,
    level: libc::c_int,
    name: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    let size = size_of_val(&value) as libc::socklen_t;
    // SAFETY: the kernel reads `size` bytes at `value`, which outlives the call.
    check(unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            (&raw const value).cast(),
            size,
        )
    })
}

/// What every connection over a wire carries: no Nagle, keepalive as Istio's.
fn tune(socket: SockRef<'_>) -> io::Result<()> {
    socket.set_tcp_nodelay(true)?;
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE_IDLE)
        .with_interval(KEEPALIVE_IDLE);
    socket.set_tcp_keepalive(&keepalive.with_retries(KEEPALIVE_RETRIES))
}

/// Within a pod nothing is lost and nothing else is slow: congestion control has nothing to find out there. One that paces
/// (BBR, a common default) breaks large segments up and sets a timer for each; Reno does neither and is in every kernel.
fn do_not_pace(socket: &Socket) {
    let _ = socket.set_tcp_congestion(b"reno"); // without it the connection is slower, not worse
}

/// An unconnected, nonblocking, marked socket in the calling thread's namespace.
pub fn dial_socket(family_of: IpAddr, mark: u32) -> io::Result<Socket> {
    let socket = marked(family_of, mark)?;
    tune(SockRef::from(&socket))?;
    Ok(socket)
}

/// The same towards an application, which shall see an address that need not be ours: whoever takes it binds it to that.
/// Such a connection stays within the pod, where the kernel knows of every death: no keepalive.
pub fn app_socket(family_of: IpAddr, mark: u32) -> io::Result<Socket> {
    let socket = marked(family_of, mark)?;
    socket.set_tcp_nodelay(true)?;
    do_not_pace(&socket);
    transparent(&socket, family_of)?;
    set_int(&socket, libc::SOL_IP, IP_BIND_ADDRESS_NO_PORT, 1)?;
    Ok(socket)
}

fn marked(family_of: IpAddr, mark: u32) -> io::Result<Socket> {
    let socket = stream_socket(family_of)?;
    if mark != 0 {
        socket.set_mark(mark)?;
    }
    Ok(socket)
}

/// Makes a socket of ours speak from that address, which is one of this host's; the port is chosen at connect().
pub fn speak_from(socket: &Socket, address: IpAddr) -> io::Result<()> {
    set_int(socket, libc::SOL_IP, IP_BIND_ADDRESS_NO_PORT, 1)?;
    socket.bind(&SocketAddr::new(address, 0).into())
}

/// Where the application wanted to go before the redirection; `None` when nothing redirected this connection.
pub fn original_dst(socket: SockRef<'_>, peer: IpAddr) -> Option<SocketAddr> {
    let level = if peer.is_ipv4() {
        libc::SOL_IP
    } else {
        libc::SOL_IPV6
    };
    // SAFETY: `init` hands out a zeroed buffer as large as any address; the kernel writes at most `length` bytes of it.
    let found = unsafe {
        socket2::SockAddr::try_init(|storage, length| {
            check(libc::getsockopt(
                socket.as_raw_fd(),
                level,
                ORIGINAL_DST,
                storage.cast(),
                length,
            ))
        })
    };
    found.ok()?.1.as_socket()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn a_descriptor_that_is_no_namespace_is_gone() {
        let file = File::open("/proc/self/status").expect("procfs");
        assert!(matches!(
            NetNs::of(file.as_fd()),
            Err(EnrolError::NamespaceGone(_))
        ));
        let other = File::open("/proc/self/ns/mnt").expect("procfs");
        assert!(matches!(
            NetNs::of(other.as_fd()),
            Err(EnrolError::NamespaceGone(_))
        ));
    }

    #[test]
    fn one_namespace_is_the_same_through_two_descriptors() {
        let open = || {
            NetNs::of(File::open("/proc/self/ns/net").expect("procfs").as_fd())
                .expect("a namespace")
        };
        assert!(open().is_same_as(&open()));
    }

    #[test]
    fn a_port_that_somebody_holds_is_named() {
        let holder = std::net::TcpListener::bind("127.0.0.1:0").expect("loopback");
        let port = holder.local_addr().expect("bound").port();
        assert!(
            matches!(listener(port, true, Callers::Outside), Err(EnrolError::AddressTaken { port: p }) if p == port)
        );
        assert!(matches!(
            listener(port, false, Callers::Outside),
            Err(EnrolError::AddressTaken { .. })
        ));
    }

    #[test]
    fn accepted_connections_inherit_what_is_set_on_the_listener() {
        let listening = listener(0, true, Callers::Inside).expect("any port");
        let port = listening.local_addr().expect("bound").port();
        let _client = std::net::TcpStream::connect(("::1", port)).expect("reaches");
        let (accepted, _) = listening.accept().expect("it is in the queue");
        let accepted = SockRef::from(&accepted);
        assert!(accepted.tcp_nodelay().expect("TCP") && accepted.keepalive().expect("TCP"));
        assert_eq!(accepted.tcp_keepalive_time().expect("TCP"), KEEPALIVE_IDLE);
        assert_eq!(
            accepted.tcp_keepalive_retries().expect("TCP"),
            KEEPALIVE_RETRIES
        );
        assert!(accepted.tcp_congestion().expect("TCP").starts_with(b"reno"));
    }

    #[test]
    fn both_families_reach_one_listener_and_nothing_claims_to_be_redirected() {
        let listening = listener(0, true, Callers::Inside).expect("any port");
        let port = listening.local_addr().expect("bound").port();
        let client = std::net::TcpStream::connect(("127.0.0.1", port)).expect("reaches");
        let peer = client.local_addr().expect("connected").ip();
        assert_eq!(original_dst(SockRef::from(&client), peer), None);
    }
}
