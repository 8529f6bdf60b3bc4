//! Messages: what is asked, and our own answers in bytes (RFC 1035, 6891). Answers of others are passed on unread but for
//! what proves them to be answers. The codec is NLnet Labs' `domain`.

use domain::base::iana::{Class, Opcode, OptRcode, Rcode, Rtype};
use domain::base::message_builder::{AdditionalBuilder, AnswerBuilder, PushError};
use domain::base::{Message, MessageBuilder, Name, Serial, ToName, TreeCompressor, Ttl};
use domain::rdata::{A, Aaaa, Cname, Ptr, Soa, Srv};
use std::net::IpAddr;
use ztunnel_core::dns::{Data, Found, Kind, Reply};

/// Seconds that an answer may be kept: Istio's figure.
const TTL_S: u32 = 30;
/// Seconds that "there is none" may be kept: a new pod should be found soon.
const NEGATIVE_TTL_S: u32 = 5;
/// What a client without EDNS takes over UDP (RFC 1035, 4.2.1).
const PLAIN_LIMIT: u16 = 512;
/// What we say that we take, and the most we send over UDP: loopback carries it in one piece.
const OUR_LIMIT: u16 = 4096;
/// A message over TCP has a length of 16 bits.
const STREAM_LIMIT: usize = 65_535;

/// A question that can be answered or passed on.
pub(super) struct Query<'a> {
    message: &'a Message<[u8]>,
    /// As `ztunnel_core::dns` wants it; `None`: no name of the mesh has such characters, or it is another class.
    pub(super) name: Option<String>,
    pub(super) kind: Kind,
    pub(super) rtype: Rtype,
    limit: u16,
    edns: bool,
}

pub(super) enum Read<'a> {
    Query(Query<'a>),
    /// What we say to it at once.
    Refused(Vec<u8>),
    /// No question at all, and answering it could begin a conversation between two servers.
    Noise,
}

pub(super) fn read(bytes: &[u8]) -> Read<'_> {
    let Ok(message) = Message::from_slice(bytes) else {
        return Read::Noise;
    };
    if message.header().qr() {
        return Read::Noise;
    }
    let refuse = |rcode| refusal(message, rcode).map_or(Read::Noise, Read::Refused);
    if message.header().opcode() != Opcode::QUERY {
        return refuse(Rcode::NOTIMP);
    }
    let Ok(question) = message.sole_question() else {
        return refuse(Rcode::FORMERR);
    };
    let opt = message.opt();
    if opt.as_ref().is_some_and(|opt| opt.version() > 0) {
        return bad_version(message).map_or(Read::Noise, Read::Refused);
    }
    let internet = question.qclass() == Class::IN;
    Read::Query(Query {
        message,
        name: internet.then(|| text(question.qname())).flatten(),
        kind: kind(question.qtype()),
        rtype: question.qtype(),
        limit: opt.as_ref().map_or(PLAIN_LIMIT, |opt| {
            opt.udp_payload_size().clamp(PLAIN_LIMIT, OUR_LIMIT)
        }),
        edns: opt.is_some(),
    })
}

fn kind(rtype: Rtype) -> Kind {
    match rtype {
        Rtype::A => Kind::A,
        Rtype::AAAA => Kind::Aaaa,
        Rtype::SRV => Kind::Srv,
        Rtype::PTR => Kind::Ptr,
        Rtype::ANY => Kind::Any,
        Rtype::SVCB | Rtype::HTTPS => Kind::Hints,
        _ => Kind::Other,
    }
}

/// Lower case without the last dot.
fn text(name: impl ToName) -> Option<String> {
    let mut out = String::new();
    for label in name.iter_labels().filter(|label| !label.is_root()) {
        let host = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        if !label.as_slice().iter().all(host) {
            return None;
        }
        if !out.is_empty() {
            out.push('.');
        }
        out.extend(
            label
                .as_slice()
                .iter()
                .map(|byte| byte.to_ascii_lowercase() as char),
        );
    }
    Some(out)
}

impl Query<'_> {
    pub(super) fn limit(&self, tcp: bool) -> usize {
        if tcp { STREAM_LIMIT } else { self.limit.into() }
    }

    /// Our answer. Cut down to what the client takes: first what it did not ask for, then everything, which tells it to
    /// come again over TCP.
    pub(super) fn reply(&self, reply: &Reply, tcp: bool) -> Vec<u8> {
        let found = match reply {
            Reply::Found(found) => Some(found),
            Reply::NoSuchName => None,
            Reply::Forward => return self.failure(),
        };
        self.build(found, tcp).unwrap_or_else(|_| self.failure())
    }

    fn build(&self, found: Option<&Found>, tcp: bool) -> Result<Vec<u8>, PushError> {
        let rcode = found.map_or(Rcode::NXDOMAIN, |_| Rcode::NOERROR);
        let mut answer = self.start(rcode, tcp)?;
        answer.header_mut().set_aa(true);
        let nothing = Found::default();
        let found = found.unwrap_or(&nothing);
        if let Err(why) = self.answers(&mut answer, found) {
            if tcp {
                return Err(why);
            }
            return Ok(self.finish(answer.tc_rewind_into().additional()));
        }
        let mut authority = answer.authority();
        if found.data.is_empty() {
            authority.push(self.start_of_authority(found)?)?;
        }
        let mut additional = authority.additional();
        for (name, ip) in &found.additional {
            // Nobody asked for them: what does not fit is left out.
            if push_address(&mut additional, name, *ip).is_err() {
                break;
            }
        }
        Ok(self.finish(additional))
    }

    /// Room is left for the OPT record (11 bytes).
    fn start(&self, rcode: Rcode, tcp: bool) -> Result<Builder, PushError> {
        let target = TreeCompressor::new(Vec::new());
        // Infallible: a Vec takes what it is given.
        let mut builder = MessageBuilder::from_target(target).map_err(|_| PushError::ShortBuf)?;
        builder.set_push_limit(self.limit(tcp) - 11);
        let mut answer = builder.start_answer(self.message, rcode)?;
        answer.header_mut().set_ra(true);
        Ok(answer)
    }

    fn answers(&self, answer: &mut Builder, found: &Found) -> Result<(), PushError> {
        let asked = self
            .message
            .sole_question()
            .map_err(|_| PushError::ShortBuf)?;
        let mut owner: Name<Vec<u8>> = asked.qname().to_name();
        let ttl = Ttl::from_secs(TTL_S);
        if let Some(alias) = &found.alias_of {
            let target = name(alias)?;
            answer.push((owner, Class::IN, ttl, Cname::new(target.clone())))?;
            owner = target;
        }
        for data in &found.data {
            match data {
                Data::Address(IpAddr::V4(ip)) => {
                    answer.push((&owner, Class::IN, ttl, A::new(*ip)))?;
                }
                Data::Address(IpAddr::V6(ip)) => {
                    answer.push((&owner, Class::IN, ttl, Aaaa::new(*ip)))?;
                }
                Data::Service { port, target } => {
                    let record = Srv::new(0, 100, *port, name(target)?);
                    answer.push((&owner, Class::IN, ttl, record))?;
                }
                Data::Pointer(target) => {
                    answer.push((&owner, Class::IN, ttl, Ptr::new(name(target)?)))?;
                }
            }
        }
        Ok(())
    }

    /// How long "none" may be remembered (RFC 2308, 3). Each name of ours is its own zone.
    fn start_of_authority(&self, found: &Found) -> Result<Authority, PushError> {
        let asked = self
            .message
            .sole_question()
            .map_err(|_| PushError::ShortBuf)?;
        let zone: Name<Vec<u8>> = match &found.alias_of {
            Some(alias) => name(alias)?,
            None => asked.qname().to_name(),
        };
        let ttl = Ttl::from_secs(NEGATIVE_TTL_S);
        let soa = Soa::new(zone.clone(), zone.clone(), Serial(1), ttl, ttl, ttl, ttl);
        Ok((zone, Class::IN, ttl, soa))
    }

    fn finish(&self, mut additional: AdditionalBuilder<TreeCompressor<Vec<u8>>>) -> Vec<u8> {
        if self.edns {
            additional.clear_push_limit();
            // A Vec takes what it is given.
            let _ = additional.opt(|opt| {
                opt.set_udp_payload_size(OUR_LIMIT);
                Ok(())
            });
        }
        additional.finish().into_target()
    }

    /// SERVFAIL: whoever knows the answer could not be asked. The client tries its next name server.
    pub(super) fn failure(&self) -> Vec<u8> {
        let answer = self.start(Rcode::SERVFAIL, false);
        answer.map_or_else(|_| Vec::new(), |answer| self.finish(answer.additional()))
    }
}

type Authority = (Name<Vec<u8>>, Class, Ttl, Soa<Name<Vec<u8>>>);
type Builder = AnswerBuilder<TreeCompressor<Vec<u8>>>;

fn push_address(
    additional: &mut AdditionalBuilder<TreeCompressor<Vec<u8>>>,
    owner: &str,
    ip: IpAddr,
) -> Result<(), PushError> {
    let (owner, ttl) = (name(owner)?, Ttl::from_secs(TTL_S));
    match ip {
        IpAddr::V4(ip) => additional.push((owner, Class::IN, ttl, A::new(ip))),
        IpAddr::V6(ip) => additional.push((owner, Class::IN, ttl, Aaaa::new(ip))),
    }
}

/// Err: the control plane has told a host that is no name of DNS.
fn name(text: &str) -> Result<Name<Vec<u8>>, PushError> {
    Name::vec_from_str(text).map_err(|_| PushError::ShortBuf)
}

fn refusal(message: &Message<[u8]>, rcode: Rcode) -> Option<Vec<u8>> {
    let mut builder = MessageBuilder::new_vec();
    let header = builder.header_mut();
    header.set_id(message.header().id());
    header.set_qr(true);
    header.set_opcode(message.header().opcode());
    header.set_rd(message.header().rd());
    header.set_rcode(rcode);
    Some(builder.finish())
}

/// RFC 6891, 6.1.3.
fn bad_version(message: &Message<[u8]>) -> Option<Vec<u8>> {
    let builder = MessageBuilder::new_vec();
    let answer = builder.start_answer(message, Rcode::NOERROR).ok()?;
    let mut additional = answer.additional();
    let done = additional.opt(|opt| {
        opt.set_udp_payload_size(OUR_LIMIT);
        opt.set_rcode(OptRcode::BADVERS);
        Ok(())
    });
    done.ok().map(|()| additional.finish())
}

/// Is `answer` what a server says to `question`: same id, same question? `rcode` of it, if so.
pub(super) fn answer_to(question: &[u8], answer: &[u8]) -> Option<Rcode> {
    let question = Message::from_slice(question).ok()?;
    let answer = Message::from_slice(answer).ok()?;
    let belongs = answer.is_answer(question);
    belongs.then(|| answer.header().rcode())
}

#[cfg(test)]
mod tests;
