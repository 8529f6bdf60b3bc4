//! The text of /metrics (Prometheus text format 0.0.4). Owns names, help and order; counts nothing itself.

use crate::meter::{CLOSED, COUNTERS, FAILED, OPENED, RECEIVED, SENT, Totals};
use std::fmt::Display;
use std::fmt::Write as _;

const FAMILIES: [(usize, &str, &str); COUNTERS] = [
    (
        OPENED,
        "istio_tcp_connections_opened_total",
        "TCP connections established",
    ),
    (
        CLOSED,
        "istio_tcp_connections_closed_total",
        "Established TCP connections that have ended",
    ),
    (
        RECEIVED,
        "istio_tcp_received_bytes_total",
        "Bytes of requests",
    ),
    (SENT, "istio_tcp_sent_bytes_total", "Bytes of responses"),
    (
        FAILED,
        "istio_tcp_connections_failed_total",
        "TCP connections refused, failed or cut by us",
    ),
];

/// How busy a worker is, as its runtime counts it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Load {
    pub index: usize,
    pub tasks: usize,
    pub busy_s: f64,
    pub parks: u64,
    pub park_unparks: u64,
}

/// What is no traffic series.
#[derive(Debug, Default)]
pub struct Node {
    /// By reporter: source, destination.
    pub sockets_open: [i64; 2],
    pub pods_active: usize,
    pub pods_pending: usize,
    pub pods_started: u64,
    pub pods_stopped: u64,
    pub accept_failures: u64,
    /// By reason.
    pub turned_away: Vec<(&'static str, u64)>,
    pub log_lines_dropped: u64,
    pub spans_dropped: u64,
    pub series_evicted: u64,
    pub workers: Vec<Load>,
    pub open_fds: u64,
    pub max_fds: u64,
}

pub fn render(totals: &Totals, node: &Node) -> String {
    let mut series: Vec<_> = totals.iter().collect();
    series.sort_unstable_by_key(|(labels, _)| *labels);
    let mut out = String::with_capacity(4096 + series.len() * 3000);
    for (counter, name, help) in FAMILIES {
        head(&mut out, name, "counter", help);
        let shown = if counter == FAILED { FAILED } else { OPENED };
        for (labels, counts) in series.iter().filter(|(_, counts)| counts[shown] > 0) {
            // Writing to a String does not fail.
            let _ = writeln!(out, "{name}{{{labels}}} {}", counts[counter]);
        }
    }
    head(
        &mut out,
        "istio_tcp_sockets_open",
        "gauge",
        "Open connections of applications",
    );
    for (reporter, open) in ["source", "destination"].iter().zip(node.sockets_open) {
        let _ = writeln!(
            out,
            "istio_tcp_sockets_open{{reporter=\"{reporter}\"}} {open}"
        );
    }
    head(&mut out, "istio_build", "gauge", "Component and version");
    let _ = writeln!(
        out,
        "istio_build{{component=\"ztunnel\",tag=\"nodemesh-{}\"}} 1",
        env!("CARGO_PKG_VERSION")
    );
    head(
        &mut out,
        "nodemesh_tunnels_turned_away_total",
        "counter",
        "Tunnels to pods here that were refused or ended for what the peer did",
    );
    for (reason, n) in &node.turned_away {
        let _ = writeln!(
            out,
            "nodemesh_tunnels_turned_away_total{{reason=\"{reason}\"}} {n}"
        );
    }
    of_the_node(&mut out, node);
    of_the_workers(&mut out, &node.workers);
    out
}

/// Istio's names; each of our workers is a runtime of one thread, so the global queue is always empty.
fn of_the_workers(out: &mut String, workers: &[Load]) {
    let tasks: usize = workers.iter().map(|w| w.tasks).sum();
    for (name, help, value) in [
        ("tokio_num_workers", "Worker threads", workers.len()),
        ("tokio_num_alive_tasks", "Tasks", tasks),
        ("tokio_global_queue_depth", "Tasks that no worker has", 0),
    ] {
        head(out, name, "gauge", help);
        let _ = writeln!(out, "{name} {value}");
    }
    type Of = fn(&Load) -> f64;
    let counters: [(&str, &str, Of); 3] = [
        (
            "tokio_worker_total_busy_duration_seconds",
            "Time that a worker was busy",
            |w| w.busy_s,
        ),
        (
            "tokio_worker_park_count",
            "Times that a worker had nothing to do",
            |w| w.parks as f64,
        ),
        (
            "tokio_worker_park_unpark_count",
            "Times that a worker slept or woke",
            |w| w.park_unparks as f64,
        ),
    ];
    for (name, help, of) in counters {
        head(out, name, "counter", help);
        for worker in workers {
            let _ = writeln!(out, "{name}{{worker=\"{}\"}} {}", worker.index, of(worker));
        }
    }
}

fn of_the_node(out: &mut String, node: &Node) {
    let gauges: [(&str, &str, &dyn Display); 4] = [
        (
            "workload_manager_active_proxy_count",
            "Pods served",
            &node.pods_active,
        ),
        (
            "workload_manager_pending_proxy_count",
            "Pods being enrolled",
            &node.pods_pending,
        ),
        ("process_open_fds", "Open file descriptors", &node.open_fds),
        (
            "process_max_fds",
            "Limit of open file descriptors",
            &node.max_fds,
        ),
    ];
    let counters: [(&str, &str, &dyn Display); 6] = [
        (
            "workload_manager_proxies_started_total",
            "Pods enrolled",
            &node.pods_started,
        ),
        (
            "workload_manager_proxies_stopped_total",
            "Pods withdrawn",
            &node.pods_stopped,
        ),
        (
            "nodemesh_accept_failures_total",
            "Times that accepting had to pause",
            &node.accept_failures,
        ),
        (
            "nodemesh_log_lines_dropped_total",
            "Log lines that did not fit the queue",
            &node.log_lines_dropped,
        ),
        (
            "nodemesh_spans_dropped_total",
            "Spans that did not fit the queue",
            &node.spans_dropped,
        ),
        (
            "nodemesh_metric_series_evicted_total",
            "Traffic series forgotten, idle for an hour or beyond the bound",
            &node.series_evicted,
        ),
    ];
    for (kind, values) in [("gauge", &gauges[..]), ("counter", &counters)] {
        for (name, help, value) in values {
            head(out, name, kind, help);
            let _ = writeln!(out, "{name} {value}");
        }
    }
}

pub fn head(out: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(out, "# HELP {name} {help}.\n# TYPE {name} {kind}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_series_that_only_failed_shows_no_traffic() {
        let mut totals = Totals::new(10);
        let growth = vec![
            ("a=\"1\"".into(), [2, 1, 30, 40, 0]),
            ("a=\"2\"".into(), [0, 0, 0, 0, 5]),
        ];
        totals.add(growth, std::time::Instant::now());
        let node = Node {
            sockets_open: [1, 0],
            ..Node::default()
        };
        let text = render(&totals, &node);
        assert!(
            text.contains("\nistio_tcp_sent_bytes_total{a=\"1\"} 40\n"),
            "{text}"
        );
        assert!(
            text.contains("\nistio_tcp_connections_failed_total{a=\"2\"} 5\n"),
            "{text}"
        );
        assert!(
            !text.contains("opened_total{a=\"2\"}") && !text.contains("failed_total{a=\"1\"}"),
            "{text}"
        );
        assert!(
            text.contains("\nistio_tcp_sockets_open{reporter=\"source\"} 1\n"),
            "{text}"
        );
    }
}
