//! The judgement of a connection that is let in allocates nothing. Counts allocations, not time.

use bytes::Bytes;
use prost::Message;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use ztunnel_core::authz::{Direction, Hit, Peer, Verdict, authorise};
use ztunnel_core::ids::SpiffeId;
use ztunnel_core::tables::{Kind, Tables};

#[allow(dead_code, clippy::all, clippy::use_self, unreachable_pub)]
mod workload {
    include!("../src/gen/istio.workload.rs");
}
#[allow(dead_code, clippy::all, clippy::use_self, unreachable_pub)]
mod security {
    include!("../src/gen/istio.security.rs");
}

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: everything is left to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

fn during<T>(work: impl FnOnce() -> T) -> (T, usize) {
    let before = ALLOCATIONS.get();
    let done = work();
    (done, ALLOCATIONS.get() - before)
}

fn policy(name: &str, action: security::Action, principal: &str) -> (String, Bytes) {
    let text = security::string_match::MatchType::Exact(principal.into());
    let principals = vec![security::StringMatch {
        match_type: Some(text),
    }];
    let matches = vec![security::Match {
        principals,
        ..Default::default()
    }];
    let message = security::Authorization {
        name: name.into(),
        namespace: "shop".into(),
        scope: security::Scope::Namespace.into(),
        action: action.into(),
        rules: vec![security::Rule {
            clauses: vec![security::Clause { matches }],
        }],
        ..Default::default()
    };
    (format!("shop/{name}"), message.encode_to_vec().into())
}

fn shop() -> Tables {
    let web = workload::Workload {
        uid: "web".into(),
        name: "web".into(),
        namespace: "shop".into(),
        addresses: vec![Bytes::from_static(&[10, 0, 0, 1])],
        ..Default::default()
    };
    let address = workload::Address {
        r#type: Some(workload::address::Type::Workload(web)),
    };
    let policies = [
        policy(
            "allow",
            security::Action::Allow,
            "cluster.local/ns/bank/sa/db",
        ),
        policy(
            "deny",
            security::Action::Deny,
            "cluster.local/ns/bank/sa/evil",
        ),
    ];
    let (tables, refused) = Tables::new("", "Kubernetes").with(Kind::Authorization, &policies, &[]);
    assert_eq!(refused, []);
    tables
        .with(
            Kind::Address,
            &[("web".into(), address.encode_to_vec().into())],
            &[],
        )
        .0
}

#[test]
fn who_is_let_in_costs_no_memory() {
    let tables = shop();
    let web = tables.workload("web").expect("it was pushed");
    let friend = SpiffeId::new("cluster.local", "bank", "db").expect("an identity");
    let peer = Peer {
        source: [10, 0, 0, 9].into(),
        identity: Some(&friend),
        dst: ([10, 0, 0, 1], 80).into(),
        direction: Direction::Inbound,
    };
    let (verdict, allocations) = during(|| authorise(&tables, web, &peer));
    assert_eq!(
        (verdict, allocations),
        (
            Verdict::Allowed {
                by: Some(Hit {
                    policy: "shop/allow".into(),
                    rule: 0
                })
            },
            0
        )
    );
}
