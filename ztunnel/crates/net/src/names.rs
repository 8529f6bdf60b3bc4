//! Addresses of endpoints that are known by name only. Owns what is remembered of the node's resolver: for the records' own
//! time to live, within bounds; not who asks, and no hosts file.

use domain::base::iana::{Rcode, Rtype};
use domain::base::name::Name;
use domain::rdata::{A, Aaaa};
use domain::resolv::StubResolver;
use domain::resolv::stub::conf::{ResolvConf, ServerConf, Transport};
use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OnceCell, Semaphore};
use tokio::time::{Instant, timeout};

/// Names remembered by one worker, and names it asks about at a time.
const MOST: usize = 4096;
const MOST_AT_ONCE: usize = 64;
const PATIENCE: Duration = Duration::from_secs(5);
/// A record is believed for its own time, within these bounds.
const SHORTEST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(3600);
/// How long a failure is believed, or what was known before it.
const AFTER_FAILURE: Duration = Duration::from_secs(5);
/// When the resolver fails, what it said so long ago is better than nothing (RFC 8767).
const STALE: Duration = Duration::from_secs(3600);

struct Known {
    addresses: Arc<[IpAddr]>,
    until: Instant,
}

/// One worker's. Not `Send`.
pub struct Names {
    /// Empty: those of /etc/resolv.conf, as it is at each question.
    servers: Vec<SocketAddr>,
    known: RefCell<HashMap<Box<str>, Known>>,
    /// One question per name, however many wait for the answer.
    asking: RefCell<HashMap<Box<str>, Rc<OnceCell<()>>>>,
    turns: Semaphore,
}

impl Default for Names {
    fn default() -> Self {
        Self::asking(Vec::new())
    }
}

impl Names {
    pub fn asking(servers: Vec<SocketAddr>) -> Self {
        Self {
            servers,
            known: RefCell::default(),
            asking: RefCell::default(),
            turns: Semaphore::new(MOST_AT_ONCE),
        }
    }

    /// Empty: it has none, or nobody answers. None: to be learnt.
    pub fn known(&self, name: &str) -> Option<Arc<[IpAddr]>> {
        let known = self.known.borrow();
        let found = known.get(name)?;
        (Instant::now() < found.until).then(|| found.addresses.clone())
    }

    /// Afterwards `known` has an answer for a while.
    pub async fn learn(&self, name: &str) {
        let cell = self
            .asking
            .borrow_mut()
            .entry(name.into())
            .or_default()
            .clone();
        let _asked = Asked { names: self, name };
        cell.get_or_init(|| async {
            let answer = timeout(PATIENCE, self.ask(name)).await;
            let late = |_| Err(io::ErrorKind::TimedOut.into());
            self.remember(name, answer.unwrap_or_else(late));
        })
        .await;
    }

    fn remember(&self, name: &str, answer: io::Result<(Vec<IpAddr>, Duration)>) {
        let now = Instant::now();
        let mut known = self.known.borrow_mut();
        if known.len() >= MOST {
            known.retain(|_, old| now < old.until);
            if let Some(any) = known.keys().next().filter(|_| known.len() >= MOST).cloned() {
                known.remove(&any);
            }
        }
        let (addresses, valid) = match answer {
            Ok((addresses, ttl)) => (addresses.into(), ttl.clamp(SHORTEST, LONGEST)),
            Err(_) => {
                let stale = known.get(name).filter(|old| now < old.until + STALE);
                (
                    stale.map_or_else(|| Arc::new([]) as Arc<_>, |old| old.addresses.clone()),
                    AFTER_FAILURE,
                )
            }
        };
        let until = now + valid;
        known.insert(name.into(), Known { addresses, until });
    }

    async fn ask(&self, name: &str) -> io::Result<(Vec<IpAddr>, Duration)> {
        let bad = |_| io::Error::from(io::ErrorKind::InvalidInput);
        let name = Name::<Vec<u8>>::from_str(name).map_err(bad)?;
        let _turn = self
            .turns
            .acquire()
            .await
            .map_err(|_| io::ErrorKind::Other)?;
        let resolver = StubResolver::from_conf(self.configuration());
        let (v4, v6) = tokio::join!(
            records(&resolver, &name, Rtype::A),
            records(&resolver, &name, Rtype::AAAA)
        );
        match (v4, v6) {
            (Ok(mut v4), Ok(v6)) => {
                v4.0.extend(v6.0);
                let life = if v4.0.is_empty() {
                    AFTER_FAILURE
                } else {
                    v4.1.min(v6.1)
                };
                Ok((v4.0, life))
            }
            // One family's failure does not hide what the other has.
            (Ok(one), Err(_)) | (Err(_), Ok(one)) if !one.0.is_empty() => Ok(one),
            (Err(why), _) | (_, Err(why)) => Err(why),
        }
    }

    fn configuration(&self) -> ResolvConf {
        if self.servers.is_empty() {
            return ResolvConf::default();
        }
        let mut configuration = ResolvConf::new();
        let given = self
            .servers
            .iter()
            .map(|server| ServerConf::new(*server, Transport::UdpTcp));
        configuration.servers.extend(given);
        configuration.finalize();
        configuration
    }
}

/// Also when whoever asks is cut off meanwhile.
struct Asked<'a> {
    names: &'a Names,
    name: &'a str,
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        self.names.asking.borrow_mut().remove(self.name);
    }
}

/// The addresses, wherever aliases lead, and the shortest of their lives.
async fn records(
    resolver: &StubResolver,
    name: &Name<Vec<u8>>,
    kind: Rtype,
) -> io::Result<(Vec<IpAddr>, Duration)> {
    let answer = resolver.query((name, kind)).await?.into_message();
    let garbled = |_| io::Error::from(io::ErrorKind::InvalidData);
    match answer.header().rcode() {
        Rcode::NOERROR => {}
        Rcode::NXDOMAIN => return Ok((Vec::new(), LONGEST)),
        other => return Err(io::Error::other(format!("the resolver answers {other}"))),
    }
    let (mut found, mut life) = (Vec::new(), LONGEST);
    let section = answer.answer().map_err(garbled)?;
    for record in section.limit_to_in::<A>().flatten() {
        found.push(IpAddr::from(record.data().addr()));
        life = life.min(record.ttl().into_duration());
    }
    for record in section.limit_to_in::<Aaaa>().flatten() {
        found.push(IpAddr::from(record.data().addr()).to_canonical());
        life = life.min(record.ttl().into_duration());
    }
    Ok((found, life))
}

#[cfg(test)]
mod tests {
    use super::*;
    use domain::base::{Message, MessageBuilder, Ttl};
    use std::cell::Cell;
    use tokio::net::UdpSocket;
    use tokio::task::{LocalSet, spawn_local};

    /// A resolver on loopback: `a.test` has 192.0.2.1 for 60 s, everything else does not exist. `broken`: it fails.
    struct Resolver {
        at: SocketAddr,
        asked: Rc<Cell<usize>>,
        broken: Rc<Cell<bool>>,
    }

    impl Resolver {
        async fn start() -> Self {
            let socket = UdpSocket::bind("127.0.0.1:0").await.expect("loopback");
            let at = socket.local_addr().expect("bound");
            let (asked, broken) = (Rc::<Cell<usize>>::default(), Rc::<Cell<bool>>::default());
            let (count, is_broken) = (asked.clone(), broken.clone());
            spawn_local(async move {
                let mut buffer = [0; 1500];
                while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
                    count.set(count.get() + 1);
                    let answer = answer(&buffer[..length], is_broken.get());
                    let _ = socket.send_to(&answer, from).await;
                }
            });
            Self { at, asked, broken }
        }
    }

    fn answer(question: &[u8], broken: bool) -> Vec<u8> {
        let message = Message::from_octets(question).expect("a message");
        let asked = message.sole_question().expect("a question");
        let known = asked.qname().to_string() == "a.test";
        let code = match (broken, known) {
            (true, _) => Rcode::SERVFAIL,
            (_, true) => Rcode::NOERROR,
            _ => Rcode::NXDOMAIN,
        };
        let builder = MessageBuilder::new_vec();
        let mut answer = builder.start_answer(&message, code).expect("room");
        if code == Rcode::NOERROR && asked.qtype() == Rtype::A {
            let record = (
                asked.qname(),
                Ttl::from_secs(60),
                A::from_octets(192, 0, 2, 1),
            );
            answer.push(record).expect("room");
        }
        answer.finish()
    }

    fn play(story: impl AsyncFnOnce(Names, Resolver)) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        LocalSet::new().block_on(&runtime.expect("a runtime"), async {
            let resolver = Resolver::start().await;
            story(Names::asking(vec![resolver.at]), resolver).await;
        });
    }

    fn one(names: &Names) -> Vec<String> {
        let known = names.known("a.test").expect("known");
        known.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_name_is_known_as_long_as_its_record_lives() {
        play(async |names, _resolver| {
            assert_eq!(names.known("a.test"), None);
            names.learn("a.test").await;
            assert_eq!(one(&names), ["192.0.2.1"]);
            tokio::time::pause();
            tokio::time::advance(Duration::from_secs(59)).await;
            assert_eq!(one(&names), ["192.0.2.1"]);
            tokio::time::advance(Duration::from_secs(2)).await;
            assert_eq!(names.known("a.test"), None);
        });
    }

    #[test]
    fn many_who_wait_for_one_name_ask_once() {
        play(async |names, resolver| {
            tokio::join!(
                names.learn("a.test"),
                names.learn("a.test"),
                names.learn("a.test")
            );
            assert_eq!(resolver.asked.get(), 2, "A and AAAA");
            assert_eq!(one(&names), ["192.0.2.1"]);
        });
    }

    #[test]
    fn what_does_not_exist_has_no_address_and_neither_has_what_is_no_name() {
        play(async |names, _resolver| {
            for name in ["b.test", "no..name"] {
                names.learn(name).await;
                assert_eq!(names.known(name).as_deref(), Some(&[][..]), "{name}");
            }
        });
    }

    #[test]
    fn a_resolver_that_fails_does_not_take_away_what_it_said_before() {
        play(async |names, resolver| {
            names.learn("a.test").await;
            resolver.broken.set(true);
            if let Some(known) = names.known.borrow_mut().get_mut("a.test") {
                known.until = Instant::now();
            }
            names.learn("a.test").await;
            assert_eq!(one(&names), ["192.0.2.1"]);
        });
    }

    #[test]
    fn no_more_names_are_remembered_than_the_bound() {
        let names = Names::default();
        for n in 0..2 * MOST {
            names.remember(&format!("{n}.test"), Ok((Vec::new(), LONGEST)));
        }
        assert!(names.known.borrow().len() <= MOST);
    }
}
