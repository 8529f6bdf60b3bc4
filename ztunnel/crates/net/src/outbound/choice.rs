//! Which way a connection out of a pod is tried next. Owns what was tried and how often; the choice itself is
//! `ztunnel_core::decide`'s.

use crate::account::{Failure, flag};
use crate::runtime::Worker;
use std::cell::RefCell;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep};
use ztunnel_core::addr::OrigDst;
use ztunnel_core::decide::{Circumstances, Refusal, Route, choose};
use ztunnel_core::tables::{Key, Spread, Workload};

/// Endpoints that are dialled for one connection before its application is told that it failed.
const MOST_ATTEMPTS: usize = 3;
/// How long nobody may listen for tunnels where somebody should, and how often that is looked at.
const PATIENCE: Duration = Duration::from_secs(3);
const PAUSE: Duration = Duration::from_millis(50);
/// Names that are looked up for one connection.
const MOST_LOOKUPS: usize = 4;

pub(super) struct Choice<'a> {
    worker: &'a Worker,
    from: Arc<Workload>,
    client: IpAddr,
    dst: SocketAddr,
    random: u64,
    since: Instant,
    tried: Vec<Key>,
    /// Where and why each attempt failed, for the log.
    pub(super) told: Vec<String>,
}

impl<'a> Choice<'a> {
    pub(super) fn new(
        worker: &'a Worker,
        from: Arc<Workload>,
        client: IpAddr,
        dst: SocketAddr,
    ) -> Self {
        Self {
            worker,
            from,
            client,
            dst,
            random: worker.random(),
            since: Instant::now(),
            tried: Vec::new(),
            told: Vec::new(),
        }
    }

    /// Wherever the dice fall, it is this endpoint: whoever asked without it would find none.
    pub(super) fn always_leads_to(mut self, endpoint: &Workload) -> bool {
        self.tried.push(endpoint.uid.clone());
        let otherwise = self.choose();
        matches!(
            otherwise,
            Route::Refused {
                why: Refusal::AllTried(_)
            }
        )
    }

    /// A tunnel or a plain connection.
    pub(super) async fn next(&self) -> Result<Route, Failure> {
        for _ in 0..=MOST_LOOKUPS {
            match self.choose() {
                Route::Lookup { hostname } => self.worker.names.learn(&hostname).await,
                Route::Refused { why } => return Err(refused(&why)),
                way => return Ok(way),
            }
        }
        Err(Failure::new(
            flag::CONNECT,
            "too many names were to be looked up",
        ))
    }

    fn choose(&self) -> Route {
        let shared = &self.worker.shared;
        let around = Circumstances {
            random: self.random,
            client: self.client,
            tried: &self.tried,
            load: &|workload| self.worker.loads.of(&workload.uid),
            names: &|name| self.worker.names.known(name),
            outbound: shared.config.outbound(),
        };
        choose(
            &shared.tables.load(),
            &self.from,
            OrigDst(self.dst),
            &around,
        )
    }

    /// The next way after a failed attempt, or the failure that the application is to see.
    pub(super) async fn after(
        &mut self,
        dialled: Option<Arc<Workload>>,
        failure: Failure,
    ) -> Result<Route, Failure> {
        // Who refuses by policy would be asked again through another door.
        let Some(dialled) = dialled.filter(|_| failure.flag != flag::DENY) else {
            return Err(self.with_history(failure));
        };
        self.tried.push(dialled.uid.clone());
        if self.tried.len() >= MOST_ATTEMPTS {
            return self.once_more(failure).await;
        }
        match self.next().await {
            Ok(way)
                if way
                    .dialled()
                    .is_some_and(|next| !self.tried.contains(&next.uid)) =>
            {
                self.told.push(failure.why);
                Ok(way)
            }
            _ => self.once_more(failure).await,
        }
    }

    /// All were tried. Where nobody listened for tunnels, the pod may be joining the mesh (the control plane says so before
    /// its node has done it) or have left it (a moment after its node did): asked again as of then, never around the mesh.
    async fn once_more(&mut self, failure: Failure) -> Result<Route, Failure> {
        if !failure.absent || self.since.elapsed() > PATIENCE {
            return Err(self.with_history(failure));
        }
        sleep(PAUSE).await;
        self.tried.clear();
        self.next().await
    }

    fn with_history(&self, mut failure: Failure) -> Failure {
        for earlier in &self.told {
            failure.why = format!("{}; before that {earlier}", failure.why);
        }
        failure
    }
}

fn refused(why: &Refusal) -> Failure {
    let flag = if why.is_policy() {
        flag::DENY
    } else {
        flag::CONNECT
    };
    Failure::new(flag, why.to_string())
}

/// Open connections by the endpoint's uid, where that decides which endpoint is chosen. One worker's.
#[derive(Default)]
pub struct Loads(Rc<RefCell<HashMap<Key, usize>>>);

impl Loads {
    fn of(&self, uid: &str) -> usize {
        self.0.borrow().get(uid).copied().unwrap_or(0)
    }

    /// Counts until it is dropped; nothing for a route whose service does not ask.
    pub(super) fn count(&self, way: &Route) -> Option<Counted> {
        let (Route::Tunnel {
            upstream, service, ..
        }
        | Route::Passthrough {
            upstream, service, ..
        }) = way
        else {
            return None;
        };
        let asks = service.as_ref()?.balancing.spread == Spread::LeastRequest;
        let uid = upstream.as_ref().filter(|_| asks)?.uid.clone();
        *self.0.borrow_mut().entry(uid.clone()).or_default() += 1;
        Some(Counted(self.0.clone(), uid))
    }
}

pub(super) struct Counted(Rc<RefCell<HashMap<Key, usize>>>, Key);

impl Drop for Counted {
    fn drop(&mut self) {
        let mut loads = self.0.borrow_mut();
        if let Some(count) = loads.get_mut(&self.1) {
            *count -= 1;
            if *count == 0 {
                loads.remove(&self.1);
            }
        }
    }
}
