//! Header compression (RFC 7541): a full decoder, and an encoder that keeps no state at the peer.
//!
//! The decoder lends fields out of its table and the block: a one-byte reference to a large entry costs no copy, so a
//! header bomb is as cheap to refuse as it is to send.

use std::collections::VecDeque;

use super::huffman;
use super::static_table::STATIC_TABLE;

/// The table size in force until SETTINGS say otherwise; we never announce another.
pub(super) const TABLE_SIZE: usize = 4096;
/// What RFC 7541 §4.1 adds to every entry's length.
pub(super) const FIELD_OVERHEAD: usize = 32;

/// A block no decoder can make sense of: the tables are out of step, the connection is lost (RFC 9113 §4.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BadBlock(pub(super) &'static str);

struct Entry {
    bytes: Box<[u8]>,
    name_len: usize,
}

impl Entry {
    fn field(&self) -> (&[u8], &[u8]) {
        self.bytes.split_at(self.name_len)
    }

    fn size(&self) -> usize {
        self.bytes.len() + FIELD_OVERHEAD
    }
}

/// The decoder's dynamic table: newest entry first, never larger than `capacity`.
#[derive(Default)]
struct Table {
    entries: VecDeque<Entry>,
    size: usize,
    capacity: usize,
}

impl Table {
    fn get(&self, index: usize) -> Result<(&[u8], &[u8]), BadBlock> {
        match index.checked_sub(1) {
            None => Err(BadBlock("index 0 in a header block")),
            Some(at) if at < STATIC_TABLE.len() => {
                let (name, value) = STATIC_TABLE[at];
                Ok((name.as_bytes(), value.as_bytes()))
            }
            Some(at) => {
                let entry = self.entries.get(at - STATIC_TABLE.len());
                entry
                    .map(Entry::field)
                    .ok_or(BadBlock("index past the header table"))
            }
        }
    }

    fn resize(&mut self, capacity: usize) {
        self.capacity = capacity;
        self.evict(capacity);
    }

    fn evict(&mut self, keep: usize) {
        while self.size > keep {
            let Some(oldest) = self.entries.pop_back() else {
                break;
            };
            self.size -= oldest.size();
        }
    }

    /// An entry larger than the table empties it and is not kept (RFC 7541 §4.4).
    fn insert(&mut self, name: &[u8], value: &[u8]) {
        let size = name.len() + value.len() + FIELD_OVERHEAD;
        self.evict(self.capacity.saturating_sub(size));
        if size <= self.capacity {
            self.size += size;
            self.entries.push_front(Entry {
                bytes: [name, value].concat().into(),
                name_len: name.len(),
            });
        }
    }
}

/// How a literal field is written (RFC 7541 §6.2): with the bits of its name's index.
const INDEXED: u8 = 0x80;
const LITERAL_INDEXED: u8 = 0x40;
const SIZE_UPDATE: u8 = 0x20;
/// A reduction and the final size: more updates say nothing (RFC 7541 §4.2).
const MAX_SIZE_UPDATES: usize = 2;

/// What the decoder keeps between blocks: more than any honest field.
const KEPT_SCRATCH: usize = 512;

pub(super) struct Decoder {
    table: Table,
    name: Vec<u8>,
    value: Vec<u8>,
}

impl Decoder {
    pub(super) fn new() -> Self {
        let table = Table {
            capacity: TABLE_SIZE,
            ..Table::default()
        };
        Self {
            table,
            name: Vec::new(),
            value: Vec::new(),
        }
    }

    /// Hands every field of a complete block to `field`, in order.
    pub(super) fn decode(
        &mut self,
        block: &[u8],
        field: &mut dyn FnMut(&[u8], &[u8]),
    ) -> Result<(), BadBlock> {
        let mut input = Input(block);
        self.size_updates(&mut input)?;
        while let Some(&first) = input.0.first() {
            if first & INDEXED != 0 {
                let (name, value) = self.table.get(input.integer(7)?)?;
                field(name, value);
            } else if first & LITERAL_INDEXED != 0 {
                self.literal(&mut input, 6)?;
                self.table.insert(&self.name, &self.value);
                field(&self.name, &self.value);
            } else if first & SIZE_UPDATE != 0 {
                return Err(BadBlock("table size update after the first field"));
            } else {
                self.literal(&mut input, 4)?;
                field(&self.name, &self.value);
            }
        }
        self.name.shrink_to(KEPT_SCRATCH);
        self.value.shrink_to(KEPT_SCRATCH);
        Ok(())
    }

    fn size_updates(&mut self, input: &mut Input<'_>) -> Result<(), BadBlock> {
        for _ in 0..MAX_SIZE_UPDATES {
            if input
                .0
                .first()
                .is_none_or(|first| first & 0xe0 != SIZE_UPDATE)
            {
                break;
            }
            let capacity = input.integer(5)?;
            if capacity > TABLE_SIZE {
                return Err(BadBlock("header table larger than announced"));
            }
            self.table.resize(capacity);
        }
        Ok(())
    }

    fn literal(&mut self, input: &mut Input<'_>, prefix: u8) -> Result<(), BadBlock> {
        self.name.clear();
        self.value.clear();
        match input.integer(prefix)? {
            0 => input.string(&mut self.name)?,
            index => self.name.extend_from_slice(self.table.get(index)?.0),
        }
        input.string(&mut self.value)
    }
}

struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn byte(&mut self) -> Result<u8, BadBlock> {
        let (first, rest) = self
            .0
            .split_first()
            .ok_or(BadBlock("header block ends within a field"))?;
        self.0 = rest;
        Ok(*first)
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], BadBlock> {
        let (taken, rest) = self
            .0
            .split_at_checked(len)
            .ok_or(BadBlock("header block ends within a field"))?;
        self.0 = rest;
        Ok(taken)
    }

    /// RFC 7541 §5.1. Four bytes after the prefix (28 bits) are more than any block can hold.
    fn integer(&mut self, prefix: u8) -> Result<usize, BadBlock> {
        let mask = (1u8 << prefix) - 1;
        let mut value = usize::from(self.byte()? & mask);
        if value < usize::from(mask) {
            return Ok(value);
        }
        for shift in [0, 7, 14, 21] {
            let byte = self.byte()?;
            value += usize::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(BadBlock("integer too long in a header block"))
    }

    fn string(&mut self, out: &mut Vec<u8>) -> Result<(), BadBlock> {
        let huffman = self.0.first().is_some_and(|first| first & 0x80 != 0);
        let len = self.integer(7)?;
        let raw = self.take(len)?;
        if huffman {
            return huffman::decode(raw, out)
                .map_err(|_| BadBlock("bad Huffman code in a header block"));
        }
        out.extend_from_slice(raw);
        Ok(())
    }
}

/// Writes header blocks that leave the peer's dynamic table alone: every field is static or literal.
#[derive(Default)]
pub(super) struct Encoder {
    empty_table: bool,
}

impl Encoder {
    /// The peer allows a table of `size`. A smaller one than it holds now must be acknowledged in the next block
    /// (RFC 7541 §4.2); since we use none, we give it up altogether.
    pub(super) fn limit_table(&mut self, size: u32) {
        self.empty_table |= (size as usize) < TABLE_SIZE;
    }

    /// Begins a block in `out`, which is empty.
    pub(super) fn begin(&mut self, out: &mut Vec<u8>) {
        if std::mem::take(&mut self.empty_table) {
            out.push(SIZE_UPDATE);
        }
    }

    pub(super) fn field(&self, out: &mut Vec<u8>, name: &str, value: &str) {
        if let Some(at) = STATIC_TABLE
            .iter()
            .position(|entry| *entry == (name, value))
        {
            return put_integer(out, INDEXED, 7, at + 1);
        }
        match STATIC_TABLE.iter().position(|entry| entry.0 == name) {
            Some(at) => put_integer(out, 0, 4, at + 1),
            None => {
                out.push(0);
                put_string(out, name);
            }
        }
        put_string(out, value);
    }
}

fn put_string(out: &mut Vec<u8>, text: &str) {
    put_integer(out, 0, 7, text.len());
    out.extend_from_slice(text.as_bytes());
}

fn put_integer(out: &mut Vec<u8>, high: u8, prefix: u8, value: usize) {
    let mask = (1usize << prefix) - 1;
    if value < mask {
        return out.push(high | value as u8);
    }
    out.push(high | mask as u8);
    let mut rest = value - mask;
    while rest >= 0x80 {
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

#[cfg(test)]
mod tests;
