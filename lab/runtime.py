"""The part of a container runtime that calls CNI: a chain of plugins, each exec'ed in the node's namespace.

Follows the CNI specification 1.1 (sections 2 to 4) as libcni does: parameters in the environment, configuration on
stdin, `prevResult` handed from plugin to plugin, DEL in reverse order. Owns the cached results of its attachments.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from lab import needs
from lab.layout import MARK, NETNS, Layout, pod_range
from mesh.errors import MeshError

VERSION: Final = "1.0.0"  # what Debian's ptp speaks; the list's version is the primary's
NAME: Final = "nodemesh-lab"
INTERFACE: Final = "eth0"
PLUGIN_TIMEOUT_S: Final = 90.0

Result = dict[str, Any]


class CniRefused(MeshError):
    """A plugin failed. `code` and `msg` are its own; 999 when it printed no CNI error."""

    def __init__(self, plugin: str, code: int, msg: str, details: str = "") -> None:
        super().__init__(f"{plugin} refused with code {code}: {msg}" + (f" ({details})" if details else ""))
        self.plugin, self.code, self.msg = plugin, code, msg


@dataclass(frozen=True, slots=True)
class Sandbox:
    """A pod as a runtime knows it: one container id, one network namespace."""

    container_id: str
    netns: str
    namespace: str
    name: str
    uid: str
    # Of its addresses; a list once it has been through the lab's state file.
    versions: Sequence[int] = (4, 6)

    @property
    def args(self) -> str:
        return (
            f"IgnoreUnknown=1;K8S_POD_NAMESPACE={self.namespace};K8S_POD_NAME={self.name};"
            f"K8S_POD_INFRA_CONTAINER_ID={self.container_id};K8S_POD_UID={self.uid}"
        )


@dataclass(frozen=True, slots=True)
class Added:
    """`took_s`: plugin name -> wall time of its ADD, fork and exec included."""

    result: Result
    took_s: dict[str, float] = field(default_factory=dict)

    @property
    def ips(self) -> list[str]:
        return [str(each["address"]).partition("/")[0] for each in self.result["ips"]]


class Runtime:
    """One node's runtime. Its network list is on disk beside the cached results, as in /etc/cni/net.d."""

    def __init__(self, layout: Layout, node: str) -> None:
        self._node_netns = layout.node_netns(node)
        self._dir = layout.node_dir(node) / "cni"
        self._installed = layout.node_dir(node) / "plugins"
        self._lab = layout.name

    def install(self, number: int, agent_run_dir: Path | None) -> None:
        """Writes the conflist: the real ptp and host-local, then ours, if its agent is named."""
        self._dir.mkdir(parents=True, exist_ok=True)
        plugins = [primary(number, self._dir / "ipam"), *([ours(agent_run_dir)] if agent_run_dir else [])]
        conflist = {"cniVersion": VERSION, "name": NAME, "plugins": plugins}
        self._conflist.write_text(json.dumps(conflist, indent=1))

    @property
    def types(self) -> list[str]:
        """Of the plugins on the list, in their order."""
        return [str(plugin["type"]) for plugin in json.loads(self._conflist.read_text())["plugins"]]

    @property
    def _conflist(self) -> Path:
        return self._dir / "10-nodemesh-lab.conflist"

    def add(self, sandbox: Sandbox) -> Added:
        """Runs the chain. Raises CniRefused after a DEL of everything, as kubelet and containerd do."""
        took: dict[str, float] = {}
        result: Result = {}
        try:
            for plugin in self._plugins(sandbox):
                began = time.perf_counter()
                result = self._call("ADD", plugin, sandbox, result or None)
                took[str(plugin["type"])] = time.perf_counter() - began
        except CniRefused:
            self.delete(sandbox)
            raise
        self._remember(sandbox, result)
        return Added(result, took)

    def check(self, sandbox: Sandbox) -> None:
        """Raises CniRefused: something is not as ADD left it."""
        for plugin in self._plugins(sandbox):
            self._call("CHECK", plugin, sandbox, self._cached(sandbox))

    def delete(self, sandbox: Sandbox) -> None:
        """Reverse order, every plugin gets its turn; the first failure is raised at the end."""
        failures: list[CniRefused] = []
        for plugin in reversed(self._plugins(sandbox)):
            try:
                self._call("DEL", plugin, sandbox, self._cached(sandbox))
            except CniRefused as refused:
                failures.append(refused)
        self._cache(sandbox).unlink(missing_ok=True)
        if failures:
            raise failures[0]

    def _plugins(self, sandbox: Sandbox) -> list[dict[str, Any]]:
        """The list on disk, for a pod of one family without what concerns the other."""
        plugins = json.loads(self._conflist.read_text())["plugins"]
        assert isinstance(plugins, list)
        for ipam in (plugin["ipam"] for plugin in plugins if plugin.get("ipam")):
            ipam["ranges"] = [own for own in ipam["ranges"] if _version(own[0]["subnet"]) in sandbox.versions]
            ipam["routes"] = [way for way in ipam["routes"] if _version(way["dst"]) in sandbox.versions]
        return plugins

    def _cache(self, sandbox: Sandbox) -> Path:
        return self._dir / "results" / f"{NAME}-{sandbox.container_id}-{INTERFACE}"

    def _remember(self, sandbox: Sandbox, result: Result) -> None:
        """libcni's cacheV1 (libcni/api.go)."""
        arguments = [pair.split("=", 1) for pair in sandbox.args.split(";")]
        about = {"kind": "cniCacheV1", "containerId": sandbox.container_id, "ifName": INTERFACE, "networkName": NAME}
        content = about | {"cniArgs": arguments, "netns": str(NETNS / sandbox.netns), "result": result}
        self._cache(sandbox).parent.mkdir(exist_ok=True)
        aside = self._dir / f".{sandbox.container_id}"
        aside.write_text(json.dumps(content))
        aside.replace(self._cache(sandbox))

    def _cached(self, sandbox: Sandbox) -> Result | None:
        try:
            return dict(json.loads(self._cache(sandbox).read_text())["result"])
        except FileNotFoundError:
            return None

    def _call(self, command: str, plugin: dict[str, Any], sandbox: Sandbox, previous: Result | None) -> Result:
        config = {"cniVersion": VERSION, "name": NAME, **plugin}
        if previous is not None:
            config["prevResult"] = previous
        kind = str(plugin["type"])
        done = subprocess.run(
            # Not into the host's control group: nothing looks at a plugin's, and the move would count as its time.
            ["nsenter", f"--net={NETNS / self._node_netns}", "--", str(self._program(kind))],
            input=json.dumps(config),
            env=self._environment(command, sandbox),
            capture_output=True,
            text=True,
            timeout=PLUGIN_TIMEOUT_S,
        )
        if done.returncode:
            raise _refusal(kind, done.stdout, done.stderr)
        return dict(json.loads(done.stdout)) if done.stdout.strip() else {}

    def _program(self, kind: str) -> Path:
        """What an agent has installed on the node, else the machine's."""
        installed = self._installed / kind
        return installed if installed.exists() else needs.plugin_path(kind)

    def _environment(self, command: str, sandbox: Sandbox) -> dict[str, str]:
        return {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": sandbox.container_id,
            "CNI_NETNS": str(NETNS / sandbox.netns),
            "CNI_IFNAME": INTERFACE,
            "CNI_ARGS": sandbox.args,
            "CNI_PATH": ":".join(str(path) for path in needs.cni_path()),
            "PATH": needs.search_path(),
            MARK: self._lab,
        }


def primary(number: int, leases: Path) -> dict[str, Any]:
    """Debian's ptp with host-local: a routed veth per pod, one address of each family, no masquerading."""
    ipam = {
        "type": "host-local",
        "dataDir": str(leases),
        "ranges": [[{"subnet": str(pod_range(number, version))}] for version in (4, 6)],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
    }
    return {"type": "ptp", "ipMasq": False, "mtu": 1500, "ipam": ipam}


def ours(agent_run_dir: Path) -> dict[str, Any]:
    return {"type": needs.OUR_PLUGIN, "agentSocket": str(agent_run_dir / "cni.sock")}


def _version(prefix: str) -> int:
    return 6 if ":" in prefix else 4


def _refusal(kind: str, stdout: str, stderr: str) -> CniRefused:
    try:
        said = json.loads(stdout)
        return CniRefused(kind, int(said["code"]), str(said["msg"]), str(said.get("details", "")))
    except (ValueError, KeyError, TypeError):
        return CniRefused(kind, 999, (stderr or stdout).strip() or "no reason given")
