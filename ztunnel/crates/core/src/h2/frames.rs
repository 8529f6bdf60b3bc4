//! What each frame from the peer does to the connection (RFC 9113 §6), except SETTINGS (`settings.rs`) and header blocks
//! (`heads.rs`).

use super::connection::Connection;
use super::frame::{self, FrameHead, flag, kind, u32_at};
use super::receive::{DataFrame, Expect, protocol_error, skip_or_head};
use super::streams::Stream;
use super::{ConnectionError, Event, Role, StreamId, code};

type On<'a> = &'a mut dyn FnMut(Event<'_>);

const EMPTY_DATA_COST: u32 = 10;

impl Connection {
    pub(super) fn on_frame(
        &mut self,
        head: FrameHead,
        payload: &[u8],
        on: On<'_>,
    ) -> Result<(), ConnectionError> {
        let on_connection = matches!(head.kind, kind::SETTINGS | kind::PING | kind::GOAWAY);
        if head.kind != kind::WINDOW_UPDATE && on_connection != (head.id.0 == 0) {
            return Err(protocol_error("a frame on the wrong stream"));
        }
        match head.kind {
            kind::HEADERS => self.on_headers(head, payload, on),
            kind::CONTINUATION => self.on_continuation(head, payload, on),
            kind::WINDOW_UPDATE => {
                self.on_window_update(head.id, u32_at(payload, 0) & 0x7fff_ffff, on)
            }
            kind::RST_STREAM => self.on_reset(head.id, u32_at(payload, 0), on),
            kind::SETTINGS => self.on_settings(head, payload, on),
            kind::PING => self.on_ping(head, payload, on),
            kind::GOAWAY => self.on_go_away(payload, on),
            _ => self.guard.control(1), // PRIORITY: obsolete (RFC 9113 §5.3.2)
        }
    }

    /// A DATA frame begins. `overhead`: its pad length byte and padding, which count against the windows too.
    pub(super) fn begin_data(
        &mut self,
        head: FrameHead,
        overhead: u32,
        on: On<'_>,
    ) -> Result<(), ConnectionError> {
        if head.id.0 == 0 {
            return Err(protocol_error("DATA on stream 0"));
        }
        self.receive
            .take(head.len)
            .map_err(|_| flow_error("the connection's window is overrun"))?;
        let left = head.len - overhead;
        let unread = head.len - overhead.min(1);
        let Some(piled) = self.judge_data(head, on)? else {
            self.give_back_connection(head.len);
            self.reader.expect = skip_or_head(unread);
            return Ok(());
        };
        let end = head.has(flag::END_STREAM);
        self.charge_data(left, overhead, end, piled)?;
        if overhead > 0 {
            self.give_back(head.id, overhead);
        }
        let padding = unread - left;
        if left > 0 {
            self.reader.expect = Expect::Data(DataFrame {
                id: head.id,
                left,
                padding,
                end,
            });
            return Ok(());
        }
        self.reader.expect = skip_or_head(padding);
        if end {
            self.on_data(head.id, &[], true, on);
        }
        Ok(())
    }

    /// Whether payload already waits on the stream; None if it takes no DATA.
    fn judge_data(&mut self, head: FrameHead, on: On<'_>) -> Result<Option<bool>, ConnectionError> {
        let client = self.config.role == Role::Client;
        let Some(stream) = self.streams.get_mut(head.id) else {
            self.on_closed_stream(head.id)?;
            return Ok(None);
        };
        let code = if stream.remote_ended {
            code::STREAM_CLOSED
        } else if client && !stream.answered {
            code::PROTOCOL_ERROR // RFC 9113 §8.1: DATA before the response
        } else if stream.receive.take(head.len).is_err() {
            code::FLOW_CONTROL_ERROR
        } else {
            return Ok(Some(stream.unconsumed > 0));
        };
        self.fail_stream(head.id, code, on)?;
        Ok(None)
    }

    fn charge_data(
        &mut self,
        len: u32,
        overhead: u32,
        end: bool,
        piled: bool,
    ) -> Result<(), ConnectionError> {
        if len == 0 && !end {
            return self.guard.control(EMPTY_DATA_COST);
        }
        if overhead > len.max(1) {
            self.guard.control(1)?;
        }
        self.guard.data_received(len, piled)
    }

    /// A piece of payload; on a stream that died within the frame it is given back unread.
    pub(super) fn on_data(&mut self, id: StreamId, payload: &[u8], end: bool, on: On<'_>) {
        let Some(stream) = self.streams.get_mut(id) else {
            return self.give_back_connection(payload.len() as u32);
        };
        stream.unconsumed += payload.len() as u32;
        if end {
            self.end_remote(id);
        }
        on(Event::Data { id, payload, end });
    }

    pub(super) fn end_remote(&mut self, id: StreamId) {
        let Some(stream) = self.streams.get_mut(id) else {
            return;
        };
        stream.remote_ended = true;
        if stream.local_ended {
            self.finish(id);
        }
    }

    /// A frame for a stream that does not live. Late frames after our reset are nobody's fault.
    fn on_closed_stream(&mut self, id: StreamId) -> Result<(), ConnectionError> {
        if self.is_idle(id) {
            return Err(protocol_error("a frame on a stream that was never opened"));
        }
        if self.streams.was_reset_by_us(id) {
            return Ok(());
        }
        self.guard.reset()?;
        self.put_reset(id, code::STREAM_CLOSED)
    }

    pub(super) fn is_idle(&self, id: StreamId) -> bool {
        id.0.is_multiple_of(2) || id > self.last
    }

    /// The stream broke the rules: we reset it, the owner is told, and the peer pays for it.
    pub(super) fn fail_stream(
        &mut self,
        id: StreamId,
        code: u32,
        on: On<'_>,
    ) -> Result<(), ConnectionError> {
        self.guard.reset()?;
        self.put_reset(id, code)?;
        self.streams.remember_reset(id);
        if let Some(stream) = self.streams.remove(id) {
            self.give_back_connection(stream.unconsumed);
            on(Event::Reset { id, code });
        }
        Ok(())
    }

    pub(super) fn put_reset(&mut self, id: StreamId, code: u32) -> Result<(), ConnectionError> {
        self.guard.reply(13, self.output.len())?;
        frame::put_reset(&mut self.output, id, code);
        Ok(())
    }

    fn on_reset(&mut self, id: StreamId, code: u32, on: On<'_>) -> Result<(), ConnectionError> {
        if self.is_idle(id) {
            return Err(protocol_error(
                "RST_STREAM on a stream that was never opened",
            ));
        }
        if self.is_finished(id) {
            return self.guard.control(1); // nothing left to reset; its payload is still the application's
        }
        let Some(stream) = self.streams.remove(id) else {
            return Ok(());
        };
        if self.config.role == Role::Server && !stream.answered {
            self.guard.reset()?; // work of ours is thrown away, and a place for more of it is free
        }
        self.give_back_connection(stream.unconsumed);
        on(Event::Reset { id, code });
        Ok(())
    }

    fn on_window_update(
        &mut self,
        id: StreamId,
        increment: u32,
        on: On<'_>,
    ) -> Result<(), ConnectionError> {
        self.guard.control(1)?;
        if id.0 == 0 {
            return self.on_connection_window(increment, on);
        }
        let Some(stream) = self.streams.get_mut(id) else {
            return if self.is_idle(id) {
                Err(protocol_error("WINDOW_UPDATE on an idle stream"))
            } else {
                Ok(())
            };
        };
        if increment == 0 {
            return self.fail_stream(id, code::PROTOCOL_ERROR, on);
        }
        if stream.send.grow(i64::from(increment)).is_err() {
            return self.fail_stream(id, code::FLOW_CONTROL_ERROR, on);
        }
        if stream.blocked.get() && stream.send.room() > 0 && self.send.room() > 0 {
            stream.blocked.set(false);
            on(Event::SendReady { id });
        }
        Ok(())
    }

    fn on_connection_window(&mut self, increment: u32, on: On<'_>) -> Result<(), ConnectionError> {
        if increment == 0 {
            return Err(protocol_error("WINDOW_UPDATE of 0"));
        }
        let was_closed = self.send.room() == 0;
        self.send
            .grow(i64::from(increment))
            .map_err(|_| flow_error("WINDOW_UPDATE past the largest window"))?;
        if was_closed {
            self.tell_ready(on);
        }
        Ok(())
    }

    /// SendReady for every stream that waited and has room, beginning behind the one that was told last.
    pub(super) fn tell_ready(&mut self, on: On<'_>) {
        if self.send.room() == 0 {
            return;
        }
        let ready = |(id, stream): (StreamId, &mut Stream)| {
            (stream.blocked.get() && stream.send.room() > 0).then_some(id)
        };
        let mut ids: Vec<StreamId> = self.streams.all_mut().filter_map(ready).collect();
        ids.sort_unstable();
        let behind = ids.partition_point(|id| *id <= self.last_ready);
        ids.rotate_left(behind);
        if let Some(&first) = ids.first() {
            self.last_ready = first;
        }
        for id in ids {
            if let Some(stream) = self.streams.get_mut(id) {
                stream.blocked.set(false);
                on(Event::SendReady { id });
            }
        }
    }

    fn on_ping(
        &mut self,
        head: FrameHead,
        payload: &[u8],
        on: On<'_>,
    ) -> Result<(), ConnectionError> {
        if !head.has(flag::ACK) {
            self.guard.control(1)?;
            self.guard.reply(17, self.output.len())?;
            frame::put(
                &mut self.output,
                kind::PING,
                flag::ACK,
                StreamId(0),
                payload,
            );
            return Ok(());
        }
        let Some(left) = self.pings_out.checked_sub(1) else {
            return self.guard.control(1);
        };
        self.pings_out = left;
        on(Event::Pong(
            u64::from(u32_at(payload, 0)) << 32 | u64::from(u32_at(payload, 4)),
        ));
        Ok(())
    }

    /// Our streams above `last` were never looked at: their owners may try elsewhere (RFC 9113 §6.8).
    fn on_go_away(&mut self, payload: &[u8], on: On<'_>) -> Result<(), ConnectionError> {
        self.guard.control(1)?;
        let last = StreamId(u32_at(payload, 0) & 0x7fff_ffff);
        let last = self.peer_last.map_or(last, |before| before.min(last));
        self.peer_last = Some(last);
        if self.config.role == Role::Client {
            self.abandon_above(last, on);
        }
        on(Event::GoAway {
            last,
            code: u32_at(payload, 4),
        });
        Ok(())
    }

    fn abandon_above(&mut self, last: StreamId, on: On<'_>) {
        let above =
            |(id, stream): (StreamId, &mut Stream)| (id > last && !stream.finished()).then_some(id);
        let mut ids: Vec<StreamId> = self.streams.all_mut().filter_map(above).collect();
        ids.sort_unstable();
        for id in ids {
            if let Some(stream) = self.streams.remove(id) {
                self.give_back_connection(stream.unconsumed);
                on(Event::Reset {
                    id,
                    code: code::REFUSED_STREAM,
                });
            }
        }
    }
}

pub(super) fn flow_error(why: &'static str) -> ConnectionError {
    ConnectionError {
        code: code::FLOW_CONTROL_ERROR,
        why,
    }
}
