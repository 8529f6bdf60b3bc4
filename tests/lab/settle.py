"""What a test wrote into a lab's configuration is gone from every tunnel before the next test begins."""

import itertools

from lab import documents
from lab.cluster import Cluster
from lab.processes import wait_until
from mesh.errors import PeerError

FORGOTTEN_S = 90.0
_NUMBERS = itertools.count(1)


def clean(mesh: Cluster, before: set[str]) -> None:
    """Takes away what is not of `before`."""
    new = [path for path in mesh.layout.config.iterdir() if path.name not in before]
    for path in new:
        path.unlink()
    if new:
        settle(mesh)


def settle(mesh: Cluster) -> None:
    """Until every tunnel has a policy that is written now, and with it all that was before."""
    name = f"settled-{next(_NUMBERS)}"
    mesh.apply("settled", documents.authorization("nobody-is-here", name, "ALLOW", "nobody", []))
    for node in mesh.nodes:
        wait_until(f"{node} is in step", lambda node=node: _has(mesh, node, name), FORGOTTEN_S)


def _has(mesh: Cluster, node: str, policy: str) -> bool:
    try:
        return policy in {each["name"] for each in mesh.ask(f"ztunnel-{node}", "/config_dump")["policies"]}
    except PeerError:
        return False
