"""DestinationRule, BackendTLSPolicy and the mesh's defaults to how a service is called. Pure.

Of several rules for a host the most specific counts, those of the same are merged, the oldest first; they are looked
for in the client's namespace, then in the service's, then in the root namespace. A block that is set replaces the block
before it; a port's settings replace all four blocks, as in Istio.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Final

from controlplane.l7.traffic import (
    Balance,
    Credential,
    Destination,
    Hash,
    LocalityRules,
    Outlier,
    Pool,
    Resolution,
    Subset,
    TlsMode,
    Traffic,
    UpstreamTls,
)
from controlplane.objects import Resolution as EntryResolution
from controlplane.objects import Resource, ServiceEntry
from controlplane.translate.hosts import Hosts, by_age, exported, fqdn, matches, specificity
from controlplane.translate.identical import identical
from mesh.model import Service

Tree = Mapping[str, Any]
# By port, as text; "" is every port.
Secured = Mapping[str, UpstreamTls]
NOTHING_SAID: Final = Destination()
_BLOCKS: Final = ("connectionPool", "outlierDetection", "loadBalancer", "tls")
_INHERITED: Final = ("proxyProtocol", "retryBudget")
_RESOLUTIONS: Final = {
    EntryResolution.NONE: Resolution.NONE,
    EntryResolution.STATIC: Resolution.ENDPOINTS,
    EntryResolution.DNS: Resolution.DNS,
    EntryResolution.DNS_ROUND_ROBIN: Resolution.DNS_ROUND_ROBIN,
    EntryResolution.DYNAMIC_DNS: Resolution.DYNAMIC_DNS,
}


@dataclass(frozen=True, slots=True, eq=False)
class _Rule:
    """Rules of one namespace for one host, merged. `sources`: all of them."""

    host: str
    sources: list[Resource]
    policy: Tree
    subsets: Mapping[str, Tree]
    export_to: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Place:
    """Who is called, from which namespace. `as_asked`: at the address that the client chose."""

    service: Service
    client: str
    as_asked: bool


# What a destination was made of, and the destination.
_Made = tuple[Service, list[Resource], ServiceEntry | None, Destination]


class Destinations:
    """How each service is called from each namespace."""

    def __init__(
        self,
        rules: list[Resource],
        hosts: Hosts,
        mesh: Tree,
        root: str,
        tls: Mapping[str, Secured],
        before: Destinations | None = None,
    ) -> None:
        """`mesh`: the mesh's configuration. `tls`: by service key, see `backend_tls.py`. `before` spares what is the
        same as there."""
        self._hosts, self._root, self._tls = hosts, root, tls
        self._mesh: Tree = mesh
        self._known: Mapping[tuple[str, str], _Made] = before._made if before and before._mesh == mesh else {}
        self._default: Tree = mesh.get("defaultTrafficPolicy", {})
        self._plain = not self._default and "connectTimeout" not in mesh and "localityLbSetting" not in mesh
        self._exported = tuple(mesh.get("defaultDestinationRuleExportTo", ()))
        self._by_namespace: dict[str, dict[str, list[Resource]]] = defaultdict(lambda: defaultdict(list))
        for each in by_age(rules):
            host = fqdn(each.spec.get("host", ""), each.meta.namespace)
            if "workloadSelector" not in each.spec:
                self._by_namespace[each.meta.namespace][host].append(each)
        self._wildcards = {
            namespace: sorted((host for host in named if host.startswith("*")), key=specificity, reverse=True)
            for namespace, named in self._by_namespace.items()
        }
        self._rules = rules
        self._bare = self._plain and not rules and not tls and not hosts.entries
        self._merged: dict[tuple[str, str], _Rule] = {}
        self._made: dict[tuple[str, str], _Made] = {}

    def of(self, service: Service, client: str) -> Destination:
        """As called from a namespace."""
        if self._bare:
            return NOTHING_SAID
        key = service.key, client
        if key not in self._made:
            rule = self._rule(service, client)
            sources, entry = rule.sources if rule else [], self._hosts.entry(service.key)
            known = self._known.get(key)
            same = known and service.key not in self._tls and known[0] is service and known[2] is entry
            if known and same and identical(known[1], sources):
                self._made[key] = known
            else:
                self._made[key] = service, sources, entry, self._of(service, client, rule)
        return self._made[key][3]

    def _of(self, service: Service, client: str, rule: _Rule | None) -> Destination:
        if not rule and self._plain and service.key not in self._tls and not self._hosts.entry(service.key):
            return NOTHING_SAID
        policy: Tree = rule.policy if rule else {}
        subsets: Mapping[str, Tree] = rule.subsets if rule else {}
        entry = self._hosts.entry(service.key)
        place = _Place(service, client, bool(entry and entry.resolution is EntryResolution.NONE))
        found = Destination(
            traffic=self._traffic(_merge(self._default, policy), place),
            ports={
                number: self._traffic(_merge(self._default, policy, number), place)
                for number in sorted(_port_numbers(policy))
            },
            subsets=MappingProxyType({name: self._subset(policy, each, place) for name, each in subsets.items()}),
            resolution=_RESOLUTIONS[entry.resolution] if entry else Resolution.ENDPOINTS,
            external=bool(entry and entry.external),
        )
        return self._secured(found, service) if service.key in self._tls else found

    def says_the_same(self, other: Destinations) -> bool:
        """Of a service that is the same object, and so is its document."""
        same = self._mesh == other._mesh and self._root == other._root
        return same and not self._tls and not other._tls and identical(self._rules, other._rules)

    def foreign(self, client: str, services: Iterable[Service]) -> Iterator[Service]:
        """Other namespaces' services that a rule of this one is about."""
        named = self._by_namespace.get(client)
        for service in services if named else ():
            name = service.hostname.lower()
            if service.namespace != client and (
                name in (named or ()) or any(matches(host, name) for host in self._wildcards[client])
            ):
                yield service

    def _rule(self, service: Service, client: str) -> _Rule | None:
        for namespace in dict.fromkeys((client, service.namespace, self._root)):
            if namespace not in self._by_namespace:
                continue
            name, named = service.hostname.lower(), self._by_namespace[namespace]
            wild = (host for host in self._wildcards[namespace] if matches(host, name))
            for host in (*([name] if name in named else ()), *(each for each in wild if each != name)):
                rule = self._of_host(namespace, host)
                if namespace == client or exported(rule.export_to, namespace, client):
                    return rule
        return None

    def _of_host(self, namespace: str, host: str) -> _Rule:
        key = namespace, host
        if key not in self._merged:
            listed = self._by_namespace[namespace][host]
            subsets: dict[str, Tree] = {}
            for each in listed:
                for subset in each.spec.get("subsets", ()):
                    subsets.setdefault(subset["name"], subset)
            policy: Tree = next((each.spec["trafficPolicy"] for each in listed if "trafficPolicy" in each.spec), {})
            export_to = tuple(listed[0].spec.get("exportTo", self._exported))
            self._merged[key] = _Rule(host, listed, policy, subsets, export_to)
        return self._merged[key]

    def _subset(self, policy: Tree, subset: Tree, place: _Place) -> Subset:
        special: Tree = subset.get("trafficPolicy", {})
        numbers = sorted({*_port_numbers(policy), *_port_numbers(special)})
        return Subset(
            labels=dict(subset.get("labels", {})),
            traffic=self._traffic(_merge(_merge(self._default, policy), special), place),
            ports={
                number: self._traffic(_merge(_merge(self._default, policy, number), special, number), place)
                for number in numbers
            },
        )

    def _traffic(self, policy: Tree, place: _Place) -> Traffic:
        balancer: Tree = policy.get("loadBalancer", {})
        outlier = _outlier(policy["outlierDetection"]) if policy.get("outlierDetection") else None
        return Traffic(
            balance=Balance.PASSTHROUGH if place.as_asked else _balance(balancer),
            hash=_hash(balancer.get("consistentHash", {})),
            warmup_s=balancer.get("warmup", {}).get("duration", balancer.get("warmupDurationSecs")),
            pool=_pool(policy, self._mesh),
            outlier=outlier,
            locality=_locality(balancer, self._mesh, ejects=outlier is not None),
            tls=_tls(policy.get("tls", {}), place),
            proxy_protocol="proxyProtocol" in policy,
        )

    def _secured(self, found: Destination, service: Service) -> Destination:
        """By BackendTLSPolicy where no DestinationRule says otherwise."""

        def secure(traffic: Traffic, port: int = 0) -> Traffic:
            policies = self._tls[service.key]
            policy = policies.get(str(port)) or policies.get("")
            return replace(traffic, tls=policy) if policy and not traffic.tls else traffic

        numbers = {*found.ports, *(int(port) for port in self._tls[service.key] if port)}
        return replace(
            found,
            traffic=secure(found.traffic),
            ports={number: secure(found.ports.get(number, found.traffic), number) for number in sorted(numbers)},
            subsets={name: replace(each, traffic=secure(each.traffic)) for name, each in found.subsets.items()},
        )


def _port_numbers(policy: Tree) -> set[int]:
    return {each["port"]["number"] for each in policy.get("portLevelSettings", ())}


def _merge(base: Tree, policy: Tree, port: int = 0) -> dict[str, Any]:
    merged = {name: base[name] for name in (*_BLOCKS, *_INHERITED) if name in base}
    merged |= {name: policy[name] for name in (*_BLOCKS, *_INHERITED) if name in policy}
    for each in policy.get("portLevelSettings", ()):
        if each["port"].get("number") == port:
            inherited = {name: merged[name] for name in _INHERITED if name in merged}
            return inherited | {name: each[name] for name in _BLOCKS if name in each}
    return merged


_SIMPLE: Final = {
    "ROUND_ROBIN": Balance.ROUND_ROBIN,
    "RANDOM": Balance.RANDOM,
    "PASSTHROUGH": Balance.PASSTHROUGH,
}


def _balance(balancer: Tree) -> Balance:
    hashed = balancer.get("consistentHash")
    if hashed is not None:
        return Balance.MAGLEV if "maglev" in hashed else Balance.RING_HASH
    return _SIMPLE.get(balancer.get("simple", ""), Balance.LEAST_REQUEST)


def _hash(hashed: Tree) -> Hash | None:
    if not hashed:
        return None
    cookie: Tree = hashed.get("httpCookie", {})
    return Hash(
        header=hashed.get("httpHeaderName", ""),
        query=hashed.get("httpQueryParameterName", ""),
        source_ip=hashed.get("useSourceIp", False),
        cookie=cookie.get("name", ""),
        cookie_path=cookie.get("path", ""),
        cookie_ttl_s=cookie.get("ttl"),
        cookie_attributes=tuple((each["name"], each.get("value", "")) for each in cookie.get("attributes", ())),
    )


def _pool(policy: Tree, mesh: Tree) -> Pool:
    """Zero is not set, as in Istio."""
    pool: Tree = policy.get("connectionPool", {})
    tcp, http = pool.get("tcp", {}), pool.get("http", {})
    budget: Tree = policy.get("retryBudget", {})
    upgrade = http.get("h2UpgradePolicy", "DEFAULT")
    return Pool(
        max_connections=tcp.get("maxConnections") or None,
        max_pending_requests=http.get("http1MaxPendingRequests") or None,
        max_requests=http.get("http2MaxRequests") or None,
        max_requests_per_connection=http.get("maxRequestsPerConnection") or None,
        max_retries=http.get("maxRetries") or None,
        max_concurrent_streams=http.get("maxConcurrentStreams") or None,
        connect_timeout_s=tcp.get("connectTimeout", mesh.get("connectTimeout")),
        idle_timeout_s=http.get("idleTimeout"),
        tcp_idle_timeout_s=tcp.get("idleTimeout"),
        max_connection_duration_s=tcp.get("maxConnectionDuration"),
        retry_budget_percent=budget.get("percent", 20.0 if budget else None),
        retry_budget_minimum=budget.get("minRetryConcurrency", 3 if budget else None),
        http2={"UPGRADE": True, "DO_NOT_UPGRADE": False}.get(upgrade),
        use_client_protocol=http.get("useClientProtocol", False),
    )


def _outlier(given: Tree) -> Outlier:
    """`http` and `consecutiveErrors` are of the first version; that one counted what gateways answer (502 to 504)."""
    detection = {**given, **given.get("http", {})}
    gateway = detection.get("consecutiveGatewayErrors", detection.get("consecutiveErrors"))
    return Outlier(
        consecutive_5xx=detection.get("consecutive5xxErrors"),
        consecutive_gateway=gateway,
        consecutive_local=detection.get("consecutiveLocalOriginFailures"),
        split_local=detection.get("splitExternalLocalOriginErrors", False),
        interval_s=detection.get("interval"),
        ejection_s=detection.get("baseEjectionTime"),
        max_ejection_percent=detection.get("maxEjectionPercent") or None,
        min_health_percent=detection.get("minHealthPercent", 0),
    )


def _locality(balancer: Tree, mesh: Tree, ejects: bool) -> LocalityRules | None:
    """Fail-over needs outlier detection, else it never would come back."""
    setting: Tree = balancer.get("localityLbSetting") or balancer.get("zoneAwareLbSetting") or {}
    if not setting:
        setting = mesh.get("localityLbSetting", {})
    if not setting or setting.get("enabled") is False:
        return LocalityRules(enabled=False) if setting else None
    return LocalityRules(
        distribute=tuple(
            (each.get("from", ""), tuple(sorted(each.get("to", {}).items()))) for each in setting.get("distribute", ())
        ),
        failover=tuple((each.get("from", ""), each.get("to", "")) for each in setting.get("failover", ()) if ejects),
        priority=tuple(setting.get("failoverPriority", ())) if ejects else (),
        enabled=bool(setting.get("distribute")) or ejects,
    )


def _tls(tls: Tree, place: _Place) -> UpstreamTls | None:
    """Inside the tunnel; the mesh's own certificates are the tunnel's business."""
    mode = tls.get("mode", "DISABLE")
    if mode not in ("SIMPLE", "MUTUAL"):
        return None
    secret = tls.get("credentialName", "")
    ca = (
        Credential(secret=_secret(secret, place.client))
        if secret
        else Credential(ca_file=tls.get("caCertificates", ""))
    )
    client = (
        ca if secret else Credential(chain_file=tls.get("clientCertificate", ""), key_file=tls.get("privateKey", ""))
    )
    return UpstreamTls(
        mode=TlsMode(mode),
        sni=tls.get("sni", ""),
        subject_alt_names=tuple(tls.get("subjectAltNames", place.service.subject_alt_names)),
        ca=ca if ca != Credential() else None,
        client=client if mode == "MUTUAL" else None,
        insecure=tls.get("insecureSkipVerify", False),
    )


def _secret(name: str, namespace: str) -> str:
    """In the namespace of whoever calls."""
    return name if "/" in name else f"{namespace}/{name}"
