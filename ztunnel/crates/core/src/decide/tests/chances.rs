//! What a choice depends on besides the tables: dice, client, failed attempts, load, names; and what it costs.

use super::*;
use crate::fixtures::{Dice, Resource, extension, ip, uid};
use crate::tables::visits;
use std::collections::{BTreeMap, BTreeSet};

fn web() -> pb::Service {
    service("shop/web", &["10.96.0.1"], &[(80, 8080)])
}

fn spread(how: &str) -> pb::Service {
    web().with(|s| s.extensions = vec![extension("nodemesh/load-balancing", how)])
}

fn endpoint(n: usize) -> pb::Workload {
    let address = format!("10.{}.{}.{}", 1 + n / 65536, n / 256 % 256, n % 256);
    pod(&format!("shop/web-{n}"), &address).serving("shop/web", &[])
}

fn many(service: &pb::Service, count: usize, change: impl Fn(usize, &mut pb::Workload)) -> Tables {
    let all = (0..count).map(|n| endpoint(n).with(|w| change(n, w)).entry());
    let upserts: Vec<_> = all.collect();
    let (tables, refused) =
        mesh(&[&client(), service]).with(crate::tables::Kind::Address, &upserts, &[]);
    assert_eq!(refused, []);
    tables
}

fn dialled(tables: &Tables, around: &Circumstances<'_>) -> String {
    let from = workload(tables, "shop/client-1");
    let route = choose(
        tables,
        from,
        OrigDst("10.96.0.1:80".parse().unwrap()),
        around,
    );
    let dialled = route.dialled();
    dialled
        .unwrap_or_else(|| panic!("{route:?}"))
        .name
        .to_string()
}

fn with_random(random: u64) -> Circumstances<'static> {
    Circumstances::first(random)
}

#[test]
fn a_choice_among_ten_thousand_costs_what_one_among_ten_does() {
    let scopes = [
        pb::load_balancing::Scope::Region,
        pb::load_balancing::Scope::Node,
    ];
    let failover = web().with(|s| {
        s.load_balancing = Some(pb::LoadBalancing {
            mode: pb::load_balancing::Mode::Failover.into(),
            routing_preference: scopes.map(i32::from).into(),
            ..Default::default()
        });
    });
    for (service, most) in [
        (web(), 80),
        (spread("least-request"), 120),
        (failover, 250),
        (spread("client-address"), 1500),
    ] {
        let tables = many(&service, 10_000, |n, w| w.node = format!("n{}", n % 500));
        let dice = &mut Dice(1);
        for _ in 0..200 {
            let before = visits();
            dialled(&tables, &with_random(dice.roll()));
            let visited = visits() - before;
            assert!(
                visited <= most,
                "{visited} nodes looked at, with {:?}",
                service.extensions
            );
        }
    }
}

#[test]
fn ten_thousand_ill_endpoints_are_not_looked_at_one_by_one() {
    let tables = many(&web(), 10_000, |_, w| {
        w.status = pb::WorkloadStatus::Unhealthy.into()
    });
    let before = visits();
    assert_eq!(
        told(&go(&tables, "10.96.0.1:80")),
        "refused: service shop/web has no healthy endpoint"
    );
    assert_eq!(visits(), before);
}

#[test]
fn one_change_among_ten_thousand_endpoints_leaves_the_rest_where_it_is() {
    let tables = many(&web(), 10_000, |_, _| {});
    let before = visits();
    let ill = endpoint(77).with(|w| w.status = pb::WorkloadStatus::Unhealthy.into());
    let next = push(&tables, &ill);
    assert_eq!(visits(), before, "nothing was iterated");
    let dice = &mut Dice(3);
    for _ in 0..2000 {
        assert_ne!(dialled(&next, &with_random(dice.roll())), "web-77");
    }
}

#[test]
fn the_least_loaded_of_two_is_preferred_in_proportion_to_capacity() {
    let tables = mesh(&[
        &client(),
        &spread("least-request"),
        &endpoint(1),
        &endpoint(2).with(|w| w.capacity = Some(3)),
    ]);
    let busy = BTreeMap::from([("web-1", 2), ("web-2", 5)]);
    let share = |busy: &BTreeMap<&str, usize>| {
        let load = |workload: &Workload| busy[&*workload.name];
        let dice = &mut Dice(5);
        let chosen = (0..1000).filter(|_| {
            let around = Circumstances {
                load: &load,
                ..with_random(dice.roll())
            };
            dialled(&tables, &around) == "web-2"
        });
        chosen.count()
    };
    assert!(share(&busy) > 900, "5 of 3 units is less than 2 of 1");
    assert!(
        share(&BTreeMap::from([("web-1", 1), ("web-2", 5)])) < 650,
        "and more than 1 of 1"
    );
}

#[test]
fn a_client_keeps_its_endpoint_and_only_those_of_a_lost_one_move() {
    let tables = many(&spread("client-address"), 50, |_, _| {});
    let clients: Vec<_> = (0..=255).map(|n| ip(&format!("10.9.9.{n}"))).collect();
    let who = |tables: &Tables| -> Vec<String> {
        let of = |(n, client): (usize, &IpAddr)| {
            let around = Circumstances {
                client: *client,
                ..with_random(n as u64)
            };
            dialled(tables, &around)
        };
        clients.iter().enumerate().map(of).collect()
    };
    let before = who(&tables);
    assert!(
        before.iter().collect::<BTreeSet<_>>().len() > 40,
        "they are spread"
    );
    let (fewer, _) = tables.with(crate::tables::Kind::Address, &[], &[uid("shop/web-7")]);
    for (old, new) in before.iter().zip(who(&fewer)) {
        assert!(*old == new || old == "web-7", "{old} became {new}");
    }
    assert_eq!(
        who(&push(&fewer, &endpoint(7))),
        before,
        "and come back with it"
    );
}

#[test]
fn who_was_tried_is_not_tried_again_and_when_all_were_it_says_so() {
    for service in [web(), spread("least-request"), spread("client-address")] {
        let tables = many(&service, 3, |_, _| {});
        let dice = &mut Dice(7);
        for _ in 0..100 {
            let mut tried: Vec<Key> = Vec::new();
            for _ in 0..3 {
                let random = dice.roll();
                let name = dialled(
                    &tables,
                    &Circumstances {
                        tried: &tried,
                        ..with_random(random)
                    },
                );
                let key = Key::from(uid(&format!("shop/{name}")));
                assert!(!tried.contains(&key));
                tried.push(key);
            }
            let around = Circumstances {
                tried: &tried,
                ..with_random(1)
            };
            assert_eq!(
                go_on(&tables, "10.96.0.1:80", &around),
                "refused: service shop/web has no further endpoint to try"
            );
        }
    }
}

#[test]
fn when_the_near_ones_were_tried_the_far_ones_follow() {
    let failover = web().with(|s| {
        s.load_balancing = Some(pb::LoadBalancing {
            mode: pb::load_balancing::Mode::Failover.into(),
            routing_preference: vec![pb::load_balancing::Scope::Node.into()],
            ..Default::default()
        });
    });
    let tables = many(&failover, 2, |n, w| {
        w.node = if n == 0 { "".into() } else { "far".into() }
    });
    assert_eq!(dialled(&tables, &with_random(0)), "web-0");
    let tried = [Key::from(uid("shop/web-0"))];
    assert_eq!(
        dialled(
            &tables,
            &Circumstances {
                tried: &tried,
                ..with_random(0)
            }
        ),
        "web-1"
    );
}

fn named(n: usize, hostname: &str) -> pb::Workload {
    endpoint(n).with(|w| {
        w.addresses.clear();
        w.hostname = hostname.into();
        w.tunnel_protocol = 0;
    })
}

#[test]
fn an_endpoint_known_by_name_is_looked_up_first_and_then_chosen_by_family() {
    let tables = mesh(&[&client(), &web(), &named(1, "db.example.com")]);
    let ask = |names: &dyn Fn(&str) -> Option<Arc<[IpAddr]>>| {
        go_on(
            &tables,
            "10.96.0.1:80",
            &Circumstances {
                names,
                ..with_random(0)
            },
        )
    };
    assert_eq!(ask(&|_| None), "lookup db.example.com");
    let both: Arc<[IpAddr]> = [ip("2001:db8::1"), ip("198.51.100.1")].into();
    assert_eq!(
        ask(&|_| Some(both.clone())),
        "plain 198.51.100.1:8080: the destination workload has no tunnel"
    );
    assert_eq!(
        ask(&|_| Some(Arc::new([]))),
        "refused: db.example.com, an endpoint of shop/web, cannot be resolved"
    );
}

#[test]
fn a_name_that_leads_nowhere_is_no_reason_to_give_up_while_there_is_another_endpoint() {
    let tables = mesh(&[
        &client(),
        &web(),
        &named(1, "gone.example.com"),
        &named(2, "db.example.com"),
    ]);
    let there: Arc<[IpAddr]> = [ip("198.51.100.1")].into();
    let names = |name: &str| {
        Some(if name.starts_with("db") {
            there.clone()
        } else {
            Arc::new([])
        })
    };
    let dice = &mut Dice(2);
    for _ in 0..50 {
        let around = Circumstances {
            names: &names,
            ..with_random(dice.roll())
        };
        assert!(go_on(&tables, "10.96.0.1:80", &around).starts_with("plain 198.51.100.1:8080"));
    }
}

#[test]
fn registry_only_refuses_what_the_mesh_does_not_know_and_the_workloads_own_word_goes_first() {
    const WHERE: &str = "192.0.2.1:443";
    let refused = "refused: 192.0.2.1:443 is no address of the mesh, and the outbound policy REGISTRY_ONLY allows no other";
    let passed = "plain 192.0.2.1:443: the destination is no address of the mesh";
    let said = |word: &str| {
        client().with(|w| w.extensions = vec![extension("nodemesh/outbound-policy", word)])
    };
    let table = [
        (client(), Outbound::AllowAny, passed),
        (client(), Outbound::RegistryOnly, refused),
        (said("REGISTRY_ONLY"), Outbound::AllowAny, refused),
        (said("ALLOW_ANY"), Outbound::RegistryOnly, passed),
    ];
    for (client, outbound, expected) in table {
        let tables = mesh(&[&client, &pod("shop/web-1", "10.0.0.1"), &web()]);
        let around = Circumstances {
            outbound,
            ..with_random(0)
        };
        assert_eq!(go_on(&tables, WHERE, &around), expected);
        assert!(
            go_on(&tables, "10.0.0.1:80", &around).starts_with("tunnel"),
            "what it knows is reached"
        );
    }
}

#[test]
fn a_setting_of_ours_that_is_not_understood_refuses_the_resource() {
    let tables = mesh(&[]);
    assert_eq!(
        crate::fixtures::refusal(&tables, &spread("fastest")),
        "nodemesh/load-balancing has the unknown value \"fastest\""
    );
    let strange =
        client().with(|w| w.extensions = vec![extension("nodemesh/outbound-policy", "NONE")]);
    assert_eq!(
        crate::fixtures::refusal(&tables, &strange),
        "nodemesh/outbound-policy has the unknown value \"NONE\""
    );
}
