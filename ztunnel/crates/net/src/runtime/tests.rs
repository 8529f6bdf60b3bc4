use super::*;
use crate::account::{flag, follow};
use crate::dataplane::Who;
use crate::handshakes::Allowed;
use crate::meter::MOST_SERIES;
use crate::netns::NetNs;
use crate::registry::Parties;
use std::sync::mpsc::channel;

fn shared(workers: usize) -> Arc<Shared> {
    let mailbox = Arc::new(Mailbox::new().expect("eventfd"));
    Arc::new(Shared {
        config: Config {
            workers,
            ..Config::default()
        },
        served: ArcSwap::default(),
        direct: ArcSwapOption::default(),
        tables: ArcSwap::from_pointee(Tables::new("", "Kubernetes")),
        changed: watch::Sender::new(0),
        identities: Arc::new(Identities::new(Box::new(|_, _| {}))),
        mailbox,
        log: Log::start("off", crate::log::Format::Json, crate::log::Level::Error)
            .expect("a thread"),
        totals: Mutex::new(Totals::new(MOST_SERIES)),
        spans: Spans::default(),
        dns: dns::meter::Meter::default(),
        accept_failures: AtomicU64::new(0),
        handshakes: Handshakes::new(Allowed::default()),
        turned_away: TurnedAway::default(),
        hits: Hits::default(),
    })
}

/// Of the future that a function of three arguments returns.
fn size_of_task<A, B, C, F>(_begin: impl Fn(A, B, C) -> F) -> usize {
    size_of::<F>()
}

#[test]
fn an_open_connection_is_a_small_task() {
    let sizes = [
        size_of_task(crate::outbound::handle),
        size_of_task(crate::inbound::handle_stream),
    ];
    assert!(sizes.iter().all(|&bytes| bytes < 2048), "{sizes:?}");
}

#[test]
fn a_panic_ends_its_task_or_job_and_is_reported() {
    let shared = shared(1);
    let workers = Workers::start(&shared).expect("threads");
    let (reply, answer) = channel();
    workers.handles[0].submit(|_| panic!("in a job"));
    workers.handles[0].submit(move |_| {
        task::spawn_local(async { panic!("in a task") });
        task::spawn_local(async move { reply.send(()).expect("somebody waits") });
    });
    answer.recv().expect("the worker goes on");
    workers.close();
    let faults = shared.mailbox.take();
    let what: Vec<_> = faults
        .iter()
        .map(|(kind, _, what)| (kind.as_str(), what.as_str()))
        .collect();
    assert_eq!(what, [("fault", "in a job"), ("fault", "in a task")]);
    assert!(
        faults
            .iter()
            .all(|(_, place, _)| place.contains("tests.rs:"))
    );
    shared.log.close();
}

fn pod_here() -> Arc<Pod> {
    let file = std::fs::File::open("/proc/thread-self/ns/net").expect("procfs");
    let netns = NetNs::of(std::os::fd::AsFd::as_fd(&file)).expect("a namespace");
    let who = Who {
        uid: "web".into(),
        name: "web".into(),
        namespace: "shop".into(),
        service_account: "web".into(),
        search: Vec::new(),
        addresses: Vec::new(),
    };
    Arc::new(Pod::new(0, who, netns, &Config::default()))
}

#[test]
fn a_connection_whose_story_panics_has_ended_in_the_counters() {
    let shared = shared(1);
    let workers = Workers::start(&shared).expect("threads");
    let (reply, answer) = channel();
    let pod = pod_here();
    workers.handles[0].submit(move |worker| {
        let (own, worker) = (worker.clone(), worker.clone());
        task::spawn_local(async move {
            let ends = Parties::between(([10, 0, 0, 1], 1).into(), ([10, 0, 0, 2], 2).into());
            let connection = own.registry.enter(pod, Kind::Outbound, ends);
            own.meter.opened(&connection);
            let story = std::pin::pin!(async { panic!("in a story") });
            follow(&own, &connection, story).await;
        });
        task::spawn_local(async move {
            let growth = worker.meter.hand_over(&worker.registry);
            let counts: Vec<_> = growth.into_iter().map(|(_, counts)| counts).collect();
            reply
                .send((worker.meter.open(), counts))
                .expect("somebody waits");
        });
    });
    let (open, counts) = answer.recv().expect("the worker goes on");
    assert_eq!(open, [0, 0]);
    assert_eq!(counts, [[1, 1, 0, 0, 0]]);
    workers.close();
    shared.log.close();
}

/// What the counters say of a connection that is cut while its story has one turn left.
fn counts_of_one_cut_at_its_end(complete: bool) -> Vec<[u64; 5]> {
    let shared = shared(1);
    let workers = Workers::start(&shared).expect("threads");
    let (reply, answer) = channel();
    let pod = pod_here();
    workers.handles[0].submit(move |worker| {
        let worker = worker.clone();
        task::spawn_local(async move {
            let ends = Parties::between(([10, 0, 0, 1], 1).into(), ([10, 0, 0, 2], 2).into());
            let connection = worker.registry.enter(pod, Kind::Outbound, ends);
            worker.meter.opened(&connection);
            let story = std::pin::pin!(async {
                connection.counts.complete.set(complete);
                connection.cut(flag::DENY, "another policy");
                task::yield_now().await;
                Ok(())
            });
            follow(&worker, &connection, story).await;
            let growth = worker.meter.hand_over(&worker.registry);
            let counts = growth.into_iter().map(|(_, counts)| counts).collect();
            reply.send(counts).expect("somebody waits");
        });
    });
    let counts = answer.recv().expect("the worker goes on");
    workers.close();
    shared.log.close();
    counts
}

#[test]
fn a_connection_that_is_cut_when_it_is_complete_has_not_failed() {
    assert_eq!(counts_of_one_cut_at_its_end(true), [[1, 1, 0, 0, 0]]);
    assert_ne!(counts_of_one_cut_at_its_end(false), [[1, 1, 0, 0, 0]]);
}

#[test]
fn connections_stay_where_they_arrive_unless_another_worker_has_fewer() {
    let shared = shared(3);
    let workers = Workers::start(&shared).expect("threads");
    let _two = [Load::on(&workers.handles[1]), Load::on(&workers.handles[1])];
    let (reply, chosen) = channel();
    let ask = |index: usize| {
        let reply = reply.clone();
        workers.handles[index]
            .submit(move |worker| reply.send(worker.least_loaded()).expect("somebody waits"));
        chosen.recv().expect("an answer")
    };
    assert_eq!((ask(0), ask(2)), (0, 2), "equal ones keep theirs");
    assert_eq!(ask(1), 0, "a loaded one gives to the first of the idle");
    workers.close();
    shared.log.close();
}

#[test]
fn a_worker_that_has_ended_drops_what_it_is_asked() {
    let shared = shared(1);
    let workers = Workers::start(&shared).expect("threads");
    let handle = workers.handles[0].clone();
    workers.close();
    let (reply, answer) = channel::<()>();
    handle.submit(move |_| drop(reply));
    assert!(answer.recv().is_err());
    shared.log.close();
}
