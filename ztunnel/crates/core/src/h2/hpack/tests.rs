//! HPACK against the examples of RFC 7541 appendix C and against itself.

use super::*;

fn bytes(hex: &str) -> Vec<u8> {
    let digit = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).expect("two hex digits");
    (0..hex.len()).step_by(2).map(digit).collect()
}

fn fields(decoder: &mut Decoder, block: &[u8]) -> Result<String, BadBlock> {
    let mut said = Vec::new();
    decoder.decode(block, &mut |name, value| {
        said.push(format!(
            "{}={}",
            String::from_utf8_lossy(name),
            String::from_utf8_lossy(value)
        ));
    })?;
    Ok(said.join(" "))
}

fn told(blocks: &[&str]) -> Vec<String> {
    let mut decoder = Decoder::new();
    blocks
        .iter()
        .map(|hex| fields(&mut decoder, &bytes(hex)).expect("a sound block"))
        .collect()
}

#[test]
fn integers_of_the_rfc_go_both_ways() {
    // RFC 7541 C.1
    for (prefix, value, hex) in [(5, 10, "0a"), (5, 1337, "1f9a0a"), (8 - 1, 42, "2a")] {
        let mut out = Vec::new();
        put_integer(&mut out, 0, prefix, value);
        assert_eq!(out, bytes(hex));
        assert_eq!(Input(&out).integer(prefix), Ok(value));
    }
    assert!(
        Input(&[0x1f, 0xff, 0xff, 0xff, 0xff, 0x01])
            .integer(5)
            .is_err()
    );
    assert!(Input(&[0x1f, 0x80]).integer(5).is_err());
}

#[test]
fn requests_of_the_rfc_come_out_plain_and_huffman_coded() {
    // RFC 7541 C.3 and C.4
    let requests = [
        ":method=GET :scheme=http :path=/ :authority=www.example.com",
        ":method=GET :scheme=http :path=/ :authority=www.example.com cache-control=no-cache",
        ":method=GET :scheme=https :path=/index.html :authority=www.example.com custom-key=custom-value",
    ];
    let plain = [
        "828684410f7777772e6578616d706c652e636f6d",
        "828684be58086e6f2d6361636865",
        "828785bf400a637573746f6d2d6b65790c637573746f6d2d76616c7565",
    ];
    let huffman = [
        "828684418cf1e3c2e5f23a6ba0ab90f4ff",
        "828684be5886a8eb10649cbf",
        "828785bf408825a849e95ba97d7f8925a849e95bb8e8b4bf",
    ];
    assert_eq!(told(&plain), requests);
    assert_eq!(told(&huffman), requests);
}

#[test]
fn responses_of_the_rfc_come_out_of_a_table_that_evicts() {
    // RFC 7541 C.5 and C.6, whose table of 256 bytes is set by the first block's size update (3fe101).
    let date = "date=Mon, 21 Oct 2013 20:13:2";
    let site = "location=https://www.example.com";
    let responses = [
        format!(":status=302 cache-control=private {date}1 GMT {site}"),
        format!(":status=307 cache-control=private {date}1 GMT {site}"),
        format!(
            ":status=200 cache-control=private {date}2 GMT {site} content-encoding=gzip \
             set-cookie=foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1"
        ),
    ];
    let plain = [
        "3fe1014803333032580770726976617465611d4d6f6e2c203231204f637420323031332032303a31333a323120474d546e17\
         68747470733a2f2f7777772e6578616d706c652e636f6d",
        "4803333037c1c0bf",
        "88c1611d4d6f6e2c203231204f637420323031332032303a31333a323220474d54c05a04677a69707738666f6f3d4153444a\
         4b48514b425a584f5157454f50495541585157454f49553b206d61782d6167653d333630303b2076657273696f6e3d31",
    ];
    let huffman = [
        "3fe101488264025885aec3771a4b6196d07abe941054d444a8200595040b8166e082a62d1bff6e919d29ad171863c78f0b97\
         c8e9ae82ae43d3",
        "4883640effc1c0bf",
        "88c16196d07abe941054d444a8200595040b8166e084a62d1bffc05a839bd9ab77ad94e7821dd7f2e6c7b335dfdfcd5b3960\
         d5af27087f3672c1ab270fb5291f9587316065c003ed4ee5b1063d5007",
    ];
    assert_eq!(told(&plain), responses);
    assert_eq!(told(&huffman), responses);
}

#[test]
fn heads_of_another_implementation_come_out() {
    // Three CONNECTs in a row as Python's hpack 4 encodes them.
    let blocks = [
        "4287bdab4e9c17b7ff418b0817134d2e15ddb8f01e07408794f6781d92164f8a94f640102e269a5c0bb340858c734c398b93eaf2172516a125b17a874960cd6c65b2a2a4a8",
        "c1c07f008a94f640102e269a5c0bb5bf",
        "c2418b0817134d2e15ddb8f01e0fc1c0",
    ];
    let heads = [
        ":method=CONNECT :authority=10.244.1.7:8080 forwarded=for=10.244.0.3 baggage=k8s.cluster.name=Kubernetes",
        ":method=CONNECT :authority=10.244.1.7:8080 forwarded=for=10.244.0.4 baggage=k8s.cluster.name=Kubernetes",
        ":method=CONNECT :authority=10.244.1.7:8081 forwarded=for=10.244.0.3 baggage=k8s.cluster.name=Kubernetes",
    ];
    assert_eq!(told(&blocks), heads);
}

#[test]
fn what_we_write_we_read() {
    let (mut encoder, mut block) = (Encoder::default(), Vec::new());
    encoder.limit_table(4096);
    encoder.begin(&mut block);
    assert!(block.is_empty());
    encoder.limit_table(100);
    encoder.begin(&mut block);
    let long = "v".repeat(300);
    for (name, value) in [
        (":method", "CONNECT"),
        (":status", "200"),
        ("via", "x"),
        ("baggage", &long),
    ] {
        encoder.field(&mut block, name, value);
    }
    let said = fields(&mut Decoder::new(), &block).expect("a sound block");
    assert_eq!(
        said,
        format!(":method=CONNECT :status=200 via=x baggage={long}")
    );
    assert_eq!(block[0], SIZE_UPDATE);
}

#[test]
fn an_entry_larger_than_the_table_empties_it() {
    let mut decoder = Decoder::new();
    let store = |value: &str| [&[0x40, 1, b'a', value.len() as u8][..], value.as_bytes()].concat();
    let block = [&[0x3f, 0x21][..], &store("kept"), &store(&"v".repeat(100))].concat(); // a table of 64 bytes
    fields(&mut decoder, &block).expect("a sound block");
    assert_eq!(
        fields(&mut decoder, &[0xbe]),
        Err(BadBlock("index past the header table"))
    );
    assert_eq!((decoder.table.size, decoder.table.entries.len()), (0, 0));
}
