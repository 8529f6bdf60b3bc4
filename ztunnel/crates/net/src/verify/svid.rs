//! The rules of a workload's own certificate: X.509-SVID §2 to §5 and the Istio profile of the SPIFFE ID.

use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use ztunnel_core::ids::SpiffeId;

use super::strict::parse;

/// The identity of a leaf, if it is a well-formed X.509-SVID of the Istio profile. Says nothing about who signed it.
pub(crate) fn leaf_identity(der: &[u8]) -> Result<SpiffeId, String> {
    identity(&parse(der)?)
}

pub(crate) fn identity(leaf: &X509Certificate<'_>) -> Result<SpiffeId, String> {
    check_basic_constraints(leaf)?;
    check_key_usage(leaf)?;
    check_extended_key_usage(leaf)?;
    let uri = only_uri(leaf)?;
    SpiffeId::parse(uri).map_err(|why| {
        // Escaped: look-alike letters and line breaks must not get into the log as they are.
        let uri = uri.escape_default();
        format!("the certificate names \"{uri}\", which is no identity of a mesh: {why}")
    })
}

fn only_uri<'a>(leaf: &X509Certificate<'a>) -> Result<&'a str, String> {
    let names = leaf
        .subject_alternative_name()
        .map_err(|_| "the certificate's alternative names are malformed or occur twice".to_owned())?
        .ok_or("the certificate carries no SPIFFE ID: it has no alternative name")?;
    if leaf.subject().iter().next().is_none() && !names.critical {
        return Err(
            "the certificate has an empty subject but its alternative names are not critical"
                .to_owned(),
        );
    }
    let invalid = |name: &GeneralName<'_>| matches!(name, GeneralName::Invalid(..));
    if names.value.general_names.iter().any(invalid) {
        return Err("the certificate's alternative names are malformed".to_owned());
    }
    let uris: Vec<&str> = names
        .value
        .general_names
        .iter()
        .filter_map(|name| match name {
            GeneralName::URI(uri) => Some(*uri),
            _ => None,
        })
        .collect();
    match uris[..] {
        [uri] => Ok(uri),
        [] => Err("the certificate carries no SPIFFE ID: it has no URI among its names".to_owned()),
        _ => Err(format!(
            "the certificate carries {} URI names where exactly one is allowed",
            uris.len()
        )),
    }
}

fn check_basic_constraints(leaf: &X509Certificate<'_>) -> Result<(), String> {
    let constraints = leaf.basic_constraints().map_err(|_| {
        "the certificate's basic constraints are malformed or occur twice".to_owned()
    })?;
    match constraints {
        Some(found) if found.value.ca => Err("a CA certificate cannot be a workload's".to_owned()),
        _ => Ok(()),
    }
}

fn check_key_usage(leaf: &X509Certificate<'_>) -> Result<(), String> {
    let usage = leaf
        .key_usage()
        .map_err(|_| "the certificate's key usage is malformed or occurs twice".to_owned())?
        .ok_or("the certificate has no key usage")?;
    if !usage.critical {
        return Err("the certificate's key usage is not critical".to_owned());
    }
    if !usage.value.digital_signature() {
        return Err("the certificate's key may not sign (no digitalSignature)".to_owned());
    }
    if usage.value.key_cert_sign() || usage.value.crl_sign() {
        return Err("the certificate's key may sign certificates or revocation lists".to_owned());
    }
    Ok(())
}

fn check_extended_key_usage(leaf: &X509Certificate<'_>) -> Result<(), String> {
    let usage = leaf.extended_key_usage().map_err(|_| {
        "the certificate's extended key usage is malformed or occurs twice".to_owned()
    })?;
    match usage {
        Some(found) if !(found.value.server_auth && found.value.client_auth) => {
            Err("the certificate's extended key usage lacks serverAuth or clientAuth".to_owned())
        }
        _ => Ok(()),
    }
}
