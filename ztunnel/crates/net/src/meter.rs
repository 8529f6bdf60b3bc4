//! Istio's TCP metrics: one series per combination of labels. Owns counting and the bound on what is kept; not the text
//! format (`scrape`).
//!
//! Each worker counts into its own cells, resolved once per connection. It hands the growth over when somebody scrapes and
//! every few seconds, and forgets series without connections then; the bound is kept where the growth arrives, never on the
//! hot path. Source of names and labels: Istio's standard metrics, reporter `source` or `destination`.

use crate::labels::labels;
use crate::registry::{Connection, Kind, Parties, Registry};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use ztunnel_core::ids::SpiffeId;

/// Beyond it the series idle for longest are forgotten; those of open connections never are.
pub const MOST_SERIES: usize = 20_000;
/// Who has been silent for as long is forgotten in any case: a scraper has long seen the last value.
const SILENT: Duration = Duration::from_secs(3600);

/// What is counted per series, in this order everywhere: opened, closed, received, sent, failed.
pub const COUNTERS: usize = 5;
pub const OPENED: usize = 0;
pub const CLOSED: usize = 1;
pub const RECEIVED: usize = 2;
pub const SENT: usize = 3;
pub const FAILED: usize = 4;

type Counts = [u64; COUNTERS];

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reporter {
    Source,
    Destination,
}

impl Reporter {
    pub fn of(kind: Kind) -> Self {
        if kind == Kind::Outbound {
            Self::Source
        } else {
            Self::Destination
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Destination => "destination",
        }
    }
}

/// Equal keys mean equal labels. Records are told apart by their address, which is why a series holds on to them.
#[derive(Debug, PartialEq, Eq, Hash)]
struct SeriesKey {
    reporter: Reporter,
    records: [usize; 3],
    ids: [Option<SpiffeId>; 2],
    flag: &'static str,
}

impl SeriesKey {
    fn of(reporter: Reporter, parties: &Parties, flag: &'static str) -> Self {
        fn address<T>(record: Option<&Arc<T>>) -> usize {
            record.map_or(0, |r| Arc::as_ptr(r).addr())
        }
        let records = [
            address(parties.source.as_ref()),
            address(parties.destination.as_ref()),
            address(parties.service.as_ref()),
        ];
        Self {
            reporter,
            records,
            ids: [parties.source_id.clone(), parties.destination_id.clone()],
            flag,
        }
    }
}

#[derive(Debug)]
pub struct Series {
    labels: Arc<str>,
    counts: [Cell<u64>; COUNTERS],
    _records: Parties,
}

impl Series {
    pub fn add(&self, counter: usize, n: u64) {
        self.counts[counter].set(self.counts[counter].get() + n);
    }

    fn take(&self) -> Counts {
        std::array::from_fn(|i| self.counts[i].take())
    }
}

/// The growth of one worker's series.
pub type Growth = Vec<(Arc<str>, Counts)>;

/// One worker's counters.
#[derive(Default)]
pub struct Meter {
    series: RefCell<HashMap<SeriesKey, Rc<Series>>>,
    open: [Cell<i64>; 2],
}

impl Meter {
    pub fn series(&self, reporter: Reporter, parties: &Parties, flag: &'static str) -> Rc<Series> {
        let key = SeriesKey::of(reporter, parties, flag);
        let mut known = self.series.borrow_mut();
        let make = || Series {
            labels: labels(reporter, parties, flag).into(),
            counts: Default::default(),
            _records: parties.clone(),
        };
        known.entry(key).or_insert_with(|| Rc::new(make())).clone()
    }

    /// From now on its bytes count.
    pub fn opened(&self, connection: &Connection) {
        let reporter = Reporter::of(connection.kind);
        let series = self.series(reporter, &connection.parties.borrow(), "-");
        series.add(OPENED, 1);
        *connection.series.borrow_mut() = Some(series);
        let open = &self.open[reporter as usize];
        open.set(open.get() + 1);
    }

    /// Its last bytes; nothing if it never was established.
    pub fn closed(&self, connection: &Connection) {
        count_bytes(connection);
        if let Some(series) = connection.series.take() {
            series.add(CLOSED, 1);
            let open = &self.open[Reporter::of(connection.kind) as usize];
            open.set(open.get() - 1);
        }
    }

    pub fn failed(&self, kind: Kind, parties: &Parties, flag: &'static str) {
        self.series(Reporter::of(kind), parties, flag)
            .add(FAILED, 1);
    }

    /// Open connections by reporter: source, destination.
    pub fn open(&self) -> [i64; 2] {
        [self.open[0].get(), self.open[1].get()]
    }

    /// What grew since the last time, bytes of open connections included.
    pub fn hand_over(&self, registry: &Registry) -> Growth {
        registry.all().iter().for_each(|c| count_bytes(c));
        let mut known = self.series.borrow_mut();
        let growth = known
            .values()
            .map(|s| (s.labels.clone(), s.take()))
            .collect();
        known.retain(|_, series| Rc::strong_count(series) > 1);
        growth
    }
}

/// Istio's "received" is what the server received, its "sent" what the server answered, whoever reports. `Bytes2::sent`
/// is what left this pod: the request of an outbound connection, the answer of an inbound one.
fn count_bytes(connection: &Connection) {
    let series = connection.series.borrow();
    let Some(series) = &*series else { return };
    let now = (
        connection.counts.sent.get(),
        connection.counts.received.get(),
    );
    let before = connection.counted.replace(now);
    let (out, back) = if connection.kind == Kind::Outbound {
        (RECEIVED, SENT)
    } else {
        (SENT, RECEIVED)
    };
    series.add(out, now.0 - before.0);
    series.add(back, now.1 - before.1);
}

#[derive(Debug)]
struct Total {
    counts: Counts,
    grew: Instant,
}

impl Total {
    fn is_idle(&self) -> bool {
        self.counts[OPENED] == self.counts[CLOSED]
    }
}

/// Not below zero, which is false.
fn count_down(left: &Cell<usize>) -> bool {
    let before = left.get();
    left.set(before.saturating_sub(1));
    before > 0
}

/// All workers' counters together.
#[derive(Debug)]
pub struct Totals {
    series: HashMap<Arc<str>, Total>,
    most: usize,
    /// How many were forgotten.
    evicted: u64,
}

impl Totals {
    pub fn new(most: usize) -> Self {
        Self {
            series: HashMap::new(),
            most,
            evicted: 0,
        }
    }

    pub fn add(&mut self, growth: Growth, now: Instant) {
        for (labels, counts) in growth {
            if counts == [0; COUNTERS] {
                continue;
            }
            let fresh = || Total {
                counts: [0; COUNTERS],
                grew: now,
            };
            let total = self.series.entry(labels).or_insert_with(fresh);
            total.grew = now;
            (0..COUNTERS).for_each(|i| total.counts[i] += counts[i]);
        }
        self.forget(|total| now.saturating_duration_since(total.grew) >= SILENT);
        if self.series.len() > self.most {
            self.forget_idle();
        }
    }

    fn forget(&mut self, which: impl Fn(&Total) -> bool) {
        let before = self.series.len();
        self.series
            .retain(|_, total| !(total.is_idle() && which(total)));
        self.evicted += (before - self.series.len()) as u64;
    }

    /// Down to nine tenths of the bound, so that it is not done for every new series.
    fn forget_idle(&mut self) {
        let surplus = self.series.len() - self.most * 9 / 10;
        let idle = self.series.values().filter(|total| total.is_idle());
        let mut ages: Vec<_> = idle.map(|total| total.grew).collect();
        ages.sort_unstable();
        let Some(&last) = ages.get(surplus.min(ages.len()).wrapping_sub(1)) else {
            return; // every one has an open connection
        };
        let left = Cell::new(
            ages.iter()
                .take(surplus)
                .filter(|age| **age == last)
                .count(),
        );
        self.forget(|total| total.grew < last || total.grew == last && count_down(&left));
    }

    pub fn evicted(&self) -> u64 {
        self.evicted
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &Counts)> {
        self.series
            .iter()
            .map(|(labels, total)| (&**labels, &total.counts))
    }
}

/// Tunnels to us that came to nothing or ended for what the peer did, by `ServeError::reason`. All workers count here: it
/// is not the hot path.
#[derive(Debug, Default)]
pub struct TurnedAway(Mutex<BTreeMap<&'static str, u64>>);

impl TurnedAway {
    pub fn count(&self, reason: &'static str) {
        *self.locked().entry(reason).or_default() += 1;
    }

    pub fn all(&self) -> Vec<(&'static str, u64)> {
        self.locked()
            .iter()
            .map(|(reason, n)| (*reason, *n))
            .collect()
    }

    fn locked(&self) -> MutexGuard<'_, BTreeMap<&'static str, u64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strangers() -> Parties {
        Parties::between(([10, 0, 0, 1], 1).into(), ([10, 0, 0, 2], 2).into())
    }

    #[test]
    fn growth_is_handed_over_once_and_idle_series_are_forgotten_here() {
        let (meter, registry) = (Meter::default(), Rc::<Registry>::default());
        meter.failed(Kind::Outbound, &strangers(), "CONNECT");
        let growth = meter.hand_over(&registry);
        assert_eq!(
            growth.iter().map(|(_, c)| c[FAILED]).collect::<Vec<_>>(),
            [1]
        );
        assert!(meter.hand_over(&registry).is_empty());
    }

    fn named(n: u64) -> Arc<str> {
        format!("series {n}").into()
    }

    fn left(totals: &Totals) -> Vec<String> {
        let mut left: Vec<_> = totals.iter().map(|(labels, _)| labels.to_owned()).collect();
        left.sort();
        left
    }

    #[test]
    fn the_bound_takes_the_series_that_are_idle_for_longest() {
        let (mut totals, start) = (Totals::new(10), Instant::now());
        totals.add(vec![(named(0), [1, 0, 0, 0, 0])], start);
        for n in 1..=10 {
            totals.add(
                vec![(named(n), [1, 1, 0, 0, 0])],
                start + Duration::from_secs(n),
            );
        }
        let left = left(&totals);
        assert_eq!((left.len(), totals.evicted()), (9, 2));
        assert!(
            left.contains(&named(0).to_string()),
            "it has an open connection"
        );
        assert!(!left.contains(&named(1).to_string()) && !left.contains(&named(2).to_string()));
    }

    #[test]
    fn pods_that_come_and_go_leave_no_more_than_the_bound_and_who_returns_begins_anew() {
        let (mut totals, start) = (Totals::new(100), Instant::now());
        totals.add(vec![("open".into(), [1, 0, 10, 10, 0])], start);
        for n in 0..1000 {
            let now = start + Duration::from_secs(n);
            totals.add(vec![(named(n), [1, 1, 30, 40, 0])], now);
            assert!(left(&totals).len() <= 100, "after {n} pods");
        }
        let of =
            |totals: &Totals, name: &str| totals.iter().find(|(l, _)| *l == name).map(|(_, c)| *c);
        assert_eq!(of(&totals, "open"), Some([1, 0, 10, 10, 0]));
        assert_eq!(left(&totals).len() as u64 + totals.evicted(), 1001);
        assert_eq!(of(&totals, "series 0"), None);
        totals.add(
            vec![(named(0), [1, 1, 5, 6, 0])],
            start + Duration::from_secs(1000),
        );
        assert_eq!(of(&totals, "series 0"), Some([1, 1, 5, 6, 0]));
        totals.add(Vec::new(), start + Duration::from_secs(1000) + 2 * SILENT);
        assert_eq!(left(&totals), ["open"], "nobody else has news");
    }

    #[test]
    fn of_many_that_grew_at_once_only_the_surplus_goes() {
        let mut totals = Totals::new(10);
        let all = (0..12).map(|n| (named(n), [0, 0, 0, 0, 1])).collect();
        totals.add(all, Instant::now());
        assert_eq!((left(&totals).len(), totals.evicted()), (9, 3));
    }

    #[test]
    fn who_is_silent_for_an_hour_is_forgotten_unless_a_connection_is_open() {
        let (mut totals, start) = (Totals::new(10), Instant::now());
        totals.add(
            vec![
                (named(0), [1, 0, 0, 0, 0]),
                (named(1), [1, 1, 0, 0, 0]),
                (named(2), [0, 0, 0, 0, 1]),
            ],
            start,
        );
        totals.add(
            vec![(named(2), [0, 0, 0, 0, 1])],
            start + Duration::from_secs(1),
        );
        totals.add(Vec::new(), start + SILENT);
        assert_eq!(left(&totals), ["series 0", "series 2"]);
    }
}
