//! From chunks of bytes to frames: what is complete goes on, DATA goes on piece by piece, the rest waits.

use super::connection::Connection;
use super::frame::{FrameHead, HEAD_LEN, PREFACE, flag, kind};
use super::guard::calm;
use super::{ConnectionError, Event, Role, StreamId, code};

/// The longest SETTINGS that still means something: sixty-four entries.
const MAX_SETTINGS: u32 = 64 * 6;
/// A GOAWAY beyond this is debug data.
const GOAWAY_FIXED: u32 = 8;
/// After a frame, buffers keep no more than this.
const KEPT_BUFFER: usize = 4096;

type On<'a> = &'a mut dyn FnMut(Event<'_>);

/// A DATA frame under way: `left` bytes of payload, then `padding`.
#[derive(Clone, Copy)]
pub(super) struct DataFrame {
    pub(super) id: StreamId,
    pub(super) left: u32,
    pub(super) padding: u32,
    pub(super) end: bool,
}

#[derive(Clone, Copy)]
pub(super) enum Expect {
    /// So many bytes of the client's preface were seen.
    Preface(usize),
    Head,
    /// The first `keep` bytes of a payload; the rest of it is skipped.
    Payload(FrameHead, u32),
    /// The byte that says how much of a DATA frame is padding.
    PadLength(FrameHead),
    Data(DataFrame),
    Skip(u32),
}

/// A header block that is not complete.
pub(super) struct OpenBlock {
    pub(super) id: StreamId,
    pub(super) end_stream: bool,
    pub(super) bytes: Vec<u8>,
    pub(super) continuations: u32,
}

/// How far the peer's bytes were read.
pub(super) struct Reader {
    pub(super) expect: Expect,
    /// What came of a head or payload that is not complete.
    partial: Vec<u8>,
    pub(super) block: Option<OpenBlock>,
}

impl Reader {
    pub(super) fn new(role: Role) -> Self {
        let expect = if role == Role::Server {
            Expect::Preface(0)
        } else {
            Expect::Head
        };
        Self {
            expect,
            partial: Vec::new(),
            block: None,
        }
    }

    /// Returns the rest of `input` once `partial` holds `want` bytes.
    fn gather<'a>(&mut self, want: usize, input: &'a [u8]) -> (bool, &'a [u8]) {
        let (taken, rest) = input.split_at(input.len().min(want - self.partial.len()));
        self.partial.extend_from_slice(taken);
        (self.partial.len() == want, rest)
    }
}

impl Connection {
    pub(super) fn read(&mut self, mut input: &[u8], on: On<'_>) -> Result<(), ConnectionError> {
        while !input.is_empty() {
            input = match self.reader.expect {
                Expect::Data(data) => self.read_data(data, input, on),
                Expect::Head => self.read_head(input, on)?,
                Expect::Payload(head, keep) => self.read_payload(head, keep, input, on)?,
                Expect::PadLength(head) => self.read_pad_length(head, input, on)?,
                Expect::Skip(left) => self.skip(left, input),
                Expect::Preface(seen) => self.read_preface(seen, input)?,
            };
        }
        Ok(())
    }

    fn read_preface<'a>(
        &mut self,
        seen: usize,
        input: &'a [u8],
    ) -> Result<&'a [u8], ConnectionError> {
        let len = input.len().min(PREFACE.len() - seen);
        if input[..len] != PREFACE[seen..seen + len] {
            return Err(protocol_error("no HTTP/2 preface"));
        }
        let seen = seen + len;
        self.reader.expect = if seen == PREFACE.len() {
            Expect::Head
        } else {
            Expect::Preface(seen)
        };
        Ok(&input[len..])
    }

    fn read_head<'a>(&mut self, input: &'a [u8], on: On<'_>) -> Result<&'a [u8], ConnectionError> {
        if self.reader.partial.is_empty()
            && let Some((head, rest)) = input.split_first_chunk::<HEAD_LEN>()
        {
            self.begin(FrameHead::parse(head), on)?;
            return Ok(rest);
        }
        let (complete, rest) = self.reader.gather(HEAD_LEN, input);
        if complete && let Some(head) = self.reader.partial.first_chunk::<HEAD_LEN>() {
            let head = FrameHead::parse(head);
            self.reader.partial.clear();
            self.begin(head, on)?;
        }
        Ok(rest)
    }

    /// A frame begins: what can be judged by its head alone is judged here, before anything is kept of it.
    fn begin(&mut self, head: FrameHead, on: On<'_>) -> Result<(), ConnectionError> {
        if head.len > self.config.max_frame {
            return Err(size_error("frame longer than announced"));
        }
        if !self.peer.seen && (head.kind != kind::SETTINGS || head.has(flag::ACK)) {
            return Err(protocol_error("the first frame is not SETTINGS"));
        }
        self.check_block(head)?;
        match head.kind {
            kind::DATA if head.has(flag::PADDED) => {
                self.reader.expect = Expect::PadLength(head);
                if head.len == 0 {
                    Err(size_error("padded DATA without pad length"))
                } else {
                    Ok(())
                }
            }
            kind::DATA => self.begin_data(head, 0, on),
            kind::HEADERS..=kind::CONTINUATION => {
                let keep = self.payload_to_keep(head)?;
                self.reader.expect = Expect::Payload(head, keep);
                if keep == 0 {
                    self.finish_payload(head, keep, &[], on)
                } else {
                    Ok(())
                }
            }
            _ => {
                self.guard.control(1)?;
                self.reader.expect = skip_or_head(head.len);
                Ok(())
            }
        }
    }

    /// RFC 9113 §6.10: nothing may come between the frames of one header block.
    fn check_block(&self, head: FrameHead) -> Result<(), ConnectionError> {
        match (&self.reader.block, head.kind) {
            (None, kind::CONTINUATION) => Err(protocol_error("CONTINUATION without HEADERS")),
            (Some(block), kind::CONTINUATION) if block.id == head.id => Ok(()),
            (Some(_), _) => Err(protocol_error("a frame within a header block")),
            (None, _) => Ok(()),
        }
    }

    /// How much of a control frame's payload is needed, after its length was judged (RFC 9113 §6).
    fn payload_to_keep(&self, head: FrameHead) -> Result<u32, ConnectionError> {
        let fixed = |len: u32| {
            if head.len == len {
                Ok(len)
            } else {
                Err(size_error("frame of a wrong length"))
            }
        };
        match head.kind {
            kind::PRIORITY => fixed(5),
            kind::RST_STREAM | kind::WINDOW_UPDATE => fixed(4),
            kind::PING => fixed(8),
            kind::SETTINGS if head.has(flag::ACK) => fixed(0),
            kind::SETTINGS if !head.len.is_multiple_of(6) => {
                Err(size_error("SETTINGS of a wrong length"))
            }
            kind::SETTINGS if head.len > MAX_SETTINGS => Err(calm("SETTINGS too long")),
            kind::GOAWAY if head.len < GOAWAY_FIXED => Err(size_error("GOAWAY too short")),
            kind::GOAWAY => Ok(GOAWAY_FIXED),
            kind::PUSH_PROMISE => Err(protocol_error("PUSH_PROMISE, which nobody allowed")),
            kind::HEADERS | kind::CONTINUATION => self.check_block_len(head.len),
            _ => Ok(head.len),
        }
    }

    /// A list that fits is never longer encoded than four times its limit (Huffman's longest code is 30 bits).
    fn check_block_len(&self, more: u32) -> Result<u32, ConnectionError> {
        let have = self
            .reader
            .block
            .as_ref()
            .map_or(0, |block| block.bytes.len());
        if have + more as usize > self.config.max_header_list as usize * 4 {
            return Err(calm("header block too long"));
        }
        Ok(more)
    }

    fn read_payload<'a>(
        &mut self,
        head: FrameHead,
        keep: u32,
        input: &'a [u8],
        on: On<'_>,
    ) -> Result<&'a [u8], ConnectionError> {
        if self.reader.partial.is_empty()
            && let Some((payload, rest)) = input.split_at_checked(keep as usize)
        {
            self.finish_payload(head, keep, payload, on)?;
            return Ok(rest);
        }
        let (complete, rest) = self.reader.gather(keep as usize, input);
        if complete {
            let mut payload = std::mem::take(&mut self.reader.partial);
            self.finish_payload(head, keep, &payload, on)?;
            payload.clear();
            payload.shrink_to(KEPT_BUFFER);
            self.reader.partial = payload;
        }
        Ok(rest)
    }

    fn finish_payload(
        &mut self,
        head: FrameHead,
        keep: u32,
        payload: &[u8],
        on: On<'_>,
    ) -> Result<(), ConnectionError> {
        self.reader.expect = skip_or_head(head.len - keep);
        self.on_frame(head, payload, on)
    }

    fn read_pad_length<'a>(
        &mut self,
        head: FrameHead,
        input: &'a [u8],
        on: On<'_>,
    ) -> Result<&'a [u8], ConnectionError> {
        let Some((&padding, rest)) = input.split_first() else {
            return Ok(input);
        };
        if u32::from(padding) >= head.len {
            return Err(protocol_error("padding longer than its frame"));
        }
        self.begin_data(head, 1 + u32::from(padding), on)?;
        Ok(rest)
    }

    fn read_data<'a>(&mut self, data: DataFrame, input: &'a [u8], on: On<'_>) -> &'a [u8] {
        let (payload, rest) = input.split_at(input.len().min(data.left as usize));
        let left = data.left - payload.len() as u32;
        self.reader.expect = if left > 0 {
            Expect::Data(DataFrame { left, ..data })
        } else {
            skip_or_head(data.padding)
        };
        self.on_data(data.id, payload, data.end && left == 0, on);
        rest
    }

    fn skip<'a>(&mut self, left: u32, input: &'a [u8]) -> &'a [u8] {
        let len = input.len().min(left as usize);
        self.reader.expect = skip_or_head(left - len as u32);
        &input[len..]
    }
}

pub(super) fn skip_or_head(len: u32) -> Expect {
    if len == 0 {
        Expect::Head
    } else {
        Expect::Skip(len)
    }
}

pub(super) fn protocol_error(why: &'static str) -> ConnectionError {
    ConnectionError {
        code: code::PROTOCOL_ERROR,
        why,
    }
}

pub(super) fn size_error(why: &'static str) -> ConnectionError {
    ConnectionError {
        code: code::FRAME_SIZE_ERROR,
        why,
    }
}
