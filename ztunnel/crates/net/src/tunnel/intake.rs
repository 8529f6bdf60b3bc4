//! From ciphertext to events: one large read, records opened in place, frames parsed, payload handed on.
//!
//! Owns the order in which things that arrived together take effect: requests and answers first, then payload, then
//! ends and resets, so that no byte is lost to the reset behind it.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;

use ztunnel_core::h2::{Event, Headers, RequestHead, StreamId, code};

use super::forward::read_once;
use super::stream::{Failure, Segment};
use super::{Early, Incoming, State, Tunnel};
use crate::tls::{Content, Opener, RECORD_HEADER};

/// One read from a tunnel's socket.
const READ: usize = 256 << 10;
/// The rest of a record before it: at most one record's length.
const TAIL: usize = 17 << 10;
/// RFC 8446 §4.6.3.
const KEY_UPDATE: u8 = 24;
const NEW_SESSION_TICKET: u8 = 4;
/// A handshake message after the handshake is a ticket or five bytes.
const MAX_MESSAGE: usize = 16 << 10;
/// KeyUpdates closer together than this are counted, and too many of them end the tunnel.
const RECORDS_BETWEEN_UPDATES: u32 = 1024;
const HASTY_UPDATES: u32 = 32;

thread_local! {
    /// One per thread, in use only while a read is worked off.
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

#[derive(Default)]
struct Scratch {
    bytes: Vec<u8>,
    batch: Batch,
}

/// What one read brought.
#[derive(Default)]
struct Batch {
    heads: Vec<Head>,
    /// Payload, by its place in the scratch bytes.
    payload: Vec<Segment>,
    after: Vec<After>,
}

enum Head {
    Request {
        id: StreamId,
        head: RequestHead,
        end: bool,
    },
    Response {
        id: StreamId,
        status: u16,
        headers: Headers,
        end: bool,
    },
}

enum After {
    End(StreamId),
    Reset(StreamId, u32),
    SendReady(StreamId),
    GoAway,
}

impl Batch {
    /// `base`, `input`: the plaintext that `event` lies in, and its place in the scratch bytes.
    fn note(
        &mut self,
        event: Event<'_>,
        input: &[u8],
        base: usize,
        settings: &std::cell::Cell<bool>,
    ) {
        match event {
            Event::Request { id, head, end } => self.heads.push(Head::Request { id, head, end }),
            Event::Response {
                id,
                status,
                headers,
                end,
            } => {
                self.heads.push(Head::Response {
                    id,
                    status,
                    headers,
                    end,
                });
            }
            Event::Data { id, payload, end } => {
                if !payload.is_empty() {
                    // The engine lends payload out of its input, so its place there is its place in the scratch.
                    let at = base + (payload.as_ptr() as usize - input.as_ptr() as usize);
                    self.payload.push((id, at..at + payload.len()));
                }
                if end {
                    self.after.push(After::End(id));
                }
            }
            Event::Trailers { id } => self.after.push(After::End(id)),
            Event::Reset { id, code } => self.after.push(After::Reset(id, code)),
            Event::SendReady { id } => self.after.push(After::SendReady(id)),
            Event::GoAway { .. } => self.after.push(After::GoAway),
            Event::Settings => settings.set(true),
            // Whoever found the tunnel full has dialled another one; any byte is sign enough of life.
            Event::Opened | Event::Pong(_) => {}
        }
    }
}

/// Whether the socket may have more.
#[derive(PartialEq, Eq)]
pub(super) enum Taken {
    All,
    More,
}

/// The tunnel is over: in order (the peer said so), or for a reason.
pub(super) enum Over {
    Closed,
    Broken(String),
    /// What the peer sent is against the rules. With one of a few words for counting.
    Offence(&'static str, String),
}

/// What is wrong with a record or a message of TLS.
impl From<String> for Over {
    fn from(why: String) -> Self {
        Self::Offence("tls_record", why)
    }
}

impl Tunnel {
    /// What came with the handshake, before the first read.
    pub(super) fn take_early(
        self: &Rc<Self>,
        early: Early,
        on_request: &dyn Fn(Incoming),
    ) -> Result<(), Over> {
        SCRATCH.with_borrow_mut(|scratch| {
            let Scratch { bytes, batch } = scratch;
            bytes.resize(
                (READ + TAIL)
                    .max(early.plaintext.len())
                    .max(early.ciphertext.len()),
                0,
            );
            bytes[..early.plaintext.len()].copy_from_slice(&early.plaintext);
            let taken = self.receive(&bytes[..early.plaintext.len()], 0, batch);
            self.hand_out(bytes, batch, on_request);
            taken?;
            bytes[..early.ciphertext.len()].copy_from_slice(&early.ciphertext);
            self.work_off(bytes, early.ciphertext.len(), batch, on_request)
        })
    }

    /// One read and everything in it.
    pub(super) fn take(self: &Rc<Self>, on_request: &dyn Fn(Incoming)) -> Result<Taken, Over> {
        SCRATCH.with_borrow_mut(|scratch| {
            let Scratch { bytes, batch } = scratch;
            bytes.resize(bytes.len().max(READ + TAIL), 0);
            let kept = self.restore_tail(bytes);
            let mut slices = [io::IoSliceMut::new(&mut bytes[kept..kept + READ])];
            let read = match read_once(&self.tcp, &mut slices) {
                Ok(0) => return Err(Over::Closed),
                Ok(read) => read,
                Err(why) if why.kind() == io::ErrorKind::WouldBlock => {
                    self.save_tail(&bytes[..kept]);
                    return Ok(Taken::All);
                }
                Err(why) => return Err(Over::Broken(format!("the connection broke: {why}"))),
            };
            self.heard.set(true);
            self.work_off(bytes, kept + read, batch, on_request)?;
            Ok(if read == READ {
                Taken::More
            } else {
                Taken::All
            })
        })
    }

    fn restore_tail(&self, bytes: &mut [u8]) -> usize {
        let mut state = self.state.borrow_mut();
        let kept = state.tail.len();
        bytes[..kept].copy_from_slice(&state.tail);
        state.tail.clear();
        kept
    }

    fn save_tail(&self, rest: &[u8]) {
        let mut state = self.state.borrow_mut();
        if rest.is_empty() && state.tail.capacity() > 0 {
            state.tail = Vec::new();
        }
        state.tail.extend_from_slice(rest);
    }

    fn work_off(
        self: &Rc<Self>,
        bytes: &mut [u8],
        filled: usize,
        batch: &mut Batch,
        on_request: &dyn Fn(Incoming),
    ) -> Result<(), Over> {
        let opened = self.open_records(&mut bytes[..filled], batch);
        // Even when the connection is broken now: what came before the break counts.
        self.hand_out(bytes, batch, on_request);
        let used = opened?;
        self.save_tail(&bytes[used..filled]);
        Ok(())
    }

    /// Every whole record in `bytes`. Returns where the first incomplete one begins.
    fn open_records(&self, bytes: &mut [u8], batch: &mut Batch) -> Result<usize, Over> {
        let mut at = 0;
        while let Some(len) = Opener::record_length(&bytes[at..])? {
            let (content, size) = self
                .state
                .borrow_mut()
                .opener
                .open(&mut bytes[at..at + len])?;
            let base = at + RECORD_HEADER;
            let plain = &bytes[base..base + size];
            match content {
                Content::Data => self.receive(plain, base, batch)?,
                Content::Handshake => self.state.borrow_mut().take_messages(plain)?,
                Content::Alert => return Err(alert(plain)),
            }
            at += len;
        }
        Ok(at)
    }

    fn receive(&self, plain: &[u8], base: usize, batch: &mut Batch) -> Result<(), Over> {
        let mut state = self.state.borrow_mut();
        state.records_since_update = state.records_since_update.saturating_add(1);
        let seen = &self.settings_seen;
        let received = state
            .h2
            .receive(plain, &mut |event| batch.note(event, plain, base, seen));
        if !state.h2.output().is_empty() {
            self.dirty.set(true);
        }
        received.map_err(|why| Over::Offence(code::name(why.code), why.to_string()))
    }

    fn hand_out(self: &Rc<Self>, bytes: &[u8], batch: &mut Batch, on_request: &dyn Fn(Incoming)) {
        for head in batch.heads.drain(..) {
            self.take_head(head, on_request);
        }
        self.hand_out_payload(bytes, &mut batch.payload);
        for event in batch.after.drain(..) {
            self.take_after(event);
        }
    }

    fn take_head(self: &Rc<Self>, head: Head, on_request: &dyn Fn(Incoming)) {
        match head {
            Head::Request { id, head, end } => {
                let stream = self.admit(id);
                stream.state.remote_end.set(end);
                on_request(Incoming {
                    head,
                    peer: self.peer.clone(),
                    peer_addr: self.peer_addr,
                    local_addr: self.local_addr,
                    stream,
                });
            }
            Head::Response {
                id,
                status,
                headers,
                end,
            } => {
                if let Some(stream) = self.streams.borrow().get(&id) {
                    stream.remote_end.set(end);
                    *stream.response.borrow_mut() = Some((status, headers));
                    stream.waker.wake();
                }
            }
        }
    }

    /// All payload of one stream in one vectored write: a write per record costs half the throughput.
    fn hand_out_payload(&self, bytes: &[u8], payload: &mut Vec<Segment>) {
        payload.sort_by_key(|(id, _)| *id); // stable: the order within a stream stays
        for group in payload.chunk_by(|(a, _), (b, _)| a == b) {
            let id = group[0].0;
            let stream = self.streams.borrow().get(&id).cloned();
            let taken = match stream {
                Some(stream) => stream.deliver(bytes, group),
                // Its user has left: nobody will ever take these bytes.
                None => group.iter().map(|(_, range)| range.len()).sum(),
            };
            if taken > 0 {
                self.consumed(id, taken);
            }
        }
        payload.clear();
    }

    fn take_after(&self, event: After) {
        let stream = |id| self.streams.borrow().get(&id).cloned();
        match event {
            After::End(id) => {
                if let Some(stream) = stream(id) {
                    stream.remote_end.set(true);
                    stream.waker.wake();
                }
            }
            After::Reset(id, code) => {
                if let Some(stream) = stream(id) {
                    stream.fail(Failure::Reset(code));
                }
            }
            After::SendReady(id) => {
                if let Some(stream) = stream(id) {
                    stream.waker.wake();
                }
            }
            After::GoAway => self.leaving.set(true),
        }
    }
}

impl State {
    /// Messages of TLS itself after the handshake (RFC 8446 §4.6); they may be spread over records.
    fn take_messages(&mut self, plain: &[u8]) -> Result<(), String> {
        self.message.extend_from_slice(plain);
        while let Some(&[kind, a, b, c]) = self.message.first_chunk() {
            let len = 4 + u32::from_be_bytes([0, a, b, c]) as usize;
            if len > MAX_MESSAGE {
                return Err(format!("a TLS message of {len} bytes after the handshake"));
            }
            if self.message.len() < len {
                return Ok(());
            }
            match (kind, &self.message[4..len]) {
                (NEW_SESSION_TICKET, _) => {} // no resumption: it would outlive a revoked identity
                (KEY_UPDATE, &[wants_ours]) => self.update_key(wants_ours)?,
                _ => return Err(format!("a TLS message of type {kind} after the handshake")),
            }
            self.message.drain(..len);
        }
        Ok(())
    }

    fn update_key(&mut self, wants_ours: u8) -> Result<(), String> {
        if self.records_since_update < RECORDS_BETWEEN_UPDATES {
            self.hasty_updates += 1;
        }
        self.records_since_update = 0;
        if self.hasty_updates > HASTY_UPDATES {
            return Err("the peer changes its key over and over".to_owned());
        }
        self.opener = self.rekey.next_opener()?;
        if wants_ours == 1 {
            self.change_own_key()
        } else {
            Ok(())
        }
    }

    /// Announces a new key of ours and takes it into use.
    pub(super) fn change_own_key(&mut self) -> Result<(), String> {
        self.outbox
            .push_message(Content::Handshake, &[KEY_UPDATE, 0, 0, 1, 0])?;
        let next = self.rekey.next_sealer()?;
        self.outbox.change_key(next)
    }
}

fn alert(plain: &[u8]) -> Over {
    match plain {
        [_, 0] => Over::Closed,
        [_, code] => {
            let name = rustls::AlertDescription::from(*code);
            Over::Broken(format!("the peer refused us with alert {name:?}"))
        }
        _ => Over::Broken("a malformed TLS alert".to_owned()),
    }
}
