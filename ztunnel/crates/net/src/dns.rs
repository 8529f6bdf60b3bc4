//! DNS of a pod: what its applications ask on port 53 comes to our port 15053 in its namespace. What the mesh knows is
//! answered here; the rest goes on, out of the same namespace, to the server that was asked, byte for byte.
//!
//! Owns sockets, limits and deadlines. What names mean is `ztunnel_core::dns`'s. Nothing is kept between questions: the
//! mesh's answers cost no more than a look-up, and other answers are their server's business. Whom a name server's
//! silence concerns is who asked for its names: every question is followed up by itself, within bounds.

mod message;
pub mod meter;
mod original;
pub mod resolv;
mod server;
mod status;
mod upstream;

pub use server::serve;
pub use status::Status;

use crate::netns::EnrolError;
use crate::sockets::Inherited;
use original::Originals;
use socket2::{Domain, Protocol, Socket, Type};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use ztunnel_core::addr::DNS_PORT;

const BACKLOG: i32 = 128;
/// Nobody but the pod itself gets there.
const LOOPBACKS: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::LOCALHOST),
    IpAddr::V6(Ipv6Addr::LOCALHOST),
];

/// What a pod's DNS needs of its namespace.
#[derive(Debug)]
pub struct Sockets {
    udp: Vec<UdpSocket>,
    tcp: Vec<TcpListener>,
    originals: Option<Originals>,
}

impl Sockets {
    /// In the calling thread's namespace, whether its loopback interface is up already or not. `own`: instead of loopback.
    pub fn open(ipv6: bool, own: &[IpAddr], inherited: &mut Inherited) -> Result<Self, EnrolError> {
        let mut made = Self {
            udp: Vec::new(),
            tcp: Vec::new(),
            originals: Originals::open().ok(), // without: unknown names go to the node's name servers
        };
        let places = if own.is_empty() { &LOOPBACKS[..] } else { own };
        for &ip in places {
            match made.add(SocketAddr::new(ip, DNS_PORT), inherited) {
                Err(e)
                    if ip.is_ipv6() && (!ipv6 || e.raw_os_error() == Some(libc::EAFNOSUPPORT)) => {}
                Err(e) if e.raw_os_error() == Some(libc::EADDRINUSE) => {
                    return Err(EnrolError::AddressTaken { port: DNS_PORT });
                }
                done => done?,
            }
        }
        Ok(made)
    }

    pub fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let tcp = self.tcp.iter().map(AsFd::as_fd);
        tcp.chain(self.udp.iter().map(AsFd::as_fd))
    }

    fn add(&mut self, at: SocketAddr, inherited: &mut Inherited) -> io::Result<()> {
        let mut left = |kind| inherited.take(kind, |its| its == at);
        let tcp = left(Type::STREAM).map_or_else(|| listening(at), Ok)?;
        let udp = left(Type::DGRAM).map_or_else(|| bound(at, Type::DGRAM, Protocol::UDP), Ok)?;
        self.tcp.push(tcp.into());
        self.udp.push(udp.into());
        Ok(())
    }
}

fn listening(at: SocketAddr) -> io::Result<Socket> {
    let socket = bound(at, Type::STREAM, Protocol::TCP)?;
    socket.listen(BACKLOG)?;
    Ok(socket)
}

fn bound(at: SocketAddr, kind: Type, protocol: Protocol) -> io::Result<Socket> {
    let domain = Domain::for_address(at);
    let socket = Socket::new(domain, kind.cloexec().nonblocking(), Some(protocol))?;
    if kind == Type::STREAM {
        socket.set_reuse_address(true)?; // connections of a tunnel before this one may linger
    }
    if at.is_ipv6() {
        socket.set_only_v6(true)?;
        socket.set_freebind_v6(true)?;
    } else {
        socket.set_freebind_v4(true)?;
    }
    socket.bind(&at.into())?;
    Ok(socket)
}
