//! A workload's message, read without a copy of its words: nearly all of them are in memory already (`share`).
//!
//! Owns where the words are in the message. What is out of the ordinary is left to the library, and what it says of it.

use super::offer::delimited;
use crate::wire::workload as pb;
use prost::Message;
use prost::encoding::{DecodeContext, WireType, decode_key};

/// `Address.workload` as the first and only field.
const WORKLOAD: u8 = 1 << 3 | WireType::LengthDelimited as u8;

/// What `istio.workload.Workload` has as `string`.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Words<'a> {
    pub(super) uid: &'a str,
    pub(super) name: &'a str,
    pub(super) namespace: &'a str,
    pub(super) hostname: &'a str,
    pub(super) network: &'a str,
    pub(super) trust_domain: &'a str,
    pub(super) service_account: &'a str,
    pub(super) node: &'a str,
    pub(super) canonical_name: &'a str,
    pub(super) canonical_revision: &'a str,
    pub(super) workload_name: &'a str,
    pub(super) cluster_id: &'a str,
}

impl<'a> Words<'a> {
    /// Of a message that the library has read.
    pub(super) fn of(message: &'a pb::Workload) -> Self {
        Self {
            uid: &message.uid,
            name: &message.name,
            namespace: &message.namespace,
            hostname: &message.hostname,
            network: &message.network,
            trust_domain: &message.trust_domain,
            service_account: &message.service_account,
            node: &message.node,
            canonical_name: &message.canonical_name,
            canonical_revision: &message.canonical_revision,
            workload_name: &message.workload_name,
            cluster_id: &message.cluster_id,
        }
    }

    /// From an `Address`: its words, and a message with the rest. `None`: not a workload and nothing else, or damaged.
    pub(super) fn read(mut address: &'a [u8]) -> Option<(Self, pb::Workload)> {
        if address.split_off_first() != Some(&WORKLOAD) {
            return None;
        }
        let mut message = delimited(&mut address)?;
        let (mut words, mut rest) = (Self::default(), pb::Workload::default());
        while !message.is_empty() {
            let (tag, of) = decode_key(&mut message).ok()?;
            match words.field(tag) {
                Some(word) if of == WireType::LengthDelimited => {
                    *word = str::from_utf8(delimited(&mut message)?).ok()?;
                }
                Some(_) => return None,
                None => rest
                    .merge_field(tag, of, &mut message, DecodeContext::default())
                    .ok()?,
            }
        }
        address.is_empty().then_some((words, rest))
    }

    /// By the field numbers of `proto/workload.proto`.
    fn field(&mut self, tag: u32) -> Option<&mut &'a str> {
        Some(match tag {
            1 => &mut self.name,
            2 => &mut self.namespace,
            4 => &mut self.network,
            6 => &mut self.trust_domain,
            7 => &mut self.service_account,
            9 => &mut self.node,
            10 => &mut self.canonical_name,
            11 => &mut self.canonical_revision,
            13 => &mut self.workload_name,
            18 => &mut self.cluster_id,
            20 => &mut self.uid,
            21 => &mut self.hostname,
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::Dice;

    fn full() -> pb::Workload {
        pb::Workload {
            uid: "u".to_owned(),
            name: "n".to_owned(),
            namespace: "ns".to_owned(),
            hostname: "host".to_owned(),
            network: "net".to_owned(),
            trust_domain: "td".to_owned(),
            service_account: "sa".to_owned(),
            node: "node".to_owned(),
            canonical_name: "cn".to_owned(),
            canonical_revision: "cr".to_owned(),
            workload_name: "wn".to_owned(),
            cluster_id: "c".to_owned(),
            addresses: vec![vec![10, 0, 0, 1].into(), vec![10, 0, 0, 2].into()],
            authorization_policies: vec!["ns/p".to_owned()],
            services: [("ns/host".to_owned(), pb::PortList::default())].into(),
            locality: Some(pb::Locality::default()),
            capacity: Some(7),
            ..Default::default()
        }
    }

    fn address(workload: pb::Workload) -> Vec<u8> {
        let r#type = Some(pb::address::Type::Workload(workload));
        pb::Address { r#type }.encode_to_vec()
    }

    /// As the library reads it.
    fn by_library(bytes: &[u8]) -> Option<pb::Workload> {
        match pb::Address::decode(bytes).ok()?.r#type? {
            pb::address::Type::Workload(workload) => Some(workload),
            pb::address::Type::Service(_) => None,
        }
    }

    /// The words put back into the rest.
    fn whole(words: &Words<'_>, rest: pb::Workload) -> pb::Workload {
        pb::Workload {
            uid: words.uid.to_owned(),
            name: words.name.to_owned(),
            namespace: words.namespace.to_owned(),
            hostname: words.hostname.to_owned(),
            network: words.network.to_owned(),
            trust_domain: words.trust_domain.to_owned(),
            service_account: words.service_account.to_owned(),
            node: words.node.to_owned(),
            canonical_name: words.canonical_name.to_owned(),
            canonical_revision: words.canonical_revision.to_owned(),
            workload_name: words.workload_name.to_owned(),
            cluster_id: words.cluster_id.to_owned(),
            ..rest
        }
    }

    #[test]
    fn every_word_is_found_and_the_rest_is_read_by_the_library() {
        let bytes = address(full());
        let (words, rest) = Words::read(&bytes).unwrap();
        assert_eq!(words, Words::of(&full()));
        assert_eq!(Words::of(&rest), Words::default());
        assert_eq!(whole(&words, rest), full());
    }

    #[test]
    fn of_a_word_that_is_said_twice_the_last_counts() {
        let mut inner = full().encode_to_vec();
        inner.extend([10, 1, b'x']); // name: "x"
        let mut bytes = vec![WORKLOAD, inner.len() as u8];
        bytes.extend(inner);
        assert_eq!(Words::read(&bytes).unwrap().0.name, "x");
        assert_eq!(by_library(&bytes).unwrap().name, "x");
    }

    #[test]
    fn what_else_an_address_may_be_is_left_to_the_library() {
        let workload = address(full());
        let service = pb::address::Type::Service(pb::Service::default());
        let service = pb::Address {
            r#type: Some(service),
        };
        for other in [
            service.encode_to_vec(),
            Vec::new(),
            [&workload[..], &workload].concat(), // one merged into the other
        ] {
            assert_eq!(Words::read(&other), None);
        }
    }

    #[test]
    fn spoilt_bytes_are_read_as_the_library_reads_them_or_left_to_it() {
        let (dice, good) = (&mut Dice(1), address(full()));
        for _ in 0..20_000 {
            let mut bytes = good.clone();
            for _ in 0..1 + dice.below(3) {
                let at = dice.below(bytes.len());
                bytes[at] = dice.roll() as u8;
            }
            bytes.truncate(bytes.len() - dice.below(2) * dice.below(bytes.len()));
            if let Some((words, rest)) = Words::read(&bytes) {
                assert_eq!(Some(whole(&words, rest)), by_library(&bytes), "{bytes:?}");
            }
        }
    }
}
