//! What the data path tells of itself when it is asked: metrics, the dump, why a connection would go where.

use super::{Dataplane, lock};
use crate::dump::{self, Seen};
use crate::explain::{Own, explain};
use crate::scrape::{self, Node};
use std::sync::atomic::Ordering;
use std::sync::mpsc::SendError;
use std::time::Instant;

impl Dataplane {
    pub fn metrics(&self) -> Vec<u8> {
        let shared = self.shared.clone();
        let answers = self.ask_all(
            |_| shared.clone(),
            |worker, shared, reply| {
                let load = (worker.meter.open(), worker.runtime_load());
                let growth = worker.meter.hand_over(&worker.registry);
                if let Err(SendError((_, growth))) = reply.send((load, growth)) {
                    lock(&shared.totals).add(growth, Instant::now()); // the scrape did not wait for us; nothing may be lost
                }
            },
        );
        let mut node = self.node();
        let mut totals = lock(&self.shared.totals);
        for ((open, load), growth) in answers {
            (0..open.len()).for_each(|i| node.sockets_open[i] += open[i]);
            node.workers.push(load);
            totals.add(growth, Instant::now());
        }
        node.series_evicted = totals.evicted();
        node.workers.sort_unstable_by_key(|worker| worker.index);
        let mut text = scrape::render(&totals, &node);
        self.shared
            .hits
            .render(&mut text, &self.shared.tables.load());
        text.push_str(&self.shared.dns.render());
        text.into_bytes()
    }

    fn node(&self) -> Node {
        let pods = lock(&self.pods);
        Node {
            pods_active: pods.by_uid.len(),
            pods_pending: self.enrolling.load(Ordering::Relaxed),
            pods_started: pods.started,
            pods_stopped: pods.stopped,
            accept_failures: self.shared.accept_failures.load(Ordering::Relaxed),
            turned_away: self.shared.turned_away.all(),
            log_lines_dropped: self.shared.log.dropped(),
            spans_dropped: self.shared.spans.dropped(),
            open_fds: std::fs::read_dir("/proc/self/fd").map_or(0, |fds| fds.count() as u64),
            max_fds: descriptor_limit().rlim_cur,
            ..Node::default()
        }
    }

    pub fn dump(&self) -> Vec<u8> {
        let seen: Vec<Vec<Seen>> = self.ask_all(
            |_| (),
            |worker, (), reply| {
                let seen = worker
                    .registry
                    .all()
                    .iter()
                    .filter_map(|c| dump::connection(c))
                    .collect();
                let _ = reply.send(seen); // Err: nobody waits any longer
            },
        );
        let pods: Vec<_> = lock(&self.pods).by_uid.values().cloned().collect();
        let state = dump::workload_state(
            pods.iter().map(|p| &**p),
            &self.shared.config.trust_domain,
            seen.into_iter().flatten().collect(),
        );
        let tables = self.shared.tables.load_full();
        let hits = self.shared.hits.by_policy(&tables);
        dump::whole(&tables, &hits, &self.shared.identities.dump(), state)
            .to_string()
            .into_bytes()
    }

    /// What would become of a connection, by this moment's snapshot. Err: a sentence about the question.
    pub fn explain(&self, source: &str, destination: &str) -> Result<Vec<u8>, String> {
        let tables = self.shared.tables.load_full();
        let own = Own {
            same_node_tls: self.shared.config.same_node_tls,
            direct: self.shared.direct.load().is_some(),
            outbound: self.shared.config.outbound(),
        };
        explain(&tables, own, source, destination).map(|said| said.to_string().into_bytes())
    }
}

pub(super) fn descriptor_limit() -> libc::rlimit {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the kernel fills the struct; on failure it stays zero.
    unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) };
    limit
}
