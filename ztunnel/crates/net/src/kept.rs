//! The configuration that an earlier life kept, read by as many threads as there are processors: until it is in force nobody
//! is served. Bundles are unpacked and decoded apart from one another while this thread puts them into a snapshot.

use std::num::NonZero;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread;
use ztunnel_core::tables::{Kept, Kind, Names, Tables};

const MOST_THREADS: usize = 4;
/// Bundles decoded and not put in yet.
const WAITING: usize = 2;

/// `names`: of each bundle, in their order. `refused`: (kind, name, why).
#[derive(Debug)]
pub struct Restored {
    pub names: Vec<Names>,
    pub refused: Vec<(Kind, String, String)>,
}

type Unpacked = (usize, Result<(Kept, Names), String>);

/// The next snapshot after `now`. `bundles`: as `Kept::unpack` takes them; no resource is in two. Err: one is damaged.
pub(crate) fn read(now: &Tables, bundles: &[(Kind, &[u8])]) -> Result<(Tables, Restored), String> {
    let (next, (send, receive)) = (AtomicUsize::new(0), sync_channel(WAITING));
    let (mut names, mut damage) = (vec![Names::new(); bundles.len()], None);
    let (tables, refused) = thread::scope(|scope| {
        for _ in 0..threads().min(bundles.len()) {
            let (next, send) = (&next, send.clone());
            scope.spawn(move || unpack(bundles, next, &send));
        }
        drop(send);
        // Also after a damaged one: who waits to send would wait for ever.
        now.with_kept(receive.into_iter().filter_map(|(place, unpacked)| {
            let (kept, its_names) = unpacked.map_err(|why| damage = Some(why)).ok()?;
            names[place] = its_names;
            Some(kept)
        }))
    });
    match damage {
        Some(why) => Err(why),
        None => Ok((tables, Restored { names, refused })),
    }
}

/// Takes one bundle after the other until none is left.
fn unpack(bundles: &[(Kind, &[u8])], next: &AtomicUsize, send: &SyncSender<Unpacked>) {
    loop {
        let place = next.fetch_add(1, Ordering::Relaxed);
        let Some((kind, packed)) = bundles.get(place) else {
            return;
        };
        if send.send((place, Kept::unpack(*kind, packed))).is_err() {
            return;
        }
    }
}

fn threads() -> usize {
    thread::available_parallelism()
        .map_or(1, NonZero::get)
        .min(MOST_THREADS)
}
