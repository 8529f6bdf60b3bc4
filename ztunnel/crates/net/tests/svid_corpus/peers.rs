//! One real handshake with a peer that shows what it is given, in either role, and what our side says of it.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;

use rustls::client::ResolvesClientCert;
use rustls::crypto::aws_lc_rs::{default_provider, sign::any_supported_type};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, ServerConfig, SignatureScheme};
use ztunnel_net::identity::Identities;
use ztunnel_net::pool::{Limits, OpenError, Tunnels};
use ztunnel_net::tunnel::ServeError;

use crate::forge::{Authority, Draft, Key, pem};
use crate::transport_support::{
    CLIENT, SERVER, any_server, echo, exchange, id, on_worker, open, requested_key, through,
};

/// What the odd peer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Client,
    Server,
}

/// A mesh whose authority signs anything.
pub struct Mesh {
    pub root: Authority,
    pub middle: Authority,
    /// The name that the odd peer would have if it were none.
    pub name: &'static str,
    pub key: Key,
    pub role: Role,
}

impl Mesh {
    pub fn new(role: Role) -> Self {
        let root = Authority::root("root");
        Self {
            middle: root.under("middle"),
            root,
            name: match role {
                Role::Client => CLIENT,
                Role::Server => SERVER,
            },
            key: Key::new(),
            role,
        }
    }

    pub fn svid(&self) -> Draft {
        Draft::svid(self.name, &self.key)
    }

    /// Our own store: an orderly certificate of `name`, and trust in `roots` alone.
    pub fn ours(&self, name: &str, roots: &[Vec<u8>]) -> Arc<Identities> {
        let identities = Arc::new(Identities::new(Box::new(|_, _| {})));
        let request = identities.new_key(&id(name)).expect("key");
        let mut draft = Draft::svid(name, &self.key);
        draft.key = requested_key(&request);
        let leaf = pem(&draft.signed_by(&self.root));
        let roots: String = roots.iter().map(|root| pem(root)).collect();
        let installed = identities.install_chain(&id(name), &[leaf, roots]);
        installed.expect("an orderly chain");
        identities
    }
}

/// What the odd peer shows, and what we believe in meanwhile.
pub struct Shown {
    pub chain: Vec<Vec<u8>>,
    /// Whose key signs the handshake.
    pub key: Option<Key>,
    pub roots: Option<Vec<Vec<u8>>>,
    /// `set_trust`'s document.
    pub trust: Option<String>,
}

impl Shown {
    pub fn chain(chain: Vec<Vec<u8>>) -> Self {
        Self {
            chain,
            key: None,
            roots: None,
            trust: None,
        }
    }
}

#[derive(Debug)]
struct Shows(Arc<CertifiedKey>);

impl ResolvesClientCert for Shows {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

impl ResolvesServerCert for Shows {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }
}

fn resolver(shown: &Shown, mesh: &Mesh) -> Arc<Shows> {
    let key = shown.key.as_ref().unwrap_or(&mesh.key);
    let pkcs8 = key.0.to_pkcs8v1().expect("PKCS#8").as_ref().to_vec();
    let key = any_supported_type(&PrivatePkcs8KeyDer::from(pkcs8).into()).expect("key");
    let chain = shown.chain.iter().cloned().map(CertificateDer::from);
    Arc::new(Shows(Arc::new(CertifiedKey::new(chain.collect(), key))))
}

/// Ok: let in. Err: the sentence with which our side refused. A good peer must get through afterwards.
pub fn meet(mesh: &Mesh, shown: &Shown) -> Result<(), String> {
    let own = vec![mesh.root.certificate.clone()];
    let roots = shown.roots.clone().unwrap_or(own);
    match mesh.role {
        Role::Client => {
            let config = client_config(shown, mesh);
            as_client(mesh, &roots, shown.trust.as_deref(), |at| knock(at, config))
        }
        Role::Server => {
            let config = server_config(resolver(shown, mesh), &[b"h2"]);
            as_server(mesh, &roots, shown.trust.as_deref(), |tcp| {
                answer(tcp, config)
            })
        }
    }
}

pub fn client_config(shown: &Shown, mesh: &Mesh) -> ClientConfig {
    let mut config = any_server().with_client_cert_resolver(resolver(shown, mesh));
    config.alpn_protocols = vec![b"h2".to_vec()];
    config
}

pub fn server_config(shows: Arc<dyn ResolvesServerCert>, alpn: &[&[u8]]) -> ServerConfig {
    let mut config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("version")
        .with_no_client_auth()
        .with_cert_resolver(shows);
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    config
}

pub fn shows(mesh: &Mesh) -> Arc<dyn ResolvesServerCert> {
    let leaf = mesh.svid().signed_by(&mesh.root);
    resolver(&Shown::chain(vec![leaf]), mesh)
}

/// Speaks until the server hangs up; an error is the answer that is hoped for.
pub fn knock(at: SocketAddr, config: ClientConfig) {
    let name = ServerName::try_from("0.0.0.0").expect("name");
    let mut session = rustls::ClientConnection::new(Arc::new(config), name).expect("session");
    let mut tcp = TcpStream::connect(at).expect("connect");
    let mut stream = rustls::Stream::new(&mut session, &mut tcp);
    // The preface, empty SETTINGS, GOAWAY: whoever lets us in is bidden farewell in order.
    let farewell = [0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let words = [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0",
        &farewell[..],
    ]
    .concat();
    let _ = stream.write_all(&words);
    let _ = stream.read(&mut [0; 64]);
    let _ = tcp.shutdown(std::net::Shutdown::Write);
    let _ = tcp.read_to_end(&mut Vec::new());
}

pub fn answer(mut tcp: TcpStream, config: ServerConfig) {
    let mut session = rustls::ServerConnection::new(Arc::new(config)).expect("session");
    let mut stream = rustls::Stream::new(&mut session, &mut tcp);
    // SETTINGS once the client has spoken: the handshake has ended and it accepted us; then the end.
    let mut heard = [0; 24];
    if stream.read_exact(&mut heard).is_ok() {
        let _ = stream.write_all(b"\0\0\0\x04\0\0\0\0\0");
    }
    let _ = tcp.shutdown(std::net::Shutdown::Write);
    let _ = tcp.read_to_end(&mut Vec::new());
}

/// Our server against a client's doings.
pub fn as_client(
    mesh: &Mesh,
    roots: &[Vec<u8>],
    trust: Option<&str>,
    client: impl FnOnce(SocketAddr) + Send + 'static,
) -> Result<(), String> {
    on_worker(async {
        let store = mesh.ours(SERVER, roots);
        if let Some(trust) = trust {
            store.set_trust(trust.as_bytes())?;
        }
        let mut server =
            crate::transport_support::Server::start(store.clone(), Limits::default()).await;
        let at = server.at;
        let knocking = tokio::task::spawn_blocking(move || client(at));
        let ended = server.ended.recv().await.expect("an end");
        knocking.await.expect("the odd client");
        if roots == [mesh.root.certificate.clone()] && trust.is_none() {
            let tunnels = Tunnels::new(mesh.ours(CLIENT, roots), Limits::default());
            let mut app = through(&tunnels, server.at, echo().await).await;
            let back = exchange(&mut app, b"good").await;
            assert_eq!(back.expect("echo"), b"good", "the next good one");
        }
        match ended {
            Ok(()) | Err(ServeError::Tunnel(_)) => Ok(()),
            Err(ServeError::Tls(why)) => Err(why),
            Err(other) => Err(other.to_string()),
        }
    })
}

/// Our client against a server's doings.
pub fn as_server(
    mesh: &Mesh,
    roots: &[Vec<u8>],
    trust: Option<&str>,
    server: impl FnOnce(TcpStream) + Send + 'static,
) -> Result<(), String> {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let at = listener.local_addr().expect("address");
    on_worker(async {
        let store = mesh.ours(CLIENT, roots);
        if let Some(trust) = trust {
            store.set_trust(trust.as_bytes())?;
        }
        let serving = tokio::task::spawn_blocking(move || server(listener.accept().expect("a").0));
        let tunnels = Tunnels::new(store, Limits::default());
        let outcome = open(&tunnels, at, at).await.err();
        tunnels.cut(&|_| true);
        serving.await.expect("the odd server");
        match outcome {
            Some(OpenError::Tls(why)) => Err(why),
            // The handshake is over; the odd server knows no HTTP/2.
            Some(OpenError::H2(_)) | None => Ok(()),
            Some(other) => Err(other.to_string()),
        }
    })
}
