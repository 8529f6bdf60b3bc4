//! The header that tells an application behind the tunnel who its client is: PROXY protocol, version 2
//! (haproxy's proxy-protocol.txt, §2.2). Owns the bytes; not who gets one.

use crate::ids::SpiffeId;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
const VERSION_2_PROXY: u8 = 0x21;
const STREAM_V4: u8 = 0x11;
const STREAM_V6: u8 = 0x21;
/// Istio's: the client's SPIFFE ID, and the hostname of the service that it addressed.
const TLV_IDENTITY: u8 = 0xd0;
const TLV_SERVICE: u8 = 0xd1;

/// `to`: what the client addressed. If the families differ, both are told as IPv6.
pub fn header(
    client: SocketAddr,
    to: SocketAddr,
    identity: &SpiffeId,
    service: Option<&str>,
) -> Vec<u8> {
    let (family, mut body) = match (client.ip(), to.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => (STREAM_V4, [from.octets(), to.octets()].concat()),
        (from, to) => (STREAM_V6, [wide(from).octets(), wide(to).octets()].concat()),
    };
    body.extend(client.port().to_be_bytes());
    body.extend(to.port().to_be_bytes());
    append(&mut body, TLV_IDENTITY, identity.as_str());
    if let Some(service) = service {
        append(&mut body, TLV_SERVICE, service);
    }
    let length = u16::try_from(body.len()).unwrap_or(u16::MAX); // an ID has 2 KiB, a name 255 bytes at most
    let mut header = SIGNATURE.to_vec();
    header.extend([VERSION_2_PROXY, family]);
    header.extend(length.to_be_bytes());
    header.extend(body);
    header
}

fn wide(ip: IpAddr) -> Ipv6Addr {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    }
}

/// One that is too long for its length field is left out: half of a name is somebody else's.
fn append(body: &mut Vec<u8>, kind: u8, value: &str) {
    if let Ok(length @ ..=4096) = u16::try_from(value.len()) {
        body.push(kind);
        body.extend(length.to_be_bytes());
        body.extend(value.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(client: &str, to: &str, service: Option<&str>) -> Vec<u8> {
        let identity = SpiffeId::parse("spiffe://td/ns/a/sa/b").unwrap();
        header(
            client.parse().unwrap(),
            to.parse().unwrap(),
            &identity,
            service,
        )
    }

    #[test]
    fn a_v4_client_is_told_with_its_identity() {
        let expected = [
            &b"\x0d\x0a\x0d\x0a\x00\x0d\x0a\x51\x55\x49\x54\x0a\x21\x11\x00\x24"[..],
            &[10, 0, 0, 9, 10, 96, 0, 1, 0x12, 0x34, 0, 80],
            &b"\xd0\x00\x15spiffe://td/ns/a/sa/b"[..],
        ];
        assert_eq!(
            told("10.0.0.9:4660", "10.96.0.1:80", None),
            expected.concat()
        );
    }

    #[test]
    fn the_service_follows_and_mixed_families_become_v6() {
        let header = told("[fd00::9]:1", "10.96.0.1:80", Some("web.shop"));
        assert_eq!(header[13], STREAM_V6);
        assert_eq!(
            usize::from(u16::from_be_bytes([header[14], header[15]])),
            header.len() - 16
        );
        assert_eq!(
            &header[32..48],
            Ipv6Addr::from([0, 0, 0, 0, 0, 0xffff, 0x0a60, 1]).octets()
        );
        assert!(header.ends_with(b"\xd1\x00\x08web.shop"));
    }
}
