//! From decoded fields to a request or response head, or to what is wrong with it (RFC 9113 §8.1 to §8.3, §8.5).

use super::hpack::FIELD_OVERHEAD;
use super::{Headers, RequestHead};

/// More fields than any HBONE peer sends.
const MAX_FIELDS: usize = 64;

/// Why a header list is not used; the connection lives on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    Malformed,
    TooLarge,
}

/// What comes between a final response head and the application.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Response {
    Interim,
    Final(u16, Headers),
}

/// Collects one header list; after a fault it only counts.
pub(super) struct Fields {
    room: usize,
    count: usize,
    fault: Option<Fault>,
    method: Option<String>,
    authority: Option<String>,
    scheme: Option<String>,
    path: Option<String>,
    protocol: Option<String>,
    status: Option<String>,
    headers: Headers,
}

impl Fields {
    /// At most `room` bytes as RFC 9113 §6.5.2 counts them.
    pub(super) fn new(room: u32) -> Self {
        Self {
            room: room as usize,
            count: 0,
            fault: None,
            method: None,
            authority: None,
            scheme: None,
            path: None,
            protocol: None,
            status: None,
            headers: Headers::default(),
        }
    }

    pub(super) fn add(&mut self, name: &[u8], value: &[u8]) {
        if let Err(fault) = self.try_add(name, value) {
            self.fault = Some(fault);
        }
    }

    fn try_add(&mut self, name: &[u8], value: &[u8]) -> Result<(), Fault> {
        self.count += 1;
        let room = self
            .room
            .checked_sub(name.len() + value.len() + FIELD_OVERHEAD);
        self.room = room.unwrap_or(0);
        if room.is_none() || self.count > MAX_FIELDS {
            return Err(Fault::TooLarge);
        }
        if let Some(fault) = self.fault {
            return Err(fault);
        }
        check_value(value)?;
        match name {
            [b':', pseudo @ ..] => self.add_pseudo(pseudo, value),
            _ => self.add_regular(name, value),
        }
    }

    fn add_pseudo(&mut self, pseudo: &[u8], value: &[u8]) -> Result<(), Fault> {
        let slot = match pseudo {
            b"method" => &mut self.method,
            b"authority" => &mut self.authority,
            b"scheme" => &mut self.scheme,
            b"path" => &mut self.path,
            b"protocol" => &mut self.protocol,
            b"status" => &mut self.status,
            _ => return Err(Fault::Malformed),
        };
        if slot.is_some() || !self.headers.0.is_empty() {
            return Err(Fault::Malformed); // twice, or after a regular field
        }
        *slot = Some(String::from_utf8_lossy(value).into_owned());
        Ok(())
    }

    fn add_regular(&mut self, name: &[u8], value: &[u8]) -> Result<(), Fault> {
        if name.is_empty() || !name.iter().all(|byte| is_name_byte(*byte)) {
            return Err(Fault::Malformed);
        }
        match name {
            b"connection" | b"proxy-connection" | b"keep-alive" | b"transfer-encoding"
            | b"upgrade" => {
                return Err(Fault::Malformed); // RFC 9113 §8.2.2
            }
            b"te" if value != b"trailers" => return Err(Fault::Malformed),
            _ => {}
        }
        let (name, value) = (
            String::from_utf8_lossy(name),
            String::from_utf8_lossy(value),
        );
        self.headers.0.push((name.into(), value.into()));
        Ok(())
    }

    /// RFC 9113 §8.3.1, §8.5: all but CONNECT need scheme and path, and no request has a status.
    pub(super) fn request(self) -> Result<RequestHead, Fault> {
        self.sound()?;
        let method = self
            .method
            .filter(|method| !method.is_empty())
            .ok_or(Fault::Malformed)?;
        let targeted =
            self.scheme.is_some() && self.path.as_ref().is_some_and(|path| !path.is_empty());
        if self.status.is_some() || (method != "CONNECT" && !targeted) {
            return Err(Fault::Malformed);
        }
        Ok(RequestHead {
            method,
            authority: self.authority,
            scheme: self.scheme,
            path: self.path,
            protocol: self.protocol,
            headers: self.headers,
        })
    }

    pub(super) fn response(self) -> Result<Response, Fault> {
        self.sound()?;
        let status = self
            .status
            .as_deref()
            .and_then(parse_status)
            .ok_or(Fault::Malformed)?;
        let request_fields = [
            &self.method,
            &self.authority,
            &self.scheme,
            &self.path,
            &self.protocol,
        ];
        if request_fields.iter().any(|field| field.is_some()) || status == 101 {
            return Err(Fault::Malformed); // §8.6: no 101 in HTTP/2
        }
        Ok(if status < 200 {
            Response::Interim
        } else {
            Response::Final(status, self.headers)
        })
    }

    /// Trailers carry no pseudo-header fields (RFC 9113 §8.1).
    pub(super) fn trailers(self) -> Result<(), Fault> {
        self.sound()?;
        let pseudo = [
            &self.method,
            &self.authority,
            &self.scheme,
            &self.path,
            &self.protocol,
            &self.status,
        ];
        if pseudo.iter().any(|field| field.is_some()) {
            Err(Fault::Malformed)
        } else {
            Ok(())
        }
    }

    fn sound(&self) -> Result<(), Fault> {
        self.fault.map_or(Ok(()), Err)
    }
}

fn parse_status(text: &str) -> Option<u16> {
    let digits = text.len() == 3 && text.bytes().all(|byte| byte.is_ascii_digit());
    digits
        .then(|| text.parse().ok())
        .flatten()
        .filter(|status| (100..600).contains(status))
}

/// A token (RFC 9110 §5.6.2) without upper case (RFC 9113 §8.2.1).
fn is_name_byte(byte: u8) -> bool {
    matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'!' | b'#'..=b'\'' | b'*' | b'+' | b'-' | b'.' | b'^'..=b'`' | b'|' | b'~')
}

/// RFC 9113 §8.2.1: no NUL, CR or LF, no white space at either end.
fn check_value(value: &[u8]) -> Result<(), Fault> {
    let blank = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
    let forbidden = value.iter().any(|byte| matches!(byte, 0 | b'\r' | b'\n'));
    if forbidden || blank(value.first()) || blank(value.last()) {
        Err(Fault::Malformed)
    } else {
        Ok(())
    }
}
