"""The mesh's roots in a ConfigMap, which every node's tunnel mounts: what it trusts before it has been told anything.

Follows rotations: the next root is there before anything is signed with it.
"""

from __future__ import annotations

import asyncio
from typing import Final

from cryptography.hazmat.primitives.serialization import Encoding

from controlplane.ca import Authority
from controlplane.sources.kinds import CONFIG_MAPS
from kube.client import Client, Patch
from mesh import log
from mesh.backoff import Backoff
from mesh.errors import MeshError

NAME: Final = "nodemesh-ca-root-cert"
KEY: Final = "root-cert.pem"
LOOK_S: Final = 1.0
_log: Final = log.get("roots")


async def publish(client: Client, namespace: str, authority: Authority) -> None:
    """Until cancelled."""
    written, backoff = "", Backoff(0.5, 30.0)
    while True:
        authority.refresh()
        pem = "".join(root.public_bytes(Encoding.PEM).decode() for root in authority.trusted)
        wait_s = LOOK_S
        if pem != written:
            try:
                await client.patch(CONFIG_MAPS, namespace, NAME, Patch.MERGE, {"data": {KEY: pem}})
                written = pem
                backoff.worked()
            except MeshError as error:
                wait_s = max(LOOK_S, backoff.failed())
                _log.warning("the roots are not published", path=f"{namespace}/{NAME}", why=str(error))
        await asyncio.sleep(wait_s)
