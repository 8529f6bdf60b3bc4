//! Leaving: one pod at once, or everything in order with a deadline. Owns the order of the steps on a worker.

use crate::pod::Pod;
use crate::runtime::{Handle, Worker};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::Sender;
use std::time::Duration;
use tokio::task::{JoinHandle, spawn_local};
use tokio::time::timeout;

/// Closes the pod's listeners and connections on this worker; `done` is dropped when the listeners are closed.
pub fn leave(worker: &Rc<Worker>, pod: &Pod, done: Sender<()>) {
    let number = pod.number;
    worker
        .registry
        .cut(|c| c.pod.number == number, "the pod left the mesh");
    let sources = worker
        .sources
        .borrow_mut()
        .remove(&number)
        .unwrap_or_default();
    worker.tunnels.cut(&|key| sources.contains(&key.source));
    let accepting = worker
        .accepting
        .borrow_mut()
        .remove(&number)
        .unwrap_or_default();
    spawn_local(async move {
        stop(accepting).await;
        drop(done);
    });
}

/// A task that was aborted has dropped its listener when its handle resolves.
async fn stop(tasks: Vec<JoinHandle<()>>) {
    tasks.iter().for_each(JoinHandle::abort);
    for task in tasks {
        // Err: aborted, as asked.
        let _ = task.await;
    }
}

/// Tells "drained" when the last worker is empty or has cut what was left at the deadline.
pub fn drain(workers: &[Handle], deadline: Duration) {
    let left = Arc::new(AtomicUsize::new(workers.len()));
    for handle in workers {
        let left = left.clone();
        handle.submit(move |worker| {
            spawn_local(drain_one(worker.clone(), deadline, left));
        });
    }
}

async fn drain_one(worker: Rc<Worker>, deadline: Duration, left: Arc<AtomicUsize>) {
    let accepting = worker.accepting.take().into_values().flatten().collect();
    stop(accepting).await;
    worker.tunnels.drain();
    if timeout(deadline, worker.registry.empty()).await.is_err() {
        worker
            .registry
            .cut(|_| true, "connection closed: the tunnel is shutting down");
        worker.registry.empty().await;
    }
    worker.tunnels.cut(&|_| true);
    if left.fetch_sub(1, Ordering::AcqRel) == 1 {
        worker.shared.mailbox.drained();
    }
}
