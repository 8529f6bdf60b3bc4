"""`python -m ztunnel.offline DUMP SOURCE DESTINATION`: `explain` over a saved config dump, by a core of its own.

The core gets the dump's resources and no pods, so it listens nowhere. JSON on stdout; a sentence and exit code 2 when
the dump or the question is wrong.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from mesh import log
from mesh.errors import OperatorError
from ztunnel.dataplane import open_core
from ztunnel.undump import resources


def main() -> None:
    try:
        path, source, destination = sys.argv[1:]
        sys.stdout.buffer.write(explain(_read(Path(path)), source, destination))
    except OperatorError as error:
        log.refuse("explain", error)
    except ValueError as error:
        log.refuse("explain", OperatorError(str(error)))


def explain(dump: dict[str, Any], source: str, destination: str) -> bytes:
    """Raises OperatorError: the dump cannot be read back. ValueError: the question names nothing."""
    settings = dump.get("config") or {}
    own = {
        "network": settings.get("network") or "",
        "cluster_id": settings.get("clusterId") or settings.get("cluster_id") or "Kubernetes",
        "same_node_tls": bool(settings.get("same_node_tls")),
        "outbound_policy": settings.get("outbound_policy") or "ALLOW_ANY",
    }
    dataplane = open_core(json.dumps({**own, "workers": 1, "access_log": "off", "log_level": "error"}).encode())
    try:
        for type_url, named in resources(dump).items():
            for name, why in dataplane.core.apply(type_url, named, []):
                print(f"explain: {name} is left out: {why}", file=sys.stderr)
        return dataplane.core.explain(source, destination)
    finally:
        dataplane.core.close()


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except OSError as error:
        raise OperatorError(error.strerror or str(error), where=str(path)) from None
    except ValueError as error:
        raise OperatorError(f"this is not JSON: {error}", where=str(path)) from None
    if not isinstance(found, dict):
        raise OperatorError("this is not a config dump: a JSON object is expected", where=str(path))
    return found


if __name__ == "__main__":
    main()
