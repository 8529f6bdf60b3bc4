//! The streams that live, and a short memory of those that died.
//!
//! A stream is forgotten when both directions ended and the application took all its payload, or when it was reset.

use std::cell::Cell;
use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};

use super::StreamId;
use super::flow::{ReceiveWindow, SendWindow};

/// How many streams we reset or saw ending are remembered, to tell late frames from wrong ones.
const REMEMBERED: usize = 256;

pub(super) struct Stream {
    pub(super) send: SendWindow,
    pub(super) receive: ReceiveWindow,
    /// Payload lent to the application and not yet `consumed`.
    pub(super) unconsumed: u32,
    /// The owner was told that there is no room; it waits for SendReady.
    pub(super) blocked: Cell<bool>,
    pub(super) local_ended: bool,
    pub(super) remote_ended: bool,
    /// Client: the final response came. Server: we responded.
    pub(super) answered: bool,
}

impl Stream {
    pub(super) fn new(send: u32, receive: u32) -> Self {
        Self {
            send: SendWindow::new(send),
            receive: ReceiveWindow::new(receive),
            unconsumed: 0,
            blocked: Cell::new(false),
            local_ended: false,
            remote_ended: false,
            answered: false,
        }
    }

    pub(super) fn finished(&self) -> bool {
        self.local_ended && self.remote_ended
    }
}

/// Numbers are dense and at most a few hundred live at a time: one multiplication spreads them.
#[derive(Default)]
pub(super) struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u32(u32::from(*byte));
        }
    }

    fn write_u32(&mut self, id: u32) {
        self.0 = (self.0 ^ u64::from(id)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

#[derive(Default)]
pub(super) struct Streams {
    living: HashMap<StreamId, Stream, BuildHasherDefault<IdHasher>>,
    /// Living streams that are not finished.
    open: usize,
    reset_by_us: VecDeque<StreamId>,
    ended: VecDeque<StreamId>,
}

impl Streams {
    pub(super) fn get(&self, id: StreamId) -> Option<&Stream> {
        self.living.get(&id)
    }

    pub(super) fn get_mut(&mut self, id: StreamId) -> Option<&mut Stream> {
        self.living.get_mut(&id)
    }

    pub(super) fn all_mut(&mut self) -> impl Iterator<Item = (StreamId, &mut Stream)> {
        self.living.iter_mut().map(|(id, stream)| (*id, stream))
    }

    pub(super) fn insert(&mut self, id: StreamId, stream: Stream) {
        self.living.insert(id, stream);
        self.open += 1;
    }

    /// Streams that are not finished: what SETTINGS_MAX_CONCURRENT_STREAMS counts.
    pub(super) fn open(&self) -> usize {
        self.open
    }

    /// With the finished ones whose payload the application has not taken yet.
    pub(super) fn living(&self) -> usize {
        self.living.len()
    }

    /// Both directions have just ended; forgets the stream if nothing is unconsumed.
    pub(super) fn finish(&mut self, id: StreamId) {
        self.open -= 1;
        remember(&mut self.ended, id);
        self.forget_if_consumed(id);
    }

    pub(super) fn forget_if_consumed(&mut self, id: StreamId) {
        if self
            .get(id)
            .is_some_and(|stream| stream.finished() && stream.unconsumed == 0)
        {
            self.living.remove(&id);
        }
    }

    /// Forgets the stream at once, whatever its state.
    pub(super) fn remove(&mut self, id: StreamId) -> Option<Stream> {
        let stream = self.living.remove(&id)?;
        if !stream.finished() {
            self.open -= 1;
            remember(&mut self.ended, id);
        }
        Some(stream)
    }

    pub(super) fn remember_reset(&mut self, id: StreamId) {
        remember(&mut self.reset_by_us, id);
    }

    /// The peer may not know yet that we reset it: its frames are late, not wrong.
    pub(super) fn was_reset_by_us(&self, id: StreamId) -> bool {
        self.reset_by_us.contains(&id)
    }

    pub(super) fn ended_lately(&self, id: StreamId) -> bool {
        self.ended.contains(&id)
    }
}

fn remember(memory: &mut VecDeque<StreamId>, id: StreamId) {
    if memory.len() == REMEMBERED {
        memory.pop_front();
    }
    memory.push_back(id);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idle_stream_costs_less_than_300_bytes() {
        // A hash map is at its emptiest when it has just doubled: 7/16 full, one more byte for each place.
        let place = size_of::<(StreamId, Stream)>() + 1;
        assert!(place * 16 / 7 < 300, "{place}");
    }

    #[test]
    fn what_died_is_remembered_for_a_while() {
        let mut streams = Streams::default();
        for n in 0..1000 {
            let id = StreamId(2 * n + 1);
            streams.insert(id, Stream::new(0, 0));
            streams.remove(id);
            streams.remember_reset(id);
        }
        assert!(streams.was_reset_by_us(StreamId(1999)) && streams.ended_lately(StreamId(1999)));
        assert!(!streams.was_reset_by_us(StreamId(1)) && !streams.ended_lately(StreamId(1)));
        assert_eq!(
            (streams.open(), streams.living(), streams.ended.len()),
            (0, 0, REMEMBERED)
        );
    }
}
