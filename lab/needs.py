"""What the lab needs from the machine, asked before anything is made: one sentence per thing that is missing."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Final

from mesh.errors import OperatorError

REPOSITORY: Final = Path(__file__).resolve().parent.parent
CNI_BIN: Final = (Path("/usr/lib/cni"), Path("/opt/cni/bin"))
OUR_PLUGIN: Final = "nodemesh-cni"

PROGRAMS: Final = {
    "ip": "iproute2",
    "nsenter": "util-linux",
    "nft": "nftables",
    "tcpdump": "tcpdump",
    "nginx": "nginx-light",
    "curl": "curl",
    "iperf3": "iperf3",
    "socat": "socat",
}
_FEATURES: Final = (
    ("network namespaces", ["true"], ""),
    ("veth interfaces", ["ip", "link", "add", "v0", "type", "veth", "peer", "name", "v1"], ""),
    ("bridge interfaces", ["ip", "link", "add", "b0", "type", "bridge"], ""),
    (
        "nftables with NAT",
        ["nft", "-f", "-"],
        "table inet t { chain o { type nat hook output priority -100; tcp dport 1 redirect to :2; }; }",
    ),
    ("IPv6", ["ip", "addr", "add", "fd00::1/128", "dev", "lo"], ""),
    ("policy routing by packet mark", ["ip", "rule", "add", "fwmark", "0x1/0x1", "lookup", "100"], ""),
)


class NotPermitted(OperatorError):
    """Only root may: `meshctl` ends with code 4."""

    exit_code = 4


def require_root() -> None:
    if os.geteuid() != 0:
        raise NotPermitted("the lab makes network namespaces and needs root: run it with sudo")


def require_all() -> None:
    """Raises OperatorError for the first thing that is missing."""
    require_root()
    for program, package in PROGRAMS.items():
        if not shutil.which(program, path=search_path()):
            raise OperatorError(f"{program} is not installed: apt-get install {package}")
    plugin_path("ptp")
    plugin_path("host-local")
    plugin_path(OUR_PLUGIN)
    for feature, command, stdin in _FEATURES:
        _require_feature(feature, command, stdin)


def _require_feature(feature: str, command: list[str], stdin: str) -> None:
    run = subprocess.run(
        ["unshare", "--net", *command], input=stdin, capture_output=True, text=True, env={"PATH": search_path()}
    )
    if run.returncode:
        why = run.stderr.strip().splitlines() or ["no reason given"]
        raise OperatorError(f"this kernel or container does not allow {feature}: {why[0]}")


def search_path() -> str:
    """PATH with the administrator's directories: nginx and nft live there, and `su` leaves them out."""
    return os.environ.get("PATH", "/usr/bin:/bin") + ":/usr/sbin:/sbin"


def cni_path() -> list[Path]:
    """Directories with CNI plugins, ours first: the build, else the readable twin."""
    return [path for path in (REPOSITORY / "build", *CNI_BIN) if path.is_dir()]


def plugin_path(kind: str) -> Path:
    """The executable of CNI plugin `kind`. Raises OperatorError: not installed, not built."""
    for directory in cni_path():
        if os.access(directory / kind, os.X_OK):
            return directory / kind
    if kind == OUR_PLUGIN:
        raise OperatorError(f"build/{OUR_PLUGIN} is not built: run `make setup`")
    raise OperatorError(f"the CNI plugin {kind} is not installed: apt-get install containernetworking-plugins")
