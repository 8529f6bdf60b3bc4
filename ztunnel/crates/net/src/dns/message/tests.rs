//! Questions in, answers out, in bytes.

use super::*;
use domain::base::iana::Rtype;

fn question(name: &str, rtype: Rtype) -> Vec<u8> {
    with_opt(name, rtype, None)
}

/// `opt`: EDNS version and payload size.
fn with_opt(name: &str, rtype: Rtype, opt: Option<(u8, u16)>) -> Vec<u8> {
    let mut builder = MessageBuilder::new_vec();
    builder.header_mut().set_id(0x1234);
    builder.header_mut().set_rd(true);
    let mut questions = builder.question();
    let name: Name<Vec<u8>> = name.parse().expect("a name");
    questions.push((name, rtype)).expect("room");
    let mut additional = questions.additional();
    if let Some((version, size)) = opt {
        let filled = additional.opt(|opt| {
            opt.set_version(version);
            opt.set_udp_payload_size(size);
            Ok(())
        });
        filled.expect("room");
    }
    additional.finish()
}

fn query(bytes: &[u8]) -> Query<'_> {
    match read(bytes) {
        Read::Query(query) => query,
        _ => panic!("a question"),
    }
}

fn parsed(bytes: &[u8]) -> &Message<[u8]> {
    Message::from_slice(bytes).expect("a message")
}

fn addresses(count: u32) -> Found {
    let ip = |n: u32| Data::Address(IpAddr::from((0x0a00_0000 + n).to_be_bytes()));
    Found {
        data: (0..count).map(ip).collect(),
        ..Found::default()
    }
}

/// Every record of answer, authority and additional section as dig shows it.
fn shown(bytes: &[u8]) -> String {
    parsed(bytes)
        .for_slice_ref()
        .display_dig_style()
        .to_string()
}

#[test]
fn a_question_is_understood_whatever_its_spelling() {
    for (asked, name) in [
        ("WEB.Shop.svc", Some("web.shop.svc")),
        ("_http._tcp.web", Some("_http._tcp.web")),
        ("*.example.com", None),
        ("a\\.b.example.com", None),
        (".", Some("")),
    ] {
        assert_eq!(
            query(&question(asked, Rtype::A)).name.as_deref(),
            name,
            "{asked}"
        );
    }
    let odd = question("web", Rtype::from_int(65_000));
    assert_eq!(query(&odd).kind, Kind::Other);
}

#[test]
fn what_is_no_question_is_refused_or_passed_over() {
    assert!(matches!(read(b""), Read::Noise));
    assert!(matches!(read(&[0; 11]), Read::Noise));
    let mut answer = question("web", Rtype::A);
    answer[2] |= 0x80;
    assert!(
        matches!(read(&answer), Read::Noise),
        "an answer to somebody else"
    );
    let mut update = question("web", Rtype::A);
    update[2] |= 5 << 3;
    let mut none = question("web", Rtype::A);
    none[5] = 0;
    let mut two = question("web", Rtype::A);
    two[5] = 2;
    for (bytes, rcode) in [
        (update, Rcode::NOTIMP),
        (none, Rcode::FORMERR),
        (two, Rcode::FORMERR),
    ] {
        let Read::Refused(said) = read(&bytes) else {
            panic!("{rcode} expected");
        };
        assert_eq!(
            (parsed(&said).header().rcode(), parsed(&said).header().id()),
            (rcode, 0x1234)
        );
        assert!(parsed(&said).header().qr());
    }
}

#[test]
fn an_edns_version_that_nobody_speaks_is_told_so() {
    let Read::Refused(said) = read(&with_opt("web", Rtype::A, Some((1, 1232)))) else {
        panic!("refused");
    };
    assert_eq!(parsed(&said).opt_rcode(), OptRcode::BADVERS);
}

#[test]
fn an_answer_has_the_name_as_it_was_asked_for() {
    let bytes = question("Web.shop", Rtype::A);
    let said = query(&bytes).reply(&Reply::Found(addresses(2)), false);
    let header = parsed(&said).header();
    assert!(header.aa() && header.ra() && header.rd() && header.qr() && !header.tc());
    assert!(shown(&said).contains("Web.shop."), "{}", shown(&said));
    assert_eq!(parsed(&said).header_counts().ancount(), 2);
    assert!(
        parsed(&said).opt().is_none(),
        "the client does not speak EDNS"
    );
    assert_eq!(answer_to(&bytes, &said), Some(Rcode::NOERROR));
}

#[test]
fn behind_an_alias_the_records_belong_to_what_it_stands_for() {
    let found = Found {
        alias_of: Some("db.example.com".into()),
        ..addresses(1)
    };
    let bytes = question("db.example.com.corp.example", Rtype::A);
    let said = shown(&query(&bytes).reply(&Reply::Found(found), false));
    let records: Vec<_> = said
        .lines()
        .filter(|line| line.contains("10.0.0.0"))
        .collect();
    assert!(records[0].starts_with("db.example.com."), "{said}");
    assert!(said.contains("CNAME"), "{said}");
}

#[test]
fn none_of_this_kind_and_no_such_name_can_be_told_apart_and_remembered() {
    let bytes = question("web", Rtype::AAAA);
    for (reply, rcode) in [
        (Reply::Found(Found::default()), Rcode::NOERROR),
        (Reply::NoSuchName, Rcode::NXDOMAIN),
    ] {
        let said = query(&bytes).reply(&reply, false);
        let counts = parsed(&said).header_counts();
        assert_eq!((counts.ancount(), counts.nscount()), (0, 1));
        assert_eq!(parsed(&said).header().rcode(), rcode);
        assert!(shown(&said).contains("SOA"), "{}", shown(&said));
    }
}

#[test]
fn what_does_not_fit_says_so_and_comes_whole_over_tcp() {
    for (opt, most) in [(None, 29), (Some((0, 1232)), 73), (Some((0, 100)), 28)] {
        let bytes = with_opt("web", Rtype::A, opt);
        let fits = query(&bytes).reply(&Reply::Found(addresses(most)), false);
        assert!(!parsed(&fits).header().tc(), "{opt:?}");
        assert!(fits.len() <= query(&bytes).limit(false));
        let cut = query(&bytes).reply(&Reply::Found(addresses(most + 3)), false);
        assert!(parsed(&cut).header().tc(), "{opt:?}");
        assert_eq!(parsed(&cut).header_counts().ancount(), 0);
        let whole = query(&bytes).reply(&Reply::Found(addresses(most + 3)), true);
        assert_eq!(
            u32::from(parsed(&whole).header_counts().ancount()),
            most + 3
        );
        assert_eq!(parsed(&cut).opt().is_some(), opt.is_some());
    }
}

#[test]
fn service_records_bring_what_addresses_fit() {
    let target = "db-0.db.shop.svc.cluster.local".to_owned();
    let found = Found {
        data: vec![Data::Service {
            port: 5432,
            target: target.clone(),
        }],
        additional: (0..100u8)
            .map(|n| (target.clone(), IpAddr::from([10, 0, 0, n])))
            .collect(),
        ..Found::default()
    };
    let bytes = question("_sql._tcp.db", Rtype::SRV);
    let said = query(&bytes).reply(&Reply::Found(found), false);
    let counts = parsed(&said).header_counts();
    assert_eq!(counts.ancount(), 1);
    assert!((10..100).contains(&counts.arcount()) && said.len() <= 512);
    assert!(!parsed(&said).header().tc());
    assert!(
        shown(&said).contains("0 100 5432 db-0.db.shop.svc.cluster.local."),
        "{}",
        shown(&said)
    );
}

#[test]
fn a_host_that_is_no_name_fails_instead_of_lying() {
    let found = Found {
        alias_of: Some("a".repeat(64)),
        ..addresses(1)
    };
    let said = query(&question("web", Rtype::A)).reply(&Reply::Found(found), true);
    assert_eq!(parsed(&said).header().rcode(), Rcode::SERVFAIL);
}

#[test]
fn only_the_answer_to_this_question_counts() {
    let bytes = question("web", Rtype::A);
    let said = query(&bytes).reply(&Reply::Found(addresses(1)), false);
    let mut other_id = said.clone();
    other_id[0] ^= 1;
    let other_name = query(&question("wep", Rtype::A)).reply(&Reply::Found(addresses(1)), false);
    for wrong in [other_id, other_name, bytes.clone(), b"short".to_vec()] {
        assert_eq!(answer_to(&bytes, &wrong), None);
    }
}

#[test]
fn no_bytes_make_the_reader_stumble() {
    let whole = with_opt("db.example.com", Rtype::A, Some((0, 1232)));
    let mut dice = 1_u32;
    for _ in 0..20_000 {
        let mut bytes = whole.clone();
        for _ in 0..3 {
            dice = dice.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let at = dice as usize % bytes.len();
            bytes[at] = (dice >> 24) as u8;
        }
        bytes.truncate(dice as usize % (bytes.len() + 1));
        if let Read::Query(query) = read(&bytes) {
            let said = query.reply(&Reply::Found(addresses(3)), false);
            assert!(said.len() <= query.limit(false), "{bytes:?}");
        }
    }
}
