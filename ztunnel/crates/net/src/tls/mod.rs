//! TLS 1.3 as HBONE wants it: mutual, ALPN exactly `h2`, no SNI, no resumption, two AES-GCM suites.
//!
//! Owns the configurations, the handshake and, after it, the record layer. rustls conducts the handshake and the key
//! updates; the records of an established tunnel are sealed and opened here, in our own buffers, because rustls (0.23)
//! allocates and copies once more per record in either direction.

mod handshake;
mod record;

use std::sync::{Arc, OnceLock};

use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs as provider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::NoServerSessionStorage;
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, RootCertStore, ServerConfig, version::TLS13};
use ztunnel_core::ids::SpiffeId;

pub(crate) use handshake::{PARTING, PLAINTEXT, Secured, accept, connect};
pub(crate) use record::{
    Content, MAX_PLAINTEXT, Opener, RECORD_HEADER, RECORD_TRAILER, Rekey, Sealer,
};

use crate::verify::{MeshClient, WantedServer};

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
    roots: Arc<RootCertStore>,
}

impl Configs {
    /// `chain`: leaf first, without the roots. Fails when the key is not the leaf's.
    pub(crate) fn new(
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
        roots: Arc<RootCertStore>,
        trust_domain: &str,
    ) -> Result<Self, String> {
        let certified = CertifiedKey::from_der(chain, key, crypto())
            .map_err(|why| format!("the certificate cannot be used with its key: {why}"))?;
        let certified = Arc::new(certified);
        Ok(Self {
            server: Arc::new(server_config(&certified, &roots, trust_domain)?),
            client: client_config(&certified, &roots)?,
            roots,
        })
    }

    /// Cheap: everything but the verifier is shared.
    pub(crate) fn client_for(&self, want: &[SpiffeId]) -> Arc<ClientConfig> {
        let mut config = self.client.clone();
        config
            .dangerous()
            .set_certificate_verifier(wanted(&self.roots, want));
        Arc::new(config)
    }
}

fn wanted(roots: &Arc<RootCertStore>, want: &[SpiffeId]) -> Arc<WantedServer> {
    Arc::new(WantedServer {
        roots: roots.clone(),
        algorithms: crypto().signature_verification_algorithms,
        want: want.to_vec(),
    })
}

fn server_config(
    certified: &Arc<CertifiedKey>,
    roots: &Arc<RootCertStore>,
    trust_domain: &str,
) -> Result<ServerConfig, String> {
    let verifier = MeshClient::new(roots.clone(), crypto().clone(), trust_domain)?;
    let mut config = ServerConfig::builder_with_provider(crypto().clone())
        .with_protocol_versions(&[&TLS13])
        .map_err(|why| why.to_string())?
        .with_client_cert_verifier(Arc::new(verifier))
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
    roots: &Arc<RootCertStore>,
) -> Result<ClientConfig, String> {
    let mut config = ClientConfig::builder_with_provider(crypto().clone())
        .with_protocol_versions(&[&TLS13])
        .map_err(|why| why.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(wanted(roots, &[]))
        .with_client_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(
            certified.clone(),
        )));
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.enable_sni = false;
    config.enable_secret_extraction = true;
    config.resumption = Resumption::disabled();
    Ok(config)
}
