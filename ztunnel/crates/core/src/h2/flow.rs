//! Flow control (RFC 9113 §5.2, §6.9): what we may still send, and what the peer may still send us.

/// No window may pass this (RFC 9113 §6.9.1).
pub(super) const LARGEST_WINDOW: i64 = (1 << 31) - 1;
/// Both ends begin with this much, on streams and on the connection (RFC 9113 §6.9.2).
pub(super) const DEFAULT_WINDOW: u32 = 65_535;

/// The window passed its limit or was overrun.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Overflow;

/// What we may send. Negative after the peer shrank its initial window (RFC 9113 §6.9.2).
#[derive(Clone, Copy, Debug)]
pub(super) struct SendWindow(i64);

impl SendWindow {
    pub(super) fn new(size: u32) -> Self {
        Self(i64::from(size))
    }

    pub(super) fn room(self) -> usize {
        usize::try_from(self.0).unwrap_or(0)
    }

    pub(super) fn spend(&mut self, len: usize) {
        self.0 -= len as i64;
    }

    pub(super) fn grow(&mut self, by: i64) -> Result<(), Overflow> {
        self.0 += by;
        if self.0 > LARGEST_WINDOW {
            Err(Overflow)
        } else {
            Ok(())
        }
    }
}

/// What the peer may send us, and how much of what it sent is passed on but not yet given back.
#[derive(Clone, Copy, Debug)]
pub(super) struct ReceiveWindow {
    left: i64,
    due: u32,
}

impl ReceiveWindow {
    pub(super) fn new(size: u32) -> Self {
        Self {
            left: i64::from(size),
            due: 0,
        }
    }

    pub(super) fn take(&mut self, len: u32) -> Result<(), Overflow> {
        self.left -= i64::from(len);
        if self.left < 0 { Err(Overflow) } else { Ok(()) }
    }

    /// Gives `len` bytes back. Returns the increment to announce once half of a window of `size` is due: fewer
    /// WINDOW_UPDATEs, and the sender still never waits.
    pub(super) fn give_back(&mut self, len: u32, size: u32) -> Option<u32> {
        self.due += len;
        if self.due < size.div_ceil(2) {
            return None;
        }
        self.left += i64::from(self.due);
        Some(std::mem::take(&mut self.due))
    }

    /// Our smaller SETTINGS_INITIAL_WINDOW_SIZE is in force from the peer's ACK on.
    pub(super) fn shrink(&mut self, by: u32) {
        self.left -= i64::from(by);
    }
}
