//! A workload's private key: born here or given by a SPIFFE Workload API. It signs; the type has no way to print it, and
//! the library wipes the memory when the last holder drops it (aws-lc's `OPENSSL_free`).

use std::fmt;
use std::sync::Arc;

use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair};
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{PrivatePkcs8KeyDer, SubjectPublicKeyInfoDer};
use rustls::sign::{Signer, SigningKey};
use rustls::{Error, SignatureAlgorithm, SignatureScheme};
use zeroize::{Zeroize, Zeroizing};

/// A P-256 key of our own making. Cloning shares it.
#[derive(Clone)]
pub(crate) struct Key(Arc<EcdsaKeyPair>);

impl fmt::Debug for Key {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Key")
    }
}

impl Key {
    pub(crate) fn generate() -> Result<Self, String> {
        EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING)
            .map(|key| Self(Arc::new(key)))
            .map_err(|_| "the crypto library could not make a P-256 key".to_owned())
    }

    /// SubjectPublicKeyInfo, DER: what a certificate for this key must carry.
    pub(crate) fn public_der(&self) -> Result<Vec<u8>, String> {
        AsDer::<PublicKeyX509Der<'_>>::as_der(self.0.public_key())
            .map(|der| der.as_ref().to_vec())
            .map_err(|_| "the crypto library could not encode the public key".to_owned())
    }

    /// ASN.1, as X.509 and TLS 1.3 want it.
    pub(crate) fn signature(&self, message: &[u8]) -> Result<Vec<u8>, String> {
        self.0
            .sign(&SystemRandom::new(), message)
            .map(|signature| signature.as_ref().to_vec())
            .map_err(|_| "the crypto library could not sign".to_owned())
    }

    /// PKCS#8 in PEM, for the vault alone; wiped when dropped.
    pub(crate) fn to_pem(&self) -> Result<Zeroizing<String>, String> {
        let der = self.0.to_pkcs8v1();
        let der = der.map_err(|_| "the crypto library could not encode the key".to_owned())?;
        Ok(Zeroizing::new(crate::csr::pem("PRIVATE KEY", der.as_ref())))
    }

    pub(crate) fn from_pem(pem: &[u8]) -> Result<Self, String> {
        let mut der = PrivatePkcs8KeyDer::from_pem_slice(pem)
            .map_err(|why| format!("the key is not PEM: {why}"))?;
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, der.secret_pkcs8_der());
        der.zeroize();
        key.map(|key| Self(Arc::new(key)))
            .map_err(|_| "the key is no P-256 key in PKCS#8".to_owned())
    }
}

impl SigningKey for Key {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        offered
            .contains(&SignatureScheme::ECDSA_NISTP256_SHA256)
            .then(|| Box::new(self.clone()) as Box<dyn Signer>)
    }

    fn public_key(&self) -> Option<SubjectPublicKeyInfoDer<'_>> {
        self.public_der().ok().map(SubjectPublicKeyInfoDer::from)
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        SignatureAlgorithm::ECDSA
    }
}

impl Signer for Key {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Error> {
        self.signature(message).map_err(Error::General)
    }

    fn scheme(&self) -> SignatureScheme {
        SignatureScheme::ECDSA_NISTP256_SHA256
    }
}

/// A key that came from outside, PKCS#8 DER, of any kind that TLS 1.3 knows. The bytes are wiped.
pub(crate) fn given(mut pkcs8: Zeroizing<Vec<u8>>) -> Result<Arc<dyn SigningKey>, String> {
    let mut der = PrivatePkcs8KeyDer::from(std::mem::take(&mut *pkcs8)).into();
    let key = any_supported_type(&der);
    der.zeroize();
    key.map_err(|why| format!("the private key cannot be used: {why}"))
}
