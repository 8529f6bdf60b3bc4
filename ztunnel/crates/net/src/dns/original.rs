//! Where a redirected datagram was sent to. SO_ORIGINAL_DST speaks of TCP only; for UDP the kernel's connection table is
//! asked through a netlink socket that was opened in the pod's namespace.
//!
//! Origin: linux/netfilter/nfnetlink_conntrack.h. The kernel answers while the request is being sent, so nothing waits.

use socket2::{Domain, Protocol, Socket, Type};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;

const NETLINK_NETFILTER: i32 = 12;
/// NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_GET.
const CT_GET: u16 = 0x0101;
/// NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_NEW: how an entry is told.
const CT_NEW: u16 = 0x0100;
const REQUEST: u16 = 1;
const NESTED: u16 = 0x8000;
const TUPLE_ORIGINAL: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const TUPLE_IP: u16 = 1;
const TUPLE_PROTOCOL: u16 = 2;
/// Source and destination attribute of an address.
const IPV4: (u16, u16) = (1, 2);
const IPV6: (u16, u16) = (3, 4);
const PROTOCOL_NUMBER: u16 = 1;
const PROTOCOL_SOURCE: u16 = 2;
const PROTOCOL_DESTINATION: u16 = 3;
const UDP: u8 = 17;
/// nlmsghdr and nfgenmsg.
const HEADERS: usize = 16 + 4;
const ANSWER: usize = 4096;

#[derive(Debug)]
pub(super) struct Originals(Socket);

impl Originals {
    /// In the calling thread's namespace; needs CAP_NET_ADMIN there.
    pub(super) fn open() -> io::Result<Self> {
        let kind = Type::RAW.cloexec().nonblocking();
        let protocol = Protocol::from(NETLINK_NETFILTER);
        Socket::new(Domain::from(libc::AF_NETLINK), kind, Some(protocol)).map(Self)
    }

    /// `None`: nothing redirected it, or the kernel has forgotten. Both addresses are of one family.
    pub(super) fn of(&self, client: SocketAddr, ours: SocketAddr) -> Option<SocketAddr> {
        let request = request(client, ours);
        let mut answer = [0; ANSWER];
        let fd = self.0.as_raw_fd();
        // SAFETY: the kernel reads and writes within the buffers, whose lengths are given.
        let length = unsafe {
            while libc::recv(fd, answer.as_mut_ptr().cast(), ANSWER, libc::MSG_DONTWAIT) > 0 {} // of an earlier request
            if libc::send(fd, request.as_ptr().cast(), request.len(), 0) < 0 {
                return None;
            }
            libc::recv(fd, answer.as_mut_ptr().cast(), ANSWER, libc::MSG_DONTWAIT)
        };
        destination(answer.get(..usize::try_from(length).ok()?)?)
    }
}

fn request(client: SocketAddr, ours: SocketAddr) -> Vec<u8> {
    let (family, (source, destination)) = match client {
        SocketAddr::V4(_) => (libc::AF_INET, IPV4),
        SocketAddr::V6(_) => (libc::AF_INET6, IPV6),
    };
    // The answer's direction: from us to the client.
    let addresses = [
        attribute(source, &octets(ours.ip())),
        attribute(destination, &octets(client.ip())),
    ];
    let ports = [
        attribute(PROTOCOL_NUMBER, &[UDP]),
        attribute(PROTOCOL_SOURCE, &ours.port().to_be_bytes()),
        attribute(PROTOCOL_DESTINATION, &client.port().to_be_bytes()),
    ];
    let tuple = [
        attribute(TUPLE_IP | NESTED, &addresses.concat()),
        attribute(TUPLE_PROTOCOL | NESTED, &ports.concat()),
    ];
    let body = attribute(TUPLE_REPLY | NESTED, &tuple.concat());
    let mut message = Vec::with_capacity(HEADERS + body.len());
    message.extend(((HEADERS + body.len()) as u32).to_ne_bytes());
    message.extend(CT_GET.to_ne_bytes());
    message.extend(REQUEST.to_ne_bytes());
    message.extend([0; 8]); // sequence and port: one request at a time
    message.extend([family as u8, 0, 0, 0]);
    message.extend(body);
    message
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(4 + value.len().next_multiple_of(4));
    out.extend(((4 + value.len()) as u16).to_ne_bytes());
    out.extend(kind.to_ne_bytes());
    out.extend(value);
    out.resize(out.len().next_multiple_of(4), 0);
    out
}

/// Total over any bytes.
fn destination(message: &[u8]) -> Option<SocketAddr> {
    if message.get(4..6)? != CT_NEW.to_ne_bytes() {
        return None; // an error: no such entry
    }
    let original = find(message.get(HEADERS..)?, TUPLE_ORIGINAL)?;
    let addresses = find(original, TUPLE_IP)?;
    let ip = match (find(addresses, IPV4.1), find(addresses, IPV6.1)) {
        (Some(v4), _) => IpAddr::from(<[u8; 4]>::try_from(v4).ok()?),
        (None, v6) => IpAddr::from(<[u8; 16]>::try_from(v6?).ok()?),
    };
    let port = find(find(original, TUPLE_PROTOCOL)?, PROTOCOL_DESTINATION)?;
    Some(SocketAddr::new(
        ip,
        u16::from_be_bytes(port.try_into().ok()?),
    ))
}

/// The value of the first attribute of that kind.
fn find(mut attributes: &[u8], kind: u16) -> Option<&[u8]> {
    loop {
        let number = |at: usize| {
            Some(u16::from_ne_bytes(
                attributes.get(at..at + 2)?.try_into().ok()?,
            ))
        };
        let (length, found) = (usize::from(number(0)?), number(2)? & !NESTED);
        let value = attributes.get(4..length)?;
        if found == kind {
            return Some(value);
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(client: &str, ours: &str) -> Option<SocketAddr> {
        // A request's tuple, told as the original one: reads back what was written.
        let mut message = request(client.parse().expect("one"), ours.parse().expect("one"));
        message[4..6].copy_from_slice(&CT_NEW.to_ne_bytes());
        message[HEADERS + 2..HEADERS + 4].copy_from_slice(&(TUPLE_ORIGINAL | NESTED).to_ne_bytes());
        destination(&message)
    }

    #[test]
    fn what_is_written_is_read() {
        for (client, ours) in [
            ("10.0.0.2:4000", "127.0.0.1:15053"),
            ("[fd00::2]:4000", "[::1]:15053"),
        ] {
            assert_eq!(told(client, ours), client.parse().ok());
        }
    }

    #[test]
    fn no_bytes_make_it_stumble() {
        let whole = request(([10, 0, 0, 2], 4).into(), ([127, 0, 0, 1], 5).into());
        for cut in 0..whole.len() {
            for byte in [0, 1, 4, 0xff] {
                let mut bytes = whole.clone();
                bytes[4..6].copy_from_slice(&CT_NEW.to_ne_bytes());
                bytes[cut] = byte;
                let _ = destination(&bytes);
                let _ = destination(&bytes[..cut]);
            }
        }
        assert_eq!(
            find(&[0, 0, 0, 0], 1),
            None,
            "an attribute of no length does not end the search in a loop"
        );
    }
}
