//! What a snapshot answers, what it refuses, and that it does not depend on the way it was reached.

mod order;
mod refusals;

use super::*;
use crate::fixtures::{
    Resource, ip, mesh, packed, pod, policy, push, service, spiffe, uid, workload,
};
use crate::wire::{security as sec, workload as pb};

fn owner(tables: &Tables, address: &str) -> Option<String> {
    tables
        .workload_by_ip("", ip(address))
        .map(|workload| workload.name.to_string())
}

fn seen(tables: &Tables, address: &str, client_namespace: &str) -> Option<String> {
    tables
        .service_by_vip("", ip(address), client_namespace)
        .map(|service| service.key.to_string())
}

fn endpoints(tables: &Tables, key: &str) -> Vec<String> {
    tables
        .endpoints(key)
        .map(|endpoint| endpoint.workload.name.to_string())
        .collect()
}

#[test]
fn a_workload_is_found_by_uid_address_and_name() {
    let tables = mesh(&[&pod("shop/web-1", "10.0.0.1")]);
    assert_eq!(
        workload(&tables, "shop/web-1").identity().as_str(),
        spiffe("shop/web")
    );
    assert_eq!(owner(&tables, "10.0.0.1").as_deref(), Some("web-1"));
    assert!(tables.workload_by_name("shop", "web-1").is_some());
    assert!(tables.workload_by_name("other", "web-1").is_none());
    assert!(tables.workload_by_ip("elsewhere", ip("10.0.0.1")).is_none());
}

#[test]
fn empty_fields_have_istios_defaults() {
    let bare = pod("shop/web-1", "10.0.0.1").with(|w| w.service_account = String::new());
    let tables = mesh(&[&bare]);
    let web = workload(&tables, "shop/web-1");
    assert_eq!(web.identity().as_str(), spiffe("shop/default"));
    assert_eq!(
        (&*web.cluster_id, web.capacity, web.healthy),
        ("Kubernetes", 1, true)
    );
}

#[test]
fn a_mapped_address_is_indexed_as_its_v4_self() {
    let tables = mesh(&[&pod("shop/web-1", "::ffff:10.0.0.1")]);
    assert_eq!(owner(&tables, "10.0.0.1").as_deref(), Some("web-1"));
}

#[test]
fn a_workload_that_moves_leaves_its_old_address_and_name() {
    let old = mesh(&[&pod("shop/web-1", "10.0.0.1").serving("shop/web", &[(80, 8080)])]);
    let moved = pod("shop/web-1", "10.0.0.2")
        .serving("shop/db", &[])
        .with(|w| w.name = "web-9".into());
    let new = push(&old, &moved);
    assert_eq!(
        (owner(&new, "10.0.0.1"), owner(&new, "10.0.0.2").as_deref()),
        (None, Some("web-9"))
    );
    assert!(new.workload_by_name("shop", "web-1").is_none());
    assert_eq!(
        (
            endpoints(&new, "shop/web").len(),
            endpoints(&new, "shop/db").len()
        ),
        (0, 1)
    );
    assert_eq!(
        owner(&old, "10.0.0.1").as_deref(),
        Some("web-1"),
        "the old snapshot has not changed"
    );
}

#[test]
fn of_several_owners_the_pod_with_a_tunnel_wins() {
    let entry = |name: &str, protocol: pb::TunnelProtocol| {
        pod(&format!("shop/{name}"), "10.0.0.1").with(|w| {
            w.uid = format!("Kubernetes/networking.istio.io/WorkloadEntry/shop/{name}");
            w.tunnel_protocol = protocol.into();
        })
    };
    let plain_pod = pod("shop/c-plain-pod", "10.0.0.1").with(|w| w.tunnel_protocol = 0);
    let ill =
        pod("shop/a-ill", "10.0.0.1").with(|w| w.status = pb::WorkloadStatus::Unhealthy.into());
    let mut all: Vec<pb::Workload> = vec![
        entry("a-plain", pb::TunnelProtocol::None),
        entry("b-tunnel", pb::TunnelProtocol::Hbone),
        plain_pod,
        ill,
        pod("shop/d-pod", "10.0.0.1"),
    ];
    while let Some(best) = all.last() {
        let resources: Vec<&dyn Resource> = all.iter().map(|w| w as &dyn Resource).collect();
        assert_eq!(
            owner(&mesh(&resources), "10.0.0.1").as_deref(),
            Some(&*best.name)
        );
        all.pop();
    }
}

#[test]
fn pods_of_the_host_network_are_not_found_by_address() {
    let host = pod("shop/web-1", "10.0.0.1")
        .with(|w| w.network_mode = pb::NetworkMode::HostNetwork.into());
    let tables = mesh(&[&host.serving("shop/web", &[])]);
    assert_eq!(owner(&tables, "10.0.0.1"), None);
    assert_eq!(endpoints(&tables, "shop/web"), ["web-1"]);
}

#[test]
fn of_two_clusters_the_own_one_is_found_by_name() {
    let far = pod("shop/web-1", "10.9.0.1").with(|w| {
        w.uid = "Far//Pod/shop/web-1".into();
        w.cluster_id = "Far".into();
    });
    let near = pod("shop/web-1", "10.0.0.1").with(|w| w.uid = "Near//Pod/shop/web-1".into());
    let tables = mesh(&[&far, &near]);
    assert_eq!(
        &*tables.workload_by_name("shop", "web-1").unwrap().uid,
        "Near//Pod/shop/web-1"
    );
}

#[test]
fn endpoints_wait_for_their_service_and_outlive_it() {
    let tables = mesh(&[&pod("shop/web-1", "10.0.0.1").serving("shop/web", &[(80, 8080)])]);
    assert_eq!(endpoints(&tables, "shop/web"), ["web-1"]);
    let tables = push(&tables, &service("shop/web", &["10.96.0.1"], &[(80, 0)]));
    let (tables, _) = tables.with(Kind::Address, &[], &["shop/web".into()]);
    assert!(tables.service("shop/web").is_none());
    assert_eq!(endpoints(&tables, "shop/web"), ["web-1"]);
    let (tables, _) = tables.with(
        Kind::Address,
        &[],
        &[uid("shop/web-1"), "never/heard.of".into()],
    );
    assert_eq!(endpoints(&tables, "shop/web").len(), 0);
}

#[test]
fn of_services_with_one_address_the_own_namespaces_wins_then_the_canonical() {
    let vip = ["10.96.0.1"];
    let tables = mesh(&[
        &service("a/x", &vip, &[]),
        &service("b/x", &vip, &[]).with(|s| s.canonical = true),
        &service("c/x", &vip, &[]),
        &service("d/x", &vip, &[]).with(|s| {
            s.canonical = true;
            s.visibility = pb::service::Visibility::Namespace.into();
        }),
    ]);
    for (client, key) in [("a", "a/x"), ("c", "c/x"), ("d", "d/x"), ("z", "b/x")] {
        assert_eq!(
            seen(&tables, "10.96.0.1", client).as_deref(),
            Some(key),
            "from {client}"
        );
        assert_eq!(
            &*tables.service_by_host("x", client).unwrap().key,
            key,
            "from {client}"
        );
    }
}

#[test]
fn a_service_of_its_namespace_is_hidden_from_others() {
    let hidden = service("a/x", &["10.96.0.1", "10.97.0.0/16"], &[])
        .with(|s| s.visibility = pb::service::Visibility::Namespace.into());
    let tables = mesh(&[&hidden]);
    for address in ["10.96.0.1", "10.97.1.1"] {
        assert_eq!(seen(&tables, address, "a").as_deref(), Some("a/x"));
        assert_eq!(seen(&tables, address, "b"), None);
    }
    assert!(tables.service_by_host("x", "b").is_none());
}

#[test]
fn an_exact_address_goes_before_ranges_and_long_ranges_before_short() {
    let tables = mesh(&[
        &service("a/exact", &["10.1.2.3"], &[]),
        &service("a/full", &["10.1.2.4/32"], &[]),
        &service("a/long", &["10.1.2.0/24"], &[]),
        &service("a/short", &["10.0.0.0/8"], &[]),
        &service("own/short", &["10.0.0.0/8"], &[]),
        &service("a/six", &["fd00::/8"], &[]),
        &service("a/all", &["0.0.0.0/0"], &[]),
    ]);
    let cases = [
        ("10.1.2.3", "z", "a/exact"),
        ("10.1.2.4", "z", "a/full"),
        ("10.1.2.5", "z", "a/long"),
        ("10.9.9.9", "z", "a/short"),
        ("10.1.2.5", "own", "own/short"),
        ("fd12::1", "z", "a/six"),
        ("192.0.2.1", "z", "a/all"),
    ];
    for (address, client, key) in cases {
        assert_eq!(
            seen(&tables, address, client).as_deref(),
            Some(key),
            "{address} from {client}"
        );
    }
    assert_eq!(seen(&tables, "fe80::1", "z"), None);
}

#[test]
fn host_bits_of_a_range_do_not_matter_and_a_mapped_range_is_v4() {
    let tables = mesh(&[
        &service("a/x", &["10.1.2.3/24"], &[]),
        &service("a/y", &["::ffff:10.2.0.0/112"], &[]),
    ]);
    assert_eq!(seen(&tables, "10.1.2.250", "a").as_deref(), Some("a/x"));
    assert_eq!(seen(&tables, "10.2.1.1", "a").as_deref(), Some("a/y"));
}

#[test]
fn prefixes_of_ranges_that_are_gone_are_probed_no_more() {
    let tables = mesh(&[
        &service("a/x", &["10.0.0.0/8", "10.1.0.1"], &[]),
        &service("a/y", &["10.0.0.0/8"], &[]),
    ]);
    let probed = |tables: &Tables| tables.index.range_prefixes(true).collect::<Vec<_>>();
    assert_eq!(probed(&tables), [8]);
    let (tables, _) = tables.with(Kind::Address, &[], &["a/x".into()]);
    assert_eq!(probed(&tables), [8]);
    let (tables, _) = tables.with(Kind::Address, &[], &["a/y".into()]);
    assert_eq!(probed(&tables), []);
}

#[test]
fn hostnames_are_found_in_lower_case() {
    let tables = mesh(&[&service("a/Web.Example.COM", &[], &[])]);
    assert!(tables.service_by_host("web.example.com", "a").is_some());
}

#[test]
fn a_name_may_change_what_it_stands_for() {
    let tables = mesh(&[&pod("shop/x", "10.0.0.1").with(|w| w.uid = "shop/x".into())]);
    let tables = push(&tables, &service("shop/x", &["10.96.0.1"], &[]));
    assert_eq!(
        (
            tables.workload("shop/x").is_some(),
            tables.service("shop/x").is_some()
        ),
        (false, true)
    );
    assert_eq!(owner(&tables, "10.0.0.1"), None);
}

#[test]
fn the_policies_of_a_workload_are_global_its_namespaces_and_those_it_names() {
    let scoped = |key, scope: sec::Scope| {
        policy(key, sec::Action::Deny, vec![]).with(|p| p.scope = scope.into())
    };
    let web = pod("shop/web-1", "10.0.0.1")
        .with(|w| w.authorization_policies = vec!["shop/mine".into(), "shop/unheard".into()]);
    let tables = mesh(&[
        &scoped("istio-system/global", sec::Scope::Global),
        &scoped("shop/local", sec::Scope::Namespace),
        &scoped("shop/mine", sec::Scope::WorkloadSelector),
        &scoped("shop/others", sec::Scope::WorkloadSelector),
        &scoped("bank/local", sec::Scope::Namespace),
        &web,
    ]);
    let names = |tables: &Tables| -> Vec<String> {
        let all = tables.policies_for(workload(tables, "shop/web-1"));
        all.map(|policy| policy.map_or_else(|key| format!("?{key}"), |p| p.key.to_string()))
            .collect()
    };
    assert_eq!(
        names(&tables),
        [
            "istio-system/global",
            "shop/local",
            "shop/mine",
            "?shop/unheard"
        ]
    );
    let gone = [
        "istio-system/global".into(),
        "shop/local".into(),
        "shop/mine".into(),
    ];
    let (tables, _) = tables.with(Kind::Authorization, &[], &gone);
    assert_eq!(names(&tables), ["?shop/mine", "?shop/unheard"]);
}

#[test]
fn a_policy_whose_scope_changes_is_no_longer_where_it_was() {
    let tables = mesh(&[&policy("shop/p", sec::Action::Deny, vec![])]);
    let tables = push(
        &tables,
        &policy("shop/p", sec::Action::Deny, vec![]).with(|p| p.scope = sec::Scope::Global.into()),
    );
    let tables = push(&tables, &pod("bank/db-1", "10.0.0.1"));
    assert_eq!(
        tables.policies_for(workload(&tables, "bank/db-1")).count(),
        1
    );
    let tables = push(&tables, &pod("shop/web-1", "10.0.0.2"));
    assert_eq!(
        tables.policies_for(workload(&tables, "shop/web-1")).count(),
        1
    );
}

fn crowd(pods: usize) -> Vec<(String, Bytes)> {
    let one = |n: usize| {
        let [_, b, c, d] = (n as u32).to_be_bytes();
        pod(
            &format!("ns-{}/web-{n}", n % 50),
            &format!("10.{b}.{c}.{d}"),
        )
        .serving(&format!("ns-{}/web", n % 50), &[(80, 8080)])
        .entry()
    };
    (0..pods).map(one).collect()
}

#[test]
fn one_resource_into_a_crowd_costs_a_handful_of_shards() {
    let (many, _) = Tables::new("", "Kubernetes").with(Kind::Address, &crowd(2_000), &[]);
    let next = push(
        &many,
        &pod("ns-1/new-1", "10.200.0.1").serving("ns-1/web", &[]),
    );
    assert_eq!(
        next.index.unshared(&many.index),
        4,
        "workloads, addresses, names, endpoints"
    );
    let next = push(&many, &service("ns-1/web", &["10.96.0.1"], &[(80, 0)]));
    assert_eq!(
        next.index.unshared(&many.index),
        3,
        "services, addresses, hostnames"
    );
    let next = push(&many, &policy("ns-1/p", sec::Action::Deny, vec![]));
    assert_eq!(next.index.unshared(&many.index), 2, "policies, namespaces");
}

#[test]
fn what_is_pushed_again_unchanged_costs_nothing() {
    let again = crowd(200);
    let (tables, _) = Tables::new("", "Kubernetes").with(Kind::Address, &again, &[]);
    let (next, _) = tables.with(Kind::Address, &again, &["unheard".into()]);
    assert_eq!(next.index.unshared(&tables.index), 0);
}

#[test]
fn addresses_of_two_families_both_lead_to_the_workload() {
    let both = pod("shop/web-1", "10.0.0.1").with(|w| w.addresses.push(packed("fd00::1").into()));
    let tables = mesh(&[&both]);
    assert_eq!(
        (owner(&tables, "10.0.0.1"), owner(&tables, "fd00::1")),
        (Some("web-1".into()), Some("web-1".into()))
    );
}

#[test]
fn what_goes_into_a_draft_is_what_pushes_would_make_and_the_snapshot_in_force_does_not_see_it() {
    let pods: Vec<_> = (1..=40)
        .map(|n| pod(&format!("shop/web-{n}"), &format!("10.0.0.{n}")))
        .collect();
    let before = mesh(&[&pods[0]]);
    let (mut draft, mut pushed, mut pauses) = (Draft::of(&before), before.clone(), 0);
    for pod in &pods[1..] {
        assert_eq!(
            draft.change(Kind::Address, &[pod.entry()], &[], || pauses += 1),
            []
        );
        pushed = push(&pushed, pod);
    }
    let (none, gone): (&[(String, Bytes)], _) = (&[], [uid("shop/web-1")]);
    assert_eq!(draft.change(Kind::Address, none, &gone, || pauses += 1), []);
    let done = draft.done();
    assert_eq!(before.workloads().count(), 1);
    assert_eq!(done.workloads().count(), 39);
    for pod in &pods[1..] {
        assert_eq!(done.workload(&pod.uid), pushed.workload(&pod.uid));
    }
    assert_eq!(pauses, 40);
}

#[test]
fn a_snapshot_that_is_taken_apart_leaves_its_successor_whole() {
    let old = mesh(&[&pod("shop/web-1", "10.0.0.1")]);
    let new = push(&old, &pod("shop/web-2", "10.0.0.2"));
    let mut pauses = 0;
    old.dismantle(|| pauses += 1);
    assert!(pauses > 0);
    assert_eq!(owner(&new, "10.0.0.1").as_deref(), Some("web-1"));
    assert_eq!(owner(&new, "10.0.0.2").as_deref(), Some("web-2"));
}
