"""TLS that is not a tunnel's: to applications and external services, at gateways' servers, and their secrets. Pure."""

from __future__ import annotations

from controlplane.l7.model import Secret, ServerTls, ServerTlsMode
from controlplane.l7.traffic import Credential, TlsMode, UpstreamTls
from controlplane.translate.envoy.common import ADS, Json, extension
from controlplane.translate.envoy.tunnels import tls_context

_SYSTEM_ROOTS = "/etc/ssl/certs/ca-certificates.crt"


def upstream_tls(tls: UpstreamTls) -> Json:
    """A transport socket. Without a name to expect, it is that of the SNI (or the request's host)."""
    common: Json = {}
    if tls.mode is TlsMode.MUTUAL and tls.client:
        common |= _certificate(tls.client)
    if not tls.insecure:
        names = [_san("DNS", name) for name in tls.subject_alt_names if "://" not in name]
        names += [_san("URI", name) for name in tls.subject_alt_names if "://" in name]
        common |= _validation(tls.ca, names)
    fields: Json = {"common_tls_context": common}
    if tls.sni:
        fields["sni"] = tls.sni
    else:
        fields |= {"auto_host_sni": True}
        if not tls.insecure and not tls.subject_alt_names:
            fields |= {"auto_sni_san_validation": True}
    if tls.sni and not tls.insecure and not tls.subject_alt_names:
        common |= _validation(tls.ca, [_san("DNS", tls.sni)])
    return extension("envoy.transport_sockets.tls", "extensions.transport_sockets.tls.v3.UpstreamTlsContext", **fields)


def server_tls(tls: ServerTls, protocols: list[str]) -> Json:
    """A gateway's server. ISTIO_MUTUAL is the mesh's own trust."""
    if tls.mode is ServerTlsMode.ISTIO_MUTUAL:
        common = tls_context() | {"alpn_protocols": protocols}
    else:
        common = {"alpn_protocols": protocols}
        for credential in tls.credentials:
            for key, value in _certificate(credential).items():
                common.setdefault(key, []).extend(value)
        names = [_san("URI" if "://" in name else "DNS", name) for name in tls.subject_alt_names]
        if tls.client_ca:
            common |= _validation(tls.client_ca, names)
    limits = {
        "tls_minimum_protocol_version": tls.minimum or "TLSv1_2",
        **({"tls_maximum_protocol_version": tls.maximum} if tls.maximum else {}),
        **({"cipher_suites": list(tls.ciphers)} if tls.ciphers else {}),
    }
    if tls.mode is not ServerTlsMode.ISTIO_MUTUAL:
        common["tls_params"] = limits
    return extension(
        "envoy.transport_sockets.tls",
        "extensions.transport_sockets.tls.v3.DownstreamTlsContext",
        common_tls_context=common,
        require_client_certificate=tls.mode in (ServerTlsMode.MUTUAL, ServerTlsMode.ISTIO_MUTUAL),
    )


def _certificate(credential: Credential) -> Json:
    if credential.secret:
        return {"tls_certificate_sds_secret_configs": [{"name": f"{credential.secret}|chain", "sds_config": ADS}]}
    files = {
        "certificate_chain": {"filename": credential.chain_file},
        "private_key": {"filename": credential.key_file},
    }
    return {"tls_certificates": [files]}


def _validation(ca: Credential | None, names: list[Json]) -> Json:
    matching: Json = {"match_typed_subject_alt_names": names} if names else {}
    if ca and ca.secret:
        return {
            "combined_validation_context": {
                "default_validation_context": matching,
                "validation_context_sds_secret_config": {"name": f"{ca.secret}|ca", "sds_config": ADS},
            }
        }
    file = ca.ca_file if ca else _SYSTEM_ROOTS
    return {"validation_context": {"trusted_ca": {"filename": file}, **matching}}


def _san(kind: str, name: str) -> Json:
    return {"san_type": kind, "matcher": {"exact": name}}


def secrets(name: str, secret: Secret) -> dict[str, Json]:
    """By name, as the resources are asked for."""
    found: dict[str, Json] = {}
    if secret.chain:
        certificate = {
            "certificate_chain": {"inline_string": secret.chain},
            "private_key": {"inline_string": secret.key},
        }
        found[f"{name}|chain"] = {"name": f"{name}|chain", "tls_certificate": certificate}
    if secret.ca:
        roots = {"trusted_ca": {"inline_string": secret.ca}}
        found[f"{name}|ca"] = {"name": f"{name}|ca", "validation_context": roots}
    return found


def names_of(credential: Credential | None) -> set[str]:
    return {credential.secret} if credential and credential.secret else set()
