//! Finished connections of sampled traces, waiting for the shell to take them. Owns the bound and the dice; the exporter
//! is the shell's.

use crate::registry::Connection;
use crate::runtime::Worker;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use ztunnel_core::hbone::Trace;

/// What nobody has taken; further ones are dropped and counted.
const MOST: usize = 4096;

/// Touched only by sampled connections: the others pay for a comparison.
#[derive(Debug, Default)]
pub struct Spans {
    waiting: Mutex<VecDeque<String>>,
    /// Of 2^64; 0: tracing is off.
    share: u64,
    dropped: AtomicU64,
}

impl Spans {
    /// `ratio` of the traces that begin here are sampled, in [0, 1]; `None`: none is, and nobody else's is recorded.
    pub fn new(ratio: Option<f64>) -> Self {
        // Saturates: 1.0 is every one. Never 0 when on, so that others' sampled traces are recorded.
        let share = ratio.map_or(0, |ratio| ((ratio * u64::MAX as f64) as u64).max(1));
        Self {
            share,
            ..Self::default()
        }
    }

    /// A trace that begins with this connection.
    pub fn begin(&self, worker: &Worker) -> Trace {
        let [high, low, span] = [worker.random(), worker.random(), worker.random()];
        Trace {
            id: (u128::from(high) << 64) | u128::from(low),
            span,
            sampled: self.share > 0 && low < self.share,
        }
    }

    /// Continues the trace of whoever sent the connection here.
    pub fn join(&self, worker: &Worker, of: &Connection, sent: Option<Trace>) {
        if let Some(sent) = sent {
            let span = worker.random();
            of.parent_span.set(sent.span);
            of.trace.set(Trace { span, ..sent });
        }
    }

    pub fn wanted(&self, trace: &Trace) -> bool {
        self.share > 0 && trace.sampled
    }

    pub fn put(&self, span: String) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.len() < MOST {
            waiting.push_back(span);
        } else {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub fn take(&self) -> Vec<String> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.drain(..).collect()
    }

    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_takes_is_bounded_and_counted() {
        let spans = Spans::new(Some(1.0));
        (0..MOST + 3).for_each(|n| spans.put(n.to_string()));
        assert_eq!((spans.take().len(), spans.dropped()), (MOST, 3));
        assert!(spans.take().is_empty());
    }

    #[test]
    fn only_sampled_traces_are_recorded_and_none_when_it_is_off() {
        let sampled = Trace {
            id: 1,
            span: 1,
            sampled: true,
        };
        assert!(Spans::new(Some(0.0)).wanted(&sampled));
        assert!(!Spans::new(None).wanted(&sampled));
        assert!(!Spans::new(Some(1.0)).wanted(&Trace::default()));
    }
}
