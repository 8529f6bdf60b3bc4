"""Takes a part of a pod's capture away behind the agent's back, whichever backend put it in."""

from lab.cluster import Cluster, Pod
from nodeagent.redirect import iptables


def captured_by(mesh: Cluster, pod: Pod) -> str:
    return str(_told(mesh, pod)["capture"])


def _told(mesh: Cluster, pod: Pod) -> dict[str, object]:
    return next(each for each in mesh.ask(f"nodeagent-{pod.node}", "/pods") if each["name"] == pod.name)


def damage(mesh: Cluster, pod: Pod) -> str:
    """What the agent is to say of it."""
    told = _told(mesh, pod)
    if told["capture"] == "bpf":
        cookie = str(told["netns_identity"]).removeprefix("cookie:")
        (mesh.layout.bpf_dir(pod.node) / "v1/workloads" / f"netns-{cookie}" / "connect4").unlink()
        return "the hook connect4 is missing"
    if told["capture"] == "iptables":
        mesh.exec(pod, ["iptables-nft", "-t", "nat", "-F", iptables.OUT])
        return f"chain {iptables.OUT} of IPv4 table nat lacks"
    mesh.exec(pod, ["nft", "flush", "chain", "inet", "nodemesh", "nat-output"])
    return "chain nat-output lacks"
