"""BackendTLSPolicy: TLS to the applications of a service, by service and port. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any, Final

from controlplane.l7.traffic import Credential, TlsMode, UpstreamTls
from controlplane.objects import Resource
from controlplane.translate.hosts import Hosts, by_age
from controlplane.translate.kubernetes_gateways import authority
from controlplane.translate.notices import ACCEPTED, RESOLVED, Notice
from mesh.model import HOSTNAME_SUFFIX

Tree = Mapping[str, Any]
_EVERY_PORT: Final = ""


def by_service(
    policies: list[Resource], hosts: Hosts, credentials: set[str]
) -> tuple[dict[str, dict[str, UpstreamTls]], list[Notice]]:
    """By service key and port (as text; "" every port). Of two for one the oldest counts."""
    found: dict[str, dict[str, UpstreamTls]] = defaultdict(dict)
    notices: list[Notice] = []
    for each in by_age(policies):
        tls, missing = _tls(each, credentials)
        for ref in each.spec.get("targetRefs", ()):
            about, reason, why = each.meta, "", ""
            key = f"{about.namespace}/{ref['name']}.{about.namespace}.{HOSTNAME_SUFFIX}"
            service = hosts.service(key)
            number = (
                str(hosts.named_port(service, ref["sectionName"])) if service and "sectionName" in ref else _EVERY_PORT
            )
            if ref["kind"] != "Service" or not service or number == "0":
                reason, why = "TargetNotFound", f"{ref['kind']} {ref['name']} or its port does not exist"
            elif number in found[key]:
                reason, why = "Conflicted", "an older policy is for the same service and port"
            else:
                found[key][number] = tls
            parent = f"{ref['kind']} {about.namespace}/{ref['name']}"
            notices.append(
                Notice(each.kind, about.namespace, about.name, parent, ACCEPTED, not reason, reason or ACCEPTED, why)
            )
        notices.append(
            Notice(
                each.kind,
                each.meta.namespace,
                each.meta.name,
                "",
                RESOLVED,
                not missing,
                "InvalidCACertificateRef" if missing else RESOLVED,
                f"{missing} does not exist" if missing else "",
            )
        )
    return found, notices


def _tls(each: Resource, credentials: set[str]) -> tuple[UpstreamTls, str]:
    """And which certificate authority is missing: then no server is trusted."""
    validation: Tree = each.spec["validation"]
    names = [
        authority(ref.get("kind", "ConfigMap"), each.meta.namespace, ref["name"])
        for ref in validation.get("caCertificateRefs", ())
    ]
    missing = next((name for name in names if name not in credentials), "")
    sans = [san.get("hostname") or san.get("uri", "") for san in validation.get("subjectAltNames", ())]
    hostname = validation["hostname"]
    ca = Credential(secret=names[0]) if names else None
    return UpstreamTls(TlsMode.SIMPLE, sni=hostname, subject_alt_names=tuple(sans or [hostname]), ca=ca), missing
