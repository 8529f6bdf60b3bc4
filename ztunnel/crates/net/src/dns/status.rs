//! What one pod asked, for the dump. Counts since the pod was enrolled; read from any thread.

use serde_json::{Value, json};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

#[derive(Debug, Default)]
pub struct Status {
    mesh: AtomicU64,
    upstream: AtomicU64,
    failed: AtomicU64,
    last_failure: Mutex<String>,
}

impl Status {
    pub(super) fn answered(&self) {
        self.mesh.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn passed_on(&self) {
        self.upstream.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn failed(&self, why: &str) {
        self.failed.fetch_add(1, Ordering::Relaxed);
        why.clone_into(
            &mut self
                .last_failure
                .lock()
                .unwrap_or_else(PoisonError::into_inner),
        );
    }

    pub fn json(&self) -> Value {
        let last = self
            .last_failure
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        json!({
            "answered": self.mesh.load(Ordering::Relaxed),
            "forwarded": self.upstream.load(Ordering::Relaxed),
            "failed": self.failed.load(Ordering::Relaxed),
            "lastFailure": *last,
        })
    }
}
