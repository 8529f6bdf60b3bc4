//! Ends somebody else's connection: sock_diag(7), SOCK_DESTROY. Both ends see a reset.

use super::maps::{Key, Tuple, address};
use socket2::{Domain, Protocol, Socket, Type};
use std::io;
use std::net::SocketAddr;

const NETLINK_SOCK_DIAG: libc::c_int = 4;
const SOCK_DESTROY: u16 = 21;
const REQUEST_WITH_ACK: u16 = 1 | 4;
const HEADER: usize = 16;
/// struct inet_diag_req_v2.
const REQUEST: usize = 56;

/// The client's socket, in the calling thread's network namespace. NotFound: it has gone by itself.
pub(super) fn destroy(key: Key, tuple: &Tuple) -> io::Result<()> {
    let socket = Socket::new(
        Domain::from(libc::AF_NETLINK),
        Type::DGRAM,
        Some(Protocol::from(NETLINK_SOCK_DIAG)),
    )?;
    socket.send(&message(key, tuple.from(), tuple.to()))?;
    let mut answer = [0_u8; 128];
    // SAFETY: the kernel writes at most as many bytes as the buffer has, all of which are initialised.
    let length = unsafe {
        libc::recv(
            std::os::fd::AsRawFd::as_raw_fd(&socket),
            answer.as_mut_ptr().cast(),
            answer.len(),
            0,
        )
    };
    if length < (HEADER + 4) as isize {
        return Err(io::Error::last_os_error());
    }
    // struct nlmsgerr: 0, or a negative errno.
    let code = i32::from_ne_bytes([answer[16], answer[17], answer[18], answer[19]]);
    if code == 0 {
        Ok(())
    } else {
        Err(io::Error::from_raw_os_error(-code))
    }
}

/// Whether we may: what is not there is found missing only by who may. Otherwise direct connections could not be cut.
pub(super) fn may() -> io::Result<()> {
    match destroy(Key::default(), &Tuple::default()) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(io::Error::new(
            e.kind(),
            format!("connections of pods cannot be ended (SOCK_DESTROY): {e}"),
        )),
        Ok(()) => Ok(()),
    }
}

fn message(key: Key, from: SocketAddr, to: SocketAddr) -> Vec<u8> {
    let family = if from.is_ipv4() {
        libc::AF_INET
    } else {
        libc::AF_INET6
    };
    let mut text = Vec::with_capacity(HEADER + REQUEST);
    text.extend(((HEADER + REQUEST) as u32).to_ne_bytes());
    text.extend(SOCK_DESTROY.to_ne_bytes());
    text.extend(REQUEST_WITH_ACK.to_ne_bytes());
    text.extend([0; 8]); // sequence, sender: there is one question
    text.extend([family as u8, libc::IPPROTO_TCP as u8, 0, 0]);
    text.extend(u32::MAX.to_ne_bytes()); // every state
    text.extend(from.port().to_be_bytes());
    text.extend(to.port().to_be_bytes());
    text.extend(bare(from));
    text.extend(bare(to));
    text.extend([0; 4]); // any interface
    text.extend((key.socket as u32).to_ne_bytes());
    text.extend(((key.socket >> 32) as u32).to_ne_bytes());
    text
}

/// 16 bytes, an IPv4 address in the first four.
fn bare(end: SocketAddr) -> [u8; 16] {
    let mut whole = [0; 16];
    match end {
        SocketAddr::V4(end) => whole[..4].copy_from_slice(&end.ip().octets()),
        SocketAddr::V6(end) => whole = address((*end.ip()).into()),
    }
    whole
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_request_is_as_long_as_it_says_in_both_families() {
        for (from, to) in [("10.0.0.1:1", "10.0.0.2:2"), ("[fd00::1]:1", "[fd00::2]:2")] {
            let (from, to) = (from.parse().expect("valid"), to.parse().expect("valid"));
            let text = message(Key::default(), from, to);
            assert_eq!(text.len(), HEADER + REQUEST);
            assert_eq!(text[..4], (text.len() as u32).to_ne_bytes());
        }
    }
}
