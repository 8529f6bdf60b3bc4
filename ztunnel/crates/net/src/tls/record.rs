//! The record layer of an established TLS 1.3 connection (RFC 8446 §5), in place in the caller's buffers.
//!
//! Owns nonces, headers, padding and the limits of a key; not sockets, not the handshake. One key per direction.

use rustls::ConnectionTrafficSecrets;
use rustls::kernel::KernelConnection;

use super::cipher::{Cipher, TAG};

/// type, legacy version, length.
pub(crate) const RECORD_HEADER: usize = 5;
/// Inner content type and tag.
pub(crate) const RECORD_TRAILER: usize = 1 + TAG;
/// RFC 8446 §5.1: 2^14 bytes of content per record.
pub(crate) const MAX_PLAINTEXT: usize = 1 << 14;
/// RFC 8446 §5.2: content, type, padding and tag take at most this.
const MAX_CIPHERTEXT: usize = MAX_PLAINTEXT + 256;
/// RFC 8446 §5.5 allows 2^24.5 full records under one AES-GCM key; change it before.
const RECORDS_PER_KEY: u64 = 1 << 24;

/// Where new traffic secrets come from after a KeyUpdate: rustls keeps the key schedule.
pub(crate) trait Rekey {
    fn next_sealer(&mut self) -> Result<Sealer, String>;
    fn next_opener(&mut self) -> Result<Opener, String>;
}

impl<Data> Rekey for KernelConnection<Data> {
    fn next_sealer(&mut self) -> Result<Sealer, String> {
        Sealer::new(self.update_tx_secret().map_err(|why| why.to_string())?)
    }

    fn next_opener(&mut self) -> Result<Opener, String> {
        Opener::new(self.update_rx_secret().map_err(|why| why.to_string())?)
    }
}

/// The inner content type, RFC 8446 §5.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    Alert = 21,
    Handshake = 22,
    Data = 23,
}

/// One direction's key and its next nonce (RFC 8446 §5.3).
struct Keyed {
    cipher: Cipher,
    iv: [u8; 12],
    sequence: u64,
}

impl Keyed {
    fn new((sequence, secrets): (u64, ConnectionTrafficSecrets)) -> Result<Self, String> {
        let (cipher, iv) = Cipher::new(&secrets)?;
        Ok(Self {
            cipher,
            iv,
            sequence,
        })
    }

    /// Never the same twice: the sequence only counts up and ends with the key long before it could wrap.
    fn nonce(&mut self) -> [u8; 12] {
        let mut nonce = self.iv;
        let counter = self.sequence.to_be_bytes();
        nonce[4..]
            .iter_mut()
            .zip(counter)
            .for_each(|(byte, count)| *byte ^= count);
        self.sequence += 1;
        nonce
    }
}

/// Seals what we send.
pub(crate) struct Sealer(Keyed);

impl Sealer {
    pub(crate) fn new(secret: (u64, ConnectionTrafficSecrets)) -> Result<Self, String> {
        Keyed::new(secret).map(Self)
    }

    /// `record` = room for the header, the content, room for the trailer; becomes the finished record.
    pub(crate) fn seal(&mut self, record: &mut [u8], content: Content) -> Result<(), String> {
        let (header, body) = record.split_at_mut(RECORD_HEADER);
        header.copy_from_slice(&header_for(body.len()));
        let nonce = self.0.nonce();
        let (plain, tag_room) = body.split_at_mut(body.len() - TAG);
        if let Some(last) = plain.last_mut() {
            *last = content as u8;
        }
        self.0
            .cipher
            .seal(nonce, header, plain, tag_room)
            .ok_or("sealing failed")?;
        Ok(())
    }

    /// The next record must be a KeyUpdate, the one after it under the next key.
    pub(crate) fn is_worn(&self) -> bool {
        self.0.sequence >= RECORDS_PER_KEY
    }
}

fn header_for(length: usize) -> [u8; RECORD_HEADER] {
    let [high, low] = (length as u16).to_be_bytes();
    [Content::Data as u8, 3, 3, high, low]
}

/// Opens what we receive.
pub(crate) struct Opener(Keyed);

impl Opener {
    pub(crate) fn new(secret: (u64, ConnectionTrafficSecrets)) -> Result<Self, String> {
        Keyed::new(secret).map(Self)
    }

    /// The length of the whole record at the start of `input`; None: more bytes are needed to say, or to have it.
    pub(crate) fn record_length(input: &[u8]) -> Result<Option<usize>, String> {
        let Some(&[kind, _, _, high, low]) = input.first_chunk() else {
            return Ok(None);
        };
        let body = usize::from(u16::from_be_bytes([high, low]));
        if kind != Content::Data as u8 || !(RECORD_TRAILER..=MAX_CIPHERTEXT).contains(&body) {
            return Err(format!(
                "a record of type {kind} and length {body} has no place in TLS 1.3"
            ));
        }
        Ok((input.len() >= RECORD_HEADER + body).then_some(RECORD_HEADER + body))
    }

    /// Opens one whole record in place. The content begins after the header; returns its kind and length.
    pub(crate) fn open(&mut self, record: &mut [u8]) -> Result<(Content, usize), String> {
        let nonce = self.0.nonce();
        let (header, body) = record.split_at_mut(RECORD_HEADER);
        let plain = self
            .0
            .cipher
            .open(nonce, header, body)
            .ok_or("a record does not open: it was altered or is out of order")?;
        // Padding is zeros behind the content type, RFC 8446 §5.4.
        let end = plain
            .iter()
            .rposition(|byte| *byte != 0)
            .ok_or("a record without a content type")?;
        let content = match plain[end] {
            21 => Content::Alert,
            22 => Content::Handshake,
            23 => Content::Data,
            other => return Err(format!("a record with content type {other}")),
        };
        if end > MAX_PLAINTEXT {
            return Err("a record with more than 2^14 bytes of content".to_owned());
        }
        Ok((content, end))
    }
}
