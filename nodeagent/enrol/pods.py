"""Which pods there are and which of them are meant for the mesh. Owns eligibility; knows nothing of enrolment.

`PodSource` is the border: files today. A source is asked at each ADD, so that the answer is never older than the pod.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

import yaml

from mesh import log

_log: Final = log.get("pods")

MODE_LABEL: Final = "istio.io/dataplane-mode"
INGRESS_ANNOTATION: Final = "ambient.istio.io/bypass-inbound-capture"
SIDECAR_ANNOTATION: Final = "sidecar.istio.io/status"
EXCLUDED_NAMESPACES: Final = frozenset({"kube-system"})
TUNNEL_LABELS: Final = ("app", "ztunnel")
_SUFFIXES: Final = frozenset({".yaml", ".yml", ".json"})


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

    @property
    def ingress_mode(self) -> bool:
        return self.annotations.get(INGRESS_ANNOTATION) == "true"


class UnknownYet(LookupError):
    """The source has not heard of it, which may change: the runtime shall try again. Its text is a sentence."""


class PodSource(Protocol):
    def pod(self, namespace: str, name: str) -> PodSpec:
        """Raises UnknownYet."""

    def namespace_labels(self, namespace: str) -> Mapping[str, str]:
        """Raises UnknownYet."""


def is_eligible(pod: PodSpec, source: PodSource) -> bool:
    """Istio's default selectors: the pod's own label decides; without one, its namespace's. Raises UnknownYet."""
    if pod.host_network or pod.namespace in EXCLUDED_NAMESPACES or SIDECAR_ANNOTATION in pod.annotations:
        return False
    if pod.labels.get(TUNNEL_LABELS[0]) == TUNNEL_LABELS[1]:
        return False
    match pod.labels.get(MODE_LABEL):
        case "ambient":
            return True
        case "none":
            return False
    return source.namespace_labels(pod.namespace).get(MODE_LABEL) == "ambient"


@dataclass(frozen=True, slots=True)
class _Document:
    kind: str
    namespace: str
    name: str
    content: Mapping[str, Any]


class FilePods:
    """Pod and Namespace documents of a directory's YAML files. A file is parsed again only when it changed; one that
    is no YAML keeps what it last said (the control plane reports it with its line)."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._parsed: dict[str, tuple[tuple[int, ...], list[_Document]]] = {}

    def pod(self, namespace: str, name: str) -> PodSpec:
        for document in self._documents("Pod"):
            if (document.namespace, document.name) == (namespace, name):
                return _pod_spec(document)
        raise UnknownYet(f"pod {namespace}/{name} is not known yet (looked in {self._directory})")

    def namespace_labels(self, namespace: str) -> Mapping[str, str]:
        for document in self._documents("Namespace"):
            if document.name == namespace:
                return _strings(document.content, "metadata", "labels")
        raise UnknownYet(f"namespace {namespace} is not known yet (looked in {self._directory})")

    def _documents(self, kind: str) -> Iterator[_Document]:
        self._refresh()
        for _, documents in self._parsed.values():
            yield from (document for document in documents if document.kind == kind)

    def _refresh(self) -> None:
        """Cost: one stat per file, and parsing what changed."""
        found: dict[str, tuple[tuple[int, ...], list[_Document]]] = {}
        for path, stat in _files(self._directory):
            version = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
            known = self._parsed.get(path.name, ((), []))
            found[path.name] = known if known[0] == version else (version, _parse(path, known[1]))
        self._parsed = found


def _files(directory: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """A directory or a file that went away meanwhile is no error: it knows of no pods."""
    with suppress(OSError):
        for path in sorted(directory.iterdir()):
            if path.suffix in _SUFFIXES and not path.name.startswith("."):
                with suppress(OSError):
                    yield path, path.stat()


def _parse(path: Path, last_good: list[_Document]) -> list[_Document]:
    try:
        return list(_read_documents(yaml.load_all(path.read_bytes(), Loader=_Loader)))
    except (OSError, ValueError, yaml.YAMLError) as error:
        _log.warning(
            "file not understood, its last good content stays", path=str(path), why=" ".join(str(error).split())
        )
        return last_good


_Loader: Final[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def _read_documents(loaded: Iterable[Any]) -> Iterator[_Document]:
    for content in loaded:
        items = content.get("items") if _is_kind(content, "List") else [content]
        for item in items if isinstance(items, list) else []:
            if _is_kind(item, "Pod") or _is_kind(item, "Namespace"):
                named = {"namespace": "default", "name": ""} | dict(_strings(item, "metadata"))
                yield _Document(item["kind"], named["namespace"], named["name"], item)


def _is_kind(content: Any, kind: str) -> bool:
    return isinstance(content, dict) and content.get("apiVersion") == "v1" and content.get("kind") == kind


def _pod_spec(document: _Document) -> PodSpec:
    given = document.content.get("spec")
    spec = given if isinstance(given, dict) else {}
    return PodSpec(
        namespace=document.namespace,
        name=document.name,
        service_account=str(spec.get("serviceAccountName") or "default"),
        node=str(spec.get("nodeName") or ""),
        host_network=spec.get("hostNetwork") is True,
        labels=_strings(document.content, "metadata", "labels"),
        annotations=_strings(document.content, "metadata", "annotations"),
    )


def _strings(content: Mapping[str, Any], *path: str) -> Mapping[str, str]:
    value: Any = content
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return {str(k): str(v) for k, v in value.items()} if isinstance(value, dict) else {}
