//! The data path of a node as its owner sees it: one value with the calls of door 4. Owns which pods are served and what the
//! workers are told; every method may be called from any thread and none touches a connection's bytes.

mod told;

use crate::config::Config;
use crate::direct::Direct;
use crate::dns;
use crate::drain;
use crate::handshakes::{Allowed, Handshakes};
use crate::hits::Hits;
use crate::identity::Identities;
use crate::kept::{self, Restored};
use crate::log::{Level, Line, Log};
use crate::mailbox::Mailbox;
use crate::meter::{MOST_SERIES, Totals, TurnedAway};
use crate::netns::{EnrolError, NetNs};
use crate::pace::{self, Pace};
use crate::pod::{self, Pod};
use crate::runtime::{Handle, Served, Shared, Worker, Workers};
use crate::sockets;
use crate::spans::Spans;
use arc_swap::{ArcSwap, ArcSwapOption};
use std::collections::{HashMap, HashSet};
use std::io;
use std::net::IpAddr;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::watch;
use told::descriptor_limit;
use ztunnel_core::ids::SpiffeId;
use ztunnel_core::tables::{Draft, Kind, Protocol, Tables};

/// A worker that is busier than this answers a question too late.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// What the node agent says of a pod.
#[derive(Debug, Clone)]
pub struct Who {
    pub uid: String,
    pub name: String,
    pub namespace: String,
    pub service_account: String,
    /// Search domains of its resolver besides the cluster's and the node's.
    pub search: Vec<String>,
    /// It shares its namespace with others and has these of its addresses; empty: the namespace is all its own.
    pub addresses: Vec<IpAddr>,
}

#[derive(Default)]
struct Pods {
    by_uid: HashMap<Arc<str>, Arc<Pod>>,
    /// By pod number, as far as the mesh's record is known.
    identities: HashMap<u64, SpiffeId>,
    started: u64,
    stopped: u64,
    leaving: bool,
}

/// The next snapshot while more of it is to come; `None`: nothing is. Whoever holds it is the one writer.
type Coming = Option<Draft>;

pub struct Dataplane {
    pub shared: Arc<Shared>,
    workers: Workers,
    pods: Mutex<Pods>,
    one_writer: Mutex<Coming>,
    enrolling: AtomicUsize,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Dataplane {
    pub fn start(config: Config) -> io::Result<Self> {
        raise_descriptor_limit();
        let level = config.level().map_err(io::Error::other)?;
        let format = config.format().map_err(io::Error::other)?;
        let mailbox = Arc::new(Mailbox::new()?);
        let asked = mailbox.clone();
        let mut identities = Identities::new(Box::new(move |id, now| {
            asked.need_certificate(id.as_str(), now)
        }));
        if !config.key_dir.is_empty() {
            identities = identities
                .with_vault(&config.key_dir)
                .map_err(io::Error::other)?;
        }
        let shared = Arc::new(Shared {
            tables: ArcSwap::from_pointee(Tables::new(&config.network, &config.cluster_id)),
            served: ArcSwap::default(),
            direct: ArcSwapOption::default(),
            changed: watch::Sender::new(0),
            identities: Arc::new(identities),
            mailbox,
            log: Log::start(&config.access_log, format, level)?,
            totals: Mutex::new(Totals::new(MOST_SERIES)),
            spans: Spans::new(config.trace_ratio),
            dns: dns::meter::Meter::default(),
            accept_failures: AtomicU64::new(0),
            handshakes: Handshakes::new(Allowed::default()),
            turned_away: TurnedAway::default(),
            hits: Hits::default(),
            config,
        });
        let workers = Workers::start(&shared)?;
        Ok(Self {
            shared,
            workers,
            pods: Mutex::default(),
            one_writer: Mutex::default(),
            enrolling: AtomicUsize::new(0),
        })
    }

    /// The next snapshot, not in force yet if there is `more` to come. Returns (name, why) of what was refused.
    pub fn apply<N: AsRef<str>, B: AsRef<[u8]>>(
        &self,
        kind: Kind,
        upserts: &[(N, B)],
        removed: &[String],
        more: bool,
    ) -> Vec<(String, String)> {
        let mut coming = lock(&self.one_writer);
        let mut next = self.draft(&mut coming);
        let mut pace = Pace::new(self.is_in_use());
        let refused = next.change(kind, upserts, removed, || pace.breathe());
        if more {
            *coming = Some(next);
        } else {
            self.put_into_force(next.done(), coming);
        }
        refused
    }

    fn draft(&self, coming: &mut Coming) -> Draft {
        let fresh = || Draft::of(&self.shared.tables.load());
        coming.take().unwrap_or_else(fresh)
    }

    /// Whether somebody would notice that the processor is busy.
    pub fn is_in_use(&self) -> bool {
        self.workers.handles.iter().any(Handle::has_load)
    }

    /// What an earlier life kept. Err: a bundle is damaged, and nothing has changed.
    pub fn restore(&self, bundles: &[(Kind, &[u8])]) -> Result<Restored, String> {
        let coming = lock(&self.one_writer);
        let (next, restored) = kept::read(&self.shared.tables.load(), bundles)?;
        self.put_into_force(next, coming);
        Ok(restored)
    }

    fn put_into_force(&self, next: Tables, one_writer: MutexGuard<'_, Coming>) {
        // A worker asks for a certificate as soon as it sees a record: by then its identity must be known to be here.
        self.learn_identities(&mut lock(&self.pods), &next);
        let before = self.shared.tables.swap(Arc::new(next));
        self.shared.renew_passes();
        self.shared.changed.send_modify(|number| *number += 1);
        drop(one_writer);
        // Again, for a pod that came in between and knew the old tables only.
        self.learn_identities(&mut lock(&self.pods), &self.shared.tables.load());
        pace::free(before, self.is_in_use());
    }

    /// See door 4. Returns when the listeners listen.
    pub fn enrol(
        &self,
        who: Who,
        fd: BorrowedFd<'_>,
        inherited: Option<Vec<OwnedFd>>,
    ) -> Result<(), EnrolError> {
        self.enrolling.fetch_add(1, Ordering::Relaxed);
        let done = self.enrol_one(who, fd, inherited);
        self.enrolling.fetch_sub(1, Ordering::Relaxed);
        done
    }

    fn enrol_one(
        &self,
        who: Who,
        fd: BorrowedFd<'_>,
        inherited: Option<Vec<OwnedFd>>,
    ) -> Result<(), EnrolError> {
        let mut pods = lock(&self.pods);
        if pods.leaving {
            return Err(
                io::Error::new(io::ErrorKind::NotConnected, "the tunnel is shutting down").into(),
            );
        }
        let netns = NetNs::of(fd)?;
        match pods.by_uid.get(&*who.uid) {
            Some(old) if old.netns.is_same_as(&netns) && old.own == who.addresses => return Ok(()),
            Some(_) => self.take_out(&mut pods, &who.uid),
            None => {}
        }
        let pod = Arc::new(Pod::new(pods.started, who, netns, &self.shared.config));
        let (listeners, dns) = sockets::open(&pod, self.shared.config.ipv6, inherited)?;
        pods.started += 1;
        pods.by_uid.insert(pod.uid.clone(), pod.clone());
        self.show(&pods);
        self.tell("pod enrolled", &pod);
        let owner =
            &self.workers.handles[(pod.number % self.workers.handles.len() as u64) as usize];
        self.learn_identities(&mut pods, &self.shared.tables.load());
        owner.submit(move |worker| pod::serve(worker, &pod, listeners, dns));
        Ok(())
    }

    /// Copies of the pod's listening sockets for whoever serves it after us; see door 4.
    pub fn listeners(&self, uid: &str) -> io::Result<Vec<OwnedFd>> {
        let pod = lock(&self.pods).by_uid.get(uid).cloned();
        pod.map_or_else(|| Ok(Vec::new()), |pod| pod.heirlooms.copies())
    }

    /// See door 4. What is direct by other maps, or by none any longer, is cut.
    pub fn use_direct(&self, maps: Option<[OwnedFd; 3]>) -> io::Result<()> {
        let _one_at_a_time = lock(&self.one_writer);
        let maps = maps.filter(|_| !self.shared.config.same_node_tls);
        let now = self.shared.direct.load_full();
        if let (Some(direct), Some(maps)) = (&now, &maps)
            && direct.has(maps)
        {
            return Ok(());
        }
        if let Some(before) = self.shared.direct.swap(None) {
            before.close();
        }
        if let Some(maps) = maps {
            let direct = Direct::start(maps, &self.shared, self.workers.handles.clone())?;
            self.shared.direct.store(Some(direct));
        }
        Ok(())
    }

    pub fn withdraw(&self, uid: &str) {
        let mut pods = lock(&self.pods);
        self.take_out(&mut pods, uid);
        self.learn_identities(&mut pods, &self.shared.tables.load());
    }

    fn take_out(&self, pods: &mut Pods, uid: &str) {
        let Some(pod) = pods.by_uid.remove(uid) else {
            return;
        };
        pods.stopped += 1;
        self.show(pods);
        pod.gone.store(true, Ordering::Release);
        pod.heirlooms.clear();
        self.tell("pod withdrawn", &pod);
        self.ask_all(
            |_| pod.clone(),
            |worker, pod, done| drain::leave(worker, &pod, done),
        );
    }

    /// Workers learn who is served.
    fn show(&self, pods: &Pods) {
        let named = |pod: &Arc<Pod>| ((pod.namespace.clone(), pod.name.clone()), pod.clone());
        let served: Served = pods.by_uid.values().map(named).collect();
        self.shared.served.store(Arc::new(served));
        self.shared.renew_passes();
    }

    fn tell(&self, message: &str, pod: &Pod) {
        let fields = |line: Line| {
            line.text("workload", &pod.name)
                .text("namespace", &pod.namespace)
                .text("uid", &pod.uid)
        };
        self.shared.log.core(Level::Info, message, fields);
    }

    pub fn pods(&self) -> Vec<String> {
        let mut uids: Vec<_> = lock(&self.pods)
            .by_uid
            .keys()
            .map(|uid| uid.to_string())
            .collect();
        uids.sort_unstable();
        uids
    }

    /// Policies that a pod served here names and that are not there: (uid, policy, why it was refused, if it was). Each
    /// denies whatever it would have judged. O(pods).
    pub fn missing_policies(&self) -> Vec<(String, String, String)> {
        let tables = self.shared.tables.load();
        let pods = lock(&self.pods);
        let records = pods.by_uid.values().filter_map(|pod| pod.workload(&tables));
        let mut missing: Vec<_> = records
            .flat_map(|record| {
                let inbound = tables.policies_for(record);
                let named = inbound.chain(tables.egress_policies_for(record));
                named.filter_map(Result::err).map(|key| {
                    let why = tables.refusal(key).map_or("", |refused| &*refused.why);
                    (record.uid.to_string(), key.to_string(), why.to_owned())
                })
            })
            .collect();
        missing.sort_unstable();
        missing
    }

    /// Asks for certificates of what is served here now, and says which identities nobody needs any longer. A record that
    /// vanished leaves its identity in use: the pod is still here.
    fn learn_identities(&self, pods: &mut Pods, tables: &Tables) {
        let Pods {
            by_uid, identities, ..
        } = pods;
        let before: HashSet<SpiffeId> = identities.values().cloned().collect();
        let served: HashSet<u64> = by_uid.values().map(|pod| pod.number).collect();
        identities.retain(|number, _| served.contains(number));
        for pod in by_uid.values() {
            let found = pod
                .workload(tables)
                .filter(|w| w.protocol == Protocol::Hbone);
            if let Some(workload) = found {
                identities.insert(pod.number, workload.identity().clone());
            }
        }
        let after: HashSet<SpiffeId> = identities.values().cloned().collect();
        self.shared.identities.set_present(after.clone());
        after.difference(&before).for_each(|id| self.provide(id));
        before
            .difference(&after)
            .for_each(|id| self.shared.mailbox.identity_unused(id.as_str()));
    }

    /// A pod with this identity has come: what a restart left of it, or the CA.
    fn provide(&self, id: &SpiffeId) {
        let mailbox = &self.shared.mailbox;
        match self.shared.identities.restore(id) {
            Some(validity) => mailbox.certificate_restored(id.as_str(), validity),
            None => mailbox.need_certificate(id.as_str(), false),
        }
    }

    /// Whom to believe; connections with those who are no longer believed are cut. On error nothing changes.
    pub fn set_trust(&self, document: &[u8]) -> Result<(), String> {
        self.shared.identities.set_trust(document)?;
        self.shared.renew_passes();
        for handle in &self.workers.handles {
            handle.submit(|worker| {
                worker.tunnels.judge_again();
                worker.end_unproven();
            });
        }
        Ok(())
    }

    /// See `Identities::install_chain`.
    pub fn install_chain(&self, id: &SpiffeId, chain: &[String]) -> Result<(f64, f64), String> {
        let validity = self.shared.identities.install_chain(id, chain)?;
        if let Some(why) = self.shared.identities.not_kept() {
            let fields = |line: Line| line.text("identity", id.as_str()).text("error", &why);
            self.shared
                .log
                .core(Level::Warn, "certificate not kept for a restart", fields);
        }
        Ok(validity)
    }

    pub fn drain(&self, deadline: Duration) {
        let mut pods = lock(&self.pods);
        pods.leaving = true;
        pods.stopped += pods.by_uid.len() as u64;
        pods.by_uid.values().for_each(|pod| pod.heirlooms.clear());
        pods.by_uid.clear();
        self.show(&pods);
        self.shared.log.core(Level::Info, "draining", |line| {
            line.show("deadline", format_args!("{deadline:?}"))
        });
        if let Some(direct) = &*self.shared.direct.load() {
            direct.retire();
        }
        drain::drain(&self.workers.handles, deadline);
    }

    /// Cuts everything and joins all threads.
    pub fn close(self) {
        if let Some(direct) = self.shared.direct.swap(None) {
            direct.close();
        }
        self.workers.close();
        self.shared.log.close();
    }

    /// Puts a question to every worker and gathers the answers that come in time. A worker that only drops the sender has
    /// answered, too.
    fn ask_all<G: Send + 'static, A: Send + 'static>(
        &self,
        give: impl Fn(usize) -> G,
        question: fn(&Rc<Worker>, G, std::sync::mpsc::Sender<A>),
    ) -> Vec<A> {
        let (reply, answers) = channel();
        for (index, handle) in self.workers.handles.iter().enumerate() {
            let (given, reply) = (give(index), reply.clone());
            handle.submit(move |worker| question(worker, given, reply));
        }
        drop(reply);
        let until = Instant::now() + ANSWER_WITHIN;
        let mut got = Vec::new();
        loop {
            match answers.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(answer) => got.push(answer),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return got,
            }
        }
    }
}

/// Soft to hard: two descriptors per connection soon pass the usual soft limit of 1024.
fn raise_descriptor_limit() {
    let mut limit = descriptor_limit();
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: reads the struct. Failure leaves the limit as it was, which `process_max_fds` shows.
    unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
}
