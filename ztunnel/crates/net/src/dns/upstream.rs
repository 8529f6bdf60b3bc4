//! One question to a name server, out of the pod's namespace, as the pod itself would have put it: its NetworkPolicy and
//! its routes hold. Every question has a socket, thus a port, of its own and an id that the pod did not choose, so that
//! nobody can guess an answer into it.

use super::message::answer_to;
use crate::netns;
use crate::pod::Pod;
use crate::runtime::Worker;
use domain::base::iana::Rcode;
use socket2::{Domain, Protocol, Socket, Type};
use std::io;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UdpSocket;
use tokio::time::{Instant, timeout, timeout_at};

/// After it a client is told that nobody answers; resolvers themselves wait for 5 s.
pub(super) const PATIENCE: Duration = Duration::from_secs(2);
/// A datagram may have been lost: asked again after so long.
const AGAIN: Duration = Duration::from_millis(700);
const LARGEST: usize = 65_535;

#[derive(Debug, thiserror::Error)]
pub(super) enum Unanswered {
    #[error("{0} did not answer within {limit} s", limit = PATIENCE.as_secs())]
    Silent(SocketAddr),
    #[error("{0}: {1}")]
    Failed(SocketAddr, io::Error),
    #[error("no name server is known")]
    Nobody,
}

/// The answer with the question's id.
pub(super) async fn ask(
    worker: &Worker,
    pod: &Pod,
    question: &[u8],
    server: SocketAddr,
    tcp: bool,
) -> Result<(Vec<u8>, Rcode), Unanswered> {
    let mut sent = question.to_vec();
    let failed = |e| Unanswered::Failed(server, e);
    let id = sent
        .get_mut(..2)
        .ok_or_else(|| failed(io::ErrorKind::InvalidData.into()))?;
    aws_lc_rs::rand::fill(id).map_err(|_| failed(io::Error::other("no random numbers")))?;
    let mut way = Way {
        worker,
        pod,
        server,
    };
    let answered = if tcp {
        timeout(PATIENCE, way.by_stream(&sent)).await
    } else {
        timeout(PATIENCE, way.by_datagram(&sent)).await
    };
    let (mut answer, rcode) = answered
        .map_err(|_| Unanswered::Silent(server))?
        .map_err(failed)?;
    answer[..2].copy_from_slice(&question[..2]);
    Ok((answer, rcode))
}

struct Way<'a> {
    worker: &'a Worker,
    pod: &'a Pod,
    server: SocketAddr,
}

impl Way<'_> {
    /// What is no answer to it (somebody guesses) is passed over.
    async fn by_datagram(&mut self, question: &[u8]) -> io::Result<(Vec<u8>, Rcode)> {
        let mark = self.worker.shared.config.packet_mark;
        let make = || datagram_socket(self.server, mark);
        let socket = UdpSocket::from_std(self.pod.netns.enter(make)?.into())?;
        let mut answer = vec![0; LARGEST];
        socket.send(question).await?;
        let mut again = Instant::now() + AGAIN;
        loop {
            let Ok(received) = timeout_at(again, socket.recv(&mut answer)).await else {
                socket.send(question).await?;
                again += PATIENCE;
                continue;
            };
            let length = received?;
            if let Some(rcode) = answer_to(question, &answer[..length]) {
                answer.truncate(length);
                return Ok((answer, rcode));
            }
        }
    }

    async fn by_stream(&mut self, question: &[u8]) -> io::Result<(Vec<u8>, Rcode)> {
        let mut server = self.pod.connect(self.worker, self.server, None).await?;
        let length = u16::try_from(question.len()).map_err(io::Error::other)?;
        let framed = [&length.to_be_bytes(), question].concat();
        server.write_all(&framed).await?;
        let mut answer = vec![0; server.read_u16().await?.into()];
        server.read_exact(&mut answer).await?;
        match answer_to(question, &answer) {
            Some(rcode) => Ok((answer, rcode)),
            None => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "it answers something else",
            )),
        }
    }
}

/// Connected, so that only the server's own datagrams, and what the network says of it, arrive.
fn datagram_socket(to: SocketAddr, mark: u32) -> io::Result<Socket> {
    let kind = Type::DGRAM.cloexec().nonblocking();
    let socket = Socket::new(Domain::for_address(to), kind, Some(Protocol::UDP))?;
    if mark != 0 {
        socket.set_mark(mark)?;
    }
    socket.connect(&to.into())?;
    Ok(socket)
}

/// Where a question goes: to the server that was meant, unless that is ourselves; then to the node's.
pub(super) fn servers(meant: Option<SocketAddr>) -> Vec<SocketAddr> {
    match meant.filter(|server| !netns_own(*server)) {
        Some(server) => vec![server],
        None => super::resolv::Resolv::of_node().servers,
    }
}

fn netns_own(server: SocketAddr) -> bool {
    ztunnel_core::addr::is_own_host(server.ip()) || ztunnel_core::addr::is_illegal(server.port())
}

/// Where a stream, or the datagram that was read last, was meant to go.
pub(super) fn meant(socket: socket2::SockRef<'_>, client: SocketAddr) -> Option<SocketAddr> {
    netns::original_dst(socket, client.ip())
}
