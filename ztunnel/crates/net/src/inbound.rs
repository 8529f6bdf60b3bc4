//! What arrives at a pod: HBONE (15008) and plaintext (15006). Owns the order target → verdict → application → answer: no
//! packet goes towards the application before the verdict, and no 200 before the application has answered.

use crate::account::{Failure, established, flag, follow};
use crate::pod::{Accepted, Client, Pod};
use crate::registry::{Entered, Kind, Parties};
use crate::relay::{relay_plain, relay_tunnel};
use crate::runtime::{Load, Worker};
use crate::tunnel::{Incoming, ServeError, Stream};
use crate::verdict::{Asked, ask};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::select;
use tokio::task::spawn_local;
use tokio::time::timeout;
use ztunnel_core::addr::{canonical, is_illegal};
use ztunnel_core::decide::{Target, inbound_target};
use ztunnel_core::hbone::{baggage, parse_forwarded_host, parse_traceparent};
use ztunnel_core::ids::SpiffeId;
use ztunnel_core::proxy;
use ztunnel_core::tables::{Service, Tables, Workload};

/// One tunnel, as long as it lives; its streams are connections of their own.
pub async fn handle_tunnel(worker: Rc<Worker>, pod: Arc<Pod>, accepted: Accepted) {
    let parties = Parties::between(accepted.peer, accepted.local);
    let connection = worker.registry.enter(pod, Kind::Tunnel, parties);
    let story = pin!(serve(&worker, &connection, accepted));
    follow(&worker, &connection, story).await;
}

async fn serve(worker: &Rc<Worker>, of: &Entered, accepted: Accepted) -> Result<(), Failure> {
    let tcp = TcpStream::from_std(accepted.tcp).map_err(Failure::relay)?;
    let me = of
        .pod
        .known(worker)
        .await
        .ok_or_else(|| Failure::unknown_pod(of))?;
    of.parties.borrow_mut().destination = Some(me.clone());
    let (there, pod) = (worker.clone(), of.pod.clone());
    let on_request = Rc::new(move |incoming| {
        spawn_local(handle_stream(there.clone(), pod.clone(), incoming));
    });
    let Err(error) = worker.tunnels.serve(tcp, me.identity(), on_request).await else {
        return Ok(());
    };
    if let Some(reason) = error.reason() {
        worker.shared.turned_away.count(reason);
    }
    let flag = match &error {
        // It was a tunnel, and its streams have told their ends.
        ServeError::Tunnel(_) => return Ok(()),
        ServeError::Identity(_) => flag::IDENTITY_ERROR,
        ServeError::Offence { peer, .. } => {
            of.parties.borrow_mut().source_id = Some(peer.clone());
            flag::PEER_OFFENCE
        }
        _ => flag::TLS_FAILURE,
    };
    Err(Failure::new(flag, error.to_string()))
}

pub async fn handle_stream(worker: Rc<Worker>, pod: Arc<Pod>, incoming: Incoming) {
    let _load = Load::on(&worker.peers[worker.index]);
    let mut parties = Parties::between(
        canonical(incoming.peer_addr),
        canonical(incoming.local_addr),
    );
    parties.source_id = Some(incoming.peer.clone());
    parties.hbone = incoming.head.authority.clone();
    let connection = worker.registry.enter(pod, Kind::Stream, parties);
    let story = pin!(answer(&worker, &connection, incoming));
    follow(&worker, &connection, story).await;
}

/// An answer other than 200: the status on the wire, the failure here.
pub type Refusal = (u16, Failure);

async fn answer(worker: &Worker, of: &Entered, incoming: Incoming) -> Result<(), Failure> {
    let admitting = Box::pin(admit_stream(worker, of, incoming)); // what it needs is given back before the relay begins
    let (app, stream) = admitting.await?;
    relay_tunnel(app, stream, &of.counts)
        .await
        .map_err(Failure::relay)
}

async fn admit_stream(
    worker: &Worker,
    of: &Entered,
    incoming: Incoming,
) -> Result<(TcpStream, Stream), Failure> {
    let head = &incoming.head;
    let sent = head.headers.get("traceparent").and_then(parse_traceparent);
    worker.shared.spans.join(worker, of, sent);
    let request = Request {
        method: &head.method,
        authority: head.authority.as_deref().unwrap_or(""),
        service_host: head.headers.get("forwarded").and_then(parse_forwarded_host),
        identity: &incoming.peer,
        client: canonical(incoming.peer_addr).ip(),
        arrived_at: canonical(incoming.local_addr),
    };
    if head.method == "CONNECT" && (head.scheme.is_some() || head.path.is_some()) {
        // RFC 9113 §8.5: a CONNECT has neither. With both it is another protocol's (RFC 8441), which nobody offered.
        let why = "a CONNECT with :scheme or :path is no plain CONNECT";
        incoming.refuse(400);
        return Err(Failure::new(flag::CONNECT, why));
    }
    let admitted = select! {
        biased;
        why = incoming.given_up() => return Err(Failure::relay(why)), // nothing is done for nobody
        admitted = admit_request(worker, of, &request) => admitted,
    };
    let (me, app) = match admitted {
        Ok(opened) => opened,
        Err((status, failure)) => {
            incoming.refuse(status);
            return Err(failure);
        }
    };
    let stream = incoming.accept(&[("baggage", &baggage(&me))]);
    established(worker, of);
    Ok((app, stream))
}

/// What a client with a proved identity asks of a pod, whichever way it came.
pub struct Request<'a> {
    pub method: &'a str,
    pub authority: &'a str,
    /// The service that the client addressed, by its own word.
    pub service_host: Option<&'a str>,
    pub identity: &'a SpiffeId,
    pub client: IpAddr,
    pub arrived_at: SocketAddr,
}

/// Target, verdict, application, in this order.
pub async fn admit_request(
    worker: &Worker,
    of: &Entered,
    request: &Request<'_>,
) -> Result<(Arc<Workload>, TcpStream), Refusal> {
    let (me, target) = permit_request(worker, of, request).await?;
    let opened = match target.proxied {
        None => to_application(worker, of, request.client, target.addr).await,
        Some(asked) => {
            let service = target.service.as_ref().map(|service| &*service.hostname);
            let client = of.parties.borrow().src;
            let header = proxy::header(client, asked, request.identity, service);
            introduced(worker, of, target.addr, &header).await
        }
    };
    let app = opened.map_err(|failure| (503, failure))?;
    Ok((me, app))
}

/// Target and verdict.
pub async fn permit_request(
    worker: &Worker,
    of: &Entered,
    request: &Request<'_>,
) -> Result<(Arc<Workload>, Target), Refusal> {
    let refuse = |status, flag, why: String| (status, Failure::new(flag, why));
    if request.method != "CONNECT" {
        return Err(refuse(
            400,
            flag::CONNECT,
            format!("method {:?} is not CONNECT", request.method),
        ));
    }
    let me = of
        .pod
        .known(worker)
        .await
        .ok_or_else(|| (503, Failure::unknown_pod(of)))?;
    let tables = worker.shared.tables.load_full();
    let authority = request.authority;
    let target =
        inbound_target(&tables, &me, request.arrived_at, authority).map_err(|refused| {
            refuse(
                refused.status,
                flag::CONNECT,
                format!("{authority}: {}", refused.why),
            )
        })?;
    let addressed = request
        .service_host
        .and_then(|host| tables.service_by_host(host, request.identity.namespace()))
        .cloned();
    name(
        of,
        &tables,
        &me,
        target.service.clone().or(addressed),
        Some(request.identity.clone()),
    );
    of.parties.borrow_mut().original_dst = target.addr;
    drop(tables);
    let asked = Asked {
        own: me.identity().clone(),
        source: request.client,
        identity: Some(request.identity.clone()),
        dst: target.addr,
        service: None,
    };
    ask(worker, of, asked)
        .await
        .map_err(|failure| (401, failure))?;
    Ok((me, target))
}

/// An application that wants a PROXY header gets it on its loopback address, where nobody but the tunnel connects, and
/// learns from it who the client is.
async fn introduced(
    worker: &Worker,
    of: &Entered,
    to: SocketAddr,
    header: &[u8],
) -> Result<TcpStream, Failure> {
    let loopback = match to.ip() {
        IpAddr::V4(_) => IpAddr::from(Ipv4Addr::LOCALHOST),
        IpAddr::V6(_) => IpAddr::from(Ipv6Addr::LOCALHOST),
    };
    let to = SocketAddr::new(loopback, to.port());
    let mut app = to_application(worker, of, loopback, to).await?;
    let written = timeout(
        worker.shared.config.connect_timeout(),
        app.write_all(header),
    )
    .await;
    let broken = |why: &dyn std::fmt::Display| {
        let why = format!("the PROXY header to the application at {to}: {why}");
        Failure::new(flag::CONNECT, why)
    };
    match written {
        Ok(Ok(())) => Ok(app),
        Ok(Err(why)) => Err(broken(&why)),
        Err(late) => Err(broken(&late)),
    }
}

pub async fn handle_plaintext(worker: Rc<Worker>, pod: Arc<Pod>, accepted: Accepted) {
    let dst = accepted.destination();
    let connection =
        worker
            .registry
            .enter(pod, Kind::Plaintext, Parties::between(accepted.peer, dst));
    let story = pin!(admit(&worker, &connection, accepted, dst));
    follow(&worker, &connection, story).await;
}

async fn admit(
    worker: &Worker,
    of: &Entered,
    accepted: Accepted,
    dst: SocketAddr,
) -> Result<(), Failure> {
    let peer = accepted.peer.ip();
    let mut client = Client::of(accepted.tcp).map_err(Failure::relay)?;
    if is_illegal(dst.port()) {
        return Err(Failure::new(
            flag::CONNECT,
            format!("{dst} is a port of the tunnel itself: a loop"),
        ));
    }
    let me = of
        .pod
        .known(worker)
        .await
        .ok_or_else(|| Failure::unknown_pod(of))?;
    let tables = worker.shared.tables.load_full();
    name(of, &tables, &me, None, None);
    drop(tables);
    if !me.addresses.contains(&dst.ip()) && !of.pod.has(dst.ip()) {
        // Routed here but meant for somebody else: we would launder it past that pod's policies.
        return Err(Failure::new(
            flag::CONNECT,
            format!("{dst} is not an address of this pod"),
        ));
    }
    let asked = Asked {
        own: me.identity().clone(),
        source: peer,
        identity: None,
        dst,
        service: None,
    };
    ask(worker, of, asked).await?;
    let app = to_application(worker, of, peer, dst).await?;
    established(worker, of);
    let (client, _) = client.relayed().map_err(Failure::relay)?; // nothing was read yet
    relay_plain(app, client, &of.counts)
        .await
        .map_err(Failure::relay)
}

/// An address alone names nobody: a record whose identity is not the one that was proved is not the client's.
fn name(
    of: &Entered,
    tables: &Tables,
    me: &Arc<Workload>,
    service: Option<Arc<Service>>,
    proved: Option<SpiffeId>,
) {
    let mut parties = of.parties.borrow_mut();
    let source = tables.workload_by_ip(tables.network(), parties.src.ip());
    parties.source = source
        .filter(|w| proved.as_ref().is_none_or(|id| w.identity() == id))
        .cloned();
    parties.destination_id = proved.is_some().then(|| me.identity().clone());
    parties.destination = Some(me.clone());
    parties.service = service;
}

/// With the client's address as source, so that the application sees who it talks to. Never without: an application that
/// trusts its own pod's address would trust everybody.
async fn to_application(
    worker: &Worker,
    of: &Entered,
    client: IpAddr,
    to: SocketAddr,
) -> Result<TcpStream, Failure> {
    let as_client = worker.shared.config.orig_src && client != to.ip();
    let connected: io::Result<TcpStream> = of
        .pod
        .connect(worker, to, as_client.then_some(client))
        .await;
    connected.map_err(|e| {
        Failure::new(
            flag::CONNECT,
            format!("connect to the application at {to}: {e}"),
        )
    })
}
