//! A `DeltaDiscoveryResponse` of `proto/xds.proto`, read where it lies: a thousand resources are a thousand borrowings.

use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};

/// What one response says. `version_info`: its `system_version_info`.
#[derive(Debug, Default, PartialEq)]
pub struct Offer<'a> {
    pub version_info: &'a str,
    pub resources: Vec<Offered<'a>>,
    pub type_url: &'a str,
    pub nonce: &'a str,
    pub removed: Vec<&'a str>,
}

/// One resource, a serialized message of type `type_url`.
#[derive(Debug, Default, PartialEq)]
pub struct Offered<'a> {
    pub version: &'a str,
    pub name: &'a str,
    pub type_url: &'a str,
    pub data: &'a [u8],
}

impl<'a> Offer<'a> {
    /// `None`: damaged. As in the library, of a field that comes twice the last one counts.
    pub fn read(mut bytes: &'a [u8]) -> Option<Self> {
        let mut offer = Self::default();
        while let Some((tag, field)) = field(&mut bytes)? {
            match tag {
                1 => offer.version_info = text(field)?,
                2 => offer.resources.push(Offered::read(field)?),
                4 => offer.type_url = text(field)?,
                5 => offer.nonce = text(field)?,
                6 => offer.removed.push(text(field)?),
                _ => {}
            }
        }
        Some(offer)
    }
}

impl<'a> Offered<'a> {
    fn read(mut bytes: &'a [u8]) -> Option<Self> {
        let mut offered = Self::default();
        while let Some((tag, field)) = field(&mut bytes)? {
            match tag {
                1 => offered.version = text(field)?,
                2 => offered.read_any(field)?,
                3 => offered.name = text(field)?,
                _ => {}
            }
        }
        Some(offered)
    }

    /// `google.protobuf.Any`
    fn read_any(&mut self, mut bytes: &'a [u8]) -> Option<()> {
        while let Some((tag, field)) = field(&mut bytes)? {
            match tag {
                1 => self.type_url = text(field)?,
                2 => self.data = field,
                _ => {}
            }
        }
        Some(())
    }
}

/// The next field that has a length; others are passed over. Outer `None`: damaged; inner: that was all.
#[expect(clippy::option_option, reason = "damaged, or all, or one more")]
fn field<'a>(bytes: &mut &'a [u8]) -> Option<Option<(u32, &'a [u8])>> {
    while !bytes.is_empty() {
        let (tag, of) = decode_key(bytes).ok()?;
        if of == WireType::LengthDelimited {
            return delimited(bytes).map(|field| Some((tag, field)));
        }
        skip_field(of, tag, bytes, DecodeContext::default()).ok()?;
    }
    Some(None)
}

fn text(bytes: &[u8]) -> Option<&str> {
    str::from_utf8(bytes).ok()
}

/// The bytes after their length.
pub(super) fn delimited<'a>(bytes: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = usize::try_from(decode_varint(bytes).ok()?).ok()?;
    bytes.split_off(..length)
}

/// As the library reads it.
#[cfg(test)]
pub(super) mod library {
    use prost::Message;

    #[derive(Clone, PartialEq, Message)]
    pub(crate) struct Response {
        #[prost(string, tag = "1")]
        pub(crate) system_version_info: String,
        #[prost(message, repeated, tag = "2")]
        pub(crate) resources: Vec<Resource>,
        #[prost(string, tag = "4")]
        pub(crate) type_url: String,
        #[prost(string, tag = "5")]
        pub(crate) nonce: String,
        #[prost(string, repeated, tag = "6")]
        pub(crate) removed_resources: Vec<String>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(crate) struct Resource {
        #[prost(string, tag = "1")]
        pub(crate) version: String,
        #[prost(message, optional, tag = "2")]
        pub(crate) resource: Option<prost_types::Any>,
        #[prost(string, tag = "3")]
        pub(crate) name: String,
    }
}

#[cfg(test)]
mod tests {
    use super::library::{Resource, Response};
    use super::*;
    use prost::Message;
    use ztunnel_fuzz::{damaged, fuzz};

    fn response() -> Response {
        let resource = |name: &str, value: &[u8]| Resource {
            version: "7".to_owned(),
            resource: Some(prost_types::Any {
                type_url: "a/B".to_owned(),
                value: value.to_vec(),
            }),
            name: name.to_owned(),
        };
        Response {
            system_version_info: "partial".to_owned(),
            resources: vec![resource("one", b"\x0a\x01x"), resource("zw\u{f6}lf", b"")],
            type_url: "a/B".to_owned(),
            nonce: "12".to_owned(),
            removed_resources: vec!["gone".to_owned(), "too".to_owned()],
        }
    }

    fn offered(each: &Resource) -> Offered<'_> {
        let any = each.resource.as_ref();
        Offered {
            version: &each.version,
            name: &each.name,
            type_url: any.map_or("", |any| &any.type_url),
            data: any.map_or(&[], |any| &any.value),
        }
    }

    fn of_library(read: &Response) -> Offer<'_> {
        Offer {
            version_info: &read.system_version_info,
            resources: read.resources.iter().map(offered).collect(),
            type_url: &read.type_url,
            nonce: &read.nonce,
            removed: read.removed_resources.iter().map(String::as_str).collect(),
        }
    }

    #[test]
    fn a_response_is_read_as_the_library_reads_it() {
        let bytes = response().encode_to_vec();
        assert_eq!(Offer::read(&bytes), Some(of_library(&response())));
        assert_eq!(Offer::read(&[]), Some(Offer::default()));
    }

    #[test]
    fn of_a_field_that_comes_twice_the_last_one_counts() {
        let mut bytes = response().encode_to_vec();
        bytes.extend_from_slice(b"\x2a\x0213");
        assert_eq!(Offer::read(&bytes).unwrap().nonce, "13");
    }

    #[test]
    fn fields_that_nobody_knows_are_passed_over() {
        let mut bytes = b"\x38\x05\x42\x01x\x4b\x08\x01\x4c\x55....".to_vec();
        bytes.extend(response().encode_to_vec());
        assert_eq!(Offer::read(&bytes), Some(of_library(&response())));
    }

    /// The library says of some fields that they have the wrong wire type, where they are only passed over here.
    #[test]
    fn what_the_library_reads_of_a_damaged_response_is_read_alike() {
        let seeds = vec![
            response().encode_to_vec(),
            Response::default().encode_to_vec(),
        ];
        fuzz("offer", 20_000, damaged(seeds), |bytes| {
            let ours = Offer::read(&bytes);
            if let Ok(read) = Response::decode(&*bytes) {
                assert_eq!(ours, Some(of_library(&read)));
            }
        });
    }
}
