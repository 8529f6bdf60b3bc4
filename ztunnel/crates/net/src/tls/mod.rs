//! TLS 1.3 as HBONE wants it: mutual, ALPN exactly `h2`, no SNI, no resumption, two AES-GCM suites.
//!
//! Owns the configurations, the handshake and, after it, the record layer. rustls conducts the handshake and the key
//! updates; the records of an established tunnel are sealed and opened here, in our own buffers, because rustls (0.23)
//! allocates and copies once more per record in either direction.

mod cipher;
mod handshake;
mod record;

use std::sync::{Arc, OnceLock};

use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs as provider;
use rustls::server::NoServerSessionStorage;
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, ServerConfig, version::TLS13};
use ztunnel_core::ids::SpiffeId;

pub(crate) use handshake::{PARTING, PLAINTEXT, Secured, accept, connect};
pub(crate) use record::{
    Content, MAX_PLAINTEXT, Opener, RECORD_HEADER, RECORD_TRAILER, Rekey, Sealer,
};

use crate::verify::{Judge, MeshClient, WantedServer};

const ALPN: &[u8] = b"h2";

/// The algorithms of the mesh; one for the process.
pub(crate) fn crypto() -> &'static Arc<CryptoProvider> {
    static CRYPTO: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    CRYPTO.get_or_init(|| {
        let cipher_suites = vec![
            provider::cipher_suite::TLS13_AES_128_GCM_SHA256,
            provider::cipher_suite::TLS13_AES_256_GCM_SHA384,
        ];
        Arc::new(CryptoProvider {
            cipher_suites,
            ..provider::default_provider()
        })
    })
}

/// What one generation of a workload's certificate needs for its handshakes; building it costs a key parse and a
/// verifier, which is why it is kept with the certificate.
pub(crate) struct Configs {
    pub(crate) server: Arc<ServerConfig>,
    /// Without an expected identity: `client_for` adds it.
    client: ClientConfig,
    pub(crate) judge: Arc<Judge>,
}

impl Configs {
    /// `certified`: without the roots; the caller has checked that the key is the leaf's.
    pub(crate) fn new(certified: CertifiedKey, judge: Arc<Judge>) -> Result<Self, String> {
        let certified = Arc::new(certified);
        Ok(Self {
            server: Arc::new(server_config(&certified, &judge)?),
            client: client_config(&certified, &judge)?,
            judge,
        })
    }

    /// Cheap: everything but the verifier is shared.
    pub(crate) fn client_for(&self, want: &[SpiffeId]) -> Arc<ClientConfig> {
        let mut config = self.client.clone();
        config
            .dangerous()
            .set_certificate_verifier(wanted(&self.judge, want));
        Arc::new(config)
    }
}

fn wanted(judge: &Arc<Judge>, want: &[SpiffeId]) -> Arc<WantedServer> {
    Arc::new(WantedServer {
        judge: judge.clone(),
        want: want.to_vec(),
    })
}

fn server_config(
    certified: &Arc<CertifiedKey>,
    judge: &Arc<Judge>,
) -> Result<ServerConfig, String> {
    let mut config = ServerConfig::builder_with_provider(crypto().clone())
        .with_protocol_versions(&[&TLS13])
        .map_err(|why| why.to_string())?
        .with_client_cert_verifier(Arc::new(MeshClient(judge.clone())))
        .with_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(
            certified.clone(),
        )));
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.enable_secret_extraction = true; // the record layer is ours
    config.send_tls13_tickets = 0; // a ticket would outlive the identity's revocation
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Ok(config)
}

fn client_config(
    certified: &Arc<CertifiedKey>,
    judge: &Arc<Judge>,
) -> Result<ClientConfig, String> {
    let mut config = ClientConfig::builder_with_provider(crypto().clone())
        .with_protocol_versions(&[&TLS13])
        .map_err(|why| why.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(wanted(judge, &[]))
        .with_client_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(
            certified.clone(),
        )));
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.enable_sni = false;
    config.enable_secret_extraction = true;
    config.resumption = Resumption::disabled();
    Ok(config)
}
