//! Property: a snapshot depends on what is in it, not on the pushes that led there.

use super::*;
use crate::fixtures::{Dice, gateway_named};
use std::collections::BTreeMap;

const ADDRESSES: [&str; 5] = [
    "10.0.0.1",
    "10.0.0.2",
    "10.0.1.1",
    "fd00::1",
    "::ffff:10.0.0.2",
];
const RANGES: [&str; 5] = [
    "10.0.0.1",
    "10.0.0.0/24",
    "10.0.0.0/8",
    "10.0.1.1/32",
    "fd00::/16",
];
const NAMESPACES: [&str; 3] = ["a", "b", "c"];

fn any_workload(dice: &mut Dice) -> pb::Workload {
    let n = dice.below(6);
    let mut workload = pod(
        &format!("{}/w-{}", NAMESPACES[n % 3], n / 2),
        dice.of(&ADDRESSES),
    )
    .with(|w| {
        w.addresses = dice
            .some(&ADDRESSES, 2)
            .iter()
            .map(|text| packed(text).into())
            .collect();
        w.tunnel_protocol = dice.below(2) as i32;
        w.status = dice.below(2) as i32;
        w.network_mode = i32::from(dice.one_in(5));
        w.network = if dice.one_in(4) {
            "far".into()
        } else {
            String::new()
        };
        w.authorization_policies = dice.some(&["a/p".to_owned(), "b/p".to_owned()], 2);
    });
    if dice.one_in(2) {
        workload.uid = format!("Kubernetes/x/WorkloadEntry/{n}");
    }
    for key in dice.some(&["a/s", "b/s", "c/t"], 3) {
        workload = workload.serving(key, &[(80, 8080)]);
    }
    workload
}

fn any_service(dice: &mut Dice) -> pb::Service {
    let key = dice.of(&["a/s", "b/s", "c/s", "c/t"]);
    let vips = dice.some(&RANGES, 3);
    service(key, &vips, &[(80, 0)]).with(|s| {
        s.canonical = dice.one_in(2);
        s.visibility = i32::from(dice.one_in(3));
        s.waypoint = if dice.one_in(3) {
            gateway_named("a/s")
        } else {
            None
        };
    })
}

fn any_policy(dice: &mut Dice) -> sec::Authorization {
    let action = dice.of(&[sec::Action::Allow, sec::Action::Deny]);
    let key = dice.of(&["a/p", "b/p", "c/p", "a/q"]);
    policy(key, action, vec![]).with(|p| p.scope = dice.below(3) as i32)
}

fn any(dice: &mut Dice) -> Box<dyn Resource> {
    match dice.below(3) {
        0 => Box::new(any_workload(dice)),
        1 => Box::new(any_service(dice)),
        _ => Box::new(any_policy(dice)),
    }
}

/// Every question that can be asked about this small world, with its answer.
fn answers(tables: &Tables) -> Vec<String> {
    let mut all: Vec<String> = tables.workloads().map(|w| format!("{w:?}")).collect();
    all.extend(tables.services().map(|s| format!("{s:?}")));
    all.extend(tables.policies().map(|p| format!("{p:?}")));
    all.sort();
    for address in ADDRESSES.map(|text| ip(text).to_canonical()) {
        for network in ["", "far"] {
            all.push(format!(
                "{:?}",
                tables.workload_by_ip(network, address).map(|w| &w.uid)
            ));
        }
        let by_vip = NAMESPACES.map(|ns| tables.service_by_vip("", address, ns).map(|s| &s.key));
        all.push(format!("{by_vip:?}"));
    }
    for ns in NAMESPACES {
        let by_name =
            ["w-0", "w-1", "w-2"].map(|name| tables.workload_by_name(ns, name).map(|w| &w.uid));
        let by_host = ["s", "t"].map(|host| tables.service_by_host(host, ns).map(|s| &s.key));
        let endpoints = ["s", "t"].map(|host| {
            tables
                .endpoints(&format!("{ns}/{host}"))
                .cloned()
                .collect::<Vec<_>>()
        });
        all.push(format!("{by_name:?} {by_host:?} {endpoints:?}"));
    }
    for workload in tables.workloads() {
        all.push(
            format!("{:?}", tables.policies_for(workload).collect::<Vec<_>>()).replace(' ', ""),
        );
    }
    for client in tables.workloads() {
        for random in [0, u64::MAX / 3, u64::MAX] {
            let dst = crate::addr::OrigDst("10.0.0.1:80".parse().unwrap());
            let way = crate::decide::route(tables, client, dst, random);
            all.push(format!("{} {way:?}", client.uid));
        }
    }
    all.sort();
    all
}

type World = BTreeMap<(bool, String), Box<dyn Resource>>;

/// One push of a few upserts or removals, done to the tables and to the plain map beside them.
fn disturb(dice: &mut Dice, tables: Tables, world: &mut World) -> Tables {
    if dice.one_in(3) && !world.is_empty() {
        let at = dice.below(world.len());
        let key = world.keys().nth(at).unwrap().clone();
        let kind = world[&key].kind();
        world.remove(&key);
        return tables.with(kind, &[], &[key.1]).0;
    }
    let resource = any(dice);
    let next = push(&tables, &*resource);
    world.insert(
        (resource.kind() == Kind::Address, resource.name()),
        resource,
    );
    next
}

#[test]
fn fifty_histories_end_where_their_last_world_begins() {
    for seed in 0..50 {
        let dice = &mut Dice(seed);
        let (mut tables, mut world) = (Tables::new("", "Kubernetes"), World::new());
        for _ in 0..40 {
            tables = disturb(dice, tables, &mut world);
        }
        let of = |kind| {
            world
                .values()
                .filter(move |r| r.kind() == kind)
                .map(|r| r.entry())
                .collect::<Vec<_>>()
        };
        let (at_once, _) =
            Tables::new("", "Kubernetes").with(Kind::Authorization, &of(Kind::Authorization), &[]);
        let (at_once, _) = at_once.with(Kind::Address, &of(Kind::Address), &[]);
        assert_eq!(answers(&tables), answers(&at_once), "seed {seed}");
    }
}
