//! Who may begin a TLS handshake, and when. A handshake is the dearest thing that a stranger can ask of us, so this is
//! asked before anything is read. Owns the counts and rates of the whole node; not the handshake.
//!
//! Rates are kept as the moment at which the next one is due (GCRA, ITU-T I.371): a burst goes through at once, what comes
//! faster waits for its turn, and who would wait longer than its deadline is refused instead. A flood from one address
//! therefore delays itself only.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Limits of the node, over all pods and workers.
#[derive(Clone, Copy, Debug)]
pub struct Allowed {
    /// Handshakes under way, waiting ones included.
    pub pending: usize,
    pub pending_per_source: usize,
    pub each: Rate,
    pub all: Rate,
}

/// `burst` at once, then one per `interval`.
#[derive(Clone, Copy, Debug)]
pub struct Rate {
    pub burst: u32,
    pub interval: Duration,
}

impl Default for Allowed {
    fn default() -> Self {
        let per_second = |rate: u32, burst| Rate {
            burst,
            interval: Duration::from_secs(1) / rate,
        };
        Self {
            pending: 4096,
            pending_per_source: 256,
            each: per_second(50, 256),
            all: per_second(500, 2048),
        }
    }
}

/// Why a connection is closed before its handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Crowded {
    #[error("too many handshakes are pending")]
    Pending,
    #[error("too many handshakes are pending from this address")]
    PendingFromThere,
    #[error("handshakes come faster than they are served")]
    TooFast,
    #[error("handshakes come too fast from this address")]
    TooFastFromThere,
}

/// One source, or all of them.
#[derive(Clone, Copy, Debug)]
struct Meter {
    pending: usize,
    /// When the burst is whole again.
    whole: Instant,
}

impl Meter {
    fn new(now: Instant) -> Self {
        Self {
            pending: 0,
            whole: now,
        }
    }

    fn is_idle(&self, now: Instant) -> bool {
        self.pending == 0 && self.whole <= now
    }

    /// How long the next one has to wait.
    fn wait(&self, rate: Rate, now: Instant) -> Duration {
        let debt = self.whole.saturating_duration_since(now);
        (debt + rate.interval).saturating_sub(rate.interval * rate.burst)
    }

    fn book(&mut self, rate: Rate, now: Instant) {
        self.pending += 1;
        self.whole = self.whole.max(now) + rate.interval;
    }
}

#[derive(Debug)]
struct State {
    all: Meter,
    sources: HashMap<IpAddr, Meter>,
}

/// One for all workers of a node.
#[derive(Debug)]
pub struct Handshakes {
    allowed: Allowed,
    state: Mutex<State>,
}

impl Handshakes {
    pub fn new(allowed: Allowed) -> Arc<Self> {
        let state = State {
            all: Meter::new(Instant::now()),
            sources: HashMap::new(),
        };
        Arc::new(Self {
            allowed,
            state: Mutex::new(state),
        })
    }

    /// A place for one handshake with `source`, and how long it has to wait for its turn, at most `patience`. Amortised O(1).
    pub fn begin(
        self: &Arc<Self>,
        source: IpAddr,
        patience: Duration,
    ) -> Result<(Place, Duration), Crowded> {
        let (allowed, now) = (self.allowed, Instant::now());
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let State { all, sources } = &mut *state;
        if sources.len() == sources.capacity() {
            sources.retain(|_, source| !source.is_idle(now)); // only when the map would grow
        }
        let each = sources.entry(source).or_insert_with(|| Meter::new(now));
        let waits = (each.wait(allowed.each, now), all.wait(allowed.all, now));
        if each.pending >= allowed.pending_per_source {
            return Err(Crowded::PendingFromThere);
        } else if all.pending >= allowed.pending {
            return Err(Crowded::Pending);
        } else if waits.0 > patience {
            return Err(Crowded::TooFastFromThere);
        } else if waits.1 > patience {
            return Err(Crowded::TooFast);
        }
        each.book(allowed.each, now);
        all.book(allowed.all, now);
        let place = Place {
            of: self.clone(),
            source,
        };
        Ok((place, waits.0.max(waits.1)))
    }
}

/// One handshake that is pending until this is dropped.
#[derive(Debug)]
pub struct Place {
    of: Arc<Handshakes>,
    source: IpAddr,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = self.of.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.all.pending -= 1;
        if let Some(source) = state.sources.get_mut(&self.source) {
            source.pending -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(5);

    fn source(n: u32) -> IpAddr {
        std::net::Ipv4Addr::from(n).into()
    }

    fn paused(test: impl Future<Output = ()>) {
        let builder = &mut tokio::runtime::Builder::new_current_thread();
        let runtime = builder.enable_time().start_paused(true).build();
        runtime.expect("runtime").block_on(test);
    }

    #[test]
    fn a_burst_goes_at_once_then_each_waits_for_its_turn_and_the_impatient_are_refused() {
        paused(async {
            let gate = Handshakes::new(Allowed::default());
            let waits: Vec<_> = (0..1000)
                .map_while(|_| gate.begin(source(1), PATIENCE).ok().map(|(_, wait)| wait))
                .collect();
            assert_eq!(
                waits.len(),
                256 + 250,
                "five seconds' worth behind the burst"
            );
            assert_eq!(waits.iter().filter(|wait| wait.is_zero()).count(), 256);
            assert_eq!(waits.last(), Some(&PATIENCE));
            let refused = gate.begin(source(1), PATIENCE).err();
            assert_eq!(refused, Some(Crowded::TooFastFromThere));
            let (_, other) = gate.begin(source(2), PATIENCE).expect("another address");
            assert!(other.is_zero(), "who floods delays itself only");
            tokio::time::advance(Duration::from_secs(60)).await;
            let (_, wait) = gate.begin(source(1), PATIENCE).expect("forgiven");
            assert!(wait.is_zero());
        });
    }

    #[test]
    fn pending_ones_are_counted_until_they_end() {
        paused(async {
            let allowed = Allowed {
                pending: 3,
                pending_per_source: 2,
                ..Allowed::default()
            };
            let gate = Handshakes::new(allowed);
            let begin = |n| gate.begin(source(n), PATIENCE).map(|(place, _)| place);
            let held = [begin(1), begin(1), begin(2)];
            assert_eq!(begin(1).err(), Some(Crowded::PendingFromThere));
            assert_eq!(begin(2).err(), Some(Crowded::Pending));
            drop(held);
            assert!(begin(1).is_ok());
        });
    }

    #[test]
    fn all_sources_together_have_a_rate_too() {
        paused(async {
            let gate = Handshakes::new(Allowed::default());
            let refused = (0..10_000).find_map(|n| gate.begin(source(n), PATIENCE).err());
            assert_eq!(refused, Some(Crowded::TooFast));
        });
    }

    #[test]
    fn sources_that_have_gone_are_forgotten() {
        paused(async {
            let gate = Handshakes::new(Allowed::default());
            for n in 0..50_000 {
                let _ = gate.begin(source(n), PATIENCE);
                tokio::time::advance(Duration::from_millis(30)).await;
            }
            let kept = gate.state.lock().expect("sound").sources.len();
            assert!(kept < 100, "{kept}");
        });
    }
}
