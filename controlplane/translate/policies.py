"""AuthorizationPolicy and PeerAuthentication objects to policies, and which of them a workload carries. Pure.

PeerAuthentication becomes DENY policies under istiod's names: the static one refuses whoever has no identity; a
workload's own with per-port modes replaces it. DISABLE counts as PERMISSIVE: a tunnel is never refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Final

from controlplane.objects import AuthorizationPolicy, Labels, Mesh, MtlsMode, Object, PeerAuthentication
from controlplane.translate.inventory import Inventory, selects
from controlplane.translate.requests import deny_all
from mesh.model import Action, Comparison, Match, Policy, Rule, Scope, StringMatch

STATIC_STRICT: Final = "istio_converted_static_strict"
CONVERTED: Final = "converted_peer_authentication_"
_NOBODY: Final = (StringMatch(Comparison.PRESENCE),)


class Policies:
    """Compiled once per world; `of` answers per workload."""

    def __init__(self, inventory: Inventory, mesh: Mesh) -> None:
        self._root = mesh.root_namespace
        judged = [each for each in inventory.authorization_policies if each.action]
        self._selecting = [each for each in judged if each.selector and not each.egress]
        self._egress = [each for each in judged if each.egress]
        self._modes = sorted(inventory.peer_authentications, key=lambda each: each.meta.age_order)
        self.all: dict[str, Policy] = {}
        for policy in (static_strict(self._root), *self._authorizations(inventory), *self._converted()):
            self.all[policy.key] = policy

    def concerning(self, namespace: str) -> list[AuthorizationPolicy | PeerAuthentication]:
        """All that `of` and `egress_of` look at for a workload of this namespace."""
        here = (namespace, self._root)
        chosen = [each for each in (*self._selecting, *self._egress) if each.meta.namespace in here]
        return [*chosen, *(each for each in self._modes if each.meta.namespace in here)]

    def of(self, namespace: str, labels: Labels) -> tuple[str, ...]:
        """The selector-scoped policies of a workload, "namespace/name"; the root namespace selects everywhere."""
        return (*self._chosen(self._selecting, namespace, labels), *self._transport(namespace, labels))

    def egress_of(self, namespace: str, labels: Labels) -> tuple[str, ...]:
        """The policies about whom a workload may call, also those of its whole namespace or of the mesh."""
        return self._chosen(self._egress, namespace, labels)

    def _chosen(self, policies: Iterable[AuthorizationPolicy], namespace: str, labels: Labels) -> tuple[str, ...]:
        places = (namespace, self._root)
        chosen = (each for each in policies if each.meta.namespace in places and selects(each.selector, labels))
        return tuple(sorted(f"{each.meta.namespace}/{each.meta.name}" for each in chosen))

    def _authorizations(self, inventory: Inventory) -> Iterable[Policy]:
        for each in inventory.authorization_policies:
            if each.action:
                yield _policy(each, each.action, self._root)

    def _transport(self, namespace: str, labels: Labels) -> tuple[str, ...]:
        """What PeerAuthentication demands. Of several in one place only the oldest counts."""
        inherited = self._inherited(namespace)
        own = self._oldest(
            lambda each: bool(each.selector) and each.meta.namespace == namespace and selects(each.selector, labels)
        )
        if own is None or namespace == self._root:
            return (f"{self._root}/{STATIC_STRICT}",) if inherited is MtlsMode.STRICT else ()
        converted = convert(own, inherited)
        if converted:
            return (converted.key,)
        return (f"{self._root}/{STATIC_STRICT}",) if _or(own.mode, inherited) is MtlsMode.STRICT else ()

    def _inherited(self, namespace: str) -> MtlsMode:
        """The namespace's mode, else the mesh's."""
        return _or(self._general(namespace), self._general(self._root))

    def _general(self, namespace: str) -> MtlsMode:
        found = self._oldest(lambda each: not each.selector and each.meta.namespace == namespace)
        return found.mode if found else MtlsMode.UNSET

    def _oldest(self, fits: Callable[[PeerAuthentication], bool]) -> PeerAuthentication | None:
        return next(filter(fits, self._modes), None)

    def _converted(self) -> Iterable[Policy]:
        for each in self._modes:
            if each.selector and each.meta.namespace != self._root:
                policy = convert(each, self._inherited(each.meta.namespace))
                if policy:
                    yield policy


def _or(mode: MtlsMode, inherited: MtlsMode) -> MtlsMode:
    return inherited if mode is MtlsMode.UNSET else mode


def _policy(policy: AuthorizationPolicy, action: Action, root: str) -> Policy:
    about = policy.meta
    general = Scope.GLOBAL if about.namespace == root else Scope.NAMESPACE
    scope = Scope.WORKLOAD_SELECTOR if policy.selector or policy.egress else general
    return Policy(about.name, about.namespace, scope, action, policy.rules, policy.dry_run)


def closed(found: Object, errors: Iterable[str]) -> Object | None:
    """What may stand for a policy that cannot be read, when no earlier form of it is known: nobody gets in where it
    could have forbidden it. `errors`: "path: why". None: it would not have been enforced."""
    if not isinstance(found, AuthorizationPolicy | PeerAuthentication):
        return None
    unreadable = any(error.startswith("spec.selector") for error in errors)
    chosen: Labels = {} if unreadable else found.selector
    if isinstance(found, PeerAuthentication):
        return replace(found, selector=chosen, mode=MtlsMode.STRICT, port_modes={})
    if found.targets and not found.dry_run:
        return replace(found, l7=deny_all(found.meta))
    if found.action in (Action.ALLOW, Action.DENY) and not found.dry_run:
        return replace(found, selector=chosen, action=Action.DENY, rules=((),), l7=deny_all(found.meta))
    return None


def static_strict(root: str) -> Policy:
    """Always there, so that a workload that begins to need it never names a policy which is still on its way."""
    return _deny(STATIC_STRICT, root, Match(not_principals=_NOBODY))


def convert(policy: PeerAuthentication, inherited: MtlsMode) -> Policy | None:
    """The workload's policy when its ports differ from the rest of it, else None. Bug to avoid: istio#54146."""
    strict = _or(policy.mode, inherited) is MtlsMode.STRICT
    wanted = {
        port: _or(mode, _or(policy.mode, inherited)) is MtlsMode.STRICT for port, mode in policy.port_modes.items()
    }
    exceptions = tuple(sorted(port for port, is_strict in wanted.items() if is_strict is not strict))
    if not exceptions:
        return None
    match = (
        Match(not_principals=_NOBODY, not_destination_ports=exceptions)
        if strict
        else Match(not_principals=_NOBODY, destination_ports=exceptions)
    )
    return _deny(CONVERTED + policy.meta.name, policy.meta.namespace, match)


def _deny(name: str, namespace: str, match: Match) -> Policy:
    rule: Rule = ((match,),)
    return Policy(name, namespace, Scope.WORKLOAD_SELECTOR, Action.DENY, (rule,))
