//! How a connection ends up in the counters and the access log: exactly one line each. Owns what is told; not what happens
//! on the connection (`outbound`, `inbound`).

use crate::log::{Level, Line};
use crate::registry::{Connection, Cut, Entered, Kind, Parties};
use crate::runtime::Worker;
use std::future::Future;
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
}

impl Failure {
    pub fn new(flag: &'static str, why: impl Into<String>) -> Self {
        Self {
            flag,
            why: why.into(),
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
        Self {
            flag: cut.flag,
            why: cut.why,
        }
    }
}

/// Runs `story` until it ends or the connection is cut, then settles the account.
pub async fn follow(
    worker: &Worker,
    connection: &Entered,
    story: impl Future<Output = Result<(), Failure>>,
) {
    let ended = select! {
        biased;
        cut = connection.is_cut() => Err(cut.into()),
        ended = story => ended,
    };
    settle(worker, connection, ended.err());
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
    worker.shared.log.access(level, || {
        access_line(level, established, connection, &parties, failure.as_ref())
    });
}

fn access_line(
    level: Level,
    established: bool,
    of: &Connection,
    parties: &Parties,
    failure: Option<&Failure>,
) -> Line {
    let message = if established {
        "connection complete"
    } else {
        "connection failed"
    };
    let tried = (!parties.tried.is_empty()).then(|| parties.tried.join("; "));
    let line = Line::new(level, "access", message).show("src.addr", parties.src);
    let line = party(
        line,
        "src",
        parties.source.as_deref(),
        parties.source_id.as_ref(),
    )
    .show("dst.addr", parties.dst);
    let line = line.maybe("dst.hbone_addr", parties.hbone.as_deref());
    let line = line.maybe(
        "dst.service",
        parties.service.as_ref().map(|s| &*s.hostname),
    );
    party(
        line,
        "dst",
        parties.destination.as_deref(),
        parties.destination_id.as_ref(),
    )
    .text(
        "direction",
        if of.kind == Kind::Outbound {
            "outbound"
        } else {
            "inbound"
        },
    )
    .number("bytes_sent", of.counts.sent.get())
    .number("bytes_recv", of.counts.received.get())
    .show(
        "duration",
        format_args!("{}ms", of.opened.elapsed().as_millis()),
    )
    .maybe("dst.tried", tried.as_deref())
    .maybe("dry_run", of.rehearsed.borrow().as_deref())
    .maybe("error", failure.map(|f| f.why.as_str()))
}

fn party(line: Line, end: &str, workload: Option<&Workload>, id: Option<&SpiffeId>) -> Line {
    let namespace = workload
        .map(|w| &*w.namespace)
        .or(id.map(SpiffeId::namespace));
    line.maybe(&format!("{end}.workload"), workload.map(|w| &*w.name))
        .maybe(&format!("{end}.namespace"), namespace)
        .maybe(&format!("{end}.identity"), id.map(SpiffeId::as_str))
}
