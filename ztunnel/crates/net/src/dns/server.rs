//! A pod's questions, one by one: answered at once where the mesh knows, else followed up beside the others. Owns the
//! bounds of what one pod can have going on, and the line in the log.

use super::Sockets;
use super::message::{Query, Read, read};
use super::meter::Labels;
use super::original::Originals;
use super::upstream::{self, Unanswered};
use crate::log::{Level, Line};
use crate::pod::Pod;
use crate::runtime::Worker;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::select;
use tokio::task::{JoinHandle, JoinSet, spawn_local};
use tokio::time::{sleep, timeout};
use ztunnel_core::dns::{Asker, Reply, resolve};

/// Questions of one pod that wait for somebody, per family; beyond it they fail at once.
const MOST_WAITING: usize = 256;
/// Streams of one pod, per family.
const MOST_STREAMS: usize = 32;
/// A stream without a question, or whose client does not take its answer, is closed after so long (RFC 7766, 6.2.3).
const STREAM_IDLE: Duration = Duration::from_secs(10);
const LARGEST_QUESTION: usize = 4096;
/// After an error that another try will not mend at once (no memory, no descriptors).
const PAUSE: Duration = Duration::from_millis(50);
/// Of the node's name servers, when the pod meant none.
const MOST_TRIED: usize = 2;

/// Serves the pod until the tasks are aborted; whatever they wait for ends with them.
pub fn serve(worker: &Rc<Worker>, pod: &Arc<Pod>, sockets: Sockets) -> Vec<JoinHandle<()>> {
    let Sockets {
        udp,
        tcp,
        originals,
    } = sockets;
    let server = Rc::new(Server {
        worker: worker.clone(),
        pod: pod.clone(),
        originals,
    });
    let mut tasks = Vec::new();
    for socket in udp {
        tasks.push(spawn_local(datagrams(server.clone(), socket)));
    }
    for listener in tcp {
        tasks.push(spawn_local(streams(server.clone(), listener)));
    }
    tasks
}

struct Server {
    worker: Rc<Worker>,
    pod: Arc<Pod>,
    originals: Option<Originals>,
}

/// Where a question came from and was meant to go.
#[derive(Clone, Copy)]
struct Envelope {
    tcp: bool,
    meant: Option<SocketAddr>,
}

async fn datagrams(server: Rc<Server>, socket: std::net::UdpSocket) {
    let Ok(socket) = UdpSocket::from_std(socket).map(Rc::new) else {
        return server.fault("DNS datagrams");
    };
    let mut waiting = JoinSet::new();
    let mut buffer = vec![0; LARGEST_QUESTION];
    loop {
        let received = select! {
            received = socket.recv_from(&mut buffer) => received,
            Some(_) = waiting.join_next() => continue,
        };
        let Ok((length, client)) = received else {
            sleep(PAUSE).await;
            continue;
        };
        let question = &buffer[..length];
        let Some(query) = server.understood(question, &socket, client) else {
            continue;
        };
        let labels = server.count(&query, false);
        let answer = match server.known(&query, false) {
            Some(answer) => answer,
            None if waiting.len() >= MOST_WAITING => {
                server
                    .pod
                    .dns
                    .failed("too many questions wait for an answer");
                query.failure()
            }
            None => {
                let (server, socket) = (server.clone(), socket.clone());
                let question = question.to_vec();
                let envelope = server.envelope(&socket, client); // before the next one is read
                waiting.spawn_local(async move {
                    if let Some(answer) = server.follow_up(&question, envelope, labels).await {
                        let _ = socket.send_to(&answer, client).await; // the client may be gone
                    }
                });
                continue;
            }
        };
        let _ = socket.try_send_to(&answer, client); // a full buffer drops it, as a wire would
    }
}

async fn streams(server: Rc<Server>, listener: std::net::TcpListener) {
    let Ok(mut listener) = TcpListener::from_std(listener) else {
        return server.fault("DNS streams");
    };
    let mut open = JoinSet::new();
    loop {
        select! {
            accepted = listener.accept(), if open.len() < MOST_STREAMS => match accepted {
                Ok((stream, client)) => {
                    let server = server.clone();
                    // Err: the client went away, or was too slow.
                    open.spawn_local(async move { drop(server.converse(stream, client).await) });
                }
                Err(_) => {
                    sleep(PAUSE).await;
                    // As in `pod`: one that was destroyed may listen again.
                    let Ok(again) = listener.into_std().and_then(TcpListener::from_std) else {
                        return server.fault("DNS streams");
                    };
                    listener = again;
                }
            },
            Some(_) = open.join_next() => {}
        }
    }
}

impl Server {
    fn fault(&self, place: &str) {
        let mailbox = &self.worker.shared.mailbox;
        mailbox.fault(
            place,
            &format!("{}: no socket of the runtime", self.pod.uid),
        );
    }

    fn understood<'a>(
        &self,
        question: &'a [u8],
        socket: &UdpSocket,
        client: SocketAddr,
    ) -> Option<Query<'a>> {
        match read(question) {
            Read::Query(query) => Some(query),
            Read::Refused(answer) => {
                let _ = socket.try_send_to(&answer, client);
                None
            }
            Read::Noise => None,
        }
    }

    async fn converse(&self, mut stream: TcpStream, client: SocketAddr) -> io::Result<()> {
        let envelope = Envelope {
            tcp: true,
            meant: upstream::meant(socket2::SockRef::from(&stream), client),
        };
        loop {
            let question = timeout(STREAM_IDLE, next_question(&mut stream)).await??;
            let answer = match read(&question) {
                Read::Noise => return Ok(()),
                Read::Refused(answer) => answer,
                Read::Query(query) => {
                    let labels = self.count(&query, true);
                    match self.known(&query, true) {
                        Some(answer) => answer,
                        None => {
                            let followed = self.follow_up(&question, envelope, labels).await;
                            followed.ok_or(io::ErrorKind::InvalidData)?
                        }
                    }
                }
            };
            let length = u16::try_from(answer.len()).map_err(io::Error::other)?;
            let framed = [&length.to_be_bytes()[..], &answer].concat();
            timeout(STREAM_IDLE, stream.write_all(&framed)).await??;
        }
    }

    fn envelope(&self, socket: &UdpSocket, client: SocketAddr) -> Envelope {
        let ours = socket.local_addr().ok();
        let originals = self.originals.as_ref();
        // Where BPF captured, the socket itself knows about the datagram that it gave last; else conntrack does.
        let meant = upstream::meant(socket2::SockRef::from(socket), client).or_else(|| {
            originals
                .zip(ours)
                .and_then(|(table, ours)| table.of(client, ours))
        });
        Envelope { tcp: false, meant }
    }

    fn count(&self, query: &Query<'_>, tcp: bool) -> Labels {
        let tables = self.worker.shared.tables.load();
        let asker = self.pod.workload(&tables).map(|found| &**found);
        let labels = Labels::of(query.rtype, tcp, asker);
        self.worker.shared.dns.asked(&labels);
        labels
    }

    /// The mesh's answer; `None`: it has none, or the control plane has not told about this pod yet.
    fn known(&self, query: &Query<'_>, tcp: bool) -> Option<Vec<u8>> {
        let name = query.name.as_deref()?;
        let tables = self.worker.shared.tables.load();
        self.pod.workload(&tables)?;
        let asker = Asker {
            namespace: &self.pod.namespace,
            domain: &self.worker.shared.config.cluster_domain,
            search: &self.pod.search,
        };
        let reply = resolve(&tables, &asker, name, query.kind, self.worker.random());
        if reply == Reply::Forward {
            return None;
        }
        self.pod.dns.answered();
        self.tell(query, tcp, |line| line.text("answer", "mesh"));
        Some(query.reply(&reply, tcp))
    }

    /// For what cannot be answered at once. `None`: it was no question after all.
    async fn follow_up(
        &self,
        question: &[u8],
        envelope: Envelope,
        labels: Labels,
    ) -> Option<Vec<u8>> {
        let Read::Query(query) = read(question) else {
            return None;
        };
        let fresh = self
            .pod
            .workload(&self.worker.shared.tables.load())
            .is_none();
        if fresh {
            if self.pod.known(&self.worker).await.is_none() {
                return Some(self.fail(
                    &query,
                    envelope,
                    "the control plane has not told about this pod",
                ));
            }
            if let Some(answer) = self.known(&query, envelope.tcp) {
                return Some(answer);
            }
        }
        let began = Instant::now();
        let asked = self.ask(question, envelope).await;
        let meter = &self.worker.shared.dns;
        meter.asked_upstream(&labels, began.elapsed(), asked.is_err());
        self.pod.dns.passed_on();
        match asked {
            Ok((answer, rcode, server)) => {
                self.tell(&query, envelope.tcp, |line| {
                    line.show("answer", server).show("rcode", rcode)
                });
                Some(answer)
            }
            Err(why) => Some(self.fail(&query, envelope, &why.to_string())),
        }
    }

    async fn ask(
        &self,
        question: &[u8],
        envelope: Envelope,
    ) -> Result<(Vec<u8>, domain::base::iana::Rcode, SocketAddr), Unanswered> {
        let mut last = Unanswered::Nobody;
        let servers = upstream::servers(envelope.meant).into_iter();
        for server in servers.take(MOST_TRIED) {
            match upstream::ask(&self.worker, &self.pod, question, server, envelope.tcp).await {
                Ok((answer, rcode)) => return Ok((answer, rcode, server)),
                Err(why) => last = why,
            }
        }
        Err(last)
    }

    fn fail(&self, query: &Query<'_>, envelope: Envelope, why: &str) -> Vec<u8> {
        self.pod.dns.failed(why);
        self.tell(query, envelope.tcp, |line| line.text("error", why));
        query.failure()
    }

    fn tell(&self, query: &Query<'_>, tcp: bool, more: impl FnOnce(Line) -> Line) {
        self.worker
            .shared
            .log
            .core(Level::Debug, "name asked for", |line| {
                let line = line
                    .text("src.workload", &self.pod.name)
                    .text("src.namespace", &self.pod.namespace)
                    .text("name", query.name.as_deref().unwrap_or("?"))
                    .show("type", query.rtype)
                    .text("protocol", if tcp { "tcp" } else { "udp" });
                more(line)
            });
    }
}

async fn next_question(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let length = usize::from(stream.read_u16().await?);
    if length > LARGEST_QUESTION {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut question = vec![0; length];
    stream.read_exact(&mut question).await?;
    Ok(question)
}
