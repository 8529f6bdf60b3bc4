"""The mesh's daemons in a lab: which settings they get, when they count as up, how they are asked.

The settings are those of ARCHITECTURE.md; nothing else reaches a daemon.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

from lab import cgroups
from lab.layout import Layout, underlay_address
from lab.needs import REPOSITORY
from lab.netns import inside
from lab.processes import Process, environment, start
from mesh.errors import OperatorError, PeerError

CONTROL: Final = "control"
CAPTURES: Final = ("auto", "bpf", "nft", "iptables")
"""What the agents may be told to capture with."""
AUTO: Final = CAPTURES[0]
KUBELET: Final = "kubelet"
"""The group, below its node's, from which a node's pods are probed."""
_START_S: Final = 20.0


def command(package: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", f"{package}.main", *arguments]


def control_settings(layout: Layout) -> dict[str, str]:
    return {
        **_common(layout, CONTROL),
        "NODEMESH_CONFIG_DIR": str(layout.config),
        "CONTROLPLANE_ADDR": "[::]:15012",
        "CONTROLPLANE_SANS": ",".join(underlay_address(0, version) for version in (4, 6)),
    }


def agent_settings(layout: Layout, node: str, capture: str, direct: bool = False) -> dict[str, str]:
    group = cgroups.of(layout.node_netns(node)).relative_to(cgroups.mount())
    return {
        "NODEMESH_KUBELET_GROUP": f"{group}/{KUBELET}",
        **_common(layout, node),
        "NODE_NAME": node,
        "NODEMESH_PODS_DIR": str(layout.config),
        "NODEMESH_BPF_DIR": str(layout.bpf_dir(node)),
        "NODEMESH_CGROUP_ROOT": str(cgroups.of(layout.node_netns(node))),
        "ZDS_SOCKET": str(zds_socket(layout, node)),
        "NODEMESH_CAPTURE": capture,
        "NODEMESH_SAME_NODE_DIRECT": str(direct).lower(),
        "NODEMESH_CNI_CACHE_DIR": str(layout.node_dir(node) / "cni"),
        "NODEMESH_LISTENER_GROUP": f"{group}/listeners",
    }


def tunnel_settings(layout: Layout, node: str) -> dict[str, str]:
    """The nodes take turns: the odd ones reach the control plane over IPv4, the even ones over IPv6."""
    six = int(node.removeprefix("node")) % 2 == 0
    server = f"https://[{underlay_address(0, 6)}]:15012" if six else f"https://{underlay_address(0)}:15012"
    return {
        **_common(layout, node),
        "NODE_NAME": node,
        "XDS_ADDRESS": server,
        "CA_ADDRESS": server,
        "XDS_ROOT_CA": str(root_certificate(layout)),
        "CA_ROOT_CA": str(root_certificate(layout)),
        "AUTH_TOKEN": str(token_path(layout, node)),
        "INPOD_UDS": str(zds_socket(layout, node)),
        "NODEMESH_ACCESS_LOG": str(layout.access_log(node)),
        "NODEMESH_KEY_DIR": f"{layout.keys}-{node}",
        "ZTUNNEL_WORKER_THREADS": os.environ.get("ZTUNNEL_WORKER_THREADS", "0"),
    }


def proxy_settings(layout: Layout, key: str, pod: str, node: str) -> dict[str, str]:
    """Of a waypoint or gateway `namespace/name`; `pod`: the one that it runs in, on that node."""
    return {
        "REGION": "lab",
        "ZONE": f"zone-{node}",
        **_common(layout, pod),
        "WAYPOINT_NAME": key,
        "XDS_ADDRESS": f"https://{underlay_address(0)}:15012",
        "XDS_ROOT_CA": str(root_certificate(layout)),
        "AUTH_TOKEN": str(token_path(layout, key.replace("/", "-"))),
        "DRAIN_TIME": "1s",
        "CONCURRENCY": "1",
    }


def _common(layout: Layout, owner: str) -> dict[str, str]:
    settings = {
        "NODEMESH_RUN_DIR": str(layout.run_dir(owner)),
        "NODEMESH_STATE_DIR": str(state_dir(layout, owner)),
        "LOG_FORMAT": "json",
        "LOG_LEVEL": os.environ.get("LOG_LEVEL", "info"),
    }
    more = more_settings(layout, owner)
    given = json.loads(more.read_text()) if more.exists() else {}
    return {**settings, "PYTHONPATH": str(REPOSITORY), "PYTHONUNBUFFERED": "1", **given}


def more_settings(layout: Layout, owner: str) -> Path:
    """A file of settings besides, for all daemons of a node or of `control`."""
    return layout.node_dir(owner) / "settings.json"


def state_dir(layout: Layout, owner: str) -> Path:
    return layout.node_dir(owner) / "state"


def root_certificate(layout: Layout) -> Path:
    return state_dir(layout, CONTROL) / "ca" / "root-cert.pem"


def token_path(layout: Layout, node: str) -> Path:
    return layout.node_dir(node) / "join-token"


def zds_socket(layout: Layout, node: str) -> Path:
    return layout.run_dir(node) / "ztunnel-zds.sock"


def issue_token(layout: Layout, node: str, proxy: str = "") -> None:
    """A join token from the control plane's own command, readable by root only. `proxy`: for that one, in this pod."""
    whose = ("--proxy", proxy) if proxy else ("--node", node)
    done = subprocess.run(
        [*inside(layout.control), *command("controlplane", "token", "create", *whose)],
        env=environment(layout, control_settings(layout)),
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise OperatorError(f"controlplane token create failed: {done.stderr.strip()}")
    path = token_path(layout, node)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(0o600)
    path.write_text(done.stdout.strip())


def start_controlplane(layout: Layout, directory: Path | None = None) -> Process:
    """`directory`: another configuration than the lab's."""
    settings = control_settings(layout) | ({"NODEMESH_CONFIG_DIR": str(directory)} if directory else {})
    return start(layout, "controlplane", layout.control, command("controlplane", "run"), settings)


def start_agent(layout: Layout, node: str, capture: str = AUTO, direct: bool = False) -> Process:
    settings = agent_settings(layout, node, capture, direct)
    return _start_on(layout, node, "nodeagent", settings)


def start_tunnel(layout: Layout, node: str) -> Process:
    return _start_on(layout, node, "ztunnel", tunnel_settings(layout, node))


def _start_on(layout: Layout, node: str, daemon: str, settings: dict[str, str]) -> Process:
    """Each in a control group of its own, like a service manager: by its group the tunnel's sockets are known."""
    space = layout.node_netns(node)
    return start(layout, f"{daemon}-{node}", space, command(daemon, "run"), settings, group=daemon)


def start_proxy(layout: Layout, key: str, pod: str, node: str, space: str) -> Process:
    layout.run_dir(pod).mkdir(parents=True, mode=0o700, exist_ok=True)
    return start(layout, f"waypoint-{pod}", space, command("waypoint", "run"), proxy_settings(layout, key, pod, node))


def admin_socket(layout: Layout, process: Process) -> Path:
    """`nodeagent-node1` answers at node1's RUN/nodeagent.sock."""
    daemon, _, node = process.name.partition("-")
    return layout.run_dir(node or CONTROL) / f"{daemon}.sock"


def ask(path: Path, target: str, method: str = "GET", timeout_s: float = 30.0) -> tuple[int, Any]:
    """(status, JSON body) from an admin socket. Raises PeerError: nobody answers."""
    connection = http.client.HTTPConnection("localhost", timeout=timeout_s)
    connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.sock.settimeout(timeout_s)
        connection.sock.connect(str(path))
        connection.request(method, target)
        response = connection.getresponse()
        body = response.read()
        return response.status, json.loads(body) if body else None
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise PeerError(f"{path}: {error}") from error
    finally:
        connection.close()


def is_up(layout: Layout, process: Process) -> bool:
    """Whether the daemon answers. Raises OperatorError with its last words when it has ended instead."""
    if not process.alive:
        raise OperatorError(f"{process.name} ended while starting: {last_words(layout, process.name)}")
    try:
        return ask(admin_socket(layout, process), "/status")[0] == 200
    except PeerError:
        return False


def last_words(layout: Layout, name: str) -> str:
    lines = layout.log(name).read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"


def stop(process: Process, deadline_s: float = 60.0) -> None:
    """As a service manager would: SIGTERM, a deadline, SIGKILL. Raises OperatorError when it came to that."""
    process.signal(signal.SIGTERM)
    if not process.wait(deadline_s):
        process.kill()
        raise OperatorError(f"{process.name} did not end within {deadline_s:g} s of SIGTERM")
