//! What a pod's applications send (port 15001): original destination, route, tunnel or plain relay. Owns the order of these
//! steps; the choice is `ztunnel_core::decide`'s.

mod choice;
pub mod direct;

pub use choice::Loads;

use crate::account::{Account, Failure, established, flag, follow};
use crate::inbound::{Request, admit_request};
use crate::pod::{Accepted, Client, Pod};
use crate::pool::{Key, OpenError};
use crate::registry::{Entered, Kind, Parties};
use crate::relay::{relay_both, relay_tunnel};
use crate::runtime::Worker;
use crate::tunnel::Stream;
use crate::verdict::{ask_to_leave, proved};
use choice::Choice;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use tokio::net::TcpStream;
use tokio::select;
use ztunnel_core::addr::{is_illegal, is_own_host};
use ztunnel_core::decide::Route;
use ztunnel_core::hbone::request_headers;
use ztunnel_core::ids::SpiffeId;
use ztunnel_core::tables::{Service, Workload};

/// The node agent proves capture with a connection to one of these, which nobody routes (RFC 5737, RFC 3849).
const CANARIES: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(192, 0, 2, 127)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x7f)),
];

pub async fn handle(worker: Rc<Worker>, pod: Arc<Pod>, accepted: Accepted) {
    let dst = accepted.destination();
    if CANARIES.contains(&dst.ip()) {
        return; // closed in order, which is the proof
    }
    let parties = Parties::between(accepted.peer, dst);
    let connection = worker.registry.enter(pod, Kind::Outbound, parties);
    let story = pin!(carry(&worker, &connection, accepted, dst));
    follow(&worker, &connection, story).await;
}

async fn carry(
    worker: &Rc<Worker>,
    of: &Entered,
    accepted: Accepted,
    dst: SocketAddr,
) -> Result<(), Failure> {
    let (peer, local) = (accepted.peer, accepted.local);
    of.epoch.set(worker.shared.epoch());
    let mut client = Client::of(accepted.tcp).map_err(Failure::relay)?;
    if is_illegal(dst.port()) && (dst.ip() == local.ip() || is_own_host(dst.ip())) {
        return Err(Failure::new(
            flag::CONNECT,
            format!("{dst} is a port of the tunnel itself: a loop"),
        ));
    }
    let from = of
        .pod
        .known(worker)
        .await
        .ok_or_else(|| Failure::unknown_pod(of))?;
    of.parties.borrow_mut().source = Some(from.clone());
    let mut choice = Choice::new(worker, from.clone(), peer.ip(), dst);
    let mut way = Box::pin(choice.next()).await?;
    loop {
        let dialled = way.dialled().cloned();
        let failure = match attempt(worker, of, &mut client, &from, way).await {
            Err(failure) if client.is_waiting() => failure,
            ended => return ended,
        };
        way = Box::pin(choice.after(dialled, failure)).await?;
        of.parties.borrow_mut().tried.clone_from(&choice.told);
    }
}

/// As long as the client is waiting afterwards, no byte of its was lost.
async fn attempt(
    worker: &Rc<Worker>,
    of: &Entered,
    client: &mut Client,
    from: &Arc<Workload>,
    route: Route,
) -> Result<(), Failure> {
    Box::pin(ask_to_leave(worker, of, from, &route)).await?;
    let _counted = worker.loads.count(&route);
    match route {
        Route::Refused { .. } | Route::Lookup { .. } => {
            Err(Failure::new(flag::CONNECT, "there is no way out"))
        }
        Route::Passthrough {
            dial,
            upstream,
            service,
            ..
        } => {
            name_destination(of, dial.0, upstream, service);
            Box::pin(plain(worker, of, client, dial.0)).await
        }
        Route::Tunnel {
            dial,
            authority,
            want,
            upstream,
            service,
            beyond,
        } => {
            let here = upstream
                .as_ref()
                .filter(|_| beyond.is_none())
                .and_then(|workload| worker.served_here(workload, dial.0.ip()));
            name_destination(of, dial.0, upstream, service);
            let source = of.parties.borrow().src.ip();
            worker.remember_source(&of.pod, source);
            let way = Way {
                from: from.clone(),
                key: Key {
                    from: from.identity().clone(),
                    want,
                    dial: dial.0,
                    source,
                },
                authority,
                beyond: beyond.map(|beyond| beyond.want),
            };
            match here {
                Some(pod) => Box::pin(hand_over(worker, of, client, way, pod)).await,
                None => tunnel(worker, of, client, way).await,
            }
        }
    }
}

fn name_destination(
    of: &Entered,
    dial: SocketAddr,
    upstream: Option<Arc<Workload>>,
    service: Option<Arc<Service>>,
) {
    let mut parties = of.parties.borrow_mut();
    parties.dst = dial;
    parties.destination = upstream;
    parties.service = service;
}

async fn plain(
    worker: &Worker,
    of: &Entered,
    client: &mut Client,
    dial: SocketAddr,
) -> Result<(), Failure> {
    let upstream = of.pod.connect(worker, dial, None).await;
    let upstream =
        upstream.map_err(|e| Failure::new(flag::CONNECT, format!("connect to {dial}: {e}")))?;
    established(worker, of);
    let (client, first) = client.relayed().map_err(Failure::relay)?;
    relay_both(client, upstream, first, &of.counts, None)
        .await
        .map_err(Failure::relay)
}

/// Within one kernel no certificate tells more than the sandbox that a connection came out of: everything that the other
/// end of a tunnel would check is checked, then the two sockets are joined without TLS.
async fn hand_over(
    worker: &Rc<Worker>,
    of: &Entered,
    client: &mut Client,
    way: Way,
    to: Arc<Pod>,
) -> Result<(), Failure> {
    let parties = {
        let ours = of.parties.borrow();
        Parties {
            source_id: Some(way.from.identity().clone()),
            hbone: Some(way.authority.clone()),
            service: ours.service.clone(),
            ..Parties::between(ours.src, way.key.dial)
        }
    };
    of.parties.borrow_mut().hbone = Some(way.authority.clone());
    let inbound = worker.registry.enter(to, Kind::Stream, parties);
    let trace = worker.shared.spans.begin(worker);
    of.trace.set(trace);
    worker.shared.spans.join(worker, &inbound, Some(trace));
    let mut account = Account {
        worker,
        connection: &inbound,
        failure: Some(Failure::relay("the client's connection was cut")),
    };
    let ended = select! {
        biased;
        cut = inbound.is_cut() => Err(cut.into()),
        ended = join(worker, of, &inbound, client, &way) => ended,
    };
    account.failure = ended.as_ref().err().cloned();
    drop(account);
    ended.map_err(|why| Failure::new(why.flag, format!("within the node: {}", why.why)))
}

async fn join(
    worker: &Worker,
    of: &Entered,
    inbound: &Entered,
    client: &mut Client,
    way: &Way,
) -> Result<(), Failure> {
    let known = inbound.pod.known(worker).await;
    let there = known.ok_or_else(|| Failure::unknown_pod(inbound))?;
    if !way.key.want.contains(there.identity()) {
        let why = format!("{} is not who is expected there", there.identity().as_str());
        return Err(Failure::new(flag::IDENTITY_ERROR, why));
    }
    // Who could not prove itself in a tunnel cannot here: no certificate, one that has expired or is revoked.
    for identity in [way.from.identity(), there.identity()] {
        let ready = worker.shared.identities.proven(identity).await;
        ready.map_err(|why| Failure::new(flag::IDENTITY_ERROR, why))?;
    }
    let service = of.parties.borrow().service.clone();
    let request = Request {
        method: "CONNECT",
        authority: &way.authority,
        service_host: service.as_ref().map(|s| &*s.hostname),
        identity: way.from.identity(),
        client: way.key.source,
        arrived_at: way.key.dial,
    };
    let (me, app) = admit_request(worker, inbound, &request)
        .await
        .map_err(|(_, failure)| failure)?;
    name_identities(of, &way.from, me.identity().clone());
    direct::grant(worker, of.epoch.get(), of, inbound, way);
    established(worker, of);
    established(worker, inbound);
    let (client, first) = client.relayed().map_err(Failure::relay)?;
    relay_both(client, app, first, &of.counts, Some(&inbound.counts))
        .await
        .map_err(Failure::relay)
}

struct Way {
    from: Arc<Workload>,
    key: Key,
    authority: String,
    /// Who is behind the gateway that `key` leads to.
    beyond: Option<Vec<SpiffeId>>,
}

async fn tunnel(
    worker: &Rc<Worker>,
    of: &Entered,
    client: &mut Client,
    way: Way,
) -> Result<(), Failure> {
    let dialling = Box::pin(dial(worker, of, client, way)); // what it needs is given back before the relay begins
    let (client, stream) = dialling.await?;
    relay_tunnel(client, stream, &of.counts)
        .await
        .map_err(Failure::relay)
}

async fn dial(
    worker: &Rc<Worker>,
    of: &Entered,
    client: &mut Client,
    way: Way,
) -> Result<(TcpStream, Stream), Failure> {
    let Way {
        from,
        key,
        authority,
        beyond,
    } = way;
    let dial = key.dial;
    let dialer = || {
        of.pod
            .dial_socket(dial, worker.shared.config.packet_mark, None)
    };
    let headers = headers(worker, of, &from);
    let headers: Vec<_> = headers
        .iter()
        .map(|(name, value)| (*name, value.as_str()))
        .collect();
    of.parties.borrow_mut().hbone = Some(authority.clone());
    let tunnels = &worker.tunnels;
    let opened = match &beyond {
        None => {
            // Whoever proves to be somebody else is judged first.
            let to = of.asked.borrow().as_ref().and_then(|a| a.identity.clone());
            let speaker = to.and_then(|to| client.speaker(to));
            tunnels
                .open(key, &dialer, &authority, &headers, speaker)
                .await
        }
        Some(want) => {
            let network = ("x-forwarded-network", &*worker.shared.config.network);
            let inner: Vec<_> = headers.iter().copied().chain([network]).collect();
            let both = (&*headers, &*inner);
            tunnels
                .open_beyond(key, &dialer, &authority, both, want)
                .await
        }
    };
    let opened = opened.map_err(|e| explain(&e, dial))?;
    proved(worker, of, &opened.peer)?;
    name_identities(of, &from, opened.peer);
    established(worker, of);
    let (client, mut first) = client.relayed().map_err(Failure::relay)?;
    of.counts.sent.set(opened.told as u64);
    opened.stream.begin_with(first.split_off(opened.told));
    Ok((client, opened.stream))
}

fn name_identities(of: &Entered, from: &Workload, peer: SpiffeId) {
    let mut parties = of.parties.borrow_mut();
    parties.source_id = Some(from.identity().clone());
    parties.destination_id = Some(peer);
}

fn headers(worker: &Worker, of: &Entered, from: &Workload) -> Vec<(&'static str, String)> {
    let trace = worker.shared.spans.begin(worker);
    of.trace.set(trace);
    let parties = of.parties.borrow();
    request_headers(
        from,
        parties.src,
        parties.service.as_ref().map(|s| &*s.hostname),
        &trace,
    )
}

fn explain(e: &OpenError, dial: SocketAddr) -> Failure {
    let (flag, hint) = match e {
        OpenError::Connect(_) => (flag::CONNECT, ""),
        OpenError::Timeout("TCP connection") => (
            flag::NETWORK_POLICY,
            "; maybe a NetworkPolicy blocks port 15008",
        ),
        OpenError::Timeout("TLS handshake") | OpenError::Tls(_) => (flag::TLS_FAILURE, ""),
        OpenError::Timeout(_) => (flag::CONNECT, ""),
        OpenError::Identity(_) => (flag::IDENTITY_ERROR, ""),
        OpenError::App(_) => (flag::NONE, ""),
        OpenError::H2(_) => (flag::H2_HANDSHAKE_FAILURE, ""),
        // What the peer's policies refuse (Istio's own client files it under CONNECT, and its users search in vain).
        OpenError::Status(401) => (
            flag::DENY,
            " Unauthorized: a policy at the destination denies it",
        ),
        OpenError::Status(_) => (flag::CONNECT, ""),
    };
    let refused =
        matches!(e, OpenError::Connect(why) if why.kind() == std::io::ErrorKind::ConnectionRefused);
    Failure {
        absent: refused,
        ..Failure::new(flag, format!("tunnel to {dial}: {e}{hint}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_by_policy_is_a_denial_on_this_side_too() {
        let dial = SocketAddr::from(([10, 0, 0, 1], 15008));
        let denied = explain(&OpenError::Status(401), dial);
        assert_eq!(denied.flag, flag::DENY);
        assert!(denied.why.contains("401 Unauthorized"), "{}", denied.why);
        assert_eq!(explain(&OpenError::Status(503), dial).flag, flag::CONNECT);
    }
}
