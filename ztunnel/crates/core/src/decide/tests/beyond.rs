//! Endpoints in other networks: through their gateway, with a second tunnel inside, or not at all.

use super::*;
use crate::fixtures::{gateway_at, gateway_named};

fn web() -> pb::Service {
    service("shop/web.shop.svc", &["10.96.0.1"], &[(80, 8080)])
        .with(|s| s.subject_alt_names = vec![spiffe("shop/web")])
}

fn far(n: u8, gateway: Option<pb::GatewayAddress>) -> pb::Workload {
    pod(&format!("shop/web-{n}"), &format!("10.0.0.{n}"))
        .serving("shop/web.shop.svc", &[])
        .with(|w| {
            w.network = "far".into();
            w.network_gateway = gateway;
        })
}

fn in_far(gateway: Option<pb::GatewayAddress>) -> Option<pb::GatewayAddress> {
    gateway.map(|mut gateway| {
        if let Some(pb::gateway_address::Destination::Address(address)) = &mut gateway.destination {
            address.network = "far".into();
        }
        gateway
    })
}

fn gateway_pod() -> pb::Workload {
    pod("istio/eastwest-1", "203.0.113.1")
        .with(|w| w.network = "far".into())
        .serving("istio/eastwest", &[])
}

fn with_gateway(resources: &[&dyn crate::fixtures::Resource]) -> Tables {
    let gateway = service("istio/eastwest", &["203.0.113.9"], &[(15008, 15008)])
        .with(|s| s.addresses[0].network = "far".into());
    let start = mesh(&[&client(), &gateway, &gateway_pod()]);
    resources
        .iter()
        .fold(start, |tables, resource| push(&tables, *resource))
}

#[test]
fn what_is_far_is_reached_by_its_services_name_through_the_gateway() {
    for gateway in [
        gateway_named("istio/eastwest"),
        in_far(gateway_at("203.0.113.9")),
        in_far(gateway_at("203.0.113.1")),
    ] {
        let tables = with_gateway(&[&web(), &far(1, gateway)]);
        let route = go(&tables, "10.96.0.1:80");
        assert_eq!(
            told(&route),
            tunnel("203.0.113.1:15008", "web.shop.svc:80", "istio/eastwest")
        );
        assert_eq!(route.dialled().map(|w| &*w.name), Some("eastwest-1"));
        let Route::Tunnel {
            beyond: Some(beyond),
            upstream: Some(upstream),
            ..
        } = route
        else {
            panic!("{route:?}")
        };
        assert_eq!(&*upstream.name, "web-1");
        let inner: Vec<_> = beyond.want.iter().map(SpiffeId::as_str).collect();
        assert_eq!(
            inner,
            [spiffe("shop/web")],
            "the gateway cannot be the other end"
        );
    }
}

#[test]
fn without_a_gateway_or_without_a_name_to_trust_it_is_refused() {
    let gateway = gateway_named("istio/eastwest");
    let table = [
        (
            web(),
            far(1, None),
            "refused: shop/web.shop.svc is in network far, to which no gateway is known",
        ),
        (
            web().with(|s| s.subject_alt_names.clear()),
            far(1, gateway.clone()),
            "refused: service shop/web.shop.svc is in another network and names no identities (subjectAltNames), so nobody there can be trusted",
        ),
        (
            web(),
            far(1, gateway_named("istio/gone")),
            "refused: waypoint istio/gone of shop/web.shop.svc is not known",
        ),
    ];
    for (service, endpoint, expected) in table {
        assert_eq!(
            told(&go(&with_gateway(&[&service, &endpoint]), "10.96.0.1:80")),
            expected
        );
    }
}

#[test]
fn with_the_network_as_first_scope_the_far_ones_wait_until_there_is_no_near_one() {
    use pb::load_balancing::{Mode, Scope};
    let preferring = web().with(|s| {
        s.load_balancing = Some(pb::LoadBalancing {
            routing_preference: vec![Scope::Network.into(), Scope::Region.into()],
            mode: Mode::Failover.into(),
            health_policy: 0,
        });
    });
    let place = |w: &mut pb::Workload, region: &str| {
        w.locality = Some(pb::Locality {
            region: region.into(),
            ..Default::default()
        });
    };
    let here = client().with(|w| place(w, "r"));
    let gateway = gateway_named("istio/eastwest");
    let near = pod("shop/web-1", "10.0.0.1")
        .serving("shop/web.shop.svc", &[])
        .with(|w| place(w, "other"));
    let (same, other) = (
        far(2, gateway.clone()).with(|w| place(w, "r")),
        far(3, gateway).with(|w| place(w, "q")),
    );
    let tables = with_gateway(&[&here, &preferring, &near, &same, &other]);
    let upstream =
        |tables: &Tables, n: u64| match go_from(tables, "shop/client-1", "10.96.0.1:80", n << 59) {
            Route::Tunnel {
                upstream: Some(upstream),
                ..
            } => upstream.name.to_string(),
            route => panic!("{route:?}"),
        };
    assert!((0..32).all(|n| upstream(&tables, n) == "web-1"));
    let (tables, _) = tables.with(
        crate::tables::Kind::Address,
        &[],
        &[crate::fixtures::uid("shop/web-1")],
    );
    assert!(
        (0..32).all(|n| upstream(&tables, n) == "web-2"),
        "of the far ones the nearer"
    );
    let (tables, _) = tables.with(
        crate::tables::Kind::Address,
        &[],
        &[crate::fixtures::uid("shop/web-2")],
    );
    assert!((0..32).all(|n| upstream(&tables, n) == "web-3"));
}
