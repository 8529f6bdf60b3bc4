//! Budgets against a peer that makes us work for nothing: rapid reset, floods of control frames, crumbs of DATA.
//!
//! There is no clock here. Useful traffic earns the budget back, and `tick`, called by the owner once a second, refills
//! what an honest but idle peer may use. A spent budget ends the connection with ENHANCE_YOUR_CALM.

use super::{ConnectionError, code};

/// PING, SETTINGS, PRIORITY, WINDOW_UPDATE, empty frames: a burst, and what each second adds.
const CONTROL_BURST: u32 = 1_000;
const CONTROL_PER_TICK: u32 = 10;
/// Frames smaller than `CRUMB` that pile up unread on their stream: each second.
const CRUMBS: u32 = 200_000;
const CRUMB: u32 = 256;
/// Replies queued while the peer reads none of them.
const REPLY_BYTES: usize = 16 << 10;

pub(super) struct Guard {
    control: u32,
    /// Requests that may be given up unanswered, and streams that we may be made to reset: each second as many as may be
    /// open at once, for a peer that gives up all it has is no attacker. A stream that was answered has had all that it
    /// asked for, and had to wait for it: to reset it costs no more than to end it.
    most_resets: u32,
    resets: u32,
    crumbs: u32,
    replies: usize,
}

impl Guard {
    /// `max_streams`: that may be open at once.
    pub(super) fn new(max_streams: u32) -> Self {
        Self {
            control: CONTROL_BURST,
            most_resets: max_streams,
            resets: max_streams,
            crumbs: CRUMBS,
            replies: 0,
        }
    }

    pub(super) fn tick(&mut self) {
        self.earn_control(CONTROL_PER_TICK);
        self.resets = self.most_resets;
        self.crumbs = CRUMBS;
    }

    /// A frame that carries nothing for the application.
    pub(super) fn control(&mut self, cost: u32) -> Result<(), ConnectionError> {
        spend(&mut self.control, cost, "too many control frames")
    }

    /// A stream was given up before we answered it, or reset by our judgement.
    pub(super) fn reset(&mut self) -> Result<(), ConnectionError> {
        spend(&mut self.resets, 1, "too many resets")
    }

    /// A stream lived its life: on balance every second one may be given up (reference: Envoy's premature resets).
    pub(super) fn stream_ended(&mut self) {
        self.resets = self.most_resets.min(self.resets + 1);
        self.earn_control(2);
    }

    /// The owner cancelled a stream: what the peer had sent for it by then may still come.
    pub(super) fn stream_cancelled(&mut self) {
        self.earn_control(2);
    }

    /// A DATA frame with `len` bytes of payload; `piled`: the application has not taken what came before.
    pub(super) fn data_received(&mut self, len: u32, piled: bool) -> Result<(), ConnectionError> {
        self.earn_control(len / CRUMB);
        if piled && len < CRUMB {
            return spend(&mut self.crumbs, 1, "too many small DATA frames");
        }
        self.crumbs = CRUMBS.min(self.crumbs + len / CRUMB);
        Ok(())
    }

    /// What we send comes back as WINDOW_UPDATEs, by honest peers at most two for each frame or KiB.
    pub(super) fn data_sent(&mut self, len: usize) {
        self.earn_control(2 + (len >> 9) as u32);
    }

    /// `len` bytes of reply are about to be queued behind `waiting` bytes of output.
    pub(super) fn reply(&mut self, len: usize, waiting: usize) -> Result<(), ConnectionError> {
        self.replies = self.replies.min(waiting) + len;
        if self.replies > REPLY_BYTES {
            return Err(calm("replies are not read"));
        }
        Ok(())
    }

    fn earn_control(&mut self, units: u32) {
        self.control = CONTROL_BURST.min(self.control + units);
    }
}

fn spend(budget: &mut u32, cost: u32, why: &'static str) -> Result<(), ConnectionError> {
    *budget = budget.checked_sub(cost).ok_or(calm(why))?;
    Ok(())
}

pub(super) fn calm(why: &'static str) -> ConnectionError {
    ConnectionError {
        code: code::ENHANCE_YOUR_CALM,
        why,
    }
}
