"""Where everything of a lab is: names, addresses, paths. Touches nothing.

Several labs live side by side because every name starts with the lab's and every address lives in the lab's own
namespaces; the machine's own namespace gets neither an address nor a route.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from itertools import islice
from pathlib import Path
from typing import Final

from mesh.errors import OperatorError
from mesh.model import IPNetwork

ROOT: Final = Path("/run/nodemesh-lab")
NETNS: Final = Path("/run/netns")
MADE_NETNS: Final = ".made-netns-dir"
"""In ROOT: a lab has made the directory NETNS, so the last lab takes it away."""
DEFAULT_NAME: Final = "nm"
# By IP version; each node has a /24 and a /64 of the pods' ranges.
UNDERLAY: Final[dict[int, IPNetwork]] = {4: IPv4Network("172.30.0.0/16"), 6: IPv6Network("fd00:172:30::/64")}
PODS: Final[dict[int, IPNetwork]] = {4: IPv4Network("10.244.0.0/16"), 6: IPv6Network("fd00:10:244::/48")}
SERVICES: Final[dict[int, IPNetwork]] = {4: IPv4Network("10.96.0.0/16"), 6: IPv6Network("fd00:10:96::/64")}
MOST_NODES: Final = 32
MOST_PODS: Final = 64
MARK: Final = "NODEMESH_LAB"
"""In the environment of every process of a lab, so that `down` finds them without any file."""

# No dash: then "NAME-" can never be the beginning of another lab's name.
_NAME: Final = re.compile(r"[a-z][a-z0-9]{0,19}")


def node_name(number: int) -> str:
    return f"node{number}"


@dataclass(frozen=True, slots=True)
class Layout:
    """One lab's map. Raises OperatorError: the name cannot be used."""

    name: str = DEFAULT_NAME

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise OperatorError(f"{self.name!r} is not a lab's name: up to 20 of a-z and 0-9, a letter first")

    @property
    def dir(self) -> Path:
        return ROOT / self.name

    @property
    def keys(self) -> Path:
        """How the directories of the tunnels' keys begin: on tmpfs, which the rest of a lab need not be."""
        return Path(f"/dev/shm/nodemesh-lab-{self.name}")

    @property
    def config(self) -> Path:
        """What the control plane and the agents watch."""
        return self.dir / "config"

    @property
    def logs(self) -> Path:
        return self.dir / "logs"

    @property
    def state(self) -> Path:
        return self.dir / "state.json"

    @property
    def processes(self) -> Path:
        """One JSON line per process ever started."""
        return self.dir / "processes.jsonl"

    def node_dir(self, node: str) -> Path:
        return self.dir / "nodes" / node

    def run_dir(self, owner: str) -> Path:
        """NODEMESH_RUN_DIR of a node's daemons, or of `control`."""
        return self.node_dir(owner) / "run"

    def run_dirs(self, owners: Iterable[str]) -> dict[str, str]:
        return {owner: str(self.run_dir(owner)) for owner in owners}

    def bpf_dir(self, node: str) -> Path:
        """Where the node's agent pins, on a bpffs of its own."""
        return self.node_dir(node) / "bpf"

    def log(self, process: str) -> Path:
        return self.logs / f"{process}.log"

    def access_log(self, node: str) -> Path:
        return self.logs / f"access-{node}.log"

    @property
    def fabric(self) -> str:
        return f"{self.name}-fabric"

    @property
    def control(self) -> str:
        return f"{self.name}-control"

    def node_netns(self, node: str) -> str:
        return f"{self.name}-{node}"

    def pod_netns(self, namespace: str, pod: str) -> str:
        return f"{self.name}-pod-{namespace}-{pod}"

    def owns_netns(self, netns: str) -> bool:
        """Exactly the names above: somebody else's `nm-something` is not ours to delete."""
        return bool(re.fullmatch(rf"{self.name}-(fabric|control|node\d+|pod-.+)", netns))


def underlay_address(number: int, version: int = 4) -> str:
    """Node `number`'s address on the fabric; 0 is the control plane's host."""
    return str(UNDERLAY[version][10 + number])


def workload_address(number: int, version: int = 4) -> str:
    """Of a workload that is no pod, beside its host's on the fabric."""
    return str(UNDERLAY[version][100 + number])


def pod_range(number: int, version: int = 4) -> IPNetwork:
    subnets: Iterator[IPNetwork] = iter(PODS[version].subnets(8 if version == 4 else 16))
    return next(islice(subnets, number, None))


def service_address(number: int, version: int = 4) -> str:
    return str(SERVICES[version][10 + number])
