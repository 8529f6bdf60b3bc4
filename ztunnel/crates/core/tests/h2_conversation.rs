//! The life of connections and streams, told as conversations.

mod h2_common;
use h2_common::*;
use ztunnel_core::h2::{Config, Connection, OpenRefused, StreamId, code};

#[test]
fn a_client_greets_with_preface_settings_and_its_window() {
    let mut client = Connection::new(Config::client());
    let output = std::mem::take(client.output());
    let greeting = output.strip_prefix(PREFACE).expect("the preface first");
    let ours = settings(&[(2, 0), (4, 4 << 20), (5, 1 << 20), (6, 16 << 10)]);
    assert_eq!(
        greeting,
        [ours, window_update(0, (16 << 20) - 65_535)].concat()
    );
}

#[test]
fn a_server_greets_with_how_many_streams_it_takes() {
    let mut server = Connection::new(Config::server());
    let ours = settings(&[(3, 200), (4, 4 << 20), (5, 1 << 20), (6, 16 << 10)]);
    assert_eq!(
        *server.output(),
        [ours, window_update(0, (16 << 20) - 65_535)].concat()
    );
}

#[test]
fn settings_and_ping_are_acknowledged() {
    let mut talk = Talk::server();
    assert_eq!(
        talk.gets([settings(&[]), ping(7)].concat()),
        Vec::<String>::new()
    );
    assert_eq!(talk.sends(), ["SETTINGS ack", "PING 7 ack"]);
}

#[test]
fn our_ping_comes_back_as_a_pong_once() {
    let mut talk = Talk::client();
    talk.0.ping(9);
    assert_eq!(talk.sends(), ["PING 9"]);
    let pong = frame(PING, ACK, 0, &9u64.to_be_bytes());
    assert_eq!(talk.gets([pong.clone(), pong].concat()), ["pong 9"]);
}

#[test]
fn a_request_is_served_until_both_sides_have_ended() {
    let mut talk = Talk::server();
    let id = talk.accept(1);
    assert_eq!(talk.gets(data(1, b"hello")), ["data 1 hello"]);
    talk.0.consumed(id, 5);
    assert_eq!(talk.gets(last_data(1, b"bye")), ["data 1 bye end"]);
    talk.0.consumed(id, 3);
    assert!(!talk.0.is_finished(id));
    assert_eq!(
        talk.0.data(id, 4, true),
        frame(DATA, END_STREAM, 1, &[0; 4])[..9]
    );
    assert!(talk.0.is_finished(id));
    assert_eq!(talk.0.open_streams(), 0);
}

#[test]
fn a_client_may_end_first_and_still_receives() {
    let mut talk = Talk::client();
    let id = talk.connect();
    talk.0.data(id, 0, true);
    assert!(!talk.0.may_send(id));
    assert_eq!(talk.0.send_room(id), 0);
    assert_eq!(talk.gets(data(1, b"late")), ["data 1 late"]);
    assert_eq!(talk.gets(last_data(1, b"")), ["data 1  end"]);
    assert!(talk.0.is_finished(id));
}

#[test]
fn heads_and_their_fields_arrive_as_they_were_sent() {
    let (mut client, mut server) = (
        Connection::new(Config::client()),
        Connection::new(Config::server()),
    );
    let long = "v".repeat(5_000);
    let fields = [
        ("baggage", long.as_str()),
        ("forwarded", "for=10.0.0.2"),
        ("te", "trailers"),
    ];
    let id = client
        .open("svc.shop.svc.cluster.local:8080", &fields)
        .expect("room");
    let mut heads = Vec::new();
    let mut keep = |event: ztunnel_core::h2::Event<'_>| {
        if let ztunnel_core::h2::Event::Request { head, .. } = event {
            heads.push(head);
        }
    };
    server
        .receive(&std::mem::take(client.output()), &mut keep)
        .expect("sound bytes");
    let [head] = heads.as_slice() else {
        panic!("one head, not {heads:?}")
    };
    assert_eq!(
        (head.method.as_str(), head.authority.as_deref()),
        ("CONNECT", Some("svc.shop.svc.cluster.local:8080"))
    );
    assert_eq!(
        (&head.scheme, &head.path, &head.protocol),
        (&None, &None, &None)
    );
    let got: Vec<(&str, &str)> = head
        .headers
        .0
        .iter()
        .map(|(name, value)| (&**name, &**value))
        .collect();
    assert_eq!(got, fields);
    assert_eq!(head.headers.get("forwarded"), Some("for=10.0.0.2"));
    assert_eq!(id, StreamId(1));
}

#[test]
fn a_head_longer_than_the_peers_frames_is_continued() {
    let mut talk = Talk::client();
    let long = "v".repeat(20_000);
    talk.0.open("a:1", &[("baggage", &long)]).expect("room");
    assert_eq!(talk.sends(), ["HEADERS 1", "frame 9 of 1"]);
}

#[test]
fn interim_responses_are_passed_over() {
    let mut talk = Talk::client();
    talk.0.open("a:1", &[]).expect("room");
    let bytes = [headers(1, &[(":status", "103")]), headers(1, OK)].concat();
    assert_eq!(talk.gets(bytes), ["response 1 200"]);
}

#[test]
fn trailers_end_the_stream() {
    let mut talk = Talk::server();
    talk.accept(1);
    assert_eq!(
        talk.gets(last_headers(1, &[("grpc-status", "0")])),
        ["trailers 1"]
    );
}

#[test]
fn a_refused_request_ends_with_its_status() {
    let mut talk = Talk::server();
    talk.gets(last_headers(1, CONNECT));
    talk.0.respond(StreamId(1), 401, &[], true);
    assert_eq!(talk.sends(), ["HEADERS 1 end"]);
    assert_eq!(talk.0.open_streams(), 0);
}

#[test]
fn resets_go_both_ways() {
    let mut talk = Talk::server();
    let id = talk.accept(1);
    assert_eq!(talk.gets(reset(1, code::CANCEL)), ["reset 1 CANCEL"]);
    assert!(talk.0.is_finished(id));
    let id = talk.accept(3);
    talk.0.reset(id, code::CONNECT_ERROR);
    talk.0.reset(id, code::CONNECT_ERROR);
    assert_eq!(talk.sends(), ["RST_STREAM 3 CONNECT_ERROR"]);
}

#[test]
fn what_was_under_way_when_we_reset_is_passed_over() {
    let mut talk = Talk::server();
    let id = talk.accept(1);
    talk.0.reset(id, code::CANCEL);
    talk.sends();
    let late = [
        data(1, b"late"),
        window_update(1, 9),
        headers(1, &[("x", "y")]),
        reset(1, 0),
    ]
    .concat();
    assert_eq!(talk.gets(late), Vec::<String>::new());
    assert_eq!(talk.sends(), Vec::<String>::new());
}

#[test]
fn a_stream_that_dies_within_a_frame_hears_no_more_of_it() {
    let mut talk = Talk::server();
    let id = talk.accept(1);
    let bytes = [last_data(1, b"first second"), ping(3)].concat();
    assert_eq!(talk.gets(bytes[..14].to_vec()), ["data 1 first"]);
    talk.0.reset(id, code::CANCEL);
    assert_eq!(talk.gets(bytes[14..].to_vec()), Vec::<String>::new());
    assert_eq!(talk.sends(), ["RST_STREAM 1 CANCEL", "PING 3 ack"]);
}

#[test]
fn data_for_a_stream_that_died_meanwhile_is_framed_so_that_the_peer_skips_it() {
    let mut talk = Talk::client();
    let id = talk.connect();
    talk.gets(reset(1, code::CANCEL));
    let head = talk.0.data(id, 5, false);
    let mut server = Talk::server();
    assert_eq!(
        server.gets([&head[..], b"stale", &ping(1)].concat()),
        Vec::<String>::new()
    );
    assert_eq!(server.sends(), ["PING 1 ack"]);
}

#[test]
fn padding_is_not_payload() {
    let mut talk = Talk::server();
    talk.accept(1);
    assert_eq!(
        talk.gets([padded(1, b"abc", 200), data(1, b"d")].concat()),
        ["data 1 abc", "data 1 d"]
    );
    assert_eq!(talk.gets(padded(1, b"", 3)), Vec::<String>::new());
    let last = frame(DATA, PADDED | END_STREAM, 1, &[1, 0]);
    assert_eq!(talk.gets(last), ["data 1  end"]);
}

#[test]
fn unknown_frames_settings_and_priority_are_passed_over() {
    let mut talk = Talk::server();
    talk.accept(1);
    let strange = [
        frame(0xbe, 0xff, 1, b"grease"),
        settings(&[(0xaaaa, 5)]),
        frame(PRIORITY, 0, 5, &[0, 0, 0, 1, 9]),
        frame(DATA, 0xf6, 1, b"odd flags"),
    ];
    assert_eq!(talk.gets(strange.concat()), ["data 1 odd flags"]);
}

#[test]
fn heads_may_be_padded_prioritised_and_continued() {
    let mut talk = Talk::server();
    let fields = block(CONNECT);
    let (first, second) = fields.split_at(5);
    let payload = [&[2, 0, 0, 0, 0, 16], first, &[0, 0]].concat();
    let bytes = [
        frame(HEADERS, PADDED | PRIORITISED | END_STREAM, 1, &payload),
        frame(CONTINUATION, 0, 1, &[]),
        frame(CONTINUATION, END_HEADERS, 1, second),
    ];
    assert_eq!(
        talk.gets(bytes.concat()),
        ["request 1 CONNECT 10.0.0.1:80 end"]
    );
}

#[test]
fn after_our_goaway_open_streams_go_on_and_new_ones_are_refused() {
    let mut talk = Talk::server();
    let id = talk.accept(1);
    talk.0.go_away(code::NO_ERROR);
    assert_eq!(talk.sends(), ["GOAWAY 1 NO_ERROR"]);
    let bytes = [headers(3, CONNECT), data(3, b"early"), data(1, b"on")].concat();
    assert_eq!(talk.gets(bytes), ["data 1 on"]);
    assert_eq!(talk.sends(), ["RST_STREAM 3 REFUSED_STREAM"]);
    assert!(talk.0.may_send(id));
    assert_eq!(talk.dies_of(window_update(0, 0)), "PROTOCOL_ERROR");
    assert_eq!(talk.sends(), ["GOAWAY 1 PROTOCOL_ERROR"]);
}

#[test]
fn the_peers_goaway_gives_back_what_it_did_not_process() {
    let mut talk = Talk::client();
    let (first, second) = (talk.connect(), talk.connect());
    let third = talk.0.open("a:1", &[]).expect("room");
    let heard = talk.gets(go_away(1, 0));
    assert_eq!(
        heard,
        [
            "reset 3 REFUSED_STREAM",
            "reset 5 REFUSED_STREAM",
            "goaway 1 NO_ERROR"
        ]
    );
    assert_eq!(talk.0.open("a:1", &[]), Err(OpenRefused::GoingAway));
    assert!(!talk.0.is_finished(first) && talk.0.is_finished(second) && talk.0.is_finished(third));
    assert_eq!(talk.gets(data(1, b"on")), ["data 1 on"]);
}

#[test]
fn as_many_streams_as_the_peer_allows_and_no_more() {
    let mut talk = Talk::client();
    talk.gets(settings(&[(3, 2)]));
    let first = talk.connect();
    talk.connect();
    assert_eq!(talk.0.open("a:1", &[]), Err(OpenRefused::TooManyStreams));
    talk.0.data(first, 0, true);
    assert_eq!(talk.gets(last_data(1, b"")), ["data 1  end", "opened"]);
    assert!(talk.0.may_open());
    talk.connect();
    assert!(!talk.0.may_open());
    assert_eq!(talk.gets(settings(&[(3, 9)])), ["opened"]);
}

#[test]
fn a_place_that_we_freed_ourselves_is_told_at_the_next_receive() {
    let mut talk = Talk::client();
    talk.gets(settings(&[(3, 1)]));
    let id = talk.connect();
    assert!(!talk.0.may_open());
    talk.0.reset(id, code::CANCEL);
    assert_eq!(talk.gets(vec![]), ["opened"]);
    assert_eq!(talk.gets(vec![]), Vec::<String>::new());
}

#[test]
fn one_stream_too_many_is_refused_and_the_connection_lives() {
    let mut talk = Talk::with(
        Config {
            max_streams: 1,
            ..Config::server()
        },
        PREFACE,
    );
    talk.accept(1);
    assert_eq!(
        talk.gets([headers(3, CONNECT), data(3, b"early")].concat()),
        Vec::<String>::new()
    );
    assert_eq!(talk.sends(), ["RST_STREAM 3 REFUSED_STREAM"]);
    talk.gets(reset(1, code::CANCEL));
    talk.accept(5);
}

#[test]
fn nothing_is_heard_after_death() {
    let mut talk = Talk::server();
    assert_eq!(talk.dies_of(data(0, b"x")), "PROTOCOL_ERROR");
    assert_eq!(talk.sends(), ["GOAWAY 0 PROTOCOL_ERROR"]);
    assert_eq!(talk.dies_of(headers(1, CONNECT)), "PROTOCOL_ERROR");
    assert_eq!(talk.sends(), Vec::<String>::new());
}

#[test]
fn a_smaller_header_table_is_acknowledged_in_the_next_head() {
    let mut talk = Talk::client();
    talk.gets(settings(&[(1, 0)]));
    talk.sends();
    talk.0.open("a:1", &[]).expect("room");
    assert_eq!(talk.0.output()[9], 0x20, "a table size update to 0");
    talk.0.output().clear();
    talk.0.open("a:1", &[]).expect("room");
    assert_ne!(talk.0.output()[9], 0x20);
}
