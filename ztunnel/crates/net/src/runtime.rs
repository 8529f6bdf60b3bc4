//! The worker threads: each one current_thread tokio runtime with its own tunnels, connections and counters. Owns how work
//! gets onto a worker and that a panic ends one task only; not what the work is.

mod panics;

use crate::account::flag;
use crate::config::Config;
use crate::direct::Direct;
use crate::dns;
use crate::handshakes::Handshakes;
use crate::hits::Hits;
use crate::identity::Identities;
use crate::log::Log;
use crate::mailbox::Mailbox;
use crate::meter::{Meter, Totals, TurnedAway};
use crate::names::Names;
use crate::outbound::Loads;
use crate::pod::Pod;
use crate::pool::{Limits, Tunnels};
use crate::registry::{Kind, Registry};
use crate::scrape;
use crate::spans::Spans;
use arc_swap::{ArcSwap, ArcSwapOption};
use std::any::Any;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::pending;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::net::IpAddr;
use std::panic::{self, AssertUnwindSafe};
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;
use tokio::runtime::{Builder, LocalOptions};
use tokio::select;
use tokio::sync::{mpsc, watch};
use tokio::task;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout};
use ztunnel_core::tables::{Tables, Workload};

/// What the control plane is about to tell (the record of a pod that has just started, a policy that a record names) is
/// waited for as long; Istio's figure.
pub const KNOWN_WITHIN: Duration = Duration::from_secs(5);
/// How soon after its certificate's end a connection within the node ends; those in tunnels end with it.
const UNPROVEN: Duration = Duration::from_secs(1);
/// How often a worker hands its counters over although nobody asks.
const HAND_OVER: Duration = Duration::from_secs(10);

/// What all threads see.
pub struct Shared {
    pub config: Config,
    pub tables: ArcSwap<Tables>,
    /// The pods of this node, for what need not leave it.
    pub served: ArcSwap<Served>,
    /// How pods of this node may talk without us between; `None`: they may not.
    pub direct: ArcSwapOption<Direct>,
    /// The number of the snapshot; told after every swap.
    pub changed: watch::Sender<u64>,
    pub identities: Arc<Identities>,
    pub mailbox: Arc<Mailbox>,
    pub log: Log,
    pub totals: Mutex<Totals>,
    pub spans: Spans,
    pub dns: dns::meter::Meter,
    pub accept_failures: AtomicU64,
    pub handshakes: Arc<Handshakes>,
    pub turned_away: TurnedAway,
    pub hits: Hits,
}

impl Shared {
    /// See `Direct::epoch`.
    pub fn epoch(&self) -> u64 {
        self.direct
            .load()
            .as_ref()
            .map_or(0, |direct| direct.epoch())
    }

    /// Whatever rests on what was known before is judged anew.
    pub fn renew_passes(&self) {
        if let Some(direct) = &*self.direct.load() {
            direct.renew();
        }
    }
}

/// By namespace and name: what a record and the node agent both know a pod by.
pub type Served = HashMap<(String, String), Arc<Pod>>;

type Job = Box<dyn FnOnce(&Rc<Worker>) + Send>;
/// `None`: the end.
type Jobs = mpsc::UnboundedReceiver<Option<Job>>;

/// A worker as the other threads see it.
#[derive(Clone)]
pub struct Handle {
    jobs: mpsc::UnboundedSender<Option<Job>>,
    load: Arc<AtomicUsize>,
}

impl Handle {
    /// Runs `job` on the worker. A worker that has ended drops it, and with it whatever reply channel it holds.
    pub fn submit(&self, job: impl FnOnce(&Rc<Worker>) + Send + 'static) {
        let _ = self.jobs.send(Some(Box::new(job)));
    }

    pub fn has_load(&self) -> bool {
        self.load.load(Ordering::Relaxed) > 0
    }
}

/// One open connection on a worker, for as long as it lives.
pub struct Load(Arc<AtomicUsize>);

impl Load {
    pub fn on(worker: &Handle) -> Self {
        worker.load.fetch_add(1, Ordering::Relaxed);
        Self(worker.load.clone())
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What one thread owns.
pub struct Worker {
    pub index: usize,
    pub shared: Arc<Shared>,
    pub peers: Vec<Handle>,
    pub tunnels: Rc<Tunnels>,
    pub registry: Rc<Registry>,
    pub meter: Meter,
    /// Accept loops by pod number: where this worker owns the listeners.
    pub accepting: RefCell<HashMap<u64, Vec<task::JoinHandle<()>>>>,
    pub names: Names,
    pub loads: Loads,
    /// The addresses that a pod's tunnels were opened from.
    pub sources: RefCell<HashMap<u64, Vec<IpAddr>>>,
    random: Cell<u64>,
}

impl Worker {
    fn new(index: usize, shared: Arc<Shared>, peers: Vec<Handle>) -> Rc<Self> {
        let config = &shared.config;
        let limits = Limits {
            connect: config.connect_timeout(),
            handshake: Duration::from_secs_f64(config.handshake_timeout_s),
            pool_idle: Duration::from_secs_f64(config.pool_idle_s),
            ..Limits::default()
        };
        let tunnels =
            Tunnels::sharing(shared.identities.clone(), limits, shared.handshakes.clone());
        Rc::new(Self {
            index,
            peers,
            tunnels,
            shared,
            registry: Rc::default(),
            meter: Meter::default(),
            accepting: RefCell::default(),
            names: Names::default(),
            loads: Loads::default(),
            sources: RefCell::default(),
            random: Cell::new(RandomState::new().build_hasher().finish()),
        })
    }

    /// Not for secrets: endpoint choice and trace ids. SplitMix64 (Steele, Lea, Flood 2014).
    pub fn random(&self) -> u64 {
        let state = self.random.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.random.set(state);
        let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// This one unless another has fewer connections.
    pub fn least_loaded(&self) -> usize {
        let load = |index: usize| self.peers[index].load.load(Ordering::Relaxed);
        (0..self.peers.len())
            .min_by_key(|&index| (load(index), index != self.index))
            .unwrap_or(self.index)
    }

    /// The pod behind the record, if bytes may be handed to it here: it has the address, for a record may be older than the pod.
    pub fn served_here(&self, workload: &Workload, address: IpAddr) -> Option<Arc<Pod>> {
        if self.shared.config.same_node_tls {
            return None;
        }
        let key = (workload.namespace.to_string(), workload.name.to_string());
        let pod = self.shared.served.load().get(&key)?.clone();
        let record = pod.workload(&self.shared.tables.load())?.uid.clone();
        (record == workload.uid && pod.has(address)).then_some(pod)
    }

    pub fn remember_source(&self, pod: &Pod, source: IpAddr) {
        let mut sources = self.sources.borrow_mut();
        let known = sources.entry(pod.number).or_default();
        if !known.contains(&source) {
            known.push(source);
        }
    }

    /// What `look` finds in the snapshot, or in one of those that arrive within 5 s.
    pub async fn until<T>(&self, look: impl Fn(&Tables) -> Option<T>) -> Option<T> {
        if let found @ Some(_) = look(&self.shared.tables.load()) {
            return found;
        }
        let mut news = self.shared.changed.subscribe();
        let wait = async {
            loop {
                if let found @ Some(_) = look(&self.shared.tables.load()) {
                    return found;
                }
                news.changed().await.ok()?;
            }
        };
        Box::pin(timeout(KNOWN_WITHIN, wait)).await.ok().flatten()
    }

    /// Of the runtime that this is called on.
    pub fn runtime_load(&self) -> scrape::Load {
        let runtime = tokio::runtime::Handle::current().metrics();
        scrape::Load {
            index: self.index,
            tasks: runtime.num_alive_tasks(),
            busy_s: runtime.worker_total_busy_duration(0).as_secs_f64(),
            parks: runtime.worker_park_count(0),
            park_unparks: runtime.worker_park_unpark_count(0),
        }
    }

    async fn judge_after_every_swap(self: Rc<Self>) {
        let mut news = self.shared.changed.subscribe();
        let mut again = None;
        loop {
            select! {
                news = news.changed() => if news.is_err() { return },
                () = reached(again) => {}
            }
            again = self.registry.judge_again(&self).await.map(Instant::from);
        }
    }

    /// Two joined pods show each other nothing, so nothing but us ends what rests on a certificate of theirs.
    pub fn end_unproven(&self) {
        let unproven = self.shared.identities.unproven();
        if unproven.is_empty() {
            return;
        }
        for connection in self.registry.all() {
            let parties = connection.parties.borrow();
            let own = match connection.kind {
                Kind::Outbound => &parties.source_id,
                Kind::Stream => &parties.destination_id,
                Kind::Plaintext | Kind::Tunnel => continue,
            };
            if let Some(why) = own.as_ref().and_then(|id| unproven.get(id)) {
                connection.cut(flag::IDENTITY_ERROR, &format!("connection closed: {why}"));
            }
        }
    }

    async fn end_unproven_in_time(self: Rc<Self>) {
        let mut tick = interval(UNPROVEN);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            self.end_unproven();
        }
    }

    async fn hand_counters_over(self: Rc<Self>) {
        let mut tick = interval(HAND_OVER);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            // A scrape holds it: it will ask us itself.
            if let Ok(mut totals) = self.shared.totals.try_lock() {
                totals.add(
                    self.meter.hand_over(&self.registry),
                    std::time::Instant::now(),
                );
            }
        }
    }
}

async fn reached(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment).await,
        None => pending().await,
    }
}

/// The threads. Dropping does not end them; `close` does.
pub struct Workers {
    pub handles: Vec<Handle>,
    threads: Vec<JoinHandle<()>>,
}

impl Workers {
    pub fn start(shared: &Arc<Shared>) -> io::Result<Self> {
        panics::report_to_mailboxes();
        let count = shared.config.worker_count();
        let (handles, jobs): (Vec<_>, Vec<_>) = (0..count)
            .map(|_| {
                let (jobs, waiting) = mpsc::unbounded_channel();
                (
                    Handle {
                        jobs,
                        load: Arc::default(),
                    },
                    waiting,
                )
            })
            .unzip();
        let mut workers = Self {
            handles,
            threads: Vec::new(),
        };
        for (index, waiting) in jobs.into_iter().enumerate() {
            if let Err(e) = workers.start_one(index, shared.clone(), waiting) {
                workers.close();
                return Err(e);
            }
        }
        Ok(workers)
    }

    fn start_one(&mut self, index: usize, shared: Arc<Shared>, jobs: Jobs) -> io::Result<()> {
        let peers = self.handles.clone();
        let thread = thread::Builder::new().name(format!("mesh-{index}"));
        let (tell, built) = std::sync::mpsc::sync_channel(1);
        self.threads.push(thread.spawn(move || {
            // Not a LocalSet in a runtime: that is two queues and two schedulers for every task.
            let runtime = Builder::new_current_thread()
                .enable_all()
                .build_local(LocalOptions::default());
            match runtime {
                Ok(runtime) => {
                    let _ = tell.send(Ok(()));
                    runtime.block_on(run(index, shared, peers, jobs));
                }
                Err(why) => {
                    let _ = tell.send(Err(why));
                }
            }
        })?);
        built.recv().map_err(io::Error::other)?
    }

    /// Ends every connection and joins the threads.
    pub fn close(self) {
        for handle in &self.handles {
            let _ = handle.jobs.send(None);
        }
        for thread in self.threads {
            // A worker's panic has been reported by the hook.
            let _ = thread.join();
        }
    }
}

async fn run(index: usize, shared: Arc<Shared>, peers: Vec<Handle>, mut jobs: Jobs) {
    panics::tell(&shared.mailbox);
    let worker = Worker::new(index, shared, peers);
    task::spawn_local(worker.clone().judge_after_every_swap());
    task::spawn_local(worker.clone().hand_counters_over());
    task::spawn_local(worker.clone().end_unproven_in_time());
    while let Some(Some(job)) = jobs.recv().await {
        // Reported by the hook; the job's reply channel is dropped, which its caller notices.
        let _: Result<(), Box<dyn Any + Send>> =
            panic::catch_unwind(AssertUnwindSafe(|| job(&worker)));
    }
}

#[cfg(test)]
mod tests;
