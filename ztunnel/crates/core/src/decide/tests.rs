//! Ways out: each test is a small mesh and one connection.

mod balancing;
mod beyond;
mod chances;
mod waypoints;

use super::*;
use crate::fixtures::{mesh, packed, pod, push, service, spiffe, workload};
use crate::wire::workload as pb;

fn client() -> pb::Workload {
    pod("shop/client-1", "10.0.0.9")
}

fn go(tables: &Tables, dst: &str) -> Route {
    go_from(tables, "shop/client-1", dst, 0)
}

fn go_from(tables: &Tables, from: &str, dst: &str, random: u64) -> Route {
    route(
        tables,
        workload(tables, from),
        OrigDst(dst.parse().unwrap()),
        random,
    )
}

/// What is not the first attempt.
fn go_on(tables: &Tables, dst: &str, around: &Circumstances<'_>) -> String {
    let from = workload(tables, "shop/client-1");
    told(&choose(tables, from, OrigDst(dst.parse().unwrap()), around))
}

/// `tunnel DIAL AUTHORITY WANT..`, `plain DIAL: why`, `refused: why`.
fn told(route: &Route) -> String {
    match route {
        Route::Tunnel {
            dial,
            authority,
            want,
            ..
        } => {
            let want: Vec<&str> = want.iter().map(SpiffeId::as_str).collect();
            format!("tunnel {} {authority} {}", dial.0, want.join(" "))
        }
        Route::Passthrough { dial, because, .. } => format!("plain {}: {because}", dial.0),
        Route::Lookup { hostname } => format!("lookup {hostname}"),
        Route::Refused { why } => format!("refused: {why}"),
    }
}

fn tunnel(dial: &str, authority: &str, path: &str) -> String {
    format!("tunnel {dial} {authority} {}", spiffe(path))
}

#[test]
fn a_pod_with_a_tunnel_is_reached_through_it() {
    let tables = mesh(&[
        &client(),
        &pod("shop/web-1", "10.0.0.1"),
        &pod("shop/six-1", "fd00::1"),
    ]);
    assert_eq!(
        told(&go(&tables, "10.0.0.1:8080")),
        tunnel("10.0.0.1:15008", "10.0.0.1:8080", "shop/web")
    );
    assert_eq!(
        told(&go(&tables, "[fd00::1]:80")),
        tunnel("[fd00::1]:15008", "[fd00::1]:80", "shop/six")
    );
    assert_eq!(
        told(&go(&tables, "[::ffff:10.0.0.1]:80")),
        tunnel("10.0.0.1:15008", "10.0.0.1:80", "shop/web")
    );
}

#[test]
fn what_is_outside_the_mesh_is_reached_in_plaintext_and_it_says_why() {
    let bare = pod("shop/bare-1", "10.0.0.2").with(|w| w.tunnel_protocol = 0);
    let tables = mesh(&[&client(), &bare]);
    assert_eq!(
        told(&go(&tables, "192.0.2.1:80")),
        "plain 192.0.2.1:80: the destination is no address of the mesh"
    );
    assert_eq!(
        told(&go(&tables, "10.0.0.2:80")),
        "plain 10.0.0.2:80: the destination workload has no tunnel"
    );
}

#[test]
fn a_virtual_address_becomes_an_endpoints_address_and_port() {
    let tables = mesh(&[
        &client(),
        &service("shop/web", &["10.96.0.1"], &[(80, 8080)]),
        &pod("shop/web-1", "10.0.0.1").serving("shop/web", &[]),
    ]);
    let route = go(&tables, "10.96.0.1:80");
    assert_eq!(
        told(&route),
        tunnel("10.0.0.1:15008", "10.0.0.1:8080", "shop/web")
    );
    let Route::Tunnel {
        upstream: Some(upstream),
        service: Some(service),
        ..
    } = route
    else {
        panic!("{route:?}")
    };
    assert_eq!((&*upstream.name, &*service.key), ("web-1", "shop/web"));
}

#[test]
fn an_endpoint_without_a_tunnel_is_reached_in_plaintext() {
    let bare = pod("shop/web-1", "10.0.0.1")
        .serving("shop/web", &[])
        .with(|w| w.tunnel_protocol = 0);
    let tables = mesh(&[
        &client(),
        &service("shop/web", &["10.96.0.1"], &[(80, 8080)]),
        &bare,
    ]);
    assert_eq!(
        told(&go(&tables, "10.96.0.1:80")),
        "plain 10.0.0.1:8080: the destination workload has no tunnel"
    );
}

#[test]
fn a_workloads_address_goes_before_a_services() {
    let tables = mesh(&[
        &client(),
        &service("shop/web", &["10.0.0.1", "10.0.0.0/8"], &[(80, 8080)]),
        &pod("shop/web-1", "10.0.0.1"),
    ]);
    assert_eq!(
        told(&go(&tables, "10.0.0.1:80")),
        tunnel("10.0.0.1:15008", "10.0.0.1:80", "shop/web")
    );
}

#[test]
fn the_tunnels_own_ports_are_a_loop() {
    let tables = mesh(&[&client(), &pod("shop/web-1", "10.0.0.1")]);
    let hosts = [
        "127.0.0.1",
        "[::1]",
        "0.0.0.0",
        "[::]",
        "[::ffff:127.0.0.1]",
        "10.0.0.9",
        "[::ffff:10.0.0.9]",
    ];
    for host in hosts {
        for port in addr::ILLEGAL_PORTS {
            let route = go(&tables, &format!("{host}:{port}"));
            assert!(
                matches!(
                    route,
                    Route::Refused {
                        why: Refusal::OwnPort(_)
                    }
                ),
                "{host}:{port} {route:?}"
            );
        }
        assert!(
            !matches!(go(&tables, &format!("{host}:8080")), Route::Refused { .. }),
            "{host}:8080"
        );
    }
    assert_eq!(
        told(&go(&tables, "127.0.0.1:15001")),
        "refused: 127.0.0.1:15001 is a port of the tunnel itself: a loop"
    );
}

#[test]
fn a_service_that_passes_through_is_dialled_as_it_was_asked_for() {
    let through = service("shop/ext", &["10.96.0.0/16"], &[]).with(|s| {
        s.load_balancing = Some(pb::LoadBalancing {
            mode: pb::load_balancing::Mode::Passthrough.into(),
            ..Default::default()
        });
    });
    let tables = mesh(&[&client(), &through]);
    assert_eq!(
        told(&go(&tables, "10.96.1.1:443")),
        "plain 10.96.1.1:443: the service asks for its connections to be passed through"
    );
}

#[test]
fn the_identities_a_service_names_are_accepted_besides_the_endpoints_own() {
    let named = service("shop/web", &["10.96.0.1"], &[(80, 80)])
        .with(|s| s.subject_alt_names = vec![spiffe("bank/db"), spiffe("shop/web")]);
    let tables = mesh(&[
        &client(),
        &named,
        &pod("shop/web-1", "10.0.0.1").serving("shop/web", &[]),
    ]);
    let expected = format!(
        "tunnel 10.0.0.1:15008 10.0.0.1:80 {} {}",
        spiffe("shop/web"),
        spiffe("bank/db")
    );
    assert_eq!(told(&go(&tables, "10.96.0.1:80")), expected);
}

#[test]
fn a_hidden_service_is_no_address_of_the_mesh_for_others() {
    let hidden = service("bank/db", &["10.96.0.1"], &[(80, 80)])
        .with(|s| s.visibility = pb::service::Visibility::Namespace.into());
    let tables = mesh(&[&client(), &hidden]);
    assert_eq!(
        told(&go(&tables, "10.96.0.1:80")),
        "plain 10.96.0.1:80: the destination is no address of the mesh"
    );
}
