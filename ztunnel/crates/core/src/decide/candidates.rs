//! The choice of an endpoint, endpoint by endpoint, for a person who asks. Owns no rule: the same ones as the choice's.

use super::pick::{Nobody, Want, Whom, rungs, suits};
use crate::tables::{Endpoint, Service, Shape, Tables, Workload};
use std::net::SocketAddr;

/// Every endpoint, and why it is not among those that are chosen from. O(endpoints).
pub fn candidates<'a>(
    tables: &'a Tables,
    from: &Workload,
    service: &Service,
    dst: SocketAddr,
) -> Vec<(&'a Endpoint, Option<String>)> {
    let want = Want {
        from,
        service,
        port: dst.port(),
        v4: dst.is_ipv4(),
        whom: Whom::Endpoint,
    };
    let ranked: Vec<_> = tables
        .endpoints(&service.key)
        .map(|endpoint| (endpoint, rung_of(tables, want, endpoint)))
        .collect();
    let best = ranked
        .iter()
        .filter_map(|(_, rung)| rung.as_ref().ok())
        .min();
    let why = |rung: &Result<usize, Nobody>| match rung {
        Ok(rung) if Some(rung) == best => None,
        Ok(_) => Some("others are nearer".into()),
        Err(nobody) => Some(words(nobody)),
    };
    ranked
        .iter()
        .map(|(endpoint, rung)| (*endpoint, why(rung)))
        .collect()
}

/// 0 is the best.
fn rung_of(tables: &Tables, want: Want<'_>, endpoint: &Endpoint) -> Result<usize, Nobody> {
    let (workload, balancing) = (&*endpoint.workload, &want.service.balancing);
    if workload.capacity == 0 || !(workload.healthy || balancing.unhealthy_too) {
        return Err(Nobody::Unhealthy);
    }
    suits(tables, want, &Shape::of(endpoint))?;
    let shared = balancing
        .places()
        .take_while(|locus| locus.of(workload) == locus.of(want.from))
        .count();
    let own_network = *workload.network == *tables.network();
    rungs(balancing)
        .position(|rung| rung.depth <= shared && (own_network || !rung.own_network))
        .ok_or(Nobody::OutOfScope)
}

fn words(nobody: &Nobody) -> String {
    match nobody {
        Nobody::NoSuchPort => "it has no number for this port".into(),
        Nobody::Unhealthy => "it is not healthy, or its capacity is 0".into(),
        Nobody::OutOfScope => "it is not near enough for STRICT load balancing".into(),
        Nobody::NoAddress => "it has no address of a suitable family".into(),
        Nobody::Remote(network) => {
            format!("it is in network {network}, to which it names no gateway")
        }
        Nobody::Unresolvable(hostname) => format!("{hostname} cannot be resolved"),
        Nobody::AllTried => "it was tried in vain".into(),
    }
}
