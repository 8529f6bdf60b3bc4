//! Resources from bytes to what an index takes, apart from any snapshot: of a push one after the other, and of what was kept
//! a bundle at a time, by several threads. Owns the form of a bundle: a `DeltaDiscoveryResponse`, packed as zlib does.

use super::Kind;
use super::decode::{self, Address, Unusable};
use super::decode_policy;
use super::model::*;
use super::offer::{Offer, Offered};
use super::share::Pool;

/// A bundle is of one process's making; more than this it never holds.
const MOST_BYTES: usize = 64 << 20;

/// One resource.
#[expect(clippy::large_enum_variant, reason = "nearly all are addresses")]
pub(super) enum Decoded {
    Address(Address),
    Policy(Policy),
    BadAddress(Unusable),
    /// With what is closed meanwhile.
    BadPolicy(Unusable, Option<Refused>),
}

impl Decoded {
    pub(super) fn of(kind: Kind, name: &str, bytes: &[u8], pool: &mut Pool) -> Self {
        match kind {
            Kind::Address => {
                decode::address(name, bytes, pool).map_or_else(Self::BadAddress, Self::Address)
            }
            Kind::Authorization => match decode_policy::policy(name, bytes) {
                Ok(policy) => Self::Policy(policy),
                Err(why) => {
                    let closes = decode_policy::refused(bytes, &why);
                    Self::BadPolicy(why, closes)
                }
            },
        }
    }
}

/// (name, version) of each resource of a bundle.
pub type Names = Vec<(String, String)>;

/// A bundle's resources, ready for `Tables::with_kept`.
pub struct Kept {
    pub(super) kind: Kind,
    pub(super) resources: Vec<(String, Decoded)>,
}

impl Kept {
    /// Err: it is damaged; a resource that cannot be used does not make it so.
    pub fn unpack(kind: Kind, packed: &[u8]) -> Result<(Self, Names), String> {
        let unpacked = miniz_oxide::inflate::decompress_to_vec_zlib_with_limit(packed, MOST_BYTES)
            .map_err(|why| why.to_string())?;
        let bundle = Offer::read(&unpacked).ok_or("is no DeltaDiscoveryResponse")?;
        let (mut pool, mut names) = (Pool::default(), Names::new());
        let read = |each: &Offered<'_>| {
            names.push((each.name.to_owned(), each.version.to_owned()));
            let decoded = Decoded::of(kind, each.name, each.data, &mut pool);
            (each.name.to_owned(), decoded)
        };
        let resources = bundle.resources.iter().map(read).collect();
        Ok((Self { kind, resources }, names))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::Dice;
    use crate::tables::Tables;
    use crate::tables::offer::library::{Resource, Response};
    use crate::wire::security as pb_policy;
    use crate::wire::workload as pb;
    use bytes::Bytes;
    use miniz_oxide::deflate::compress_to_vec_zlib;
    use prost::Message;

    fn packed(resources: &[(String, Bytes)]) -> Vec<u8> {
        let resources = resources.iter().map(|(name, bytes)| Resource {
            version: "7".to_owned(),
            name: name.clone(),
            resource: Some(prost_types::Any {
                type_url: String::new(),
                value: bytes.to_vec(),
            }),
        });
        let bundle = Response {
            resources: resources.collect(),
            ..Default::default()
        };
        compress_to_vec_zlib(&bundle.encode_to_vec(), 1)
    }

    fn workload(n: u64) -> (String, Bytes) {
        let uid = format!("c//Pod/shop/w{n}");
        let workload = pb::Workload {
            uid: uid.clone(),
            name: format!("w{n}"),
            namespace: "shop".to_owned(),
            addresses: vec![vec![10, 0, (n >> 8) as u8, n as u8].into()],
            ..Default::default()
        };
        let address = pb::Address {
            r#type: Some(pb::address::Type::Workload(workload)),
        };
        (uid, address.encode_to_vec().into())
    }

    #[test]
    fn what_was_kept_gives_the_snapshot_that_a_push_gave_in_whatever_order() {
        let all: Vec<_> = (0..600).map(workload).collect();
        let (pushed, _) = Tables::new("", "").with(Kind::Address, &all, &[]);
        let mut kept: Vec<_> = all
            .chunks(100)
            .map(|some| Kept::unpack(Kind::Address, &packed(some)).unwrap())
            .collect();
        assert!(kept.iter().all(|(_, names)| names.len() == 100));
        assert_eq!(kept[1].1[0], (all[100].0.clone(), "7".to_owned()));
        kept.swap(0, Dice(1).below(5) + 1);
        let (restored, refused) =
            Tables::new("", "").with_kept(kept.into_iter().map(|(part, _)| part));
        assert_eq!(refused, []);
        for (uid, _) in &all {
            assert_eq!(restored.workload(uid), pushed.workload(uid));
        }
    }

    #[test]
    fn a_kept_policy_that_cannot_be_used_closes_what_it_would_have_governed() {
        let policy = pb_policy::Authorization {
            name: "p".to_owned(),
            namespace: "shop".to_owned(),
            scope: pb_policy::Scope::Namespace.into(),
            action: 99,
            ..Default::default()
        };
        let one = [("shop/p".to_owned(), policy.encode_to_vec().into())];
        let (kept, names) = Kept::unpack(Kind::Authorization, &packed(&one)).unwrap();
        let (_, refused) = Tables::new("", "").with_kept(std::iter::once(kept));
        let (_, by_push) = Tables::new("", "").with(Kind::Authorization, &one, &[]);
        assert_eq!(names.len(), 1);
        assert_eq!(refused.len(), 1);
        assert_eq!(
            (&refused[0].1, &refused[0].2),
            (&by_push[0].0, &by_push[0].1)
        );
    }

    #[test]
    fn a_damaged_bundle_is_none() {
        let whole = packed(&[workload(1)]);
        for end in 0..whole.len() {
            assert!(Kept::unpack(Kind::Address, &whole[..end]).is_err());
        }
        let mut spoilt = whole.clone();
        let last = spoilt.len() - 1;
        spoilt[last] ^= 1;
        assert!(Kept::unpack(Kind::Address, &spoilt).is_err());
    }
}
