//! Long work in short turns, with rests in between: whoever wakes on the same processor meanwhile need not wait for the end
//! of a turn of the scheduler's. Owns how long a turn and a rest are; not what is done.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};
use ztunnel_core::tables::Tables;

const TURN: Duration = Duration::from_micros(200);
/// A turn that took longer was not the thread's alone.
const LONGEST_REST: Duration = Duration::from_millis(1);
/// Times the work: after so long without the processor, resting or kept from it, a thread rests no more.
const PATIENCE: u32 = 6;
/// How often readers of an old snapshot are waited for, a `TURN` each time.
const LOOKS: usize = 50;

pub(crate) struct Pace {
    began: Instant,
    used_before: Duration,
    turn_began: Instant,
    rests: bool,
}

impl Pace {
    /// For this thread.
    pub(crate) fn new(rests: bool) -> Self {
        let now = Instant::now();
        Self {
            began: now,
            used_before: processor_time(),
            turn_began: now,
            rests,
        }
    }

    /// Between two steps of some microseconds.
    pub(crate) fn breathe(&mut self) {
        if !self.rests || self.turn_began.elapsed() < TURN {
            return;
        }
        let turn = self.turn_began.elapsed();
        let worked = processor_time().saturating_sub(self.used_before);
        let away = self.began.elapsed().saturating_sub(worked);
        thread::sleep(rest(turn, worked, away));
        self.turn_began = Instant::now();
    }
}

/// Twice as long as the turn. On a busy machine others take the processor anyway, and wake the thread late.
fn rest(turn: Duration, worked: Duration, away: Duration) -> Duration {
    if away >= worked * PATIENCE {
        Duration::ZERO
    } else {
        (turn * 2).min(LONGEST_REST)
    }
}

/// Of the calling thread.
fn processor_time() -> Duration {
    let mut used = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the kernel fills the struct; every thread has this clock.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut used) };
    Duration::new(used.tv_sec.unsigned_abs(), used.tv_nsec as u32)
}

/// What is no longer in force, on this thread: a worker that was the last to look would be kept from its connections.
pub(crate) fn free(mut old: Arc<Tables>, rests: bool) {
    let mut pace = Pace::new(rests);
    for _ in 0..LOOKS {
        match Arc::try_unwrap(old) {
            Ok(tables) => return tables.dismantle(|| pace.breathe()),
            Err(shared) => old = shared,
        }
        thread::sleep(TURN);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_rest_is_twice_the_turn_and_none_after_six_times_the_work_without_the_processor() {
        assert_eq!(rest(MS / 5, MS, MS), MS * 2 / 5);
        assert_eq!(rest(MS * 40, MS, MS), LONGEST_REST);
        assert_eq!(rest(MS / 5, MS, MS * 6), Duration::ZERO);
    }
}
