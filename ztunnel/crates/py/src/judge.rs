//! Verdicts without a data path: what the core would say of these policies. For the oracle's property test.

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use std::net::{IpAddr, SocketAddr};
use ztunnel_core::authz::{Because, Direction, Peer, Verdict, authorise, observe, rehearse};
use ztunnel_core::ids::SpiffeId;
use ztunnel_core::tables::{Kind, Tables, Workload};

type Named = (String, PyBackedBytes);
/// Source, identity of the other end ("": none), destination, port, outbound?, service ("": none).
type Asked = (IpAddr, String, IpAddr, u16, bool, String);
/// Allowed?, policy ("": none), rule (-1: none).
type Said = (bool, String, i64);
type Answer = (Said, Option<Said>, Vec<(String, usize)>);

#[pyfunction]
pub(crate) fn judge(
    py: Python<'_>,
    policies: Vec<Named>,
    workload: Named,
    asked: Vec<Asked>,
) -> PyResult<Vec<Answer>> {
    let owned = |(name, bytes): Named| (name, bytes.to_vec().into());
    let policies: Vec<_> = policies.into_iter().map(owned).collect();
    let (uid, workload) = (workload.0.clone(), owned(workload));
    py.detach(|| {
        let nothing = Tables::new("", "Kubernetes");
        let (tables, mut refused) = nothing.with(Kind::Authorization, &policies, &[]);
        let (tables, more) = tables.with(Kind::Address, &[workload], &[]);
        refused.extend(more);
        if let Some((name, why)) = refused.first() {
            return Err(PyValueError::new_err(format!("{name}: {why}")));
        }
        let of = tables.workload(&uid);
        let of = of.ok_or_else(|| PyValueError::new_err(format!("{uid} is no workload")))?;
        asked.iter().map(|one| answer(&tables, of, one)).collect()
    })
}

fn answer(tables: &Tables, of: &Workload, asked: &Asked) -> PyResult<Answer> {
    let (source, identity, to, port, outbound, service) = asked;
    let parse = |text: &String| SpiffeId::parse(text);
    let identity = Some(identity).filter(|text| !text.is_empty()).map(parse);
    let identity = identity
        .transpose()
        .map_err(|why| PyValueError::new_err(format!("{:?} is no identity: {why}", asked.1)))?;
    let service = Some(service.as_str()).filter(|text| !text.is_empty());
    let peer = Peer {
        source: *source,
        identity: identity.as_ref(),
        dst: SocketAddr::new(*to, *port),
        direction: if *outbound {
            Direction::Outbound { service }
        } else {
            Direction::Inbound
        },
    };
    let seen = observe(tables, of, &peer);
    Ok((
        said(authorise(tables, of, &peer)),
        rehearse(tables, of, &peer).map(said),
        seen.iter()
            .map(|(policy, rule)| (policy.key.to_string(), *rule))
            .collect(),
    ))
}

fn said(verdict: Verdict) -> Said {
    match verdict {
        Verdict::Allowed { by } => by.map_or((true, String::new(), -1), |hit| {
            (true, hit.policy.to_string(), hit.rule as i64)
        }),
        Verdict::Denied { because, .. } => match because {
            Because::Matched(hit) => (false, hit.policy.to_string(), hit.rule as i64),
            Because::Refused(key) | Because::Unknown(key) => (false, key.to_string(), -1),
            Because::NoneMatched => (false, String::new(), -1),
        },
    }
}
