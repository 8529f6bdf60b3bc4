//! What a header block from the peer does: a request, a response, trailers, or a refusal.
//!
//! Every complete block is decoded, even for a stream we refuse: the header tables of both ends must stay in step.

use super::connection::Connection;
use super::fields::{Fault, Fields, Response};
use super::frame::{FrameHead, flag};
use super::guard::calm;
use super::receive::{OpenBlock, protocol_error, size_error};
use super::streams::Stream;
use super::{ConnectionError, Event, Role, StreamId, code};

type On<'a> = &'a mut dyn FnMut(Event<'_>);

/// Enough for the longest list in frames of the smallest size (reference: h2 0.4, five).
const MAX_CONTINUATIONS: u32 = 4;
/// Stream dependency and weight, which HEADERS may carry (RFC 9113 §6.2).
const PRIORITY_LEN: usize = 5;

impl Connection {
    pub(super) fn on_headers(
        &mut self,
        head: FrameHead,
        payload: &[u8],
        on: On<'_>,
    ) -> Result<(), ConnectionError> {
        if head.id.0.is_multiple_of(2)
            || (self.config.role == Role::Client && self.is_idle(head.id))
        {
            return Err(protocol_error("HEADERS on a stream the peer may not open"));
        }
        let fragment = fragment(head, payload)?;
        let end_stream = head.has(flag::END_STREAM);
        if head.has(flag::END_HEADERS) {
            return self.on_block(head.id, fragment, end_stream, on);
        }
        let bytes = fragment.to_vec();
        self.reader.block = Some(OpenBlock {
            id: head.id,
            end_stream,
            bytes,
            continuations: 0,
        });
        Ok(())
    }

    pub(super) fn on_continuation(
        &mut self,
        head: FrameHead,
        payload: &[u8],
        on: On<'_>,
    ) -> Result<(), ConnectionError> {
        let Some(mut block) = self.reader.block.take() else {
            return Ok(());
        };
        block.bytes.extend_from_slice(payload);
        block.continuations += 1;
        if head.has(flag::END_HEADERS) {
            return self.on_block(block.id, &block.bytes, block.end_stream, on);
        }
        if block.continuations >= MAX_CONTINUATIONS {
            return Err(calm("too many CONTINUATION frames"));
        }
        self.reader.block = Some(block);
        Ok(())
    }

    fn on_block(
        &mut self,
        id: StreamId,
        block: &[u8],
        end: bool,
        on: On<'_>,
    ) -> Result<(), ConnectionError> {
        let mut fields = Fields::new(self.config.max_header_list);
        let decoded = self
            .decoder
            .decode(block, &mut |name, value| fields.add(name, value));
        decoded.map_err(|bad| ConnectionError {
            code: code::COMPRESSION_ERROR,
            why: bad.0,
        })?;
        match self.streams.get(id) {
            Some(stream) if stream.remote_ended => self.fail_stream(id, code::STREAM_CLOSED, on),
            Some(stream) if self.config.role == Role::Client && !stream.answered => {
                self.on_response(id, fields, end, on)
            }
            Some(_) => self.on_trailers(id, fields, end, on),
            None if self.config.role == Role::Server && id > self.last => {
                self.on_request(id, fields, end, on)
            }
            None => self.on_late_headers(id),
        }
    }

    fn on_request(
        &mut self,
        id: StreamId,
        fields: Fields,
        end: bool,
        on: On<'_>,
    ) -> Result<(), ConnectionError> {
        let full = self.streams.open() >= self.config.max_streams as usize
            || self.streams.living() >= self.config.max_streams as usize * 2;
        self.last = id;
        if self.last_promised.is_some() || full {
            return self.refuse_stream(id);
        }
        let head = match fields.request() {
            Ok(head) => head,
            Err(fault) => return self.refuse_head(id, fault, end, on),
        };
        let mut stream = Stream::new(self.peer.initial_window, self.initial_receive_window());
        stream.remote_ended = end;
        self.streams.insert(id, stream);
        on(Event::Request { id, head, end });
        Ok(())
    }

    /// Not looked at: the client may try again, here later or elsewhere now.
    fn refuse_stream(&mut self, id: StreamId) -> Result<(), ConnectionError> {
        self.guard.control(1)?;
        self.streams.remember_reset(id);
        self.put_reset(id, code::REFUSED_STREAM)
    }

    /// Too large gets a status the operator can read (RFC 6585 §5), then as anything malformed a reset.
    fn refuse_head(
        &mut self,
        id: StreamId,
        fault: Fault,
        end: bool,
        on: On<'_>,
    ) -> Result<(), ConnectionError> {
        if fault == Fault::Malformed {
            return self.fail_stream(id, code::PROTOCOL_ERROR, on);
        }
        let mut stream = Stream::new(0, 0);
        stream.remote_ended = end;
        self.streams.insert(id, stream);
        self.respond(id, 431, &[], true);
        self.guard.reset()?;
        self.reset(id, code::NO_ERROR);
        Ok(())
    }

    fn on_response(
        &mut self,
        id: StreamId,
        fields: Fields,
        end: bool,
        on: On<'_>,
    ) -> Result<(), ConnectionError> {
        let (status, headers) = match fields.response() {
            Ok(Response::Interim) if !end => return self.guard.control(1),
            Ok(Response::Final(status, headers)) => (status, headers),
            Err(Fault::TooLarge) => return self.fail_stream(id, code::ENHANCE_YOUR_CALM, on),
            Ok(Response::Interim) | Err(Fault::Malformed) => {
                return self.fail_stream(id, code::PROTOCOL_ERROR, on);
            }
        };
        if let Some(stream) = self.streams.get_mut(id) {
            stream.answered = true;
        }
        if end {
            self.end_remote(id);
        }
        on(Event::Response {
            id,
            status,
            headers,
            end,
        });
        Ok(())
    }

    fn on_trailers(
        &mut self,
        id: StreamId,
        fields: Fields,
        end: bool,
        on: On<'_>,
    ) -> Result<(), ConnectionError> {
        if fields.trailers().is_err() || !end {
            return self.fail_stream(id, code::PROTOCOL_ERROR, on);
        }
        self.end_remote(id);
        on(Event::Trailers { id });
        Ok(())
    }

    /// HEADERS for a stream that does not live and cannot be opened any more (RFC 9113 §5.1, §5.1.1).
    fn on_late_headers(&mut self, id: StreamId) -> Result<(), ConnectionError> {
        if self.streams.was_reset_by_us(id) {
            return self.guard.control(1);
        }
        if self.streams.ended_lately(id) {
            return Err(ConnectionError {
                code: code::STREAM_CLOSED,
                why: "HEADERS on a stream that ended",
            });
        }
        Err(protocol_error("a stream number below the last one"))
    }
}

/// The header block within a HEADERS payload, without padding and priority.
fn fragment(head: FrameHead, mut payload: &[u8]) -> Result<&[u8], ConnectionError> {
    let mut padding = 0;
    if head.has(flag::PADDED) {
        let (&first, rest) = payload
            .split_first()
            .ok_or(size_error("padded HEADERS without pad length"))?;
        (padding, payload) = (usize::from(first), rest);
    }
    if head.has(flag::PRIORITY) {
        payload = payload
            .get(PRIORITY_LEN..)
            .ok_or(size_error("HEADERS too short for its priority"))?;
    }
    let len = payload
        .len()
        .checked_sub(padding)
        .ok_or(protocol_error("padding longer than its frame"))?;
    Ok(&payload[..len])
}
