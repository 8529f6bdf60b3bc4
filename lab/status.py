"""What `meshctl lab status` says."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import yaml

from lab.cluster import Cluster


def facts(cluster: Cluster) -> dict[str, Any]:
    return {
        "apiVersion": "nodemesh/v1",
        "kind": "Lab",
        "name": cluster.layout.name,
        "config": str(cluster.layout.config),
        "logs": str(cluster.layout.logs),
        "daemons": [{"name": p.name, "pid": p.pid, "running": p.alive} for p in cluster.daemons.values()],
        "pods": [
            {
                "namespace": p.namespace,
                "name": p.name,
                "node": p.node,
                "ip": p.ip,
                "ips": list(p.ips),
                "identity": p.identity,
            }
            for p in cluster.pods.values()
        ],
    }


def describe(cluster: Cluster, output: str) -> tuple[str, bool]:
    """(text, whether every daemon runs)."""
    known = facts(cluster)
    healthy = all(daemon["running"] for daemon in known["daemons"])
    if output == "json":
        return json.dumps(known, indent=2), healthy
    if output == "yaml":
        return yaml.safe_dump(known, sort_keys=False).rstrip(), healthy
    daemons = [("DAEMON", "PID", "STATE")]
    daemons += [(d["name"], str(d["pid"]), "running" if d["running"] else "ENDED") for d in known["daemons"]]
    pods = [("NAMESPACE", "POD NAME", "NODE", "ADDRESSES", "IDENTITY")]
    pods += [(p["namespace"], p["name"], p["node"], ",".join(p["ips"]), p["identity"]) for p in known["pods"]]
    head = [
        f"lab            {known['name']}",
        f"configuration  {known['config']}",
        f"logs           {known['logs']}",
        "",
    ]
    return "\n".join([*head, *aligned(daemons), "", *aligned(pods)]), healthy


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns three blanks apart, never cut: what goes into a pipe must be whole."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return ["   ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows]
