//! The connection as its owner sees it: what we open, answer, send, reset and give back.
//!
//! What the peer sends is read in `receive.rs` and acted on in `frames.rs` and `heads.rs`.

use std::cell::Cell;

use super::flow::{DEFAULT_WINDOW, ReceiveWindow, SendWindow};
use super::frame::{self, DEFAULT_MAX_FRAME, FrameHead, flag, kind, setting};
use super::guard::Guard;
use super::hpack::{Decoder, Encoder};
use super::receive::Reader;
use super::streams::{Stream, Streams};
use super::{Config, ConnectionError, Event, OpenRefused, Role, StreamId};

/// Stream numbers have 31 bits (RFC 9113 §5.1.1).
const LAST_ID: u32 = (1 << 31) - 1;
/// Longer frames would only make a stream wait for its neighbours.
const MAX_FRAME_SEND: u32 = 1 << 20;

/// What the peer's SETTINGS allow us.
pub(super) struct PeerSettings {
    pub(super) initial_window: u32,
    pub(super) max_frame: u32,
    pub(super) max_streams: u32,
    pub(super) seen: bool,
}

/// One HTTP/2 connection. It never blocks and knows no time; its owner moves the bytes and calls `tick`.
pub struct Connection {
    pub(super) config: Config,
    pub(super) reader: Reader,
    pub(super) streams: Streams,
    pub(super) decoder: Decoder,
    pub(super) encoder: Encoder,
    pub(super) send: SendWindow,
    pub(super) receive: ReceiveWindow,
    pub(super) peer: PeerSettings,
    pub(super) guard: Guard,
    pub(super) output: Vec<u8>,
    /// The highest stream the client opened, whichever end we are.
    pub(super) last: StreamId,
    pub(super) our_settings_acked: bool,
    pub(super) pings_out: u32,
    /// We said GOAWAY: the last stream it promised to look at.
    pub(super) last_promised: Option<StreamId>,
    /// The peer said GOAWAY: the last stream it will look at.
    pub(super) peer_last: Option<StreamId>,
    pub(super) dead: Option<ConnectionError>,
    /// `may_open` said no; the owner waits for Opened.
    opening_blocked: Cell<bool>,
    /// Where the last round of SendReady ended: the next begins behind it, so that nobody starves.
    pub(super) last_ready: StreamId,
    block: Vec<u8>,
}

impl Connection {
    /// Queues the preface (client), our SETTINGS and the connection's WINDOW_UPDATE as output.
    pub fn new(config: Config) -> Self {
        let mut connection = Self {
            reader: Reader::new(config.role),
            streams: Streams::default(),
            decoder: Decoder::new(),
            encoder: Encoder::default(),
            send: SendWindow::new(DEFAULT_WINDOW),
            receive: ReceiveWindow::new(config.connection_window.max(DEFAULT_WINDOW)),
            peer: PeerSettings {
                initial_window: DEFAULT_WINDOW,
                max_frame: DEFAULT_MAX_FRAME,
                max_streams: u32::MAX,
                seen: false,
            },
            guard: Guard::new(config.max_streams),
            output: Vec::new(),
            last: StreamId(0),
            our_settings_acked: false,
            pings_out: 0,
            last_promised: None,
            peer_last: None,
            dead: None,
            opening_blocked: Cell::new(false),
            last_ready: StreamId(0),
            block: Vec::new(),
            config,
        };
        connection.greet();
        connection
    }

    fn greet(&mut self) {
        let config = &self.config;
        let role = match config.role {
            Role::Client => (setting::ENABLE_PUSH, 0),
            Role::Server => (setting::MAX_CONCURRENT_STREAMS, config.max_streams),
        };
        if config.role == Role::Client {
            self.output.extend_from_slice(frame::PREFACE);
        }
        let ours = [
            role,
            (setting::INITIAL_WINDOW_SIZE, config.stream_window),
            (setting::MAX_FRAME_SIZE, config.max_frame),
            (setting::MAX_HEADER_LIST_SIZE, config.max_header_list),
        ];
        frame::put_settings(&mut self.output, &ours);
        if let Some(more @ 1..) = config.connection_window.checked_sub(DEFAULT_WINDOW) {
            frame::put_window_update(&mut self.output, StreamId(0), more);
        }
    }

    /// Takes bytes from the peer, in any chunking, and hands `on` what they mean. Payload is lent, never copied.
    /// Also with empty input it delivers what waited (`Opened` after a stream ended by our doing).
    /// After an error the connection is dead: send `output`, close.
    pub fn receive(
        &mut self,
        input: &[u8],
        on: &mut dyn FnMut(Event<'_>),
    ) -> Result<(), ConnectionError> {
        if let Some(error) = self.dead {
            return Err(error);
        }
        let result = self.read(input, on);
        if let Err(error) = result {
            self.dead = Some(error);
            let last = self.last_taken();
            frame::put_go_away(&mut self.output, last, error.code, error.why);
        }
        self.tell_opened(on);
        result
    }

    /// Client: a CONNECT to `authority`, without END_STREAM. Names of `headers` in lower case.
    pub fn open(
        &mut self,
        authority: &str,
        headers: &[(&str, &str)],
    ) -> Result<StreamId, OpenRefused> {
        debug_assert_eq!(self.config.role, Role::Client);
        self.check_open()?;
        self.last = self.next_id();
        let stream = Stream::new(self.peer.initial_window, self.initial_receive_window());
        self.streams.insert(self.last, stream);
        let pseudo = [(":method", "CONNECT"), (":authority", authority)];
        self.put_head(self.last, &pseudo, headers, false);
        Ok(self.last)
    }

    /// Server: the final response. Nothing happens if the stream is gone or was answered.
    pub fn respond(&mut self, id: StreamId, status: u16, headers: &[(&str, &str)], end: bool) {
        let Some(stream) = self
            .streams
            .get_mut(id)
            .filter(|stream| !stream.local_ended && !stream.answered)
        else {
            return;
        };
        stream.answered = true;
        let status = status.to_string();
        self.put_head(id, &[(":status", &status)], headers, end);
        if end {
            self.end_local(id);
        }
    }

    fn put_head(
        &mut self,
        id: StreamId,
        pseudo: &[(&str, &str)],
        headers: &[(&str, &str)],
        end: bool,
    ) {
        self.block.clear();
        self.encoder.begin(&mut self.block);
        for (name, value) in pseudo.iter().chain(headers) {
            self.encoder.field(&mut self.block, name, value);
        }
        let max_frame = self.max_frame_send();
        frame::put_block(&mut self.output, id, &self.block, end, max_frame);
    }

    /// Payload bytes that may go now. 0: SendReady will come, unless we are past the stream's end (`may_send`).
    pub fn send_room(&self, id: StreamId) -> usize {
        let Some(stream) = self.streams.get(id).filter(|stream| !stream.local_ended) else {
            return 0;
        };
        let room = stream.send.room().min(self.send.room());
        if room == 0 {
            stream.blocked.set(true);
        }
        room
    }

    /// The stream lives and we have not ended our direction of it.
    pub fn may_send(&self, id: StreamId) -> bool {
        self.streams
            .get(id)
            .is_some_and(|stream| !stream.local_ended)
    }

    /// The longest DATA payload for one frame.
    pub fn max_frame_send(&self) -> usize {
        self.peer.max_frame.min(MAX_FRAME_SEND) as usize
    }

    /// Books `len` bytes of payload, at most `send_room` and `max_frame_send`, and returns the head of their frame.
    /// To be sent in this order: `output`, the head, the payload. If the stream died meanwhile, the head is that of a
    /// frame every peer skips, so that the connection stays in step.
    pub fn data(&mut self, id: StreamId, len: usize, end: bool) -> [u8; 9] {
        debug_assert!(len <= self.max_frame_send());
        let flags = if end { flag::END_STREAM } else { 0 };
        let head = FrameHead {
            len: len as u32,
            kind: kind::DATA,
            flags,
            id,
        };
        let Some(stream) = self
            .streams
            .get_mut(id)
            .filter(|stream| !stream.local_ended)
        else {
            return FrameHead {
                kind: kind::SKIPPED,
                flags: 0,
                id: StreamId(0),
                ..head
            }
            .bytes();
        };
        stream.send.spend(len);
        self.send.spend(len);
        if stream.send.room() == 0 || self.send.room() == 0 {
            stream.blocked.set(true);
        }
        self.guard.data_sent(len);
        if end {
            self.end_local(id);
        }
        head.bytes()
    }

    /// Ends the stream at once, both ways, and gives back what the application did not take. Without effect on a
    /// stream that is gone.
    pub fn reset(&mut self, id: StreamId, code: u32) {
        let Some(stream) = self.streams.remove(id) else {
            return;
        };
        if !stream.finished() {
            frame::put_reset(&mut self.output, id, code);
            self.streams.remember_reset(id);
            self.guard.stream_cancelled();
        }
        self.give_back_connection(stream.unconsumed);
    }

    /// The application took `len` bytes of the stream's payload: lets the peer send as much again. To be called for
    /// every byte lent, unless the stream is reset.
    pub fn consumed(&mut self, id: StreamId, len: usize) {
        let Some(stream) = self.streams.get_mut(id) else {
            return;
        };
        let len = stream.unconsumed.min(len as u32);
        stream.unconsumed -= len;
        self.give_back(id, len);
        self.streams.forget_if_consumed(id);
    }

    /// Asks for a sign of life; the answer is Pong.
    pub fn ping(&mut self, payload: u64) {
        self.pings_out += 1;
        frame::put(
            &mut self.output,
            kind::PING,
            0,
            StreamId(0),
            &payload.to_be_bytes(),
        );
    }

    /// No new streams from here on, in either direction; those that live go on.
    pub fn go_away(&mut self, code: u32) {
        let last = self.last_taken();
        self.last_promised = Some(last);
        frame::put_go_away(&mut self.output, last, code, "");
    }

    /// To be called once a second: refills the budgets that an honest but idle peer lives on.
    pub fn tick(&mut self) {
        self.guard.tick();
    }

    /// Control bytes waiting to be sent; whoever sends them drains them.
    pub fn output(&mut self) -> &mut Vec<u8> {
        &mut self.output
    }

    /// Streams with at least one direction open.
    pub fn open_streams(&self) -> usize {
        self.streams.open()
    }

    /// Whether `open` would be granted. If it would not for want of streams, Opened will come.
    pub fn may_open(&self) -> bool {
        self.check_open().is_ok()
    }

    /// Both directions are closed.
    pub fn is_finished(&self, id: StreamId) -> bool {
        self.streams.get(id).is_none_or(Stream::finished)
    }

    fn check_open(&self) -> Result<(), OpenRefused> {
        let going_away = self.last_promised.is_some() || self.peer_last.is_some();
        if going_away || self.dead.is_some() || self.config.role == Role::Server {
            return Err(OpenRefused::GoingAway);
        }
        if self.next_id().0 > LAST_ID {
            return Err(OpenRefused::Exhausted);
        }
        if self.streams.open() >= self.peer.max_streams.min(self.config.max_streams) as usize {
            self.opening_blocked.set(true);
            return Err(OpenRefused::TooManyStreams);
        }
        Ok(())
    }

    fn next_id(&self) -> StreamId {
        StreamId(if self.last.0 == 0 { 1 } else { self.last.0 + 2 })
    }

    pub(super) fn tell_opened(&mut self, on: &mut dyn FnMut(Event<'_>)) {
        if self.opening_blocked.get() && self.may_open() {
            self.opening_blocked.set(false);
            on(Event::Opened);
        }
    }

    /// What a GOAWAY of ours names: the last of the peer's streams that we looked at.
    pub(super) fn last_taken(&self) -> StreamId {
        match self.config.role {
            Role::Client => StreamId(0),
            Role::Server => self.last_promised.unwrap_or(self.last),
        }
    }

    /// Until the peer acknowledged a smaller one, the default window holds (RFC 9113 §6.5.3).
    pub(super) fn initial_receive_window(&self) -> u32 {
        let ours = self.config.stream_window;
        if self.our_settings_acked {
            ours
        } else {
            ours.max(DEFAULT_WINDOW)
        }
    }

    fn end_local(&mut self, id: StreamId) {
        let Some(stream) = self.streams.get_mut(id) else {
            return;
        };
        stream.local_ended = true;
        stream.blocked.set(false);
        if stream.remote_ended {
            self.finish(id);
        }
    }

    pub(super) fn finish(&mut self, id: StreamId) {
        self.guard.stream_ended();
        self.streams.finish(id);
    }

    /// Gives `len` received bytes back to the stream and to the connection.
    pub(super) fn give_back(&mut self, id: StreamId, len: u32) {
        let size = self.config.stream_window;
        if let Some(stream) = self
            .streams
            .get_mut(id)
            .filter(|stream| !stream.remote_ended)
            && let Some(increment) = stream.receive.give_back(len, size)
        {
            frame::put_window_update(&mut self.output, id, increment);
        }
        self.give_back_connection(len);
    }

    pub(super) fn give_back_connection(&mut self, len: u32) {
        let size = self.config.connection_window.max(DEFAULT_WINDOW);
        if let Some(increment) = self.receive.give_back(len, size) {
            frame::put_window_update(&mut self.output, StreamId(0), increment);
        }
    }
}
