//! Bytes through a tunnel: all of them, in order, both ways, with both ends' ends.

mod transport_support;

use aws_lc_rs::digest::{Context, SHA256};
use socket2::SockRef;
use std::io::ErrorKind;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use transport_support::*;

/// A block whose length is no power of two, so that a frame or record out of place shows.
fn block() -> Vec<u8> {
    (0..65_537usize)
        .map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect()
}

fn reset_on_drop(tcp: &TcpStream) {
    SockRef::from(tcp)
        .set_linger(Some(Duration::ZERO))
        .expect("linger");
}

#[test]
fn one_byte_comes_back() {
    on_worker(async {
        let (tunnels, server) = pair().await;
        let mut app = through(&tunnels, server.at, echo().await).await;
        assert_eq!(exchange(&mut app, b"x").await.expect("echo"), b"x");
    });
}

#[test]
fn a_mebibyte_comes_back() {
    on_worker(async {
        let (tunnels, server) = pair().await;
        let mut app = through(&tunnels, server.at, echo().await).await;
        let bytes = block().repeat(16);
        assert!(exchange(&mut app, &bytes).await.expect("echo") == bytes);
    });
}

#[test]
fn sixty_four_mebibytes_come_back_unchanged() {
    on_worker(async {
        let (tunnels, server) = pair().await;
        let mut app = through(&tunnels, server.at, echo().await).await;
        let (mut reader, mut writer) = app.split();
        let (mut sent, mut back) = (Context::new(&SHA256), Context::new(&SHA256));
        let send = async {
            let block = block();
            for _ in 0..1024 {
                sent.update(&block);
                writer.write_all(&block).await?;
            }
            writer.shutdown().await
        };
        let receive = async {
            let mut piece = vec![0; 1 << 20];
            loop {
                match reader.read(&mut piece).await? {
                    0 => return Ok(()),
                    some => back.update(&piece[..some]),
                }
            }
        };
        tokio::try_join!(send, receive).expect("echo");
        assert_eq!(sent.finish().as_ref(), back.finish().as_ref());
    });
}

#[test]
fn a_hundred_streams_share_a_tunnel_and_do_not_mix() {
    on_worker(async {
        let (tunnels, server) = pair().await;
        let to = echo().await;
        let mut all = tokio::task::JoinSet::new();
        for number in 0..100u8 {
            let (tunnels, at) = (tunnels.clone(), server.at);
            all.spawn_local(async move {
                let mut app = through(&tunnels, at, to).await;
                let bytes = vec![number; 20_000 + usize::from(number)];
                assert!(exchange(&mut app, &bytes).await.expect("echo") == bytes);
            });
        }
        all.join_all().await;
        assert_eq!(server.accepted.get(), 1);
    });
}

#[test]
fn who_has_ended_still_hears_the_other() {
    on_worker(async {
        let (tunnels, server) = pair().await;
        let (mut near, mut far) = joined(&tunnels, &server).await;
        near.shutdown().await.expect("shutdown");
        assert_eq!(far.read(&mut [0; 8]).await.expect("end"), 0);
        assert_eq!(exchange(&mut far, b"late").await.expect("write"), b"");
        let mut heard = Vec::new();
        near.read_to_end(&mut heard).await.expect("read");
        assert_eq!(heard, b"late");
    });
}

#[test]
fn the_far_side_may_end_first() {
    on_worker(async {
        let (tunnels, server) = pair().await;
        let (mut near, mut far) = joined(&tunnels, &server).await;
        far.shutdown().await.expect("shutdown");
        assert_eq!(near.read(&mut [0; 8]).await.expect("end"), 0);
        assert_eq!(exchange(&mut near, b"late").await.expect("write"), b"");
        let mut heard = Vec::new();
        far.read_to_end(&mut heard).await.expect("read");
        assert_eq!(heard, b"late");
    });
}

#[test]
fn a_reset_of_the_near_application_reaches_the_far_one() {
    on_worker(async {
        let (tunnels, server) = pair().await;
        let (near, mut far) = joined(&tunnels, &server).await;
        reset_on_drop(&near);
        drop(near);
        let seen = far.read(&mut [0; 8]).await.expect_err("a reset");
        assert_eq!(seen.kind(), ErrorKind::ConnectionReset);
    });
}

#[test]
fn a_reset_of_the_far_application_reaches_the_near_one() {
    on_worker(async {
        let (tunnels, server) = pair().await;
        let (mut near, far) = joined(&tunnels, &server).await;
        reset_on_drop(&far);
        drop(far);
        let seen = near.read(&mut [0; 8]).await.expect_err("a reset");
        assert_eq!(seen.kind(), ErrorKind::ConnectionReset);
    });
}

#[test]
fn a_cut_tunnel_resets_both_applications() {
    on_worker(async {
        let (tunnels, server) = pair().await;
        let (mut near, mut far) = joined(&tunnels, &server).await;
        tunnels.cut(&|_| true);
        for app in [&mut near, &mut far] {
            let seen = app.read(&mut [0; 8]).await.expect_err("a reset");
            assert_eq!(seen.kind(), ErrorKind::ConnectionReset);
        }
    });
}

#[test]
fn a_reader_that_does_not_read_stops_the_writer_and_loses_nothing() {
    on_worker_with_stopped_clock(async {
        let (tunnels, server) = pair().await;
        let (mut near, mut far) = joined(&tunnels, &server).await;
        let block = block();
        let mut written = 0usize;
        // The clock moves only when nothing else does: a write that times out is one that nobody makes room for.
        while let Ok(some) =
            tokio::time::timeout(Duration::from_millis(1), near.write(&block)).await
        {
            written += some.expect("write");
            assert!(written < 64 << 20, "nothing stops the writer");
        }
        let (mut reader, mut writer) = (far.split().0, near.split().1);
        writer.shutdown().await.expect("shutdown");
        let mut read = 0;
        let mut piece = vec![0; 1 << 20];
        while let some @ 1.. = reader.read(&mut piece).await.expect("read") {
            read += some;
        }
        assert_eq!(read, written);
    });
}

#[test]
fn a_stalled_stream_does_not_stall_its_neighbour() {
    on_worker_with_stopped_clock(async {
        let (tunnels, server) = pair().await;
        let (mut near, _far_does_not_read) = joined(&tunnels, &server).await;
        let block = block();
        while tokio::time::timeout(Duration::from_millis(1), near.write(&block))
            .await
            .is_ok()
        {}
        let mut app = through(&tunnels, server.at, echo().await).await;
        let bytes = block.repeat(4);
        assert!(exchange(&mut app, &bytes).await.expect("echo") == bytes);
        assert_eq!(server.accepted.get(), 1);
    });
}
