//! How a connection ends up in the counters and the access log: exactly one line each. Owns what is told; not what happens
//! on the connection (`outbound`, `inbound`).

use crate::log::{Format, Level, Line};
use crate::registry::{Connection, Cut, Entered, Kind, Parties};
use crate::runtime::Worker;
use std::future::Future;
use std::pin::Pin;
use tokio::select;
use ztunnel_core::ids::SpiffeId;
use ztunnel_core::tables::Workload;

/// Istio's `response_flags`.
pub mod flag {
    pub const NONE: &str = "-";
    pub const DENY: &str = "DENY";
    pub const CONNECT: &str = "CONNECT";
    pub const TLS_FAILURE: &str = "TLS_FAILURE";
    pub const H2_HANDSHAKE_FAILURE: &str = "H2_HANDSHAKE_FAILURE";
    pub const NETWORK_POLICY: &str = "NETWORK_POLICY";
    pub const IDENTITY_ERROR: &str = "IDENTITY_ERROR";
    /// Ours: the peer broke the rules of TLS or HTTP/2, or made us work for nothing.
    pub const PEER_OFFENCE: &str = "PEER_OFFENCE";
}

/// Why a connection ended otherwise than in order. `why` is a sentence for the person on call.
#[derive(Debug, Clone)]
pub struct Failure {
    pub flag: &'static str,
    pub why: String,
    /// Nobody listens for tunnels there, which may change in a moment: a pod that joins or leaves the mesh while it runs.
    pub absent: bool,
}

impl Failure {
    pub fn new(flag: &'static str, why: impl Into<String>) -> Self {
        Self {
            flag,
            why: why.into(),
            absent: false,
        }
    }

    /// Of a connection that was being relayed.
    pub fn relay(why: impl std::fmt::Display) -> Self {
        Self::new(flag::NONE, why.to_string())
    }

    pub fn unknown_pod(of: &Connection) -> Self {
        let (namespace, name) = (&of.pod.namespace, &of.pod.name);
        Self::new(
            flag::CONNECT,
            format!("timed out waiting for workload {namespace}/{name} from the control plane"),
        )
    }
}

impl From<Cut> for Failure {
    fn from(cut: Cut) -> Self {
        Self::new(cut.flag, cut.why)
    }
}

/// Runs `story` until it ends or the connection is cut, then settles the account. Pinned by the caller: a future handed
/// over by value would lie in the task twice.
pub async fn follow(
    worker: &Worker,
    connection: &Entered,
    story: Pin<&mut impl Future<Output = Result<(), Failure>>>,
) {
    let untold = Untold(worker, connection);
    let ended = select! {
        biased;
        cut = connection.is_cut() => Err(cut.into()),
        ended = story => ended,
    };
    std::mem::forget(untold);
    settle(worker, connection, ended.err());
}

/// A story that panics, or whose worker ends, is dropped in the middle. Without an end in the counters its series would
/// count as one with an open connection, for ever.
struct Untold<'a>(&'a Worker, &'a Entered);

impl Drop for Untold<'_> {
    fn drop(&mut self) {
        let why = if std::thread::panicking() {
            "a fault in the tunnel ended it"
        } else {
            "the tunnel ended"
        };
        settle(self.0, self.1, Some(Failure::relay(why)));
    }
}

/// For a connection that somebody else's story carries: its account is settled when this is dropped, at the latest.
pub struct Account<'a> {
    pub worker: &'a Worker,
    pub connection: &'a Entered,
    pub failure: Option<Failure>,
}

impl Drop for Account<'_> {
    fn drop(&mut self) {
        let own = || self.connection.why_cut().map(Failure::from);
        let failure = self.failure.take().map(|given| own().unwrap_or(given));
        settle(self.worker, self.connection, failure);
    }
}

fn settle(worker: &Worker, connection: &Connection, failure: Option<Failure>) {
    if connection.kind == Kind::Tunnel && failure.as_ref().is_none_or(|f| f.flag == flag::NONE) {
        return; // a tunnel that was served has told its story stream by stream
    }
    let established = connection.series.borrow().is_some();
    worker.meter.closed(connection);
    let parties = connection.parties.borrow();
    if let Some(failure) = &failure
        && (!established || failure.flag != flag::NONE)
    {
        worker.meter.failed(connection.kind, &parties, failure.flag);
    }
    let level = match (&failure, established) {
        (None, _) => Level::Info,
        (Some(_), true) => Level::Error,
        (Some(_), false) => Level::Warn,
    };
    let message = if established {
        "connection complete"
    } else {
        "connection failed"
    };
    let end = |line| ended(line, connection, failure.as_ref());
    let log = &worker.shared.log;
    log.access(level, message, |line| {
        end(who(line, connection.kind, &parties))
    });
    let trace = connection.trace.get();
    if worker.shared.spans.wanted(&trace) {
        let line = Line::new(Format::Json, level, "span", message);
        let line = end(who(line, connection.kind, &parties))
            .show(
                "parent_span",
                format_args!("{:016x}", connection.parent_span.get()),
            )
            .show("span", format_args!("{:016x}", trace.span))
            .number("duration_ns", connection.opened.elapsed().as_nanos() as u64);
        worker.shared.spans.put(line.finish());
    }
}

/// It carries bytes from now on: they are counted, and whoever debugs sees a line.
pub fn established(worker: &Worker, of: &Connection) {
    worker.meter.opened(of);
    worker
        .shared
        .log
        .access(Level::Debug, "connection opened", |line| {
            who(line, of.kind, &of.parties.borrow())
        });
}

/// Istio's field names.
fn who(line: Line, kind: Kind, parties: &Parties) -> Line {
    let Parties {
        source,
        source_id,
        destination,
        destination_id,
        ..
    } = parties;
    let line = party(
        line.show("src.addr", parties.src),
        &SRC,
        source.as_deref(),
        source_id.as_ref(),
    )
    .show("dst.addr", parties.dst)
    .maybe("dst.hbone_addr", parties.hbone.as_deref())
    .maybe(
        "dst.service",
        parties.service.as_ref().map(|s| &*s.hostname),
    );
    let line = line.maybe("dst.path", parties.direct.then_some("direct"));
    let outbound = kind == Kind::Outbound;
    party(line, &DST, destination.as_deref(), destination_id.as_ref())
        .text("direction", if outbound { "outbound" } else { "inbound" })
}

fn ended(line: Line, of: &Connection, failure: Option<&Failure>) -> Line {
    let trace = of.trace.get();
    let line = line
        .number("bytes_sent", of.counts.sent.get())
        .number("bytes_recv", of.counts.received.get())
        .show(
            "duration",
            format_args!("{}ms", of.opened.elapsed().as_millis()),
        );
    let line = if trace.id == 0 {
        line
    } else {
        line.show("trace_id", format_args!("{:032x}", trace.id))
    };
    let flagged = failure.filter(|f| f.flag != flag::NONE);
    let parties = of.parties.borrow();
    let tried = (!parties.tried.is_empty()).then(|| parties.tried.join("; "));
    line.maybe("dst.tried", tried.as_deref())
        .maybe("response_flags", flagged.map(|f| f.flag))
        .maybe("dry_run", of.observed.borrow().rehearsed.as_deref())
        .maybe("audit", of.observed.borrow().audited().as_deref())
        .maybe("error", failure.map(|f| f.why.as_str()))
}

/// workload, namespace, identity, cluster.
type Keys = [&'static str; 4];
const SRC: Keys = [
    "src.workload",
    "src.namespace",
    "src.identity",
    "src.cluster",
];
const DST: Keys = [
    "dst.workload",
    "dst.namespace",
    "dst.identity",
    "dst.cluster",
];

fn party(line: Line, keys: &Keys, workload: Option<&Workload>, id: Option<&SpiffeId>) -> Line {
    let namespace = workload
        .map(|w| &*w.namespace)
        .or(id.map(SpiffeId::namespace));
    line.maybe(keys[0], workload.map(|w| &*w.name))
        .maybe(keys[1], namespace)
        .maybe(keys[2], id.map(SpiffeId::as_str))
        .maybe(keys[3], workload.map(|w| &*w.cluster_id))
}
