//! Whatever is pushed or read, the peer opens the same bytes in the same frames.

use super::*;
use crate::tls::Opener;
use rustls::ConnectionTrafficSecrets;
use rustls::crypto::cipher::{AeadKey, Iv};

fn secret() -> (u64, ConnectionTrafficSecrets) {
    let key = AeadKey::from([7; 32]);
    let iv = Iv::from([9; 12]);
    (0, ConnectionTrafficSecrets::Aes256Gcm { key, iv })
}

fn outbox() -> Outbox {
    Outbox::new(Sealer::new(secret()).expect("sealer"))
}

/// What the peer reads: the content of every record, one after the other.
fn opened(mut sealed: Vec<u8>) -> Vec<u8> {
    let mut opener = Opener::new(secret()).expect("opener");
    let (mut content, mut at) = (Vec::new(), 0);
    while at < sealed.len() {
        let len = Opener::record_length(&sealed[at..])
            .expect("record")
            .expect("whole");
        let (_, size) = opener.open(&mut sealed[at..at + len]).expect("opens");
        content.extend_from_slice(&sealed[at + RECORD_HEADER..][..size]);
        at += len;
    }
    content
}

/// A frame header that tells nothing but its length.
fn header(len: usize) -> [u8; FRAME_HEADER] {
    let [_, a, b, c] = (len as u32).to_be_bytes();
    [a, b, c, 0, 0, 0, 0, 0, 0]
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at % 251) as u8).collect()
}

/// An application that has `bytes` and gives as much of it as is asked for.
fn application(bytes: &[u8]) -> impl FnOnce(&mut [IoSliceMut<'_>]) -> io::Result<usize> {
    move |slices| io::Read::read_vectored(&mut &*bytes, slices)
}

fn framed(bytes: &[u8], max_frame: usize) -> Vec<u8> {
    let frames = bytes.chunks(max_frame);
    frames
        .flat_map(|frame| [&header(frame.len())[..], frame].concat())
        .collect()
}

fn flushed(outbox: &mut Outbox) -> Vec<u8> {
    let mut wire = Vec::new();
    let all = outbox.flush(|bytes| {
        wire.extend_from_slice(bytes);
        Ok(bytes.len())
    });
    assert!(all.expect("flush"));
    wire
}

#[test]
fn any_read_becomes_the_same_frames_whatever_waits_before_it() {
    for max_frame in [16_384, 16_385, 40_000, 1 << 20] {
        for before in [0, 1, 16_374, 16_375, 16_376, 16_384, 30_000] {
            for has in [1, 16_374, 16_375, 16_376, 65_536, 262_144] {
                let (mut outbox, control, bytes) = (outbox(), pattern(before), pattern(has));
                outbox.push(&control).expect("push");
                let read = outbox.read_from(256 << 10, max_frame, application(&bytes), header);
                let read = read.expect("read");
                let expected = [control, framed(&bytes[..read], max_frame)].concat();
                assert!(
                    opened(flushed(&mut outbox)) == expected,
                    "{max_frame} {before} {has}"
                );
            }
        }
    }
}

#[test]
fn a_read_of_nothing_leaves_nothing() {
    let mut outbox = outbox();
    assert_eq!(
        outbox
            .read_from(1000, 16_384, application(b""), header)
            .expect("read"),
        0
    );
    assert_eq!(flushed(&mut outbox), b"");
}

#[test]
fn a_socket_that_takes_a_little_at_a_time_gets_everything_in_order() {
    let (mut outbox, bytes) = (outbox(), pattern(100_000));
    let (mut wire, mut expected) = (Vec::new(), Vec::new());
    for turn in 0..200 {
        outbox
            .read_from(bytes.len(), 1 << 20, application(&bytes), header)
            .expect("read");
        expected.extend(framed(&bytes, 1 << 20));
        let mut room = 90_000 + turn;
        let all = outbox.flush(|some| {
            let taken = some.len().min(room);
            wire.extend_from_slice(&some[..taken]);
            room -= taken;
            if taken == 0 {
                Err(io::ErrorKind::WouldBlock.into())
            } else {
                Ok(taken)
            }
        });
        assert!(!all.expect("flush"));
    }
    wire.extend(flushed(&mut outbox));
    assert!(opened(wire) == expected);
}

#[test]
fn an_altered_record_does_not_open() {
    let mut outbox = outbox();
    outbox.push(b"content").expect("push");
    let mut wire = flushed(&mut outbox);
    let last = wire.len() - 1;
    wire[last] ^= 1;
    assert!(
        Opener::new(secret())
            .expect("opener")
            .open(&mut wire)
            .is_err()
    );
}

#[test]
fn an_idle_outbox_holds_no_buffer() {
    let mut outbox = outbox();
    outbox.push(b"content").expect("push");
    flushed(&mut outbox);
    assert_eq!(outbox.buffer.capacity(), 0);
}
