//! Addresses that cannot be mixed up, and the ports that are ours. Owns no lookup.

use std::net::{IpAddr, SocketAddr};

/// Capture of what a pod's applications send.
pub const OUTBOUND_PORT: u16 = 15001;
/// Capture of plaintext that arrives at a pod.
pub const INBOUND_PORT: u16 = 15006;
/// HBONE: HTTP/2 CONNECT inside mutual TLS.
pub const HBONE_PORT: u16 = 15008;
/// DNS of a pod's applications, UDP and TCP.
pub const DNS_PORT: u16 = 15053;

/// Ports of the tunnel itself (Istio's numbers): a target with one of them would be a loop or an admin door.
/// Admin, outbound, inbound, HBONE, metrics, readiness, DNS, SOCKS5. Sorted.
pub const ILLEGAL_PORTS: [u16; 8] = [
    15000,
    OUTBOUND_PORT,
    INBOUND_PORT,
    HBONE_PORT,
    15020,
    15021,
    DNS_PORT,
    15080,
];

/// Where the application wanted to go, before capture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct OrigDst(pub SocketAddr);

/// Where the tunnel connects to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DialAddr(pub SocketAddr);

/// The other end of an accepted connection, as the kernel names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PeerAddr(pub SocketAddr);

/// One form per address: `::ffff:10.0.0.1` is 10.0.0.1 (a wildcard v6 listener reports v4 peers so); no zone, no flow.
pub fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Is it one of `ILLEGAL_PORTS`?
pub fn is_illegal(port: u16) -> bool {
    ILLEGAL_PORTS.contains(&port)
}

/// Would the kernel deliver it to this very namespace, whoever asks? Loopback and the unspecified address.
pub fn is_own_host(ip: IpAddr) -> bool {
    let ip = ip.to_canonical();
    ip.is_loopback() || ip.is_unspecified()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapped_address_is_its_v4_self() {
        let mapped: SocketAddr = "[::ffff:10.0.0.1]:80".parse().unwrap();
        assert_eq!(canonical(mapped), "10.0.0.1:80".parse().unwrap());
    }

    #[test]
    fn loopback_hides_in_many_spellings() {
        for ip in [
            "127.0.0.1",
            "127.9.9.9",
            "::1",
            "::ffff:127.0.0.1",
            "0.0.0.0",
            "::",
            "::ffff:0.0.0.0",
        ] {
            assert!(is_own_host(ip.parse().unwrap()), "{ip}");
        }
        assert!(!is_own_host("10.0.0.1".parse().unwrap()));
    }

    #[test]
    fn our_ports_are_illegal_targets_and_their_neighbours_are_not() {
        assert!(ILLEGAL_PORTS.is_sorted());
        assert!(is_illegal(HBONE_PORT) && is_illegal(15021));
        assert!(!is_illegal(15009) && !is_illegal(80));
    }
}
