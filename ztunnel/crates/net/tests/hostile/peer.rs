//! A peer that proves its identity and then sends whatever it likes: rustls on a blocking socket, frames by hand.

use std::cell::RefCell;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::rc::Rc;
use std::sync::Arc;

use rustls::ClientConnection;
use rustls::pki_types::ServerName;
use ztunnel_net::pool::Limits;
use ztunnel_net::tunnel::{Incoming, ServeError};

use crate::h2_common::*;
use crate::transport_support::*;

pub(crate) type Tls = rustls::StreamOwned<ClientConnection, TcpStream>;

/// The stream on which the peer turns honest after its attack.
pub(crate) const HONEST: u32 = 99_999;

/// To be called on a thread that may block.
pub(crate) fn connected(ca: &Ca) -> impl FnOnce(SocketAddr) -> Tls + Send + 'static {
    let config = foreign_config(ca);
    move |at| {
        let name = ServerName::try_from("0.0.0.0").expect("name");
        let session = ClientConnection::new(Arc::new(config), name).expect("session");
        let mut tls = Tls::new(session, TcpStream::connect(at).expect("connect"));
        tls.conn.complete_io(&mut tls.sock).expect("handshake");
        tls
    }
}

/// Serves whoever asks for an address of this host and keeps everybody else waiting, as an application that does not
/// answer would.
pub(crate) async fn reluctant(ca: &Ca, limits: Limits) -> Server {
    let held = RefCell::new(Vec::new());
    let on_request = move |incoming: Incoming| {
        if incoming
            .head
            .authority
            .as_deref()
            .is_some_and(|to| to.starts_with("127."))
        {
            connect_to_authority(incoming);
        } else {
            held.borrow_mut().push(incoming);
        }
    };
    Server::start_with(ca.identities(SERVER), limits, Rc::new(on_request)).await
}

/// What came of an attack.
pub(crate) struct Outcome {
    /// Every frame of the server's, as a sentence.
    pub(crate) said: Vec<String>,
    /// The honest stream behind the attack was served.
    pub(crate) served: bool,
    /// How the server says that the tunnel ended.
    pub(crate) ended: Option<ServeError>,
}

/// Sends the greeting, the attack and an honest request, then listens until that is served or the tunnel is gone.
pub(crate) async fn attack(ca: &Ca, bytes: Vec<u8>) -> Outcome {
    let mut server = reluctant(ca, Limits::default()).await;
    let (at, to, connect) = (server.at, echo().await, connected(ca));
    let attacking = tokio::task::spawn_blocking(move || {
        let mut tls = connect(at);
        let to = to.to_string();
        let honest = headers(HONEST, &[(":method", "CONNECT"), (":authority", &to)]);
        let greeting = [PREFACE, &settings(&[])].concat();
        for part in [greeting, bytes, honest, last_data(HONEST, b"honest")] {
            let _ = tls.write_all(&part).and_then(|()| tls.flush()); // a closed door is told by the read below
        }
        listen_to(&mut tls)
    });
    let (said, served) = attacking.await.expect("the attacker");
    let ended = server.ended.recv().await.expect("an end").err();
    Outcome {
        said,
        served,
        ended,
    }
}

/// Reads until the other end has acknowledged our SETTINGS: it has seen all that came before.
pub(crate) fn wait_for_ack(tls: &mut impl Read) {
    let (mut heard, mut piece) = (Vec::new(), [0; 4096]);
    while !told_frames(whole_frames(&heard)).contains(&"SETTINGS ack".to_owned()) {
        let read = tls.read(&mut piece).expect("it listens");
        assert!(read > 0, "it hung up");
        heard.extend_from_slice(
            piece[..read]
                .strip_prefix(PREFACE)
                .unwrap_or(&piece[..read]),
        );
    }
}

pub(crate) fn listen_to(tls: &mut Tls) -> (Vec<String>, bool) {
    let (mut heard, mut piece) = (Vec::new(), vec![0; 64 << 10]);
    loop {
        let said = told_frames(whole_frames(&heard));
        if said.contains(&format!("DATA {HONEST} (6)")) {
            return (said, true);
        }
        match tls.read(&mut piece) {
            Ok(read) if read > 0 => heard.extend_from_slice(&piece[..read]),
            _ => return (said, false),
        }
    }
}

fn whole_frames(bytes: &[u8]) -> &[u8] {
    let mut end = 0;
    while let Some(&[a, b, c]) = bytes[end..].first_chunk() {
        let next = end + 9 + u32::from_be_bytes([0, a, b, c]) as usize;
        if next > bytes.len() {
            break;
        }
        end = next;
    }
    &bytes[..end]
}
