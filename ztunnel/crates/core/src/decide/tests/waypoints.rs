//! Waypoints are gone through, never round.

use super::*;
use crate::fixtures::{gateway_at, gateway_named};

const WAYPOINT: &str = "shop/waypoint.shop.svc";

/// A waypoint as istiod describes it: a service with the HBONE port, and its pods.
fn waypoint() -> [Box<dyn crate::fixtures::Resource>; 2] {
    [
        Box::new(service(WAYPOINT, &["10.96.0.99"], &[(15008, 15008)])),
        Box::new(pod("shop/waypoint-1", "10.0.0.99").serving(WAYPOINT, &[(15008, 15008)])),
    ]
}

fn web(gateway: Option<pb::GatewayAddress>) -> pb::Service {
    service("shop/web", &["10.96.0.1"], &[(80, 8080)]).with(|s| s.waypoint = gateway)
}

fn web_pod() -> pb::Workload {
    pod("shop/web-1", "10.0.0.1").serving("shop/web", &[])
}

fn with_waypoint(resources: &[&dyn crate::fixtures::Resource]) -> Tables {
    let [service, pod] = waypoint();
    resources
        .iter()
        .fold(mesh(&[&client(), &*service, &*pod]), |tables, resource| {
            push(&tables, *resource)
        })
}

#[test]
fn a_services_waypoint_is_told_the_original_address() {
    for gateway in [
        gateway_named(WAYPOINT),
        gateway_at("10.96.0.99"),
        gateway_at("10.0.0.99"),
    ] {
        let route = go(&with_waypoint(&[&web(gateway), &web_pod()]), "10.96.0.1:80");
        assert_eq!(
            told(&route),
            tunnel("10.0.0.99:15008", "10.96.0.1:80", "shop/waypoint")
        );
        let Route::Tunnel {
            upstream: Some(upstream),
            service: Some(service),
            ..
        } = route
        else {
            panic!("{route:?}")
        };
        assert_eq!((&*upstream.name, &*service.key), ("waypoint-1", "shop/web"));
    }
}

#[test]
fn a_workloads_waypoint_takes_what_is_addressed_to_the_workload_only() {
    let guarded = web_pod().with(|w| w.waypoint = gateway_named(WAYPOINT));
    let tables = with_waypoint(&[&web(None), &guarded]);
    assert_eq!(
        told(&go(&tables, "10.0.0.1:8080")),
        tunnel("10.0.0.99:15008", "10.0.0.1:8080", "shop/waypoint")
    );
    assert_eq!(
        told(&go(&tables, "10.96.0.1:80")),
        tunnel("10.0.0.1:15008", "10.0.0.1:8080", "shop/web")
    );
}

#[test]
fn the_waypoint_itself_goes_straight() {
    for gateway in [
        gateway_named(WAYPOINT),
        gateway_at("10.96.0.99"),
        gateway_at("10.0.0.99"),
    ] {
        let guarded = web_pod().with(|w| w.waypoint = gateway.clone());
        let tables = with_waypoint(&[&web(gateway), &guarded]);
        let straight = tunnel("10.0.0.1:15008", "10.0.0.1:8080", "shop/web");
        assert_eq!(
            told(&go_from(&tables, "shop/waypoint-1", "10.0.0.1:8080", 0)),
            straight
        );
        assert_eq!(
            told(&go_from(&tables, "shop/waypoint-1", "10.96.0.1:80", 0)),
            straight
        );
    }
}

#[test]
fn a_waypoint_that_is_unknown_is_not_gone_round() {
    let named = mesh(&[&client(), &web(gateway_named("shop/gone")), &web_pod()]);
    assert_eq!(
        told(&go(&named, "10.96.0.1:80")),
        "refused: waypoint shop/gone of shop/web is not known"
    );
    let guarded = web_pod().with(|w| w.waypoint = gateway_at("10.0.0.77"));
    let addressed = mesh(&[&client(), &guarded]);
    assert_eq!(
        told(&go(&addressed, "10.0.0.1:80")),
        "refused: waypoint 10.0.0.77 of Kubernetes//Pod/shop/web-1 is not known"
    );
}

#[test]
fn a_waypoint_without_endpoints_is_not_gone_round() {
    let [waypoint, _] = waypoint();
    let tables = mesh(&[
        &client(),
        &*waypoint,
        &web(gateway_named(WAYPOINT)),
        &web_pod(),
    ]);
    assert_eq!(
        told(&go(&tables, "10.96.0.1:80")),
        "refused: service shop/waypoint.shop.svc has no healthy endpoint"
    );
}

#[test]
fn a_waypoint_without_a_tunnel_is_not_gone_round() {
    let plain = pod("shop/plain-1", "10.0.0.77").with(|w| w.tunnel_protocol = 0);
    let tables = mesh(&[&client(), &plain, &web(gateway_at("10.0.0.77")), &web_pod()]);
    assert_eq!(
        told(&go(&tables, "10.96.0.1:80")),
        "refused: waypoint 10.0.0.77 of shop/web does not speak HBONE"
    );
}

#[test]
fn a_waypoint_in_another_network_is_not_gone_round() {
    let far = gateway_at("10.0.0.77").map(|mut gateway| {
        if let Some(pb::gateway_address::Destination::Address(address)) = &mut gateway.destination {
            address.network = "far".into();
        }
        gateway
    });
    let tables = mesh(&[&client(), &web(far), &web_pod()]);
    assert_eq!(
        told(&go(&tables, "10.96.0.1:80")),
        "refused: shop/web is in network far, to which no gateway is known"
    );
}

#[test]
fn waypoints_with_weights_share_the_connections_and_go_before_the_plain_one() {
    let weighted = |address: &str, weight| pb::WeightedWaypoint {
        destination: gateway_at(address),
        weight,
    };
    let canary = web(gateway_named("shop/unused"))
        .with(|s| s.weighted_waypoints = vec![weighted("10.0.0.99", 3), weighted("10.0.0.98", 1)]);
    let tables = with_waypoint(&[&canary, &web_pod(), &pod("shop/waypoint-2", "10.0.0.98")]);
    let to_canary = |n: &u64| {
        let route = told(&go_from(
            &tables,
            "shop/client-1",
            "10.96.0.1:80",
            n * (u64::MAX / 1000),
        ));
        route.starts_with("tunnel 10.0.0.98:15008")
    };
    let canaries = (0..1000).filter(to_canary).count();
    assert!(
        (200..300).contains(&canaries),
        "{canaries} of 1000 instead of about 250"
    );
    let straight = tunnel("10.0.0.1:15008", "10.0.0.1:8080", "shop/web");
    assert_eq!(
        told(&go_from(&tables, "shop/waypoint-2", "10.96.0.1:80", 0)),
        straight
    );
}

#[test]
fn weights_of_zero_leave_the_plain_waypoint() {
    let zero = pb::WeightedWaypoint {
        destination: gateway_at("10.0.0.77"),
        weight: 0,
    };
    let service = web(gateway_named(WAYPOINT)).with(|s| s.weighted_waypoints = vec![zero]);
    let tables = with_waypoint(&[&service, &web_pod()]);
    assert_eq!(
        told(&go(&tables, "10.96.0.1:80")),
        tunnel("10.0.0.99:15008", "10.96.0.1:80", "shop/waypoint")
    );
}
