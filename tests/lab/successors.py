"""A tunnel beside another on one node, as a DaemonSet with a surge starts it: with doors of its own."""

from lab import daemons, processes
from lab.processes import wait_until

NODE = "node1"


def settings(mesh):
    """Of a second tunnel in the node's namespace; in a pod of its own it would need none of this."""
    own = mesh.layout.run_dir(NODE) / "next"
    own.mkdir(exist_ok=True, mode=0o700)
    doors = {"ADMIN_ADDR": "127.0.0.1:25000", "STATS_ADDR": "0.0.0.0:25020", "READINESS_ADDR": "0.0.0.0:25021"}
    own_dirs = {"NODEMESH_RUN_DIR": str(own), "NODEMESH_STATE_DIR": str(own), "NODEMESH_KEY_DIR": ""}
    return daemons.tunnel_settings(mesh.layout, NODE) | doors | own_dirs


def start(mesh, within_s):
    """Returns when it is ready."""
    space = mesh.layout.node_netns(NODE)
    command = daemons.command("ztunnel", "run")
    made = processes.start(mesh.layout, "ztunnel-next", space, command, settings(mesh), group="ztunnel-next")
    try:
        wait_until("the new one is ready", lambda: _is_ready(mesh), within_s)
    except BaseException:
        daemons.stop(made)
        raise
    return made


def _is_ready(mesh):
    path = mesh.layout.run_dir(NODE) / "next" / "ztunnel.sock"
    return path.exists() and daemons.ask(path, "/status")[1]["ready"]
