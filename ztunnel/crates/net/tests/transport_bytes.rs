//! Bytes through a tunnel: all of them, in order, both ways, with both ends' ends.

mod transport_support;

use std::net::SocketAddr;
use std::rc::Rc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use transport_support::*;
use ztunnel_net::pool::{Limits, Tunnels};

async fn pair() -> (Rc<Tunnels>, Server) {
    let ca = Ca::new();
    let server = Server::start(ca.identities(SERVER), Limits::default()).await;
    (
        Tunnels::new(ca.identities(CLIENT), Limits::default()),
        server,
    )
}

/// An application that sends back what it gets and ends when the other ends.
async fn echo() -> SocketAddr {
    let (listener, at) = listen().await;
    tokio::task::spawn_local(async move {
        while let Ok((mut tcp, _)) = listener.accept().await {
            tokio::task::spawn_local(async move {
                let (mut reader, mut writer) = tcp.split();
                let _ = tokio::io::copy(&mut reader, &mut writer).await; // a reset is a test's wish
                let _ = writer.shutdown().await;
            });
        }
    });
    at
}

/// Bytes that do not repeat at any power of two.
fn pattern(len: usize) -> Vec<u8> {
    (0..len)
        .map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect()
}

async fn comes_back(tcp: &mut TcpStream, bytes: &[u8]) -> bool {
    let (mut reader, mut writer) = tcp.split();
    let mut back = Vec::new();
    let (written, read) = tokio::join!(
        async {
            writer.write_all(bytes).await?;
            writer.shutdown().await
        },
        reader.read_to_end(&mut back)
    );
    written.expect("write");
    read.expect("read");
    back == bytes
}

#[test]
fn one_byte_comes_back() {
    on_worker(async {
        let (tunnels, server) = pair().await;
        let mut app = through(&tunnels, server.at, echo().await).await;
        assert!(comes_back(&mut app, b"x").await);
    });
}
#[test]
fn mebibyte_comes_back() {
    on_worker(async {
        let (tunnels, server) = pair().await;
        let mut app = through(&tunnels, server.at, echo().await).await;
        assert!(comes_back(&mut app, &pattern(64 << 20)).await);
    });
}
