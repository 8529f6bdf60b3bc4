"""BackendTLSPolicy: TLS to the applications of a service, by service and port. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from controlplane.l7.model import Proxy
from controlplane.l7.routes import Forward
from controlplane.l7.traffic import Credential, TlsMode, UpstreamTls
from controlplane.objects import Resource
from controlplane.translate.hosts import Hosts, by_age
from controlplane.translate.kubernetes_gateways import authority
from controlplane.translate.notices import ACCEPTED, RESOLVED, Notice
from mesh.model import HOSTNAME_SUFFIX

Tree = Mapping[str, Any]
_EVERY_PORT: Final = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a policy at one of its targets. `service`: its key. `missing`: an authority, so that no server is
    trusted. `reason` "": in force."""

    policy: Resource
    target: str
    service: str
    missing: str
    reason: str = ""
    why: str = ""


def by_service(
    policies: list[Resource], hosts: Hosts, credentials: set[str]
) -> tuple[dict[str, dict[str, UpstreamTls]], list[Verdict]]:
    """By service key and port (as text; "" every port). Of two for one the oldest counts."""
    found: dict[str, dict[str, UpstreamTls]] = defaultdict(dict)
    verdicts: list[Verdict] = []
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
            target = f"{ref['kind']} {about.namespace}/{ref['name']}"
            verdicts.append(Verdict(each, target, key, missing, reason, why))
    return found, verdicts


def told(verdicts: Iterable[Verdict], proxies: Iterable[Proxy]) -> Iterator[Notice]:
    """By each of `proxies` (of Gateways) that sends to the service; by the service itself when none does."""
    senders: dict[str, list[str]] = defaultdict(list)
    for proxy in proxies:
        for service in _destinations(proxy):
            senders[service].append(f"Gateway {proxy.key}")
    for each in verdicts:
        ancestors = senders[each.service] if each.reason != "TargetNotFound" else []
        for ancestor in ancestors or [each.target]:
            yield from _of(each, ancestor)


def _of(each: Verdict, ancestor: str) -> Iterator[Notice]:
    about, missing = each.policy.meta, f"{each.missing} does not exist" if each.missing else ""
    reason, why = each.reason or ("NoValidCACertificate" if missing else ""), each.why or missing
    for kind, wrong, said in (
        (ACCEPTED, reason, why),
        (RESOLVED, "InvalidCACertificateRef" if missing else "", missing),
    ):
        yield Notice(each.policy.kind, about.namespace, about.name, ancestor, kind, not wrong, wrong or kind, said)


def _destinations(proxy: Proxy) -> set[str]:
    http = [each.http for each in proxy.services]
    l4 = [*(each.l4 for each in proxy.services), *(each.l4 for each in proxy.servers)]
    http += [host.routes for server in proxy.servers for host in server.virtual_hosts]
    actions = [route.action for routes in http for route in routes]
    shares = [share for action in actions if isinstance(action, Forward) for share in action.shares]
    shares += [share for routes in l4 for route in routes for share in route.shares]
    return {*(each.service for each in proxy.services), *(share.target.service for share in shares)}


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
