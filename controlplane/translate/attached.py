"""What is asked of requests at a waypoint or gateway: which AuthorizationPolicy, RequestAuthentication, Telemetry,
RateLimit and EnvoyFilter are attached to it or to a service behind it. Pure.

A waypoint takes only what names it, its class or its service (`targetRefs`); a gateway's pods also what selects them.
Telemetry without either goes for its namespace, in the root namespace for the mesh; the closer says what the wider
leaves open.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from controlplane.l7.model import Rules
from controlplane.l7.routes import Dimension, Limit, Per, Target
from controlplane.l7.security import Authorization, JwtRule
from controlplane.l7.telemetry import AccessLog, MetricOverride, Tag, Telemetry, Tracing
from controlplane.objects import AuthorizationPolicy, Labels, Resource, TargetRef
from controlplane.schema.envoy_filter import local_limit, patches
from controlplane.translate import http_routes as parts
from controlplane.translate.hosts import Hosts, by_age
from controlplane.translate.inventory import Inventory, selects
from controlplane.translate.providers import Providers
from mesh.model import Service

Tree = Mapping[str, Any]
GATEWAY_GROUP: Final = "gateway.networking.k8s.io"


@dataclass(frozen=True, slots=True)
class Spot:
    """A proxy, perhaps with one service behind it. `selected`: policies may choose it by labels (a gateway's pods)."""

    namespace: str
    gateway: str
    gateway_class: str
    labels: Labels
    selected: bool
    service: Service | None = None


class Attached:
    def __init__(
        self, inventory: Inventory, hosts: Hosts, providers: Providers, root: str, before: Attached | None = None
    ) -> None:
        """`before`: what is equal there is the same object here."""
        self._hosts, self._providers, self._root = hosts, providers, root
        self._policies = [each for each in inventory.authorization_policies if each.l7]
        self._tokens = by_age(inventory.resources("RequestAuthentication"))
        self._telemetry = by_age(inventory.resources("Telemetry"))
        self._limits = [*by_age(inventory.resources("RateLimit")), *by_age(inventory.resources("EnvoyFilter"))]
        # Services that a document names; for all others behind a proxy goes what goes for it.
        self._named = {key for each in self._all(inventory) for key in self._keys_of(each)}
        self._wide: dict[tuple[str, str, str], Rules] = {}
        self._known: Mapping[tuple[str, str, str], Rules] = before._wide if before else {}

    def _all(self, inventory: Inventory) -> Iterator[AuthorizationPolicy | Resource]:
        yield from inventory.authorization_policies
        yield from (*self._tokens, *self._telemetry, *self._limits)

    def _keys_of(self, each: AuthorizationPolicy | Resource) -> Iterator[str]:
        for ref in attaches(each):
            if ref.kind in ("Service", "ServiceEntry"):
                yield from self.keys(ref, each.meta.namespace)

    def rules(self, spot: Spot) -> Rules:
        if spot.selected or (spot.service and spot.service.key in self._named):
            return self._rules(spot)
        key = spot.namespace, spot.gateway, spot.gateway_class
        if key not in self._wide:
            found, known = self._rules(spot), self._known.get(key)
            self._wide[key] = known if known == found else found
        return self._wide[key]

    def names(self, service: str) -> bool:
        """Whether a document is about this very service, by key."""
        return service in self._named

    def _rules(self, spot: Spot) -> Rules:
        return Rules(
            authorizations=tuple(self._authorizations(spot)),
            jwt=tuple(rule for each in self._tokens if self._is_on(each, spot) for rule in _jwt(each)),
            limits=tuple(limit for each in self._limits if self._is_on(each, spot) for limit in self._limit(each)),
            telemetry=self._told(spot),
            patches=tuple(
                patch
                for each in self._limits
                if each.kind == "EnvoyFilter" and self._is_on(each, spot)
                for patch in patches(each.spec, each.key)
            ),
        )

    def _authorizations(self, spot: Spot) -> Iterator[Authorization]:
        for each in self._policies:
            by_target = any(self._names(ref, each.meta.namespace, spot) for ref in each.targets)
            here = each.meta.namespace in (spot.namespace, self._root)
            by_labels = spot.selected and not each.targets and here and selects(each.selector, spot.labels)
            if each.l7 and (by_target or by_labels):
                yield each.l7

    def _is_on(self, each: Resource, spot: Spot) -> bool:
        refs = target_refs(each.spec)
        if refs:
            return any(self._names(ref, each.meta.namespace, spot) for ref in refs)
        chosen = selector(each.spec)
        return spot.selected and each.meta.namespace in (spot.namespace, self._root) and selects(chosen, spot.labels)

    def _names(self, ref: TargetRef, namespace: str, spot: Spot) -> bool:
        if ref.kind == "Gateway":
            return (namespace, ref.name) == (spot.namespace, spot.gateway)
        if ref.kind == "GatewayClass":
            return namespace == self._root and ref.name == spot.gateway_class
        if not spot.service:
            return False
        return spot.service.key in self.keys(ref, namespace)

    def keys(self, ref: TargetRef, namespace: str) -> list[str]:
        """The services that a reference to one names."""
        if ref.kind == "ServiceEntry":
            return self._hosts.of_entry(namespace, ref.name)
        found = self._hosts.find(ref.name, namespace) if ref.kind == "Service" else None
        return [found.key] if found and found.namespace == namespace else []

    def _told(self, spot: Spot) -> Telemetry:
        trees = [each.spec for each in self._telemetry if self._is_wide(each, self._root)]
        if spot.namespace != self._root:
            trees += [each.spec for each in self._telemetry if self._is_wide(each, spot.namespace)]
        trees += [
            each.spec
            for each in self._telemetry
            if (target_refs(each.spec) or selector(each.spec)) and self._is_on(each, spot)
        ]
        return telemetry(trees, self._providers, server_side=not spot.selected)

    def _is_wide(self, each: Resource, namespace: str) -> bool:
        return each.meta.namespace == namespace and not target_refs(each.spec) and not selector(each.spec)

    def _limit(self, each: Resource) -> Iterator[Limit]:
        if each.kind == "EnvoyFilter":
            yield from _local_limits(each)
            return
        for given in each.spec.get("limits", ()):
            where: Tree | None = given.get("service")
            yield Limit(
                name=f"{each.key}/{given['name']}",
                tokens=given.get("requests", 0),
                every_s=given.get("per", 1.0),
                dimensions=tuple(map(_dimension, given.get("by", ()))),
                service=self._limiter(where, each.meta.namespace) if where else None,
                domain=where["domain"] if where else "",
                fail_open=given.get("failOpen", False),
                matches=tuple(parts.match(each) for each in given.get("match", ())),
            )

    def _limiter(self, where: Tree, namespace: str) -> Target:
        service = self._hosts.find(where["host"], namespace)
        port = self._hosts.port(service, where["port"]) if service else None
        return Target(service.key, port) if service and port else Target("")


def target_refs(spec: Tree) -> list[TargetRef]:
    listed = [*([spec["targetRef"]] if "targetRef" in spec else ()), *spec.get("targetRefs", ())]
    return [TargetRef(each.get("group", ""), each["kind"], each["name"]) for each in listed]


def selector(spec: Tree) -> Labels:
    labels: Labels = spec.get("selector", {}).get("matchLabels") or spec.get("workloadSelector", {}).get("labels", {})
    return labels


def attaches(policy: AuthorizationPolicy | Resource) -> list[TargetRef]:
    return list(policy.targets) if isinstance(policy, AuthorizationPolicy) else target_refs(policy.spec)


def _dimension(given: Tree) -> Dimension:
    per, header = Per(given["attribute"]), given.get("header", "")
    return Dimension(given.get("key") or header or str(per), per, header.lower(), given.get("value", ""))


def _local_limits(each: Resource) -> Iterator[Limit]:
    for index, patch in enumerate(each.spec.get("configPatches", ())):
        if found := local_limit(patch):
            tokens, every = found
            yield Limit(name=f"{each.key}/{index}", tokens=tokens, every_s=every)


def _jwt(each: Resource) -> Iterator[JwtRule]:
    for rule in each.spec.get("jwtRules", ()):
        yield JwtRule(
            issuer=rule.get("issuer", ""),
            audiences=tuple(rule.get("audiences", ())),
            jwks=rule.get("jwks", ""),
            jwks_uri=rule.get("jwksUri", ""),
            headers=tuple((header["name"], header.get("prefix", "")) for header in rule.get("fromHeaders", ())),
            params=tuple(rule.get("fromParams", ())),
            cookies=tuple(rule.get("fromCookies", ())),
            payload_header=rule.get("outputPayloadToHeader", ""),
            claim_headers=tuple((claim["header"], claim["claim"]) for claim in rule.get("outputClaimToHeaders", ())),
            keep_token=rule.get("forwardOriginalToken", False),
        )


def telemetry(trees: Iterable[Tree], providers: Providers, server_side: bool) -> Telemetry:
    """`trees`: the widest first."""
    tracing: dict[str, Any] = {}
    logs: tuple[AccessLog, ...] = providers.default_logs
    metrics, overrides = True, []
    for tree in trees:
        for each in tree.get("tracing", ()):
            tracing |= each
        if tree.get("accessLogging"):
            logs = tuple(_logs(tree["accessLogging"], logs, providers))
        for each in tree.get("metrics", ()):
            for given in each.get("overrides", ()):
                found = _override(given, server_side)
                overrides += [found] if found else []
    if any(each.disabled and not each.metric for each in overrides):
        metrics, overrides = False, []
    return Telemetry(_tracing(tracing, providers), logs, metrics, tuple(overrides))


def _logs(given: list[Tree], before: tuple[AccessLog, ...], providers: Providers) -> Iterator[AccessLog]:
    for each in given:
        named = [providers.logs[p["name"]] for p in each.get("providers", ()) if p["name"] in providers.logs]
        if not each.get("disabled"):
            expression = each.get("filter", {}).get("expression", "")
            for log in named or before or (AccessLog(),):
                yield AccessLog(log.path, expression or log.filter, log.format, log.json)


def _override(given: Tree, server_side: bool) -> MetricOverride | None:
    match: Tree = given.get("match", {})
    mode = match.get("mode", "CLIENT_AND_SERVER")
    if mode == ("CLIENT" if server_side else "SERVER"):
        return None
    metric = match.get("customMetric", match.get("metric", "ALL_METRICS"))
    tags = {
        name: None if tag.get("operation") == "REMOVE" else tag.get("value")
        for name, tag in given.get("tagOverrides", {}).items()
    }
    return MetricOverride("" if metric == "ALL_METRICS" else metric, given.get("disabled", False), tags)


def _tracing(given: Tree, providers: Providers) -> Tracing | None:
    named = [each["name"] for each in given.get("providers", ()) if each["name"] in providers.tracers]
    tracer = named[0] if named else providers.default_tracer
    if not tracer or given.get("disableSpanReporting"):
        return None
    return Tracing(
        tracer=tracer,
        percent=given.get("randomSamplingPercentage", 1.0),
        tags=tuple(_tag(name, tag) for name, tag in given.get("customTags", {}).items()),
    )


def _tag(name: str, given: Tree) -> Tag:
    if "literal" in given:
        return Tag(name, literal=given["literal"]["value"])
    kind = "header" if "header" in given else "environment"
    found: Tree = given.get(kind, {})
    if kind == "header":
        return Tag(name, header=found.get("name", ""), default=found.get("defaultValue", ""))
    return Tag(name, environment=found.get("name", ""), default=found.get("defaultValue", ""))
