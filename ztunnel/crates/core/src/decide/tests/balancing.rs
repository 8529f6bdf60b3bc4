//! Which endpoint, and what is said when there is none.

use super::*;
use pb::load_balancing::{HealthPolicy, Mode, Scope};
use std::collections::BTreeMap;

fn web() -> pb::Service {
    service("shop/web", &["10.96.0.1"], &[(80, 8080), (81, 0)])
}

fn balanced(mode: Mode, scopes: &[Scope]) -> pb::Service {
    web().with(|s| {
        let routing_preference = scopes.iter().map(|scope| i32::from(*scope)).collect();
        s.load_balancing = Some(pb::LoadBalancing {
            routing_preference,
            mode: mode.into(),
            health_policy: 0,
        });
    })
}

fn endpoint(n: u8) -> pb::Workload {
    pod(&format!("shop/web-{n}"), &format!("10.0.0.{n}")).serving("shop/web", &[])
}

fn located(n: u8, region: &str, zone: &str) -> pb::Workload {
    let locality = pb::Locality {
        region: region.into(),
        zone: zone.into(),
        subzone: String::new(),
    };
    endpoint(n).with(|w| w.locality = Some(locality))
}

/// How often each upstream is chosen in 1024 evenly spread throws.
fn shares(tables: &Tables, dst: &str) -> BTreeMap<String, usize> {
    let mut shares = BTreeMap::new();
    for n in 0..1024_u64 {
        let route = go_from(tables, "shop/client-1", dst, n << 54);
        let Route::Tunnel {
            upstream: Some(upstream),
            ..
        } = route
        else {
            panic!("{route:?}")
        };
        *shares.entry(upstream.name.to_string()).or_default() += 1;
    }
    shares
}

fn even(names: &[&str]) -> BTreeMap<String, usize> {
    names
        .iter()
        .map(|name| ((*name).to_owned(), 1024 / names.len()))
        .collect()
}

fn refused(tables: &Tables, dst: &str) -> String {
    told(&go(tables, dst))
}

#[test]
fn endpoints_are_chosen_by_their_capacity() {
    let weighing = |n, capacity| endpoint(n).with(|w| w.capacity = Some(capacity));
    let tables = mesh(&[
        &client(),
        &web(),
        &weighing(1, 3),
        &weighing(2, 1),
        &weighing(3, 0),
    ]);
    let expected = [("web-1".to_owned(), 768), ("web-2".to_owned(), 256)];
    assert_eq!(shares(&tables, "10.96.0.1:80"), expected.into());
}

#[test]
fn the_last_endpoint_is_chosen_by_the_greatest_number() {
    let tables = mesh(&[&client(), &web(), &endpoint(1), &endpoint(2)]);
    for (random, dial) in [
        (0, "10.0.0.1"),
        (u64::MAX / 2, "10.0.0.1"),
        (u64::MAX / 2 + 1, "10.0.0.2"),
        (u64::MAX, "10.0.0.2"),
    ] {
        let route = told(&go_from(&tables, "shop/client-1", "10.96.0.1:80", random));
        assert!(
            route.starts_with(&format!("tunnel {dial}:15008")),
            "{random}: {route}"
        );
    }
}

#[test]
fn strict_takes_only_who_shares_every_scope() {
    let here = client().with(|w| w.node = "n1".into());
    let on = |n, node: &str| endpoint(n).with(|w| w.node = node.into());
    let tables = mesh(&[
        &here,
        &balanced(Mode::Strict, &[Scope::Node]),
        &on(1, "n1"),
        &on(2, "n2"),
        &on(3, "n1"),
    ]);
    assert_eq!(shares(&tables, "10.96.0.1:80"), even(&["web-1", "web-3"]));
    let (tables, _) = tables.with(
        crate::tables::Kind::Address,
        &[],
        &[
            crate::fixtures::uid("shop/web-1"),
            crate::fixtures::uid("shop/web-3"),
        ],
    );
    assert_eq!(
        refused(&tables, "10.96.0.1:80"),
        "refused: service shop/web has no healthy endpoint near enough for its STRICT load balancing"
    );
}

#[test]
fn failover_takes_the_longest_run_of_leading_scopes() {
    let here = client().with(|w| w.locality = located(0, "r", "z").locality);
    let service = balanced(
        Mode::Failover,
        &[Scope::Network, Scope::Region, Scope::Zone],
    );
    let all = [
        located(1, "r", "z"),
        located(2, "r", "y"),
        located(3, "q", "z"),
        located(4, "r", "y"),
    ];
    let tables = mesh(&[&here, &service, &all[0], &all[1], &all[2], &all[3]]);
    assert_eq!(shares(&tables, "10.96.0.1:80"), even(&["web-1"]));
    let tables = mesh(&[&here, &service, &all[1], &all[2], &all[3]]);
    assert_eq!(shares(&tables, "10.96.0.1:80"), even(&["web-2", "web-4"]));
    let tables = mesh(&[&here, &service, &all[2]]);
    assert_eq!(shares(&tables, "10.96.0.1:80"), even(&["web-3"]));
    let tables = mesh(&[&here, &service, &all[2], &located(9, "r", "z")]);
    assert_eq!(
        shares(&tables, "10.96.0.1:80"),
        even(&["web-9"]),
        "a worse one came first"
    );
}

#[test]
fn the_unhealthy_are_chosen_only_where_that_is_asked_for() {
    let ill = endpoint(1).with(|w| w.status = pb::WorkloadStatus::Unhealthy.into());
    let tables = mesh(&[&client(), &web(), &ill]);
    assert_eq!(
        refused(&tables, "10.96.0.1:80"),
        "refused: service shop/web has no healthy endpoint"
    );
    let all = web().with(|s| {
        s.load_balancing = Some(pb::LoadBalancing {
            health_policy: HealthPolicy::AllowAll.into(),
            ..Default::default()
        });
    });
    assert_eq!(
        shares(&push(&tables, &all), "10.96.0.1:80"),
        even(&["web-1"])
    );
}

#[test]
fn an_endpoints_port_goes_before_the_services_and_a_named_one_needs_it() {
    let own = endpoint(1).serving("shop/web", &[(80, 9090), (81, 9091)]);
    let tables = mesh(&[&client(), &web(), &own]);
    assert_eq!(
        told(&go(&tables, "10.96.0.1:80")),
        tunnel("10.0.0.1:15008", "10.0.0.1:9090", "shop/web")
    );
    let tables = push(&tables, &endpoint(2));
    assert_eq!(shares(&tables, "10.96.0.1:81"), even(&["web-1"]));
    let tables = mesh(&[&client(), &web(), &endpoint(2)]);
    assert_eq!(
        refused(&tables, "10.96.0.1:81"),
        "refused: service shop/web has no port 81"
    );
}

#[test]
fn a_port_that_the_service_does_not_have_is_refused_even_if_an_endpoint_knows_it() {
    let tables = mesh(&[
        &client(),
        &web(),
        &endpoint(1).serving("shop/web", &[(90, 9090)]),
    ]);
    assert_eq!(
        refused(&tables, "10.96.0.1:90"),
        "refused: service shop/web has no port 90"
    );
}

#[test]
fn a_service_without_endpoints_is_refused_not_passed_through() {
    let tables = mesh(&[&client(), &web()]);
    assert_eq!(
        refused(&tables, "10.96.0.1:80"),
        "refused: service shop/web has no healthy endpoint"
    );
}

#[test]
fn endpoints_of_other_networks_are_left_out_and_named_when_there_is_no_other() {
    let far = endpoint(1).with(|w| w.network = "far".into());
    let tables = mesh(&[&client(), &web(), &far]);
    assert_eq!(
        refused(&tables, "10.96.0.1:80"),
        "refused: shop/web is in network far, to which no gateway is known"
    );
    assert_eq!(
        shares(&push(&tables, &endpoint(2)), "10.96.0.1:80"),
        even(&["web-2"])
    );
}

#[test]
fn the_clients_family_is_preferred_and_the_services_families_are_law() {
    let both = endpoint(1).with(|w| w.addresses.push(packed("fd00::1").into()));
    let client = dual_client();
    let dual = web().with(|s| {
        s.addresses
            .push(service("a/b", &["fd96::1"], &[]).addresses.remove(0))
    });
    let tables = mesh(&[&client, &dual, &both]);
    assert_eq!(
        told(&go(&tables, "10.96.0.1:80")),
        tunnel("10.0.0.1:15008", "10.0.0.1:8080", "shop/web")
    );
    assert_eq!(
        told(&go(&tables, "[fd96::1]:80")),
        tunnel("[fd00::1]:15008", "[fd00::1]:8080", "shop/web")
    );
    let tables = push(
        &tables,
        &dual.with(|s| s.ip_families = pb::IpFamilies::Ipv6Only.into()),
    );
    assert_eq!(
        told(&go(&tables, "10.96.0.1:80")),
        tunnel("[fd00::1]:15008", "[fd00::1]:8080", "shop/web")
    );
}

fn dual_client() -> pb::Workload {
    client().with(|w| w.addresses.push(packed("fd00::9").into()))
}

#[test]
fn an_endpoint_of_the_other_family_is_not_for_a_client_of_one() {
    let six = endpoint(6).with(|w| w.addresses = vec![packed("fd00::6").into()]);
    let tables = mesh(&[&client(), &web(), &endpoint(1), &six]);
    assert_eq!(shares(&tables, "10.96.0.1:80"), even(&["web-1"]));
    let both = mesh(&[&dual_client(), &web(), &endpoint(1), &six]);
    assert_eq!(shares(&both, "10.96.0.1:80"), even(&["web-1", "web-6"]));
    let none = mesh(&[&client(), &web(), &six]);
    assert_eq!(
        refused(&none, "10.96.0.1:80"),
        "refused: the endpoints of shop/web have no IP address of a suitable family"
    );
}

#[test]
fn a_person_is_told_of_every_endpoint_why_it_is_not_among_those_that_are_chosen_from() {
    let service = balanced(Mode::Failover, &[Scope::Region, Scope::Zone]);
    let here = client().with(|w| w.locality = located(0, "r", "z").locality);
    let ill = located(3, "r", "z").with(|w| w.status = pb::WorkloadStatus::Unhealthy.into());
    let far = located(4, "r", "z").with(|w| w.network = "far".into());
    let all = [located(1, "r", "z"), located(2, "r", "y"), ill, far];
    let tables = mesh(&[&here, &service, &all[0], &all[1], &all[2], &all[3]]);
    let service = tables.service("shop/web").unwrap();
    let from = workload(&tables, "shop/client-1");
    let told = candidates(&tables, from, service, "10.96.0.1:80".parse().unwrap());
    let why: Vec<_> = told.iter().map(|(_, why)| why.as_deref()).collect();
    assert_eq!(
        why,
        [
            None,
            Some("others are nearer"),
            Some("it is not healthy, or its capacity is 0"),
            Some("it is in network far, to which it names no gateway"),
        ]
    );
}
