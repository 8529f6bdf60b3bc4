//! What the peer's SETTINGS do to us, and what its ACK does to ours (RFC 9113 §6.5).

use super::connection::Connection;
use super::flow::{DEFAULT_WINDOW, LARGEST_WINDOW};
use super::frame::{
    self, DEFAULT_MAX_FRAME, FrameHead, LARGEST_MAX_FRAME, flag, kind, setting, u32_at,
};
use super::frames::flow_error;
use super::receive::protocol_error;
use super::{ConnectionError, Event, Role, StreamId};

type On<'a> = &'a mut dyn FnMut(Event<'_>);

/// Each moves every stream's window.
const SETTINGS_COST: u32 = 10;

impl Connection {
    pub(super) fn on_settings(
        &mut self,
        head: FrameHead,
        payload: &[u8],
        on: On<'_>,
    ) -> Result<(), ConnectionError> {
        if head.has(flag::ACK) {
            return self.on_settings_ack();
        }
        self.guard.control(SETTINGS_COST)?;
        let window_before = self.peer.initial_window;
        for entry in payload.chunks_exact(6) {
            self.apply_setting(u16::from_be_bytes([entry[0], entry[1]]), u32_at(entry, 2))?;
        }
        self.move_windows(i64::from(self.peer.initial_window) - i64::from(window_before))?;
        self.guard.reply(9, self.output.len())?;
        frame::put(
            &mut self.output,
            kind::SETTINGS,
            flag::ACK,
            StreamId(0),
            &[],
        );
        if !std::mem::replace(&mut self.peer.seen, true) {
            on(Event::Settings);
        }
        self.tell_ready(on);
        self.tell_opened(on);
        Ok(())
    }

    fn apply_setting(&mut self, name: u16, value: u32) -> Result<(), ConnectionError> {
        match name {
            setting::HEADER_TABLE_SIZE => self.encoder.limit_table(value),
            setting::ENABLE_PUSH if value > u32::from(self.config.role == Role::Server) => {
                return Err(protocol_error("a bad SETTINGS_ENABLE_PUSH"));
            }
            setting::MAX_CONCURRENT_STREAMS => self.peer.max_streams = value,
            setting::INITIAL_WINDOW_SIZE if i64::from(value) > LARGEST_WINDOW => {
                return Err(flow_error(
                    "SETTINGS_INITIAL_WINDOW_SIZE past the largest window",
                ));
            }
            setting::INITIAL_WINDOW_SIZE => self.peer.initial_window = value,
            setting::MAX_FRAME_SIZE
                if !(DEFAULT_MAX_FRAME..=LARGEST_MAX_FRAME).contains(&value) =>
            {
                return Err(protocol_error("a bad SETTINGS_MAX_FRAME_SIZE"));
            }
            setting::MAX_FRAME_SIZE => self.peer.max_frame = value,
            _ => {}
        }
        Ok(())
    }

    /// RFC 9113 §6.9.2: open streams follow the initial window, below zero if need be.
    fn move_windows(&mut self, by: i64) -> Result<(), ConnectionError> {
        if by == 0 {
            return Ok(());
        }
        for (_, stream) in self.streams.all_mut() {
            stream
                .send
                .grow(by)
                .map_err(|_| flow_error("SETTINGS push a window past the largest"))?;
        }
        Ok(())
    }

    fn on_settings_ack(&mut self) -> Result<(), ConnectionError> {
        if std::mem::replace(&mut self.our_settings_acked, true) {
            return self.guard.control(1);
        }
        let excess = DEFAULT_WINDOW.saturating_sub(self.config.stream_window);
        if excess > 0 {
            self.streams
                .all_mut()
                .for_each(|(_, stream)| stream.receive.shrink(excess));
        }
        Ok(())
    }
}
