//! The open connections of one worker: for judging them again after a swap, for cutting them, for the dump. A connection is
//! entered before its first verdict, so that no swap can slip between the verdict and the entry.

use crate::account::flag;
use crate::meter::Series;
use crate::pod::Pod;
use crate::relay::Bytes2;
use crate::runtime::Worker;
use crate::verdict::{self, Asked, Observed, Standing};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;
use tokio::sync::Notify;
use tokio::task::yield_now;
use ztunnel_core::hbone::Trace;
use ztunnel_core::ids::SpiffeId;
use ztunnel_core::tables::{Service, Workload};

/// Verdicts between two turns of the worker's other work.
const VERDICTS_AT_ONCE: usize = 256;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Outbound,
    /// Inbound on 15006.
    Plaintext,
    /// One CONNECT inside a tunnel that arrived on 15008.
    Stream,
    /// The tunnel itself: nobody's application connection, not in the dump.
    Tunnel,
}

/// Who talks to whom, as far as it is known by now.
#[derive(Debug, Clone)]
pub struct Parties {
    pub source: Option<Arc<Workload>>,
    pub source_id: Option<SpiffeId>,
    pub destination: Option<Arc<Workload>>,
    pub destination_id: Option<SpiffeId>,
    pub service: Option<Arc<Service>>,
    pub src: SocketAddr,
    /// What the client asked for: of CONNECTs the authority's address.
    pub original_dst: SocketAddr,
    /// What was or is to be connected to; on 15008 the address the tunnel arrived at.
    pub dst: SocketAddr,
    /// The CONNECT authority; `None`: not through a tunnel.
    pub hbone: Option<String>,
    /// The bytes go from pod to pod without us between.
    pub direct: bool,
    /// Where it was tried before, each with the reason why it came to nothing.
    pub tried: Vec<String>,
}

impl Parties {
    pub fn between(src: SocketAddr, dst: SocketAddr) -> Self {
        Self {
            source: None,
            source_id: None,
            destination: None,
            destination_id: None,
            service: None,
            src,
            original_dst: dst,
            dst,
            hbone: None,
            direct: false,
            tried: Vec::new(),
        }
    }
}

pub struct Connection {
    pub pod: Arc<Pod>,
    pub kind: Kind,
    pub opened: Instant,
    pub counts: Rc<Bytes2>,
    pub parties: RefCell<Parties>,
    pub asked: RefCell<Option<Asked>>,
    /// Set when it is established: where its bytes are counted.
    pub series: RefCell<Option<Rc<Series>>>,
    /// (sent, received) that `series` has seen.
    pub counted: Cell<(u64, u64)>,
    /// Its own span; `id` 0 until one is given.
    pub trace: Cell<Trace>,
    /// The span of whoever sent it here, 0: nobody.
    pub parent_span: Cell<u64>,
    pub observed: RefCell<Observed>,
    /// Before anything was asked about it; see `Direct::epoch`.
    pub epoch: Cell<u64>,
    /// Since when it is not known whether it may go on.
    doubt: Cell<Option<Instant>>,
    cut: RefCell<Option<Cut>>,
    bell: Notify,
}

/// Why we end a connection, and the metrics' flag for it.
#[derive(Debug, Clone)]
pub struct Cut {
    pub flag: &'static str,
    pub why: String,
}

impl Connection {
    /// The first reason counts.
    pub fn cut(&self, flag: &'static str, why: &str) {
        self.cut.borrow_mut().get_or_insert_with(|| Cut {
            flag,
            why: why.to_owned(),
        });
        self.bell.notify_one();
    }

    pub fn why_cut(&self) -> Option<Cut> {
        self.cut.borrow().clone()
    }

    /// Never of one that is complete: nothing is left to cut, and it is no failure.
    pub async fn is_cut(&self) -> Cut {
        loop {
            if let Some(cut) = self.why_cut().filter(|_| !self.counts.complete.get()) {
                return cut;
            }
            self.bell.notified().await;
        }
    }
}

#[derive(Default)]
pub struct Registry {
    open: RefCell<HashMap<u64, Rc<Connection>>>,
    next: Cell<u64>,
    emptied: Notify,
}

impl Registry {
    pub fn enter(self: &Rc<Self>, pod: Arc<Pod>, kind: Kind, parties: Parties) -> Entered {
        let connection = Rc::new(Connection {
            pod,
            kind,
            opened: Instant::now(),
            counts: Rc::default(),
            parties: RefCell::new(parties),
            asked: RefCell::default(),
            series: RefCell::default(),
            counted: Cell::default(),
            trace: Cell::default(),
            parent_span: Cell::default(),
            observed: RefCell::default(),
            epoch: Cell::default(),
            doubt: Cell::default(),
            cut: RefCell::default(),
            bell: Notify::new(),
        });
        if connection.pod.gone.load(Ordering::Acquire) {
            connection.cut(flag::NONE, "the pod left the mesh");
        }
        let number = self.next.replace(self.next.get() + 1);
        self.open.borrow_mut().insert(number, connection.clone());
        Entered {
            connection,
            number,
            registry: self.clone(),
        }
    }

    /// Those that are open now; a copy, because work on them may end some.
    pub fn all(&self) -> Vec<Rc<Connection>> {
        self.open.borrow().values().cloned().collect()
    }

    pub fn cut(&self, which: impl Fn(&Connection) -> bool, why: &str) {
        for connection in self.all() {
            if which(&connection) {
                connection.cut(flag::NONE, why);
            }
        }
    }

    /// Cuts what this snapshot denies, and what has been in doubt for too long; says when to look again at what still is.
    /// Every connection that has been judged once is, in both directions.
    pub async fn judge_again(&self, worker: &Worker) -> Option<Instant> {
        let tables = worker.shared.tables.load_full();
        let mut again: Option<Instant> = None;
        for (n, connection) in self.all().into_iter().enumerate() {
            if n % VERDICTS_AT_ONCE == VERDICTS_AT_ONCE - 1 {
                yield_now().await;
            }
            if connection.why_cut().is_some() {
                continue; // it is about to go
            }
            let doubt = match verdict::standing(worker, &tables, &connection) {
                Standing::Fine => None,
                Standing::Over(why) => {
                    connection.cut(flag::DENY, &format!("connection closed: {why}"));
                    continue;
                }
                Standing::InDoubt { why, patience } => Some((why, patience)),
            };
            let Some((why, patience)) = doubt else {
                connection.doubt.set(None);
                continue;
            };
            let since = connection.doubt.get().unwrap_or_else(Instant::now);
            connection.doubt.set(Some(since));
            if since.elapsed() >= patience {
                connection.cut(flag::DENY, &format!("connection closed: {why}"));
            } else {
                again = again.into_iter().chain([since + patience]).min();
            }
        }
        again
    }

    /// Resolves when nothing that an application would miss is open.
    pub async fn empty(&self) {
        while self.open.borrow().values().any(|c| c.kind != Kind::Tunnel) {
            self.emptied.notified().await;
        }
    }
}

/// A connection in the registry; dropping it takes it out.
pub struct Entered {
    connection: Rc<Connection>,
    number: u64,
    registry: Rc<Registry>,
}

impl std::ops::Deref for Entered {
    type Target = Rc<Connection>;
    fn deref(&self) -> &Rc<Connection> {
        &self.connection
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        self.registry.open.borrow_mut().remove(&self.number);
        self.registry.emptied.notify_one();
    }
}
