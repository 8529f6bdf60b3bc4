//! How far away the other end of a tunnel is, and how much may therefore be under way to us.
//!
//! Owns the size of receive windows. A window larger than what the path holds does not make a stream faster: what the path
//! does not hold waits in a queue, and with it everything that comes behind it on the same tunnel; also a queue larger
//! than the cache is read from memory.

use std::io;
use std::os::fd::AsRawFd;

use tokio::net::TcpStream;

use crate::netns::{check, set_int};

/// What Istio gives a stream: enough for 10 Gbit/s over 3 ms.
const WIDEST: u32 = 4 << 20;
/// What both ends need for large reads and writes while neither waits for the other.
const NEXT_DOOR: u32 = 768 << 10;
/// 20 Gbit/s in bytes per microsecond.
const BYTES_PER_US: u32 = 2500;

/// How much the peer may have under way to us on one stream, bytes. Also bounds what the kernel keeps for us, where we may
/// (CAP_NET_ADMIN) and where the path is short; else that follows the path by itself.
pub(crate) fn window(tcp: &TcpStream) -> u32 {
    let window = fitting(round_trip_us(tcp).unwrap_or(0));
    if window < WIDEST {
        // Without the right to: the kernel's own limit is as good.
        let _ = set_int(
            tcp,
            libc::SOL_SOCKET,
            libc::SO_RCVBUFFORCE,
            window as libc::c_int,
        );
    }
    window
}

/// 0: unknown.
fn fitting(round_trip_us: u32) -> u32 {
    match round_trip_us {
        0 => WIDEST,
        us => WIDEST.min(us.saturating_mul(BYTES_PER_US).saturating_add(NEXT_DOOR)),
    }
}

/// The shortest that TCP has seen, microseconds.
fn round_trip_us(tcp: &TcpStream) -> io::Result<u32> {
    // SAFETY: a struct of integers, for which zero is a value.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut size = size_of_val(&info) as libc::socklen_t;
    // SAFETY: the kernel writes at most `size` bytes; an older one writes less, which leaves zeros.
    check(unsafe {
        libc::getsockopt(
            tcp.as_raw_fd(),
            libc::SOL_TCP,
            libc::TCP_INFO,
            (&raw mut info).cast(),
            &raw mut size,
        )
    })?;
    Ok(info.tcpi_min_rtt)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_holds_what_the_path_holds_and_no_more_than_istios() {
        for (round_trip_us, window) in [
            (50, (768 << 10) + 125_000), // the next node
            (1000, (768 << 10) + 2_500_000),
            (1400, WIDEST), // another zone
            (80_000, WIDEST),
            (u32::MAX, WIDEST),
            (0, WIDEST), // unknown
        ] {
            assert_eq!(fitting(round_trip_us), window, "{round_trip_us} µs");
        }
    }

    #[tokio::test]
    async fn the_peer_across_the_loopback_is_near() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await;
        let listener = listener.expect("loopback");
        let address = listener.local_addr().expect("bound");
        let near = TcpStream::connect(address).await.expect("reaches");
        let (far, _) = listener.accept().await.expect("it is in the queue");
        for end in [&near, &far] {
            let us = round_trip_us(end).expect("TCP");
            assert!(us > 0, "both ends have seen one round trip");
        }
    }
}
