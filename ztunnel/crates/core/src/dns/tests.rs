//! What names mean, as a table: one mesh, questions of a pod in `shop`, answers.

use super::*;
use crate::fixtures::{mesh, pod, service};
use crate::wire::workload as pb;
use prost::Message;

const SHOP: Asker<'_> = Asker {
    namespace: "shop",
    domain: "cluster.local",
    search: &[],
};

fn named(service: pb::Service, names: &[(&str, u32)]) -> pb::Service {
    let number = |port: u32| prost_types::Value {
        kind: Some(prost_types::value::Kind::NumberValue(port.into())),
    };
    let fields = names
        .iter()
        .map(|(name, port)| ((*name).to_owned(), number(*port)));
    let told = prost_types::Struct {
        fields: fields.collect(),
    };
    let config = prost_types::Any {
        type_url: "type.googleapis.com/google.protobuf.Struct".into(),
        value: told.encode_to_vec(),
    };
    service.with(|service| {
        service.extensions = vec![pb::Extension {
            name: "nodemesh/port-names".into(),
            config: Some(config),
        }];
    })
}

fn own_namespace_only(service: pb::Service) -> pb::Service {
    service.with(|service| service.visibility = pb::service::Visibility::Namespace.into())
}

fn tables() -> Tables {
    let db = "shop/db.shop.svc.cluster.local";
    mesh(&[
        &named(
            service(
                "shop/web.shop.svc.cluster.local",
                &["10.96.0.10", "fd00::10"],
                &[(80, 8080), (9000, 9000)],
            ),
            &[("http", 80), ("admin", 9000)],
        ),
        &service(
            "pay/api.pay.svc.cluster.local",
            &["10.96.0.20"],
            &[(80, 80)],
        ),
        &own_namespace_only(service(
            "pay/secret.pay.svc.cluster.local",
            &["10.96.0.21"],
            &[(80, 80)],
        )),
        &named(service(db, &[], &[(5432, 6432)]), &[("sql", 5432)]),
        &service("shop/empty.shop.svc.cluster.local", &[], &[(80, 80)]),
        &service(
            "shop/six.shop.svc.cluster.local",
            &["10.96.0.30", "fd00::30"],
            &[(80, 80)],
        )
        .with(|service| service.ip_families = pb::IpFamilies::Ipv6Only.into()),
        &pod("shop/db-0", "10.1.0.1")
            .serving(db, &[(5432, 0)])
            .with(|pod| pod.hostname = "primary.db.shop.svc.cluster.local".into()),
        &pod("shop/db-1", "10.1.0.2").serving(db, &[(5432, 7432)]),
        &pod("shop/db-2", "10.1.0.3")
            .serving(db, &[(5432, 0)])
            .with(|pod| pod.status = pb::WorkloadStatus::Unhealthy.into()),
        &pod("shop/lonely-1", "10.1.0.9"),
        &service(
            "shop/db.example.com",
            &["240.240.0.7", "2001:2::7"],
            &[(443, 443)],
        ),
        &service("shop/*.wild.example.com", &["240.240.0.8"], &[(443, 443)]),
        &service("shop/range.example.com", &["10.50.0.0/16"], &[(443, 443)]),
        &own_namespace_only(service(
            "pay/hidden.example.com",
            &["240.240.0.9"],
            &[(443, 443)],
        )),
    ])
}

/// The answer as one line: `-> ` before an alias, addresses sorted, `forward`, `no such name`.
fn ask_as(asker: &Asker<'_>, name: &str, kind: Kind) -> String {
    let found = match resolve(&tables(), asker, name, kind, 0) {
        Reply::Forward => return "forward".into(),
        Reply::NoSuchName => return "no such name".into(),
        Reply::Found(found) => found,
    };
    let mut data: Vec<_> = found
        .data
        .iter()
        .map(|data| match data {
            Data::Address(ip) => ip.to_string(),
            Data::Service { port, target } => format!("{target}:{port}"),
            Data::Pointer(name) => name.clone(),
        })
        .collect();
    data.sort();
    let alias = found.alias_of.map(|name| format!("-> {name} "));
    format!("{}{}", alias.unwrap_or_default(), data.join(" "))
}

fn ask(name: &str, kind: Kind) -> String {
    ask_as(&SHOP, name, kind)
}

#[test]
fn every_spelling_of_a_name_means_its_service() {
    for (name, answer) in [
        ("web.shop.svc.cluster.local", "10.96.0.10"),
        ("web", "10.96.0.10"),
        ("web.shop", "10.96.0.10"),
        ("web.shop.svc", "10.96.0.10"),
        ("api.pay", "10.96.0.20"),
        ("api.pay.svc", "10.96.0.20"),
        ("api", "forward"),
        ("web.pay", "forward"),
        ("web.pay.svc.cluster.local", "forward"),
        ("primary.db.svc.cluster.local", "forward"),
        (
            "web.svc.cluster.local",
            "-> web.shop.svc.cluster.local 10.96.0.10",
        ),
        ("svc.cluster.local", "forward"),
        ("cluster.local", "forward"),
        ("", "forward"),
    ] {
        assert_eq!(ask(name, Kind::A), answer, "{name}");
    }
}

#[test]
fn a_search_domain_that_the_resolver_has_put_behind_is_taken_off_again() {
    for (name, answer) in [
        (
            "db.example.com.shop.svc.cluster.local",
            "-> db.example.com 240.240.0.7",
        ),
        (
            "db.example.com.svc.cluster.local",
            "-> db.example.com 240.240.0.7",
        ),
        (
            "db.example.com.cluster.local",
            "-> db.example.com 240.240.0.7",
        ),
        (
            "api.pay.shop.svc.cluster.local",
            "-> api.pay.svc.cluster.local 10.96.0.20",
        ),
        ("x.wild.example.com.shop.svc.cluster.local", "240.240.0.8"),
        ("db.example.com.corp.example", "forward"),
    ] {
        assert_eq!(ask(name, Kind::A), answer, "{name}");
    }
    let corp = Asker {
        search: &["corp.example".into()],
        ..SHOP
    };
    let name = "db.example.com.corp.example";
    assert_eq!(
        ask_as(&corp, name, Kind::A),
        "-> db.example.com 240.240.0.7"
    );
    assert_eq!(ask_as(&corp, "corp.example", Kind::A), "forward");
}

#[test]
fn what_there_is_none_of_is_an_empty_answer_and_never_somebody_elses() {
    for (name, kind, answer) in [
        ("web", Kind::Aaaa, "fd00::10"),
        ("web", Kind::Any, "10.96.0.10 fd00::10"),
        ("api.pay", Kind::Aaaa, ""),
        ("six", Kind::A, ""),
        ("six", Kind::Aaaa, "fd00::30"),
        ("empty", Kind::A, ""),
        ("web", Kind::Other, ""),
        ("web", Kind::Hints, ""),
        ("db.example.com", Kind::Aaaa, "2001:2::7"),
        ("x.wild.example.com", Kind::Aaaa, ""),
        ("db.example.com", Kind::Hints, ""),
        ("db.example.com", Kind::Other, "forward"),
        ("db.example.com", Kind::Srv, "forward"),
    ] {
        assert_eq!(ask(name, kind), answer, "{name} {kind:?}");
    }
}

#[test]
fn a_wildcard_means_every_name_below_and_not_its_own_parent() {
    for (name, answer) in [
        ("a.wild.example.com", "240.240.0.8"),
        ("b.a.wild.example.com", "240.240.0.8"),
        ("wild.example.com", "forward"),
        ("awild.example.com", "forward"),
        ("range.example.com", "forward"),
    ] {
        assert_eq!(ask(name, Kind::A), answer, "{name}");
    }
}

#[test]
fn a_service_is_seen_where_it_is_visible() {
    let pay = Asker {
        namespace: "pay",
        ..SHOP
    };
    for name in ["secret.pay", "hidden.example.com"] {
        assert_eq!(ask(name, Kind::A), "forward");
        assert_ne!(ask_as(&pay, name, Kind::A), "forward");
    }
    assert_eq!(
        ask_as(&pay, "21.0.96.10.in-addr.arpa", Kind::Ptr),
        "secret.pay.svc.cluster.local"
    );
    assert_eq!(ask("21.0.96.10.in-addr.arpa", Kind::Ptr), "forward");
}

#[test]
fn a_headless_service_is_its_healthy_pods_each_with_a_name() {
    for (name, answer) in [
        ("db", "10.1.0.1 10.1.0.2"),
        ("primary.db", "10.1.0.1"),
        ("primary.db.shop.svc.cluster.local", "10.1.0.1"),
        ("db-0.db.shop.svc.cluster.local", "10.1.0.1"),
        ("db-1.db.shop.svc", "10.1.0.2"),
        ("db-2.db.shop.svc.cluster.local", "forward"),
        ("db-9.db.shop.svc.cluster.local", "forward"),
        ("db-1.web.shop.svc.cluster.local", "forward"),
    ] {
        assert_eq!(ask(name, Kind::A), answer, "{name}");
    }
}

#[test]
fn service_records_name_ports_and_targets() {
    let db = "db-1.db.shop.svc.cluster.local:7432 primary.db.shop.svc.cluster.local:6432";
    let web = "web.shop.svc.cluster.local";
    for (name, answer) in [
        ("_http._tcp.web.shop.svc.cluster.local", format!("{web}:80")),
        ("_admin._tcp.web", format!("{web}:9000")),
        ("web", format!("{web}:80 {web}:9000")),
        ("_sql._tcp.db.shop", db.to_owned()),
        ("_nope._tcp.web", "forward".to_owned()),
        ("_http._udp.web", "forward".to_owned()),
        ("_https._tcp.db.example.com", "forward".to_owned()),
    ] {
        assert_eq!(ask(name, Kind::Srv), answer, "{name}");
    }
    assert_eq!(ask("_http._tcp.web", Kind::A), "");
}

#[test]
fn targets_of_service_records_come_with_their_addresses() {
    let Reply::Found(found) = resolve(&tables(), &SHOP, "_sql._tcp.db", Kind::Srv, 1) else {
        panic!("the mesh knows it");
    };
    let mut told: Vec<_> = found
        .additional
        .iter()
        .map(|(_, ip)| ip.to_string())
        .collect();
    told.sort();
    assert_eq!(told, ["10.1.0.1", "10.1.0.2"]);
}

#[test]
fn addresses_have_names() {
    for (name, answer) in [
        ("10.0.96.10.in-addr.arpa", "web.shop.svc.cluster.local"),
        ("1.0.1.10.in-addr.arpa", "primary.db.shop.svc.cluster.local"),
        ("2.0.1.10.in-addr.arpa", "db-1.db.shop.svc.cluster.local"),
        ("9.0.1.10.in-addr.arpa", "forward"),
        ("8.8.8.8.in-addr.arpa", "forward"),
        ("7.0.240.240.in-addr.arpa", "db.example.com"),
        ("9.9.240.240.in-addr.arpa", "no such name"),
        ("1.0.50.10.in-addr.arpa", "forward"),
        ("1.10.in-addr.arpa", "forward"),
        ("x.0.1.10.in-addr.arpa", "forward"),
    ] {
        assert_eq!(ask(name, Kind::Ptr), answer, "{name}");
    }
    let zeros = "0.".repeat(23);
    let six = |last: &str, first: &str| format!("{last}.{zeros}{first}.ip6.arpa");
    assert_eq!(
        ask(&six("7.0", "2.0.0.0.1.0.0"), Kind::Ptr),
        "forward",
        "31 digits"
    );
    assert_eq!(
        ask(&six("7", "2.0.0.0.1.0.0.2"), Kind::Ptr),
        "db.example.com"
    );
    assert_eq!(ask(&six("9", "2.0.0.0.1.0.0.2"), Kind::Ptr), "no such name");
}

#[test]
fn every_address_is_first_some_time() {
    let tables = tables();
    let first = |random| match resolve(&tables, &SHOP, "db", Kind::A, random) {
        Reply::Found(found) => found.data[0].clone(),
        other => panic!("{other:?}"),
    };
    assert_ne!(first(0), first(1));
}
