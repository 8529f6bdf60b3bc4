//! Long work in short turns, with pauses as long: whoever wakes on the same processor meanwhile need not wait for the end of
//! a turn of the scheduler's. Owns how long a turn is; not what is done in it.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};
use ztunnel_core::tables::Tables;

const TURN: Duration = Duration::from_micros(200);
/// A turn that took longer was not ours alone.
const LONGEST_PAUSE: Duration = Duration::from_millis(1);
/// How often readers of an old snapshot are waited for, a `TURN` each time.
const LOOKS: usize = 50;

pub(crate) struct Pace {
    began: Instant,
    pauses: bool,
}

impl Pace {
    pub(crate) fn new(pauses: bool) -> Self {
        Self {
            began: Instant::now(),
            pauses,
        }
    }

    /// Between two steps of some microseconds.
    pub(crate) fn breathe(&mut self) {
        if !self.pauses {
            return;
        }
        let worked = self.began.elapsed();
        if worked >= TURN {
            thread::sleep(worked.min(LONGEST_PAUSE));
            self.began = Instant::now();
        }
    }
}

/// What is no longer in force, on this thread: a worker that was the last to look would be kept from its connections.
pub(crate) fn free(mut old: Arc<Tables>, pauses: bool) {
    let mut pace = Pace::new(pauses);
    for _ in 0..LOOKS {
        match Arc::try_unwrap(old) {
            Ok(tables) => return tables.dismantle(|| pace.breathe()),
            Err(shared) => old = shared,
        }
        thread::sleep(TURN);
    }
}
