//! What waits to be sent on one tunnel, already as TLS records.
//!
//! Owns the layout: application bytes are read from their socket straight to where their record will be sealed, so that
//! a byte is touched by the kernel's copy and by the cipher and by nothing else. Owns no socket and no flow control.

use std::cell::RefCell;
use std::io::{self, IoSliceMut};

use crate::tls::{Content, MAX_PLAINTEXT, RECORD_HEADER, RECORD_TRAILER, Sealer};

/// RFC 9113 §4.1.
pub(super) const FRAME_HEADER: usize = 9;
/// Pieces of one scattered read: 256 KiB in 16 KiB frames, each split by a record's end, and some.
const MAX_PIECES: usize = 40;
/// Buffers kept per thread for the next tunnel that has something to send.
const SPARE_BUFFERS: usize = 4;
const SMALLEST_BUFFER: usize = 32 << 10;

thread_local! {
    /// A tunnel holds a buffer only while bytes wait in it: idle tunnels cost none, and the buffers in use stay warm.
    static SPARE: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// `[start..open)` sealed and unsent; `[open..end)` the record that still grows, its header not yet written.
pub(super) struct Outbox {
    buffer: Vec<u8>,
    start: usize,
    open: usize,
    end: usize,
    sealer: Sealer,
}

/// One stretch of a scattered read.
#[derive(Clone, Copy, Default)]
struct Piece {
    at: usize,
    len: usize,
    /// The record before this piece is full.
    seals: bool,
    /// A frame of this length begins here, its header right before `at`; 0: the frame goes on.
    frame: usize,
}

impl Outbox {
    pub(super) fn new(sealer: Sealer) -> Self {
        Self {
            buffer: Vec::new(),
            start: 0,
            open: 0,
            end: 0,
            sealer,
        }
    }

    /// Bytes that wait, give or take one record's overhead.
    pub(super) fn unsent(&self) -> usize {
        self.end - self.start
    }

    pub(super) fn is_empty(&self) -> bool {
        self.start == self.open && self.end <= self.open + RECORD_HEADER
    }

    pub(super) fn is_worn(&self) -> bool {
        self.sealer.is_worn()
    }

    /// Everything pushed from now on is sealed under the next key.
    pub(super) fn change_key(&mut self, next: Sealer) -> Result<(), String> {
        self.seal_open(Content::Data)?;
        self.sealer = next;
        Ok(())
    }

    /// Bytes of HTTP/2, copied behind what already waits.
    pub(super) fn push(&mut self, mut bytes: &[u8]) -> Result<(), String> {
        while !bytes.is_empty() {
            if self.room() == 0 {
                self.seal_open(Content::Data)?;
            }
            self.begin();
            let (now, later) = bytes.split_at(bytes.len().min(self.room()));
            self.ensure(self.end + now.len() + RECORD_TRAILER);
            self.buffer[self.end..][..now.len()].copy_from_slice(now);
            self.end += now.len();
            bytes = later;
        }
        Ok(())
    }

    /// A message of TLS itself, in a record of its own.
    pub(super) fn push_message(&mut self, content: Content, message: &[u8]) -> Result<(), String> {
        self.seal_open(Content::Data)?;
        self.push(message)?;
        self.seal_open(content)
    }

    /// Reads at most `limit` bytes through `read` into DATA frames of at most `max_frame`; `header` books each frame's
    /// length and returns its header. Returns what `read` returned; nothing is kept of a failed or empty read.
    pub(super) fn read_from(
        &mut self,
        limit: usize,
        max_frame: usize,
        read: impl FnOnce(&mut [IoSliceMut<'_>]) -> io::Result<usize>,
        header: impl FnMut(usize) -> [u8; FRAME_HEADER],
    ) -> io::Result<usize> {
        self.begin();
        let overhead = (limit / MAX_PLAINTEXT + 3)
            * (RECORD_HEADER + RECORD_TRAILER + FRAME_HEADER)
            + (limit / max_frame + 1) * 2 * FRAME_HEADER;
        self.ensure(self.end + limit + overhead);
        let (pieces, count) = self.lay_out(limit, max_frame);
        let read = scattered(&mut self.buffer, &pieces[..count], read)?;
        self.commit(&pieces[..count], read, header)
            .map_err(io::Error::other)?;
        Ok(read)
    }

    fn lay_out(&self, limit: usize, max_frame: usize) -> ([Piece; MAX_PIECES], usize) {
        let mut pieces = [Piece::default(); MAX_PIECES];
        let (mut record, mut cursor) = (self.open, self.end);
        let (mut left, mut frame_left, mut count) = (limit, 0, 0);
        while left > 0 && count < MAX_PIECES {
            let mut piece = Piece::default();
            let needed = if frame_left == 0 { FRAME_HEADER + 1 } else { 1 };
            if record + RECORD_HEADER + MAX_PLAINTEXT < cursor + needed {
                piece.seals = true;
                record = cursor + RECORD_TRAILER;
                cursor = record + RECORD_HEADER;
            }
            if frame_left == 0 {
                frame_left = left.min(max_frame);
                piece.frame = frame_left;
                cursor += FRAME_HEADER;
            }
            piece.at = cursor;
            piece.len = frame_left.min(record + RECORD_HEADER + MAX_PLAINTEXT - cursor);
            (cursor, frame_left, left) =
                (cursor + piece.len, frame_left - piece.len, left - piece.len);
            pieces[count] = piece;
            count += 1;
        }
        (pieces, count)
    }

    fn commit(
        &mut self,
        pieces: &[Piece],
        mut read: usize,
        mut header: impl FnMut(usize) -> [u8; FRAME_HEADER],
    ) -> Result<(), String> {
        for piece in pieces {
            if read == 0 {
                break;
            }
            if piece.seals {
                self.seal_open(Content::Data)?;
            }
            if piece.frame > 0 {
                let head = header(piece.frame.min(read));
                self.buffer[piece.at - FRAME_HEADER..piece.at].copy_from_slice(&head);
            }
            let taken = piece.len.min(read);
            self.end = piece.at + taken;
            read -= taken;
        }
        Ok(())
    }

    /// Seals what is open and hands everything to `write` until it would block. True: nothing waits any more.
    pub(super) fn flush(
        &mut self,
        mut write: impl FnMut(&[u8]) -> io::Result<usize>,
    ) -> io::Result<bool> {
        self.seal_open(Content::Data).map_err(io::Error::other)?;
        while self.start < self.open {
            match write(&self.buffer[self.start..self.open]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => self.start += written,
                Err(why) if why.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(why) if why.kind() == io::ErrorKind::Interrupted => {}
                Err(why) => return Err(why),
            }
        }
        (self.start, self.open, self.end) = (0, 0, 0);
        give_back(std::mem::take(&mut self.buffer));
        Ok(true)
    }

    /// Content bytes that still fit into the open record.
    fn room(&self) -> usize {
        (self.open + RECORD_HEADER + MAX_PLAINTEXT)
            .saturating_sub(self.end.max(self.open + RECORD_HEADER))
    }

    fn begin(&mut self) {
        self.end = self.end.max(self.open + RECORD_HEADER);
    }

    fn seal_open(&mut self, content: Content) -> Result<(), String> {
        if self.end <= self.open + RECORD_HEADER {
            self.end = self.open;
            return Ok(());
        }
        self.ensure(self.end + RECORD_TRAILER);
        let stop = self.end + RECORD_TRAILER;
        self.sealer
            .seal(&mut self.buffer[self.open..stop], content)?;
        (self.open, self.end) = (stop, stop);
        Ok(())
    }

    /// Makes `[..stop)` usable; what was sent is moved out first, so positions are valid only after this call.
    fn ensure(&mut self, stop: usize) {
        if stop <= self.buffer.len() {
            return;
        }
        if self.buffer.is_empty() {
            self.buffer = SPARE.with_borrow_mut(Vec::pop).unwrap_or_default();
        }
        let stop = stop - self.start;
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.open, self.end, self.start) = (self.open - self.start, self.end - self.start, 0);
        }
        if stop > self.buffer.len() {
            self.buffer
                .resize(stop.next_power_of_two().max(SMALLEST_BUFFER), 0);
        }
    }
}

impl Drop for Outbox {
    fn drop(&mut self) {
        give_back(std::mem::take(&mut self.buffer));
    }
}

fn give_back(buffer: Vec<u8>) {
    if buffer.is_empty() {
        return;
    }
    // At the end of a thread its spares are gone before its last tunnel may be.
    let _ = SPARE.try_with(|spare| {
        let mut spare = spare.borrow_mut();
        if spare.len() < SPARE_BUFFERS {
            spare.push(buffer);
        }
    });
}

fn scattered(
    buffer: &mut [u8],
    pieces: &[Piece],
    read: impl FnOnce(&mut [IoSliceMut<'_>]) -> io::Result<usize>,
) -> io::Result<usize> {
    let mut slices: [IoSliceMut<'_>; MAX_PIECES] =
        std::array::from_fn(|_| IoSliceMut::new(&mut []));
    let (mut rest, mut passed) = (buffer, 0);
    for (slice, piece) in slices.iter_mut().zip(pieces) {
        let (here, behind) = rest.split_at_mut(piece.at + piece.len - passed);
        *slice = IoSliceMut::new(&mut here[piece.at - passed..]);
        (rest, passed) = (behind, piece.at + piece.len);
    }
    read(&mut slices[..pieces.len()])
}

#[cfg(test)]
mod tests;
