"""Which pods there are and which of them are meant for the mesh (`mesh.membership`). Knows nothing of enrolment.

`PodSource` is the border: files here, the API server in `api_pods.py`. A source is asked at each ADD, so that the
answer is never older than the pod.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

import yaml

from mesh import log
from mesh.directory import POLL_S, RUNG_SHARE, Directory, Stamp, Stamps
from mesh.membership import is_member

_log: Final = log.get("pods")

INGRESS_ANNOTATION: Final = "ambient.istio.io/bypass-inbound-capture"
DNS_ANNOTATION: Final = "ambient.istio.io/dns-capture"


@dataclass(frozen=True, slots=True)
class PodSpec:
    """A Pod document, as far as enrolment cares."""

    namespace: str
    name: str
    service_account: str = "default"
    node: str = ""
    host_network: bool = False
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    search: tuple[str, ...] = ()
    """`dnsConfig.searches`."""
    uid: str = ""
    """The object's own, not the mesh's; "" where nobody gave it one."""
    ips: tuple[str, ...] = ()
    finished: bool = False
    """All its containers have ended for good; its namespace is gone or about to go."""

    @property
    def ingress_mode(self) -> bool:
        return self.annotations.get(INGRESS_ANNOTATION) == "true"

    def dns_capture(self, default: bool) -> bool:
        """The pod's own word goes before the node's setting; any other word is none, as in Istio."""
        return {"true": True, "false": False}.get(self.annotations.get(DNS_ANNOTATION, ""), default)


PodName = tuple[str, str]
"""Namespace and name."""

FINISHED: Final = ("Succeeded", "Failed")
"""Phases."""


class UnknownYet(LookupError):
    """The source has not heard of it, which may change: the runtime shall try again. Its text is a sentence."""


class PodSource(Protocol):
    """Never waits but in `prepare` and `changed`. What it cannot know at the moment, it knows as before."""

    async def prepare(self, namespace: str, name: str, uid: str) -> None:
        """Before the two questions below are asked for a pod that starts: they are then answered as of now. `uid` "":
        not known. Raises UnknownYet."""

    async def changed(self) -> None:
        """Returns when an answer may be another one than at the last return."""

    def pods(self) -> Mapping[PodName, PodSpec]:
        """All that it knows, also of other nodes. Asked in every round, so that it must not cost a pass over all."""

    def pod(self, namespace: str, name: str) -> PodSpec:
        """Raises UnknownYet."""

    def namespace_labels(self, namespace: str) -> Mapping[str, str]:
        """As of the last of the other questions. Raises UnknownYet."""


def is_eligible(pod: PodSpec, source: PodSource) -> bool:
    """Raises UnknownYet."""
    return is_member(
        pod.namespace,
        pod.labels,
        pod.annotations,
        host_network=pod.host_network,
        namespace_labels=lambda: source.namespace_labels(pod.namespace),
    )


_Said = tuple[dict[PodName, PodSpec], dict[str, Mapping[str, str]]]
"""What a file says: its pods, and its namespaces' labels. Not the documents: those of a big world fill the memory."""


class FilePods:
    """Pod and Namespace documents of the YAML files in a directory and below. A file is parsed again only when it
    changed; one that is no YAML keeps what it last said (the control plane reports it with its line). Of several
    documents of one name the first counts."""

    def __init__(self, directory: Directory) -> None:
        self._directory = directory
        self._files: Stamps = {}
        self._parsed: dict[str, tuple[Stamp, _Said]] = {}
        self._said: _Said = ({}, {})
        self._told: Stamps | None = None
        self._rest_s = 0.0

    async def prepare(self, namespace: str, name: str, uid: str) -> None:
        self._take(self._directory.files_now())

    async def changed(self) -> None:
        await asyncio.sleep(self._rest_s)  # who writes the same file again and again has it read in turns
        self._told = await self._directory.wait_changed(self._told)
        began = time.thread_time()
        self._take(self._told)
        self._rest_s = min((time.thread_time() - began) / RUNG_SHARE, POLL_S)

    def pods(self) -> Mapping[PodName, PodSpec]:
        self._take(self._directory.files())
        return self._said[0]

    def pod(self, namespace: str, name: str) -> PodSpec:
        found = self.pods().get((namespace, name))
        if found is None:
            raise UnknownYet(f"pod {namespace}/{name} is not known yet (looked in {self._directory.path})")
        return found

    def namespace_labels(self, namespace: str) -> Mapping[str, str]:
        labels = self._said[1].get(namespace)
        if labels is None:
            raise UnknownYet(f"namespace {namespace} is not known yet (looked in {self._directory.path})")
        return labels

    def _take(self, files: Stamps) -> None:
        """Cost when a file has changed: parsing it and one pass over all names."""
        if files is self._files:
            return
        found: dict[str, tuple[Stamp, _Said]] = {}
        for path, stamp in files.items():
            known = self._parsed.get(path)
            same = known is not None and known[0] == stamp
            found[path] = known if known and same else (stamp, _parse(path, known[1] if known else ({}, {})))
        self._files, self._parsed = files, found
        self._said = _joined([said for _, said in found.values()])


def _joined(files: list[_Said]) -> _Said:
    pods: dict[PodName, PodSpec] = {}
    namespaces: dict[str, Mapping[str, str]] = {}
    for its_pods, its_namespaces in reversed(files):
        pods.update(its_pods)
        namespaces.update(its_namespaces)
    return pods, namespaces


def _parse(path: str, last_good: _Said) -> _Said:
    try:
        return _read_documents(yaml.load_all(Path(path).read_bytes(), Loader=_Loader))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        _log.warning("file not understood, its last good content stays", path=path, why=" ".join(str(error).split()))
        return last_good


_Loader: Final[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def _read_documents(loaded: Iterable[Any]) -> _Said:
    pods: dict[PodName, PodSpec] = {}
    namespaces: dict[str, Mapping[str, str]] = {}
    for content in loaded:
        items = content.get("items") if _is_kind(content, "List") else [content]
        for item in items if isinstance(items, list) else []:
            if _is_kind(item, "Pod"):
                pod = _pod_spec(item)
                pods.setdefault((pod.namespace, pod.name), pod)
            elif _is_kind(item, "Namespace"):
                name = _strings(item, "metadata").get("name", "")
                namespaces.setdefault(name, _strings(item, "metadata", "labels"))
    return pods, namespaces


def _is_kind(content: Any, kind: str) -> bool:
    return isinstance(content, dict) and content.get("apiVersion") == "v1" and content.get("kind") == kind


def _pod_spec(document: Mapping[str, Any]) -> PodSpec:
    given = document.get("spec")
    spec = given if isinstance(given, dict) else {}
    about = _strings(document, "metadata")
    return PodSpec(
        namespace=about.get("namespace", "default"),
        name=about.get("name", ""),
        service_account=_scalar(spec.get("serviceAccountName")) or "default",
        node=_scalar(spec.get("nodeName")),
        host_network=spec.get("hostNetwork") is True,
        labels=_strings(document, "metadata", "labels"),
        annotations=_strings(document, "metadata", "annotations"),
        search=_search(spec.get("dnsConfig")),
        uid=about.get("uid", ""),
        ips=_ips(document.get("status")),
        finished=_strings(document, "status").get("phase") in FINISHED,
    )


def _ips(status: Any) -> tuple[str, ...]:
    """Each once, the first one first, as far as they are addresses."""
    listed = status.get("podIPs") if isinstance(status, dict) else None
    given = [status.get("podIP")] if isinstance(status, dict) else []
    given += [each.get("ip") for each in listed if isinstance(each, dict)] if isinstance(listed, list) else []
    return tuple(dict.fromkeys(each for each in given if isinstance(each, str) and each))


def _search(dns_config: Any) -> tuple[str, ...]:
    searches = dns_config.get("searches") if isinstance(dns_config, dict) else None
    return tuple(each for each in searches if isinstance(each, str)) if isinstance(searches, list) else ()


def _strings(content: Mapping[str, Any], *path: str) -> Mapping[str, str]:
    value: Any = content
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return {str(k): _scalar(v) for k, v in value.items()} if isinstance(value, dict) else {}


def _scalar(value: Any) -> str:
    """Empty for what is none: as text, nested aliases would fill the memory. ValueError: a number of 4300 digits."""
    return "" if value is None or isinstance(value, (dict, list, tuple, set)) else str(value)
