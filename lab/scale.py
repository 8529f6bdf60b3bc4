"""A big world as documents: what a control plane of a large cluster reads, without that cluster.

Deterministic: the same numbers give the same bytes. Addresses are from ranges that no lab uses (RFC 6598 for pods,
RFC 2544 for services, fd00:64::/64 and fd00:18::/64), so a running lab can be given such a world beside its own.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address
from itertools import islice
from pathlib import Path
from typing import Final

from mesh.errors import OperatorError

PREFIX: Final = "scale"
"""Every name in such a world begins so."""
PODS_4, PODS_6 = IPv4Address("100.64.0.0"), IPv6Address("fd00:64::")
SERVICES_4, SERVICES_6 = IPv4Address("198.18.0.0"), IPv6Address("fd00:18::")
MOST_WORKLOADS: Final = 1 << 22
MOST_SERVICES: Final = 1 << 17
SERVICES_PER_NAMESPACE: Final = 100
SERVICES_PER_FILE: Final = 10
PODS_PER_NODE: Final = 100
PORT, TARGET = 80, 8080


def world(workloads: int, services: int, directory: Path) -> list[Path]:
    """Writes `workloads` pods behind `services` Services below `directory`; the files written.

    Every namespace is in the mesh; a file holds some Services, each followed by its pods, and is replaced as a whole.
    Raises OperatorError: more than the address ranges hold.
    """
    if not 1 <= services <= MOST_SERVICES or not 0 <= workloads <= MOST_WORKLOADS - 1:
        raise OperatorError(f"a world has up to {MOST_WORKLOADS - 1} workloads and 1 to {MOST_SERVICES} services")
    directory.mkdir(parents=True, exist_ok=True)
    nodes = range(-(-workloads // PODS_PER_NODE))
    namespaces = range(-(-services // SERVICES_PER_NAMESPACE))
    written = [
        _write(directory / f"{PREFIX}-nodes.yaml", (_node(number) for number in nodes)),
        _write(directory / f"{PREFIX}-namespaces.yaml", (_namespace(number) for number in namespaces)),
    ]
    numbers = iter(range(services))
    while batch := list(islice(numbers, SERVICES_PER_FILE)):
        documents = (text for number in batch for text in _service_with_pods(number, services, workloads))
        written.append(_write(services_file(directory, batch[0]), documents))
    return written


def services_file(directory: Path, service: int) -> Path:
    """Where Service number `service` and its pods are."""
    return directory / f"{PREFIX}-services-{service // SERVICES_PER_FILE:06}.yaml"


def pod_uid(number: int, services: int) -> str:
    """The workload's primary key, as the tunnel knows pod `number`."""
    return f"Kubernetes//Pod/{namespace_of(number % services)}/{PREFIX}-{number:07}"


def pod_address(number: int) -> IPv4Address:
    return PODS_4 + number + 1


def namespace_of(service: int) -> str:
    return f"{PREFIX}-{service // SERVICES_PER_NAMESPACE:04}"


def _service_with_pods(service: int, services: int, workloads: int) -> Iterator[str]:
    yield _service(service)
    for number in range(service, workloads, services):
        yield pod(number, service)


def _write(path: Path, documents: Iterator[str]) -> Path:
    return replace(path, "---\n".join(documents) or "# nothing\n---\n")


def replace(path: Path, text: str) -> Path:
    """As a whole: nobody ever reads half of it."""
    aside = path.with_name(f".{path.name}.new")  # a leading dot: no watcher looks at it
    aside.write_text(text)
    os.replace(aside, path)
    return path


def _namespace(number: int) -> str:
    return f"""\
apiVersion: v1
kind: Namespace
metadata:
  name: {PREFIX}-{number:04}
  labels:
    istio.io/dataplane-mode: ambient
"""


def _node(number: int) -> str:
    return f"""\
apiVersion: v1
kind: Node
metadata:
  name: {PREFIX}-node-{number:05}
  labels:
    topology.kubernetes.io/region: region-{number % 3}
    topology.kubernetes.io/zone: zone-{number % 9}
"""


def _service(number: int) -> str:
    return f"""\
apiVersion: v1
kind: Service
metadata:
  name: svc-{number:06}
  namespace: {namespace_of(number)}
spec:
  clusterIP: {SERVICES_4 + number + 1}
  clusterIPs:
  - {SERVICES_4 + number + 1}
  - '{SERVICES_6 + number + 1}'
  ipFamilies:
  - IPv4
  - IPv6
  selector:
    app: svc-{number:06}
  ports:
  - name: http
    port: {PORT}
    protocol: TCP
    targetPort: {TARGET}
"""


def pod(number: int, service: int) -> str:
    four, six = pod_address(number), PODS_6 + number + 1
    return f"""\
apiVersion: v1
kind: Pod
metadata:
  name: {PREFIX}-{number:07}
  namespace: {namespace_of(service)}
  uid: 5ca1e000-0000-4000-8000-{number:012}
  labels:
    app: svc-{service:06}
    version: v{number % 2 + 1}
spec:
  nodeName: {PREFIX}-node-{number // PODS_PER_NODE:05}
  serviceAccountName: svc-{service:06}
  containers:
  - name: app
    image: app
    ports:
    - name: http
      containerPort: {TARGET}
status:
  phase: Running
  podIP: {four}
  podIPs:
  - ip: {four}
  - ip: '{six}'
  conditions:
  - type: Ready
    status: 'True'
"""
