//! The direct path between two pods of this node: who has a pass, and what became of the connections that used one. Owns the
//! maps, the thread that shows the kernel that we live, and what is known of each direct connection; judging and telling of it
//! is `outbound::direct`'s. The kernel's side is bpf/direct.h.
//!
//! A pass is good for one epoch, which ends with whatever changes: tables, pods, trust. So nothing has to be looked for when
//! something is revoked: one write to the map, and no pass is good any longer.

mod destroy;
pub mod maps;

pub use maps::{Key, Record};

use crate::outbound;
use crate::pod::Pod;
use crate::runtime::{Handle, Shared};
use maps::{Issuer, Maps, Pass, PassKey, state};
use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;
use tokio::task::spawn_local;

/// How often the kernel sees that we live, and we what became of connections. The kernel's patience is ten of them.
const HEARTBEAT: Duration = Duration::from_millis(100);
const PATIENCE_NS: u64 = 1_000_000_000; // MESH_ISSUER_NS
/// After so long one connection takes the tunnel and asks again.
const PASS_LIFE: Duration = Duration::from_secs(60);
/// Between the hook that notes a connection and the one that knows its addresses is one system call.
const NEVER_BEGAN: Duration = Duration::from_secs(5);
const MOST_PASSES: usize = 32_768;

/// What was found out when it was granted.
#[derive(Debug, Clone)]
pub struct Grant {
    pub from: Arc<Pod>,
    pub to: Arc<Pod>,
    /// What the application connects to.
    pub asked: SocketAddr,
    /// Where that leads: an address of `to`.
    pub target: SocketAddr,
}

/// A direct connection as the kernel noted it.
pub struct Seen {
    pub key: Key,
    pub record: Record,
    pub grant: Arc<Grant>,
    /// The last word of it; an error when the direct path ends before.
    pub ended: oneshot::Receiver<Record>,
}

impl Seen {
    pub fn src(&self) -> SocketAddr {
        self.record.tuple.from()
    }

    pub fn dst(&self) -> SocketAddr {
        self.record.tuple.to()
    }
}

#[derive(Default)]
struct Passes {
    number: u64,
    /// Of this epoch: its number, and how long it is good.
    current: HashMap<PassKey, (u64, Instant)>,
    /// By number; those of earlier epochs as long as a connection may turn up under them.
    grants: HashMap<u64, Arc<Grant>>,
    earlier: Vec<(Instant, Vec<u64>)>,
    retired: bool,
}

pub struct Direct {
    maps: Maps,
    me: u64,
    epoch: AtomicU64,
    passes: Mutex<Passes>,
    /// Dropped: the thread ends.
    stop: Mutex<Option<Sender<()>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Since boot, by the clock of bpf_ktime_get_ns().
fn now_ns() -> u64 {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the kernel fills the struct; CLOCK_MONOTONIC is always there.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

impl Direct {
    /// Fails where the kernel does not let us write the maps, or end the connections of others.
    pub fn start(
        maps: [OwnedFd; 3],
        shared: &Arc<Shared>,
        workers: Vec<Handle>,
    ) -> io::Result<Arc<Self>> {
        let (stop, stopped) = channel();
        let direct = Arc::new(Self {
            maps: Maps::new(maps),
            me: RandomState::new().build_hasher().finish(),
            epoch: AtomicU64::new(1),
            passes: Mutex::default(),
            stop: Mutex::new(Some(stop)),
            thread: Mutex::default(),
        });
        let said =
            |e: io::Error| io::Error::new(e.kind(), format!("the maps of the direct path: {e}"));
        direct.live().map_err(said)?;
        destroy::may()?;
        let (watched, shared) = (direct.clone(), Arc::downgrade(shared));
        let watch = move || {
            let mut watch = Watch {
                direct: &watched,
                shared,
                workers,
                known: HashMap::new(),
            };
            while stopped.recv_timeout(HEARTBEAT) == Err(RecvTimeoutError::Timeout) {
                watch.look();
            }
        };
        let thread = thread::Builder::new().name("mesh-direct".into());
        *lock(&direct.thread) = Some(thread.spawn(watch)?);
        Ok(direct)
    }

    pub fn has(&self, maps: &[OwnedFd; 3]) -> bool {
        let copies = maps.each_ref().map(|fd| fd.try_clone());
        let [Ok(a), Ok(b), Ok(c)] = copies else {
            return false;
        };
        self.maps.is_same_as(&Maps::new([a, b, c])).unwrap_or(false)
    }

    /// What is judged by what is known now may be granted as of now.
    pub fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// `epoch`: before anything was judged. Nothing happens when something has changed since.
    pub fn grant(&self, epoch: u64, grant: Grant) {
        let (Some(from), Some(to)) = (grant.from.netns.cookie(), grant.to.netns.cookie()) else {
            return;
        };
        let key = PassKey::new(from, grant.asked);
        let mut passes = lock(&self.passes);
        let stale = passes.retired || epoch != self.epoch();
        let known = passes.current.get(&key).map(|(_, until)| *until);
        if stale
            || known.is_some_and(|until| until > Instant::now())
            || passes.grants.len() >= MOST_PASSES
        {
            return;
        }
        passes.number += 1;
        let number = passes.number;
        let pass = Pass {
            number,
            issuer: self.me,
            epoch,
            netns: to,
            until_ns: now_ns() + PASS_LIFE.as_nanos() as u64,
            to: maps::address(grant.target.ip()),
            port_be: grant.target.port().to_be(),
            zero: [0; 3],
        };
        passes.grants.insert(number, Arc::new(grant));
        let until = Instant::now() + PASS_LIFE;
        if let Some((old, _)) = passes.current.insert(key, (number, until)) {
            passes.earlier.push((Instant::now(), vec![old]));
        }
        // A full map: the connection takes the tunnel, as this one did.
        let _ = self.maps.grant(key, pass);
    }

    /// Something has changed: no pass that was given before is good any longer.
    pub fn renew(&self) {
        let mut passes = lock(&self.passes);
        self.epoch.fetch_add(1, Ordering::AcqRel);
        if self.live().is_err() {
            self.maps.die(self.me);
        }
        let mut numbers = Vec::with_capacity(passes.current.len());
        for (key, (number, _)) in passes.current.drain() {
            self.maps.revoke(key);
            numbers.push(number);
        }
        passes.earlier.push((Instant::now(), numbers));
    }

    /// Nothing new; what is open goes on.
    pub fn retire(&self) {
        lock(&self.passes).retired = true;
        self.renew();
    }

    /// All that is direct is cut.
    pub fn close(&self) {
        self.retire();
        self.maps.die(self.me);
        drop(lock(&self.stop).take());
        if let Some(thread) = lock(&self.thread).take() {
            let _ = thread.join(); // a panic was reported by the hook
        }
    }

    /// Resets both ends, and says what went through. NotFound: it had ended.
    pub fn end(&self, seen: &mut Seen) -> Record {
        cut(&seen.grant.from, seen.key, &seen.record);
        let told = seen.ended.try_recv().ok();
        told.or_else(|| self.maps.connection(seen.key))
            .unwrap_or(seen.record)
    }

    fn live(&self) -> io::Result<()> {
        let epoch = self.epoch();
        let seen_ns = now_ns();
        self.maps.live(self.me, Issuer { seen_ns, epoch })
    }

    fn grant_of(&self, pass: u64) -> Option<Arc<Grant>> {
        lock(&self.passes).grants.get(&pass).cloned()
    }

    fn beat(&self) {
        let mut passes = lock(&self.passes);
        // Under the lock, so that no renewal is undone. Failing, passes lapse by themselves.
        let _ = self.live();
        let Passes {
            grants, earlier, ..
        } = &mut *passes;
        earlier.retain(|(since, numbers)| {
            let keep = since.elapsed() < NEVER_BEGAN;
            if !keep {
                numbers.iter().for_each(|number| {
                    grants.remove(number);
                });
            }
            keep
        });
    }
}

fn cut(pod: &Pod, key: Key, record: &Record) {
    // NotFound: it has ended by itself. Anything else cannot be helped from here, and the next look tries again.
    let _ = pod.netns.enter(|| destroy::destroy(key, &record.tuple));
}

/// The thread's.
struct Watch<'a> {
    direct: &'a Arc<Direct>,
    shared: Weak<Shared>,
    workers: Vec<Handle>,
    known: HashMap<Key, Known>,
}

struct Known {
    grant: Arc<Grant>,
    /// To whoever accounts for it; None: it is not open yet.
    tell: Option<oneshot::Sender<Record>>,
}

impl Watch<'_> {
    fn look(&mut self) {
        self.direct.beat();
        let Ok(found) = self.direct.maps.connections() else {
            return; // the next look will tell
        };
        let there: HashSet<Key> = found.iter().map(|(key, _)| *key).collect();
        self.known.retain(|key, _| there.contains(key));
        for (key, record) in found {
            if record.issuer == self.direct.me {
                self.look_at(key, record);
            } else {
                self.look_at_orphan(key, &record);
            }
        }
    }

    fn look_at(&mut self, key: Key, record: Record) {
        if !self.known.contains_key(&key) {
            let Some(grant) = self.direct.grant_of(record.pass) else {
                return self.abandon(key, &record);
            };
            self.known.insert(key, Known { grant, tell: None });
        }
        let age = Duration::from_nanos(now_ns().saturating_sub(key.began_ns));
        if record.state == state::NEW && age > NEVER_BEGAN {
            self.direct.maps.forget(key);
            self.known.remove(&key);
            return;
        }
        let is_over = record.state == state::CLOSED;
        if record.state != state::OPEN && !is_over {
            return;
        }
        if self
            .known
            .get(&key)
            .is_some_and(|known| known.tell.is_none())
        {
            self.hand_over(key, record);
        }
        if is_over {
            self.direct.maps.forget(key);
            let known = self.known.remove(&key);
            if let Some(tell) = known.and_then(|known| known.tell) {
                let _ = tell.send(record); // Err: it was cut, and is accounted for
            }
        }
    }

    /// To a worker, which judges it and tells of it.
    fn hand_over(&mut self, key: Key, record: Record) {
        let Some(known) = self.known.get_mut(&key) else {
            return;
        };
        let (tell, ended) = oneshot::channel();
        known.tell = Some(tell);
        let seen = Seen {
            key,
            record,
            grant: known.grant.clone(),
            ended,
        };
        let direct = self.direct.clone();
        let chosen = key.socket as usize % self.workers.len();
        self.workers[chosen].submit(move |worker| {
            spawn_local(outbound::direct::carry(worker.clone(), direct, seen));
        });
    }

    /// Of a tunnel that is no more: nobody judges it. One that still lives looks after its own.
    fn look_at_orphan(&self, key: Key, record: &Record) {
        let life = self.direct.maps.issuer(record.issuer);
        let is_dead = life.is_none_or(|life| life.seen_ns + 2 * PATIENCE_NS < now_ns());
        if is_dead {
            self.abandon(key, record);
        }
    }

    fn abandon(&self, key: Key, record: &Record) {
        let pods = self
            .shared
            .upgrade()
            .map(|shared| shared.served.load_full());
        let pods = pods.iter().flat_map(|pods| pods.values());
        let mut of_namespace = pods.filter(|pod| pod.netns.cookie() == Some(record.netns));
        if let Some(pod) = of_namespace.next() {
            cut(pod, key, record);
        }
        self.direct.maps.forget(key);
    }
}
