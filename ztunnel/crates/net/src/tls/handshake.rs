//! One handshake, from the first byte to the keys. Owns the conversation; its deadline is the caller's.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use rustls::client::{ClientConnectionData, UnbufferedClientConnection};
use rustls::pki_types::{CertificateDer, IpAddr, Ipv4Addr, ServerName};
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{ConnectionState, EncodeError, EncodeTlsData, UnbufferedStatus};
use rustls::{ClientConfig, CommonState, Error, ExtractedSecrets, ServerConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use ztunnel_core::ids::SpiffeId;

use super::{ALPN, Opener, Rekey, Sealer};
use crate::verify::{explain, leaf_identity};

/// What a TLS record may begin with (RFC 8446 §5.1).
const RECORD_TYPES: RangeInclusive<u8> = 20..=23;
/// Said of a peer whose first byte is no TLS. It gets no answer: an alert would mean nothing to it.
pub(crate) const PLAINTEXT: &str = "the peer does not speak TLS: it sends plaintext";
const HUNG_UP: &str = "the peer closed the connection during the handshake";
const READ: usize = 4096;
/// How long a peer that is turned away may take to hear why.
pub(crate) const PARTING: Duration = Duration::from_secs(1);
/// rustls takes handshake messages up to 64 KiB; a peer that sends more than this without one is not one of ours.
const MAX_UNPROCESSED: usize = 128 << 10;

/// A connection after its handshake: both ends proven, keys in hand.
pub(crate) struct Secured {
    pub(crate) sealer: Sealer,
    pub(crate) opener: Opener,
    pub(crate) rekey: Box<dyn Rekey>,
    pub(crate) peer: SpiffeId,
    /// As the peer showed them, leaf first.
    pub(crate) peer_chain: Vec<CertificateDer<'static>>,
    /// What came behind the handshake: already opened, and not yet.
    pub(crate) plaintext: Vec<u8>,
    pub(crate) ciphertext: Vec<u8>,
}

/// The server's part. Errors are sentences.
pub(crate) async fn accept(
    tcp: &mut TcpStream,
    config: Arc<ServerConfig>,
) -> Result<Secured, String> {
    let side = UnbufferedServerConnection::new(config).map_err(|why| explain(&why))?;
    let shaken = shake(tcp, side).await;
    if shaken.is_err() {
        let _ = tokio::time::timeout(PARTING, part(tcp)).await;
    }
    shaken
}

/// A client has sent its first request by the time we refuse its certificate. Closing with that unread would make the
/// kernel answer with RST, and RST destroys the alert on its way; so it is read, for a moment.
async fn part(tcp: &mut TcpStream) {
    if tcp.shutdown().await.is_ok() {
        let mut ignored = vec![0; READ];
        while tcp.read(&mut ignored).await.is_ok_and(|read| read > 0) {}
    }
}

/// The client's part. Errors are sentences.
pub(crate) async fn connect(
    tcp: &mut TcpStream,
    config: Arc<ClientConfig>,
) -> Result<Secured, String> {
    // Never sent (no SNI) and never compared: the verifier looks at the SPIFFE ID.
    let name = ServerName::IpAddress(IpAddr::V4(Ipv4Addr::from([0, 0, 0, 0])));
    let side = UnbufferedClientConnection::new(config, name).map_err(|why| explain(&why))?;
    shake(tcp, side).await
}

/// What rustls' two roles have in common; it gives them no trait of its own.
trait Side {
    type Data;
    fn process<'c, 'i>(&'c mut self, input: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data>;
    fn common(&self) -> &CommonState;
    fn into_keys(self) -> Result<(ExtractedSecrets, Box<dyn Rekey>), Error>;
}

impl Side for UnbufferedClientConnection {
    type Data = ClientConnectionData;
    fn process<'c, 'i>(&'c mut self, input: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(input)
    }
    fn common(&self) -> &CommonState {
        self
    }
    fn into_keys(self) -> Result<(ExtractedSecrets, Box<dyn Rekey>), Error> {
        let (secrets, schedule) = self.dangerous_into_kernel_connection()?;
        Ok((secrets, Box::new(schedule)))
    }
}

impl Side for UnbufferedServerConnection {
    type Data = ServerConnectionData;
    fn process<'c, 'i>(&'c mut self, input: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(input)
    }
    fn common(&self) -> &CommonState {
        self
    }
    fn into_keys(self) -> Result<(ExtractedSecrets, Box<dyn Rekey>), Error> {
        let (secrets, schedule) = self.dangerous_into_kernel_connection()?;
        Ok((secrets, Box::new(schedule)))
    }
}

#[derive(Default)]
struct Buffers {
    input: Vec<u8>,
    output: Vec<u8>,
    plaintext: Vec<u8>,
}

async fn shake<S: Side>(tcp: &mut TcpStream, mut side: S) -> Result<Secured, String> {
    let (mut buffers, mut heard) = (Buffers::default(), false);
    loop {
        let step = advance(&mut side, &mut buffers);
        if let Err(why) = &step {
            let said = explain(why);
            queue_alert(&mut side, &mut buffers);
            // The peer learns the reason if it still listens; ours is the one that is reported.
            let _ = tcp.write_all(&buffers.output).await;
            return Err(said);
        }
        tcp.write_all(&buffers.output)
            .await
            .map_err(|why| why.to_string())?;
        buffers.output.clear();
        if matches!(step, Ok(true)) {
            return finish(side, buffers);
        }
        read_more(tcp, &mut buffers.input).await?;
        let first = buffers
            .input
            .first()
            .filter(|_| !std::mem::replace(&mut heard, true));
        if first.is_some_and(|byte| !RECORD_TYPES.contains(byte)) {
            return Err(PLAINTEXT.to_owned());
        }
    }
}

async fn read_more(tcp: &mut TcpStream, input: &mut Vec<u8>) -> Result<(), String> {
    if input.len() > MAX_UNPROCESSED {
        return Err("the peer sends more than a handshake can need".to_owned());
    }
    input.reserve(READ);
    match tcp.read_buf(input).await {
        Ok(0) => Err(HUNG_UP.to_owned()),
        Ok(_) => Ok(()),
        Err(why) => Err(format!("the connection broke during the handshake: {why}")),
    }
}

/// Goes as far as the input allows. True: the handshake has ended.
fn advance<S: Side>(side: &mut S, buffers: &mut Buffers) -> Result<bool, Error> {
    loop {
        let UnbufferedStatus { discard, state, .. } = side.process(&mut buffers.input);
        let step = state.and_then(|state| take(state, &mut buffers.output, &mut buffers.plaintext));
        buffers.input.drain(..discard); // also after an error: rustls remembers places in the input
        // One record too many may have been opened; every later one is ours, so stop at the first chance.
        if step? {
            return Ok(!side.common().is_handshaking());
        }
    }
}

/// True: nothing more can be done with the input there is.
fn take<Data>(
    state: ConnectionState<'_, '_, Data>,
    output: &mut Vec<u8>,
    plaintext: &mut Vec<u8>,
) -> Result<bool, Error> {
    match state {
        ConnectionState::EncodeTlsData(chunk) => encode(chunk, output)?,
        ConnectionState::TransmitTlsData(sent) => sent.done(), // it is, before the next read
        ConnectionState::ReadTraffic(mut traffic) => {
            while let Some(record) = traffic.next_record() {
                plaintext.extend_from_slice(record?.payload);
            }
        }
        ConnectionState::BlockedHandshake | ConnectionState::WriteTraffic(_) => return Ok(true),
        _ => return Err(Error::General(HUNG_UP.into())),
    }
    Ok(false)
}

fn encode<Data>(mut chunk: EncodeTlsData<'_, Data>, output: &mut Vec<u8>) -> Result<(), Error> {
    let at = output.len();
    let needed = match chunk.encode(&mut []) {
        Err(EncodeError::InsufficientSize(short)) => short.required_size,
        Err(why) => return Err(Error::General(why.to_string())),
        Ok(_) => return Ok(()),
    };
    output.resize(at + needed, 0);
    chunk
        .encode(&mut output[at..])
        .map_err(|why| Error::General(why.to_string()))?;
    Ok(())
}

/// After an error rustls still hands out the alert it wants to send, once, before it looks at the input again.
fn queue_alert<S: Side>(side: &mut S, buffers: &mut Buffers) {
    if let Ok(ConnectionState::EncodeTlsData(chunk)) = side.process(&mut buffers.input).state {
        let _ = encode(chunk, &mut buffers.output); // without it the peer sees a close and no reason
    }
}

fn finish<S: Side>(side: S, buffers: Buffers) -> Result<Secured, String> {
    if side.common().alpn_protocol() != Some(ALPN) {
        return Err("the peer does not offer HTTP/2 (ALPN h2)".to_owned());
    }
    let chain = side.common().peer_certificates().unwrap_or_default();
    let peer_chain: Vec<_> = chain.iter().map(|each| each.clone().into_owned()).collect();
    let leaf = peer_chain
        .first()
        .ok_or("the peer presented no certificate")?;
    let peer = leaf_identity(leaf)?;
    let (secrets, rekey) = side.into_keys().map_err(|why| why.to_string())?;
    Ok(Secured {
        sealer: Sealer::new(secrets.tx)?,
        opener: Opener::new(secrets.rx)?,
        rekey,
        peer,
        peer_chain,
        plaintext: buffers.plaintext,
        ciphertext: buffers.input,
    })
}
