//! What goes from pod to pod of this node without us between: which connections may, and what is told of each as if it had
//! gone through the tunnel. Judged like any other when it is seen, and whenever anything changes; cut by resetting it.

use super::choice::Choice;
use super::{Way, name_destination, name_identities};
use crate::account::{Account, Failure, established, flag};
use crate::direct::{Direct, Grant, Record, Seen};
use crate::inbound::{Request, permit_request};
use crate::registry::{Entered, Kind, Parties};
use crate::runtime::Worker;
use crate::verdict::ask_to_leave;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use tokio::select;
use ztunnel_core::addr::HBONE_PORT;
use ztunnel_core::decide::Route;
use ztunnel_core::tables::{Service, Workload};

/// How often the dice are thrown for where a connection is already: its service may have got a second endpoint since.
const ROLLS: usize = 8;

/// The next ones to the same place may go without us: this one was handed over within the node, to the very address that
/// was asked for or to the only endpoint of a service, and nobody watches without deciding (dry runs, audits), who would
/// see one connection of many.
pub(super) fn grant(worker: &Worker, epoch: u64, of: &Entered, inbound: &Entered, way: &Way) {
    let Some(direct) = &*worker.shared.direct.load() else {
        return;
    };
    let (ours, theirs) = (of.parties.borrow(), inbound.parties.borrow());
    let is_seen = |of: &Entered| {
        let observed = of.observed.borrow();
        observed.rehearsed.is_some() || !observed.matched.is_empty()
    };
    let asked = ours.original_dst;
    let target = theirs.original_dst;
    let leads_there = way.authority.parse() == Ok(target) && asked.is_ipv4() == target.is_ipv4();
    let choice = || Choice::new(worker, way.from.clone(), ours.src.ip(), asked);
    let always = match (&ours.service, &ours.destination) {
        (None, _) => asked == target,
        (Some(_), Some(endpoint)) => choice().always_leads_to(endpoint),
        (Some(_), None) => false,
    };
    let alone = of.pod.own.is_empty() && inbound.pod.own.is_empty();
    if !leads_there
        || !always
        || !alone
        || is_seen(of)
        || is_seen(inbound)
        || !of.pod.has(ours.src.ip())
    {
        return;
    }
    direct.grant(
        epoch,
        Grant {
            from: of.pod.clone(),
            to: inbound.pod.clone(),
            asked,
            target,
        },
    );
}

/// One direct connection, from when it is seen until it ends or is ended.
pub async fn carry(worker: Rc<Worker>, direct: Arc<Direct>, mut seen: Seen) {
    let (src, dst) = (seen.src(), seen.dst());
    let parties = |to| Parties {
        direct: true,
        ..Parties::between(src, to)
    };
    let (from, to) = (seen.grant.from.clone(), seen.grant.to.clone());
    let outbound = worker
        .registry
        .enter(from, Kind::Outbound, parties(seen.grant.asked));
    let inbound = worker.registry.enter(to, Kind::Stream, parties(dst));
    let ended = select! {
        biased;
        cut = outbound.is_cut() => Err(cut.into()),
        cut = inbound.is_cut() => Err(cut.into()),
        ended = watch(&worker, &outbound, &inbound, &mut seen) => ended,
    };
    let (record, failure) = match ended {
        Ok(record) => (record, None),
        Err(failure) => (direct.end(&mut seen), Some(failure)),
    };
    for (of, sent, received) in [
        (&outbound, record.sent, record.received),
        (&inbound, record.received, record.sent),
    ] {
        of.counts.sent.set(sent);
        of.counts.received.set(received);
        drop(Account {
            worker: &worker,
            connection: of,
            failure: failure.clone(),
        });
    }
}

async fn watch(
    worker: &Rc<Worker>,
    of: &Entered,
    inbound: &Entered,
    seen: &mut Seen,
) -> Result<Record, Failure> {
    Box::pin(judge(worker, of, inbound, seen)).await?;
    if seen.record.state_says_refused() {
        return Err(Failure::new(
            flag::CONNECT,
            format!(
                "connect to the application at {}: it was refused",
                seen.dst()
            ),
        ));
    }
    established(worker, of);
    established(worker, inbound);
    let ended = &mut seen.ended;
    ended
        .await
        .map_err(|_| Failure::relay("connection closed: the direct path has been switched off"))
}

/// All that `hand_over` asks, of both sides, by what is known now.
async fn judge(
    worker: &Rc<Worker>,
    of: &Entered,
    inbound: &Entered,
    seen: &Seen,
) -> Result<(), Failure> {
    let src = seen.src();
    let from = of.pod.known(worker).await;
    let from = from.ok_or_else(|| Failure::unknown_pod(of))?;
    let there = inbound.pod.known(worker).await;
    let there = there.ok_or_else(|| Failure::unknown_pod(inbound))?;
    of.parties.borrow_mut().source = Some(from.clone());
    if !of.pod.has(src.ip()) {
        let why = format!("{} is not an address of this pod", src.ip());
        return Err(Failure::new(flag::CONNECT, why));
    }
    let route = way_of(worker, &from, &there, seen).await?;
    let Some((want, authority, service)) = leads_to(&route, &there, seen.dst()) else {
        let why = format!(
            "connection closed: the way to {} is no longer direct",
            seen.dst()
        );
        return Err(Failure::new(flag::DENY, why));
    };
    name_destination(of, seen.dst(), Some(there.clone()), service.cloned());
    ask_to_leave(worker, of, &from, &route).await?;
    if !want {
        let why = format!("{} is not who is expected there", there.identity().as_str());
        return Err(Failure::new(flag::IDENTITY_ERROR, why));
    }
    for identity in [from.identity(), there.identity()] {
        let ready = worker.shared.identities.proven(identity).await;
        ready.map_err(|why| Failure::new(flag::IDENTITY_ERROR, why))?;
    }
    let request = Request {
        method: "CONNECT",
        authority,
        service_host: service.map(|service| &*service.hostname),
        identity: from.identity(),
        client: src.ip(),
        arrived_at: SocketAddr::new(seen.dst().ip(), HBONE_PORT),
    };
    let permitted = permit_request(worker, inbound, &request).await;
    let (me, target) = permitted.map_err(|(_, failure)| failure)?;
    if target.proxied.is_some() || target.addr != seen.dst() {
        let why = "connection closed: the application is reached in another way";
        return Err(Failure::new(flag::DENY, why));
    }
    name_identities(of, &from, me.identity().clone());
    inbound.parties.borrow_mut().source_id = Some(from.identity().clone());
    Ok(())
}

/// Where a connection would go now; to where it is already, if that is one of the ways.
async fn way_of(
    worker: &Worker,
    from: &Arc<Workload>,
    there: &Workload,
    seen: &Seen,
) -> Result<Route, Failure> {
    let choose = || Choice::new(worker, from.clone(), seen.src().ip(), seen.grant.asked);
    let mut route = choose().next().await?;
    for _ in 1..ROLLS {
        if leads_to(&route, there, seen.dst()).is_some() {
            break;
        }
        route = choose().next().await?;
    }
    Ok(route)
}

/// Whether who is there is expected there, the authority that a tunnel would be asked for, and the service that was
/// addressed; `None`: the route leads somewhere else.
fn leads_to<'a>(
    route: &'a Route,
    there: &Workload,
    to: SocketAddr,
) -> Option<(bool, &'a str, Option<&'a Arc<Service>>)> {
    let Route::Tunnel {
        authority,
        want,
        upstream: Some(upstream),
        service,
        beyond: None,
        ..
    } = route
    else {
        return None;
    };
    let same = upstream.uid == there.uid && authority.parse() == Ok(to);
    same.then(|| {
        (
            want.contains(there.identity()),
            &**authority,
            service.as_ref(),
        )
    })
}
