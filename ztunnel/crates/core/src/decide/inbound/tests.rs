//! What a peer may ask for: S1 to S8 of the threat list, and Istio's codes.

use super::*;
use crate::fixtures::{gateway_named, mesh, pod, push, service, workload};
use crate::wire::workload as pb;

const OWN: &str = "10.0.0.1:15008";

fn shop() -> Tables {
    mesh(&[
        &pod("shop/web-1", "10.0.0.1").serving("shop/web.shop.svc", &[(80, 9090), (90, 15001)]),
        &pod("shop/db-1", "10.0.0.2").serving("shop/db.shop.svc", &[]),
        &service(
            "shop/web.shop.svc",
            &["10.96.0.1"],
            &[(80, 8080), (81, 0), (82, 8082)],
        ),
        &service("shop/db.shop.svc", &["10.96.0.2"], &[(5432, 5432)]),
    ])
}

fn asked_on(tables: &Tables, connected: &str, authority: &str) -> Result<Target, Refused> {
    inbound_target(
        tables,
        workload(tables, "shop/web-1"),
        connected.parse().unwrap(),
        authority,
    )
}

/// The address, or `STATUS why`.
fn asked(tables: &Tables, authority: &str) -> String {
    match asked_on(tables, OWN, authority) {
        Ok(target) => target.addr.to_string(),
        Err(Refused { status, why }) => format!("{status} {why}"),
    }
}

#[test]
fn the_pods_own_address_is_delivered() {
    assert_eq!(asked(&shop(), "10.0.0.1:8080"), "10.0.0.1:8080");
    assert_eq!(asked(&shop(), "[::ffff:10.0.0.1]:8080"), "10.0.0.1:8080");
    assert_eq!(asked(&shop(), "[::ffff:a00:1]:8080"), "10.0.0.1:8080");
}

#[test]
fn a_connection_that_came_to_a_mapped_address_is_a_v4_one() {
    let target = asked_on(&shop(), "[::ffff:10.0.0.1]:15008", "10.0.0.1:80").unwrap();
    assert_eq!(
        target,
        Target {
            addr: "10.0.0.1:80".parse().unwrap(),
            service: None,
            proxied: None,
        }
    );
    let target = asked_on(&shop(), "[fd00::1]:15008", "[fd00:0::1]:80").unwrap();
    assert_eq!(target.addr, "[fd00::1]:80".parse().unwrap());
}

#[test]
fn an_authority_of_another_form_is_400() {
    let long = format!("{}:80", ["a"; 129].join("."));
    let label = format!("{}.svc:80", "a".repeat(64));
    let odd = [
        "",
        ":",
        ":80",
        "10.0.0.1",
        "10.0.0.1:",
        "10.0.0.1:0",
        "10.0.0.1:+80",
        "10.0.0.1:-1",
        "10.0.0.1:080",
        "10.0.0.1:65536",
        "10.0.0.1:99999999999",
        "10.0.0.1:80 ",
        " 10.0.0.1:80",
        "10.0.0.1:8_0",
        "10.0.0.1:80/",
        "10.0.0.1:80:80",
        "user@10.0.0.1:80",
        "user:pass@10.0.0.1:80",
        "http://10.0.0.1:80",
        "10.0.0.1:80?x",
        "10.0.0.1:80#x",
        "[10.0.0.1]:80",
        "10.0.0.01:80",
        "10.0.1:80",
        "1:80",
        "127.1:80",
        "2130706433:80",
        "10.0.0.1.:80",
        "::1:80",
        "fd00::1:80",
        "[::1]",
        "[::1]80",
        "[::1:80",
        "::1]:80",
        "[fe80::1%eth0]:80",
        "[fe80::1%25eth0]:80",
        "[]:80",
        "a..b:80",
        ".a:80",
        "a b:80",
        "a\r\n:80",
        "a\0:80",
        "*.a:80",
        "%61:80",
        "é:80",
        &long,
        &label,
    ];
    for authority in odd {
        assert_eq!(
            asked(&shop(), authority),
            "400 the authority is not HOST:PORT",
            "{authority:?}"
        );
    }
}

#[test]
fn every_hosts_own_address_is_400_whatever_it_is_called() {
    let hosts = [
        "127.0.0.1",
        "127.8.8.8",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "0.0.0.0",
        "[::]",
    ];
    for host in hosts {
        let refused = asked_on(&shop(), OWN, &format!("{host}:8080")).unwrap_err();
        assert!(
            matches!(
                refused,
                Refused {
                    status: 400,
                    why: Unfit::OwnHost(_)
                }
            ),
            "{host} {refused:?}"
        );
        let from_inside = asked_on(&shop(), "127.0.0.1:15008", &format!("{host}:8080"));
        assert!(from_inside.is_err(), "{host}");
    }
}

#[test]
fn an_address_of_somebody_else_is_400() {
    for host in [
        "10.0.0.2",
        "10.96.0.1",
        "169.254.169.254",
        "192.0.2.1",
        "[fd00:ec2::254]",
        "255.255.255.255",
    ] {
        let refused = asked_on(&shop(), OWN, &format!("{host}:8080")).unwrap_err();
        assert!(
            matches!(
                refused,
                Refused {
                    status: 400,
                    why: Unfit::OtherAddress { .. }
                }
            ),
            "{host} {refused:?}"
        );
    }
    assert_eq!(
        asked(&shop(), "10.0.0.2:80"),
        "400 the authority names 10.0.0.2, but the connection came to 10.0.0.1"
    );
}

#[test]
fn the_tunnels_own_ports_are_503() {
    for port in addr::ILLEGAL_PORTS {
        let expected = format!("503 {port} is a port of the tunnel itself: a loop");
        assert_eq!(asked(&shop(), &format!("10.0.0.1:{port}")), expected);
    }
    assert_eq!(
        asked(&shop(), "web.shop.svc:90"),
        "503 15001 is a port of the tunnel itself: a loop"
    );
}

#[test]
fn a_hostname_is_a_service_that_this_workload_serves() {
    let tables = shop();
    assert_eq!(
        asked(&tables, "web.shop.svc:80"),
        "10.0.0.1:9090",
        "the endpoint's own mapping"
    );
    assert_eq!(
        asked(&tables, "WEB.shop.SVC:82"),
        "10.0.0.1:8082",
        "the service's mapping"
    );
    let target = asked_on(&tables, OWN, "web.shop.svc:80").unwrap();
    assert_eq!(&*target.service.unwrap().key, "shop/web.shop.svc");
}

#[test]
fn a_hostname_that_does_not_lead_here_is_503() {
    let cases = [
        (
            "unheard.of:80",
            "503 no service has the hostname unheard.of",
        ),
        ("localhost:80", "503 no service has the hostname localhost"),
        (
            "metadata.google.internal:80",
            "503 no service has the hostname metadata.google.internal",
        ),
        (
            "db.shop.svc:5432",
            "503 this workload is no endpoint of service shop/db.shop.svc",
        ),
        (
            "web.shop.svc:83",
            "503 service shop/web.shop.svc has no port 83 here",
        ),
        (
            "web.shop.svc:81",
            "503 service shop/web.shop.svc has no port 81 here",
        ),
    ];
    for (authority, expected) in cases {
        assert_eq!(asked(&shop(), authority), expected);
    }
}

#[test]
fn of_two_services_with_one_hostname_the_own_namespaces_is_meant() {
    let tables = mesh(&[
        &service("bank/same.svc", &[], &[(80, 1)]).with(|s| s.canonical = true),
        &service("shop/same.svc", &[], &[(80, 2)]),
        &pod("shop/web-1", "10.0.0.1")
            .serving("bank/same.svc", &[])
            .serving("shop/same.svc", &[]),
    ]);
    assert_eq!(asked(&tables, "same.svc:80"), "10.0.0.1:2");
}

fn tunnelled(protocol: pb::application_tunnel::Protocol, port: u32) -> pb::Workload {
    let tunnel = pb::ApplicationTunnel {
        protocol: protocol.into(),
        port,
    };
    pod("shop/web-1", "10.0.0.1")
        .serving("shop/web.shop.svc", &[])
        .with(|w| w.application_tunnel = Some(tunnel))
}

#[test]
fn an_application_tunnel_has_its_own_port_but_takes_no_foreign_address() {
    let tables = push(
        &shop(),
        &tunnelled(pb::application_tunnel::Protocol::None, 7000),
    );
    assert_eq!(asked(&tables, "10.0.0.1:8080"), "10.0.0.1:7000");
    assert_eq!(asked(&tables, "web.shop.svc:80"), "10.0.0.1:7000");
    assert!(asked(&tables, "10.0.0.2:80").starts_with("400"));
    assert!(asked(&tables, "127.0.0.1:80").starts_with("400"));
    let tables = push(
        &shop(),
        &tunnelled(pb::application_tunnel::Protocol::None, 15008),
    );
    assert!(asked(&tables, "10.0.0.1:8080").starts_with("503"));
}

#[test]
fn an_application_that_wants_the_proxy_protocol_is_told_what_was_addressed() {
    let web = tunnelled(pb::application_tunnel::Protocol::Proxy, 7000);
    let tables = push(&shop(), &web);
    let told = |authority: &str| {
        let target = asked_on(&tables, OWN, authority).unwrap();
        (target.addr.to_string(), target.proxied.unwrap().to_string())
    };
    assert_eq!(
        told("10.0.0.1:8080"),
        ("10.0.0.1:7000".into(), "10.0.0.1:8080".into())
    );
}

#[test]
fn a_waypoint_takes_what_names_it_as_its_waypoint_and_delivers_to_itself() {
    let waypoint = tunnelled(pb::application_tunnel::Protocol::None, 7000)
        .serving("shop/way", &[(15008, 15008)]);
    let guarded = pod("shop/db-1", "10.0.0.2").with(|w| w.waypoint = gateway_named("shop/way"));
    let virtual_db = service("shop/db.shop.svc", &["10.96.0.2"], &[(5432, 5432)])
        .with(|s| s.waypoint = gateway_named("shop/way"));
    let tables = push(&push(&push(&shop(), &waypoint), &guarded), &virtual_db);
    for authority in ["10.0.0.2:80", "10.96.0.2:5432", "db.shop.svc:5432"] {
        assert_eq!(asked(&tables, authority), "10.0.0.1:7000", "{authority}");
    }
    for authority in ["10.0.0.3:80", "10.96.0.1:80"] {
        assert!(asked(&tables, authority).starts_with("400"), "{authority}");
    }
}
