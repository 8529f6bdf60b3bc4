//! May this connection be? Asked when it opens, on the side that it opens on, and again whenever anything has changed. Owns
//! what is asked and the wait for what has not arrived; the answer is `ztunnel_core::authz`'s.

use crate::account::{Failure, flag};
use crate::registry::{Connection, Entered, Kind};
use crate::runtime::{KNOWN_WITHIN, Worker};
use std::cell::RefCell;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use ztunnel_core::authz::{Because, Direction, Peer, Verdict, authorise, observe, rehearse};
use ztunnel_core::decide::Route;
use ztunnel_core::ids::SpiffeId;
use ztunnel_core::tables::{Action, Policy, Service, Tables, Workload};

/// A record may be between two versions for a moment; after that, nobody vouches for the pod any longer.
const RECORD_BACK_WITHIN: Duration = Duration::from_millis(500);

/// What a connection is judged by, on its side.
#[derive(Debug, Clone)]
pub struct Asked {
    /// Of the pod whose side judges, when it was asked: what was let in or out under a name ends with the name.
    pub own: SpiffeId,
    pub source: IpAddr,
    /// The other end's; `None`: nobody proves it.
    pub identity: Option<SpiffeId>,
    pub dst: SocketAddr,
    /// The service that the client addressed; on the client's side only.
    pub service: Option<Arc<Service>>,
}

impl Asked {
    pub fn peer(&self, kind: Kind) -> Peer<'_> {
        let service = self.service.as_ref().map(|service| &*service.hostname);
        Peer {
            source: self.source,
            identity: self.identity.as_ref(),
            dst: self.dst,
            direction: match kind {
                Kind::Outbound => Direction::Outbound { service },
                _ => Direction::Inbound,
            },
        }
    }
}

/// What decided nothing: for the log.
#[derive(Debug, Default)]
pub struct Observed {
    /// What dry-run policies would have said, if they would have denied.
    pub rehearsed: Option<String>,
    /// AUDIT and dry-run policies that match, each with its first rule that does.
    pub matched: Vec<(Arc<Policy>, usize)>,
}

impl Observed {
    /// The AUDIT policies, as `NAMESPACE/NAME[RULE]`; `None`: there are none.
    pub fn audited(&self) -> Option<String> {
        let audits = self
            .matched
            .iter()
            .filter(|(policy, _)| policy.action == Action::Audit);
        let names: Vec<_> = audits
            .map(|(policy, rule)| format!("{}[{rule}]", policy.key))
            .collect();
        (!names.is_empty()).then(|| names.join(", "))
    }
}

impl Connection {
    /// By this snapshot; notes what decides nothing. `None`: it has not been asked about yet.
    pub fn judge(&self, tables: &Tables, of: &Workload) -> Option<Verdict> {
        let asked = self.asked.borrow();
        let asked = asked.as_ref()?;
        let peer = asked.peer(self.kind);
        *self.observed.borrow_mut() = Observed {
            rehearsed: match rehearse(tables, of, &peer) {
                Some(Verdict::Denied { why, .. }) => Some(why),
                _ => None,
            },
            matched: observe(tables, of, &peer),
        };
        Some(authorise(tables, of, &peer))
    }

    /// What it was let in or out as is no longer the pod's identity.
    pub fn renamed(&self, of: &Workload) -> Option<String> {
        let asked = self.asked.borrow();
        let was = &asked.as_ref()?.own;
        (was != of.identity()).then(|| format!("the pod is no longer {was} but {}", of.identity()))
    }
}

/// A policy that applies has not arrived. Workloads and policies are two streams of updates, so one is always first.
pub fn is_unsure(verdict: &Verdict) -> bool {
    let Verdict::Denied { because, .. } = verdict else {
        return false;
    };
    matches!(because, Because::Unknown(_))
}

/// The verdict. From here on every swap asks again. A policy that applies and is not known yet is waited for; if it does
/// not come, that is a denial.
pub async fn ask(worker: &Worker, of: &Entered, asked: Asked) -> Result<(), Failure> {
    *of.asked.borrow_mut() = Some(asked);
    let unsure = RefCell::new(None);
    let look = |tables: &Tables| {
        let verdict = of.judge(tables, of.pod.workload(tables)?)?;
        if is_unsure(&verdict) {
            unsure.replace(Some(verdict));
            return None;
        }
        Some(verdict)
    };
    let found = worker.until(look).await;
    match found.or_else(|| unsure.take()) {
        Some(verdict) => {
            count(worker, of, &verdict);
            settled(of, verdict)
        }
        None => Err(refused(of, "the pod's record is gone")),
    }
}

fn settled(of: &Connection, verdict: Verdict) -> Result<(), Failure> {
    match verdict {
        Verdict::Allowed { .. } => Ok(()),
        Verdict::Denied { why, .. } => Err(refused(of, &why)),
    }
}

fn refused(of: &Connection, why: &str) -> Failure {
    let what = match of.kind {
        Kind::Outbound => "connection refused before it left",
        _ => "connection refused",
    };
    Failure::new(flag::DENY, format!("{what}: {why}"))
}

/// Once per connection, and once more if it is cut.
pub fn count(worker: &Worker, of: &Connection, verdict: &Verdict) {
    let (hits, tables) = (&worker.shared.hits, worker.shared.tables.load());
    let outbound = of.kind == Kind::Outbound;
    hits.decided(&tables, verdict, outbound);
    for (policy, rule) in &of.observed.borrow().matched {
        hits.observed(&tables, policy, *rule, outbound);
    }
}

/// How an open connection stands in a snapshot.
pub enum Standing {
    Fine,
    Over(String),
    /// What would tell may be on its way.
    InDoubt {
        why: String,
        patience: Duration,
    },
}

/// Of one that has never been judged: fine, it is about to be.
pub fn standing(worker: &Worker, tables: &Tables, of: &Connection) -> Standing {
    if of.asked.borrow().is_none() {
        return Standing::Fine;
    }
    let Some(workload) = of.pod.workload(tables) else {
        let why = "the control plane has withdrawn the pod's record".to_owned();
        return Standing::InDoubt {
            why,
            patience: RECORD_BACK_WITHIN,
        };
    };
    if let Some(why) = of.renamed(workload) {
        return Standing::Over(why);
    }
    match of.judge(tables, workload) {
        None | Some(Verdict::Allowed { .. }) => Standing::Fine,
        Some(verdict) => {
            if !is_unsure(&verdict) {
                count(worker, of, &verdict);
            }
            doubtful(verdict)
        }
    }
}

fn doubtful(verdict: Verdict) -> Standing {
    match verdict {
        Verdict::Allowed { .. } => Standing::Fine,
        Verdict::Denied {
            because: Because::Unknown(_),
            why,
        } => Standing::InDoubt {
            why,
            patience: KNOWN_WITHIN,
        },
        Verdict::Denied { why, .. } => Standing::Over(why),
    }
}

/// May the pod call where this route leads? Every route that is tried has to be asked about before anything is dialled.
pub async fn ask_to_leave(
    worker: &Worker,
    of: &Entered,
    from: &Workload,
    route: &Route,
) -> Result<(), Failure> {
    let (src, dst) = {
        let parties = of.parties.borrow();
        (parties.src, parties.original_dst)
    };
    match leaving(from, src.ip(), dst, route) {
        Some(asked) => ask(worker, of, asked).await,
        None => Ok(()),
    }
}

/// What the client's side is asked about a route; `dst`: what the application asked for. `None`: nothing is dialled; it is an end, or another route will follow.
pub fn leaving(from: &Workload, source: IpAddr, dst: SocketAddr, route: &Route) -> Option<Asked> {
    let (to, identity, service) = match route {
        Route::Refused { .. } | Route::Lookup { .. } => return None,
        Route::Passthrough { dial, service, .. } => (dial.0, None, service.clone()),
        Route::Tunnel {
            authority,
            want,
            upstream,
            service,
            beyond,
            ..
        } => {
            let want = beyond.as_ref().map_or(want, |beyond| &beyond.want);
            // Behind a waypoint or a name the application's address is not known here.
            let to = authority.parse().unwrap_or(dst);
            let expected = upstream.as_ref().map(|workload| workload.identity());
            let expected = expected.filter(|id| want.contains(id)).or(want.first());
            (to, expected.cloned(), service.clone())
        }
    };
    Some(Asked {
        own: from.identity().clone(),
        source,
        identity,
        dst: to,
        service,
    })
}

/// The other end has proved who it is, and it may be another one than was expected (a service may have several names).
pub fn proved(worker: &Worker, of: &Entered, peer: &SpiffeId) -> Result<(), Failure> {
    {
        let mut asked = of.asked.borrow_mut();
        let Some(asked) = &mut *asked else {
            return Ok(());
        };
        if asked.identity.replace(peer.clone()).as_ref() == Some(peer) {
            return Ok(());
        }
    }
    let tables = worker.shared.tables.load_full();
    let found = of.pod.workload(&tables);
    match found.and_then(|workload| of.judge(&tables, workload)) {
        Some(verdict) => settled(of, verdict),
        None => Err(refused(of, "the pod's record is gone")),
    }
}
