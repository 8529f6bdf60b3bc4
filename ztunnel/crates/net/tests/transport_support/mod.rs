//! Two ends of a mesh in one process: a CA, identities, a serving worker and a dialling one, applications on loopback.
#![allow(dead_code, unreachable_pub)] // each test file uses its part

use std::cell::Cell;
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DistinguishedName,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
    PublicKeyData, SanType, SignatureAlgorithm,
};
use rustls::ClientConfig;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use time::{Duration, OffsetDateTime};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::LocalSet;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer;
use ztunnel_core::ids::SpiffeId;
use ztunnel_net::identity::Identities;
use ztunnel_net::pool::{Key, Limits, OpenError, Opened, Tunnels};
use ztunnel_net::relay::{Bytes2, relay_tunnel};
use ztunnel_net::tunnel::{Incoming, ServeError};

pub const CLIENT: &str = "spiffe://cluster.local/ns/shop/sa/web";
pub const SERVER: &str = "spiffe://cluster.local/ns/shop/sa/db";

pub fn id(text: &str) -> SpiffeId {
    SpiffeId::parse(text).expect("a SPIFFE ID")
}

/// A certificate authority that signs what it is asked, also what no honest one would.
pub struct Ca {
    issuer: Issuer<'static, KeyPair>,
    pub root_pem: String,
}

impl Ca {
    pub fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().expect("key");
        let root_pem = params.self_signed(&key).expect("root").pem();
        Self {
            issuer: Issuer::new(params, key),
            root_pem,
        }
    }

    /// An orderly SVID for the key in `csr`, changed by `alter`.
    pub fn sign(
        &self,
        csr: &str,
        identity: &str,
        alter: impl FnOnce(&mut CertificateParams),
    ) -> String {
        let key = Asked(requested_point(csr));
        let mut params = leaf_params(&[identity]);
        alter(&mut params);
        params.signed_by(&key, &self.issuer).expect("leaf").pem()
    }

    /// An identity store that already holds `identity`.
    pub fn identities(&self, identity: &str) -> Arc<Identities> {
        self.identities_with(identity, |_| {})
            .expect("an orderly certificate")
    }

    pub fn identities_with(
        &self,
        identity: &str,
        alter: impl FnOnce(&mut CertificateParams),
    ) -> Result<Arc<Identities>, String> {
        let identities = Arc::new(Identities::new(Box::new(|_, _| {})));
        let csr = identities.new_key(&id(identity))?;
        let leaf = self.sign(&csr, identity, alter);
        identities.install_chain(&id(identity), &[leaf, self.root_pem.clone()])?;
        Ok(identities)
    }

    /// A key and certificate outside any store, for hand-made peers: (chain PEM, key PEM).
    pub fn loose(
        &self,
        uris: &[&str],
        alter: impl FnOnce(&mut CertificateParams),
    ) -> (String, String) {
        let key = KeyPair::generate().expect("key");
        let mut params = leaf_params(uris);
        alter(&mut params);
        (
            params.signed_by(&key, &self.issuer).expect("leaf").pem(),
            key.serialize_pem(),
        )
    }
}

fn leaf_params(uris: &[&str]) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.not_before = OffsetDateTime::now_utc() - Duration::hours(1);
    params.not_after = OffsetDateTime::now_utc() + Duration::hours(23);
    params.distinguished_name = DistinguishedName::new();
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    params.custom_extensions = vec![alternative_names(uris)];
    params
}

/// A critical subjectAltName of these URIs (each shorter than 128 bytes), in the order given.
pub fn alternative_names(uris: &[&str]) -> CustomExtension {
    let mut names = Vec::new();
    for uri in uris {
        names.extend([0x86, uri.len() as u8]);
        names.extend(uri.as_bytes());
    }
    let mut der = vec![0x30];
    if names.len() >= 128 {
        der.push(0x81);
    }
    der.push(names.len() as u8);
    der.extend(names);
    let mut extension = CustomExtension::from_oid_content(&[2, 5, 29, 17], der);
    extension.set_criticality(true);
    extension
}

pub fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().expect("IA5"))
}

/// The public key of a certificate request: a point on P-256.
struct Asked(Vec<u8>);

impl PublicKeyData for Asked {
    fn der_bytes(&self) -> &[u8] {
        &self.0
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ECDSA_P256_SHA256
    }
}

/// The SubjectPublicKeyInfo of a certificate request.
pub fn requested_key(csr: &str) -> Vec<u8> {
    let (_, pem) = x509_parser::pem::parse_x509_pem(csr.as_bytes()).expect("PEM");
    let (_, request) = X509CertificationRequest::from_der(&pem.contents).expect("request");
    request.certification_request_info.subject_pki.raw.to_vec()
}

fn requested_point(csr: &str) -> Vec<u8> {
    let (_, pem) = x509_parser::pem::parse_x509_pem(csr.as_bytes()).expect("PEM");
    let (_, request) = X509CertificationRequest::from_der(&pem.contents).expect("request");
    request
        .certification_request_info
        .subject_pki
        .subject_public_key
        .data
        .to_vec()
}

/// Runs one test on one thread, as a worker does.
pub fn on_worker<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("runtime");
    LocalSet::new().block_on(&runtime, test)
}

/// The same with tokio's clock stopped: it jumps to the next deadline when nothing else is left to do.
pub fn on_worker_with_stopped_clock<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .expect("runtime");
    LocalSet::new().block_on(&runtime, test)
}

pub async fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .await
        .expect("bind");
    let at = listener.local_addr().expect("address");
    (listener, at)
}

/// A connected pair: an application's socket and the one the tunnel relays.
pub async fn app() -> (TcpStream, TcpStream) {
    let (listener, at) = listen().await;
    let (near, far) = tokio::join!(TcpStream::connect(at), listener.accept());
    (near.expect("connect"), far.expect("accept").0)
}

/// A serving end: every accepted connection is served as `SERVER`, every request connected to the authority.
pub struct Server {
    pub tunnels: Rc<Tunnels>,
    pub at: SocketAddr,
    pub accepted: Rc<Cell<usize>>,
    pub ended: tokio::sync::mpsc::UnboundedReceiver<Result<(), ServeError>>,
}

impl Server {
    pub async fn start(identities: Arc<Identities>, limits: Limits) -> Self {
        Self::start_with(identities, limits, Rc::new(connect_to_authority)).await
    }

    pub async fn start_with(
        identities: Arc<Identities>,
        limits: Limits,
        on_request: Rc<dyn Fn(Incoming)>,
    ) -> Self {
        let (listener, at) = listen().await;
        let tunnels = Tunnels::new(identities, limits);
        let accepted = Rc::new(Cell::new(0));
        let (sender, ended) = tokio::sync::mpsc::unbounded_channel();
        let (serving, count) = (tunnels.clone(), accepted.clone());
        tokio::task::spawn_local(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                count.set(count.get() + 1);
                let (serving, on_request, sender) =
                    (serving.clone(), on_request.clone(), sender.clone());
                tokio::task::spawn_local(async move {
                    let ended = serving.serve(tcp, &id(SERVER), on_request).await;
                    let _ = sender.send(ended); // nobody may be listening
                });
            }
        });
        Self {
            tunnels,
            at,
            accepted,
            ended,
        }
    }
}

/// What an inbound proxy does, without any policy.
pub fn connect_to_authority(request: Incoming) {
    tokio::task::spawn_local(async move {
        let authority = request.head.authority.clone().unwrap_or_default();
        match TcpStream::connect(&authority).await {
            Ok(app) => {
                let stream = request.accept(&[]);
                let _ = relay_tunnel(app, stream, &Rc::default()).await; // the tests look at the sockets
            }
            Err(_) => request.refuse(503),
        }
    });
}

pub fn key(at: SocketAddr) -> Key {
    Key {
        from: id(CLIENT),
        want: vec![id(SERVER)],
        dial: at,
        source: IpAddr::V4(Ipv4Addr::LOCALHOST),
    }
}

pub fn dialer() -> std::io::Result<socket2::Socket> {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

pub async fn open(
    tunnels: &Rc<Tunnels>,
    at: SocketAddr,
    to: SocketAddr,
) -> Result<Opened, OpenError> {
    tunnels
        .open(key(at), &dialer, &to.to_string(), &[], None)
        .await
}

/// An application's connection through the tunnel to `to`.
pub async fn through(tunnels: &Rc<Tunnels>, at: SocketAddr, to: SocketAddr) -> TcpStream {
    let opened = open(tunnels, at, to).await.expect("a stream");
    let (near, far) = app().await;
    tokio::task::spawn_local(async move {
        let counts: Rc<Bytes2> = Rc::default();
        let _ = relay_tunnel(far, opened.stream, &counts).await; // the tests look at the sockets
    });
    near
}

/// A serving and a dialling worker of one mesh.
pub async fn pair() -> (Rc<Tunnels>, Server) {
    let ca = Ca::new();
    let server = Server::start(ca.identities(SERVER), Limits::default()).await;
    (
        Tunnels::new(ca.identities(CLIENT), Limits::default()),
        server,
    )
}

/// An application that sends back what it gets and ends when the other ends.
pub async fn echo() -> SocketAddr {
    let (listener, at) = listen().await;
    tokio::task::spawn_local(async move {
        while let Ok((mut tcp, _)) = listener.accept().await {
            tokio::task::spawn_local(async move {
                let (mut reader, mut writer) = tcp.split();
                let _ = tokio::io::copy(&mut reader, &mut writer).await; // a reset is a test's wish
                let _ = writer.shutdown().await;
            });
        }
    });
    at
}

/// Sends, ends, reads to the end.
pub async fn exchange(tcp: &mut TcpStream, bytes: &[u8]) -> std::io::Result<Vec<u8>> {
    let (mut reader, mut writer) = tcp.split();
    let mut back = Vec::new();
    let sent = async {
        writer.write_all(bytes).await?;
        writer.shutdown().await
    };
    tokio::try_join!(sent, reader.read_to_end(&mut back))?;
    Ok(back)
}

/// A tunnel whose far application is the second socket, its near one the first.
pub async fn joined(tunnels: &Rc<Tunnels>, server: &Server) -> (TcpStream, TcpStream) {
    let (listener, at) = listen().await;
    let (near, far) = tokio::join!(through(tunnels, server.at, at), listener.accept());
    (near, far.expect("accept").0)
}

/// What a hand-made client shows.
pub fn foreign_config(ca: &Ca) -> ClientConfig {
    let (chain, key) = ca.loose(&[CLIENT], |_| {});
    let mut config = any_server()
        .with_client_auth_cert(vec![certificate(&chain)], private(&key))
        .expect("certificate");
    config.alpn_protocols = vec![b"h2".to_vec()];
    config
}

/// A client that takes any server.
pub fn any_server() -> rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert> {
    let provider = Arc::new(default_provider());
    ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("version")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyServer(provider)))
}

pub fn certificate(pem: &str) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(pem.as_bytes()).expect("PEM")
}

pub fn private(pem: &str) -> PrivateKeyDer<'static> {
    PrivateKeyDer::from_pem_slice(pem.as_bytes()).expect("PEM")
}

#[derive(Debug)]
struct AnyServer(Arc<rustls::crypto::CryptoProvider>);

impl rustls::client::danger::ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _leaf: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _leaf: &CertificateDer<'_>,
        _signature: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _leaf: &CertificateDer<'_>,
        _signature: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
