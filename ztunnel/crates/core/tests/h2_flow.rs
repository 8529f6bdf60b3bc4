//! Flow control in both directions (RFC 9113 §5.2, §6.9).

mod h2_common;
use h2_common::*;
use ztunnel_core::h2::{Config, code};

const NOTHING: [&str; 0] = [];

#[test]
fn the_smaller_of_both_windows_is_the_room() {
    let mut talk = Talk::client();
    let id = talk.connect();
    assert_eq!(talk.0.send_room(id), 65_535);
    talk.gets(window_update(1, 1000));
    assert_eq!(talk.0.send_room(id), 65_535);
    talk.gets(window_update(0, 500));
    assert_eq!(talk.0.send_room(id), 66_035);
    talk.0.data(id, 16_384, false);
    assert_eq!(talk.0.send_room(id), 66_035 - 16_384);
}

fn spend(talk: &mut Talk, id: ztunnel_core::h2::StreamId, mut len: usize) {
    while len > 0 {
        let part = len.min(16_384);
        talk.0.data(id, part, false);
        len -= part;
    }
}

#[test]
fn a_spent_window_is_ready_once_when_both_windows_are_open() {
    let mut talk = Talk::client();
    let id = talk.connect();
    spend(&mut talk, id, 65_535);
    assert_eq!(talk.0.send_room(id), 0);
    assert_eq!(talk.gets(window_update(1, 10)), NOTHING);
    assert_eq!(talk.gets(window_update(0, 10)), ["ready 1"]);
    assert_eq!(
        talk.gets([window_update(0, 10), window_update(1, 10)].concat()),
        NOTHING
    );
    assert_eq!(talk.0.send_room(id), 20);
}

#[test]
fn only_streams_that_asked_are_ready_and_the_first_turn_passes_on() {
    let mut talk = Talk::client();
    let [first, second, third] = [talk.connect(), talk.connect(), talk.connect()];
    spend(&mut talk, first, 65_535);
    assert_eq!(talk.0.send_room(second), 0);
    assert_eq!(
        talk.gets([window_update(1, 99), window_update(0, 1)].concat()),
        ["ready 1", "ready 3"]
    );
    assert_eq!(talk.0.send_room(third), 1);
    talk.0.data(first, 1, false);
    assert_eq!((talk.0.send_room(second), talk.0.send_room(third)), (0, 0));
    assert_eq!(
        talk.gets(window_update(0, 1)),
        ["ready 3", "ready 5", "ready 1"]
    );
}

#[test]
fn an_ended_stream_is_never_ready() {
    let mut talk = Talk::client();
    let id = talk.connect();
    spend(&mut talk, id, 65_535);
    talk.0.data(id, 0, true);
    assert_eq!(
        talk.gets([window_update(1, 10), window_update(0, 10)].concat()),
        NOTHING
    );
}

#[test]
fn initial_window_moves_open_streams_even_below_zero() {
    let mut talk = Talk::client();
    let id = talk.connect();
    spend(&mut talk, id, 1000);
    talk.gets(settings(&[(4, 400)]));
    assert_eq!(talk.0.send_room(id), 0);
    assert_eq!(talk.gets(window_update(1, 600)), NOTHING);
    assert_eq!(talk.gets(window_update(1, 1)), ["ready 1"]);
    assert_eq!(talk.0.send_room(id), 1);
    talk.0.data(id, 1, false);
    assert_eq!(talk.gets(settings(&[(4, 405)])), ["ready 1"]);
    assert_eq!(talk.0.send_room(id), 5);
}

#[test]
fn frames_are_as_long_as_the_peer_takes_them_but_never_past_a_mebibyte() {
    let mut talk = Talk::client();
    assert_eq!(talk.0.max_frame_send(), 16_384);
    talk.gets(settings(&[(5, 20_000)]));
    assert_eq!(talk.0.max_frame_send(), 20_000);
    talk.gets(settings(&[(5, (1 << 24) - 1)]));
    assert_eq!(talk.0.max_frame_send(), 1 << 20);
}

fn small_windows() -> Talk {
    let config = Config {
        stream_window: 100_000,
        connection_window: 150_000,
        ..Config::server()
    };
    Talk::with(config, PREFACE)
}

#[test]
fn windows_are_given_back_by_halves_as_the_application_takes() {
    let mut talk = small_windows();
    let id = talk.accept(1);
    talk.gets(data(1, &[0; 80_000]));
    assert_eq!(talk.sends(), NOTHING);
    talk.0.consumed(id, 49_999);
    assert_eq!(talk.sends(), NOTHING);
    talk.0.consumed(id, 1);
    assert_eq!(talk.sends(), ["WINDOW_UPDATE 1 +50000"]);
    talk.0.consumed(id, 30_000);
    assert_eq!(talk.sends(), ["WINDOW_UPDATE 0 +80000"]);
}

#[test]
fn more_than_was_lent_is_not_given_back() {
    let mut talk = small_windows();
    let id = talk.accept(1);
    talk.gets(data(1, &[0; 10]));
    talk.0.consumed(id, 1_000_000);
    assert_eq!(talk.sends(), NOTHING);
}

#[test]
fn a_stream_that_overruns_its_window_is_reset() {
    let mut talk = small_windows();
    talk.accept(1);
    assert_eq!(talk.gets(data(1, &[0; 100_000])), ["data 1 (100000)"]);
    assert_eq!(talk.gets(data(1, &[0; 1])), ["reset 1 FLOW_CONTROL_ERROR"]);
    assert_eq!(
        talk.sends(),
        ["RST_STREAM 1 FLOW_CONTROL_ERROR", "WINDOW_UPDATE 0 +100000"]
    );
}

#[test]
fn a_connection_that_overruns_its_window_dies() {
    let mut talk = small_windows();
    talk.accept(1);
    talk.accept(3);
    talk.gets([data(1, &[0; 100_000]), data(3, &[0; 50_000])].concat());
    assert_eq!(talk.dies_of(data(3, &[0; 1])), "FLOW_CONTROL_ERROR");
}

#[test]
fn padding_counts_and_is_given_back_by_itself() {
    let mut talk = small_windows();
    talk.accept(1);
    let many = padded(1, b"x", 255).repeat(195);
    talk.gets(many.clone());
    assert_eq!(talk.sends(), NOTHING);
    talk.gets(many);
    assert_eq!(
        talk.sends(),
        ["WINDOW_UPDATE 1 +50176", "WINDOW_UPDATE 0 +75008"]
    );
}

#[test]
fn payload_of_dead_streams_is_given_back_to_the_connection() {
    let mut talk = small_windows();
    let id = talk.accept(1);
    talk.gets(data(1, &[0; 70_000]));
    talk.0.reset(id, code::CANCEL);
    talk.gets(data(1, &[0; 5_000]));
    assert_eq!(
        talk.sends(),
        ["RST_STREAM 1 CANCEL", "WINDOW_UPDATE 0 +75000"]
    );
    talk.0.consumed(id, 70_000);
    assert_eq!(talk.sends(), NOTHING);
}

#[test]
fn a_finished_stream_waits_for_the_application_and_then_gives_back() {
    let mut talk = small_windows();
    let id = talk.accept(1);
    talk.gets(last_data(1, &[0; 80_000]));
    talk.0.data(id, 0, true);
    assert!(talk.0.is_finished(id));
    assert_eq!(talk.gets(reset(1, 0)), NOTHING);
    talk.0.consumed(id, 80_000);
    assert_eq!(talk.sends(), ["WINDOW_UPDATE 0 +80000"]);
}

#[test]
fn a_finished_stream_that_nobody_wants_is_given_back_by_reset_without_a_frame() {
    let mut talk = small_windows();
    let id = talk.accept(1);
    talk.gets(last_data(1, &[0; 80_000]));
    talk.0.data(id, 0, true);
    talk.0.reset(id, code::CANCEL);
    assert_eq!(talk.sends(), ["WINDOW_UPDATE 0 +80000"]);
}

#[test]
fn no_window_is_given_to_a_stream_that_the_peer_has_ended() {
    let mut talk = small_windows();
    let id = talk.accept(1);
    talk.gets(last_data(1, &[0; 80_000]));
    talk.0.consumed(id, 80_000);
    assert_eq!(talk.sends(), ["WINDOW_UPDATE 0 +80000"]);
}

#[test]
fn a_window_below_the_default_holds_from_the_acknowledgement_on() {
    let config = Config {
        stream_window: 1000,
        ..Config::server()
    };
    let mut talk = Talk(ztunnel_core::h2::Connection::new(config));
    talk.gets([PREFACE, &settings(&[])].concat());
    talk.0.output().clear();
    talk.accept(1);
    assert_eq!(talk.gets(data(1, &[0; 2000])), ["data 1 (2000)"]);
    talk.gets(frame(SETTINGS, ACK, 0, &[]));
    assert_eq!(talk.gets(data(1, &[0; 1])), ["reset 1 FLOW_CONTROL_ERROR"]);
    talk.sends();
    talk.accept(3);
    assert_eq!(talk.gets(data(3, &[0; 1000])), ["data 3 (1000)"]);
    assert_eq!(talk.gets(data(3, &[0; 1])), ["reset 3 FLOW_CONTROL_ERROR"]);
}
