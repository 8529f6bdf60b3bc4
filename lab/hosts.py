"""Workloads without pods: control groups of a node, side by side in its namespace, each with addresses of its own.

What an operator does with `ip addr add`, a systemd slice and `meshctl enroll`.
"""

from __future__ import annotations

from lab import apps, cgroups, documents, netns
from lab.cluster import READY_S, Cluster, Pod
from lab.documents import PodSpec
from lab.layout import workload_address
from lab.processes import wait_until
from lab.runtime import Sandbox


def add(cluster: Cluster, spec: PodSpec, *, enrolled: bool = True) -> Pod:
    """Its group, addresses and applications; `enrolled`: and its document, until it is in the mesh."""
    layout, space = cluster.layout, cluster.layout.node_netns(spec.node)
    number = 1 + len([pod for pod in cluster.pods.values() if pod.group])
    ips = [workload_address(number, version) for version in spec.versions]
    group = f"{spec.name}.slice"
    path = cgroups.create(f"{space}/{group}")
    # Hosts have a way out; without one nobody could ask for a service's address, whoever would turn it round.
    netns.batch(space, ["route replace 0.0.0.0/0 dev eth0", "route replace ::/0 dev eth0"])
    netns.batch(space, [f"addr add {ip}/{32 if '.' in ip else '128 nodad'} dev eth0" for ip in ips])
    pod = Pod(
        spec.name,
        spec.namespace,
        spec.node,
        ips,
        spec.account,
        Sandbox("", space, spec.namespace, spec.name, ""),
        group=group,
    )
    cluster.record(pod)
    for name, argv in apps.commands(spec.name, layout.dir / "pods" / spec.name, ips).items():
        cluster.start_in(pod, name, argv)
    serves = apps.HTTP_PORT, apps.ECHO_PORT
    wait_until(f"{spec.name} listens", lambda: cluster.listens(pod, *serves), READY_S)
    if enrolled:
        document = documents.host_workload(spec, ips, str(path.relative_to(cgroups.mount())))
        cluster.apply(f"host-{spec.namespace}-{spec.name}", document)
        wait_until(f"{spec.name} is in the mesh", lambda: is_in_mesh(cluster, pod), READY_S)
    return pod


def populate(cluster: Cluster, number: int) -> None:
    """`web-1`… spread over the nodes, and a service for them. On failure nothing of the lab is left."""
    try:
        if number:
            cluster.add_service("web", {80: apps.HTTP_PORT, apps.ECHO_PORT: apps.ECHO_PORT})
        for each in range(1, number + 1):
            add(cluster, PodSpec(f"web-{each}", cluster.nodes[(each - 1) % len(cluster.nodes)], app="web"))
    except BaseException:
        cluster.down()
        raise


def remove(cluster: Cluster, pod: Pod) -> None:
    """Out of the mesh, then ended, then gone."""
    cluster.remove(f"host-{pod.namespace}-{pod.name}")
    wait_until(f"{pod.name} has left", lambda: state(cluster, pod) == "", READY_S)
    space = cluster.layout.node_netns(pod.node)
    group = cgroups.of(f"{space}/{pod.group}")
    (group / "cgroup.kill").write_text("1")
    wait_until(f"{pod.name} has ended", lambda: not (group / "cgroup.procs").read_text(), READY_S)
    cgroups.delete(f"{space}/{pod.group}")
    netns.batch(space, [f"addr del {ip}/{32 if '.' in ip else 128} dev eth0" for ip in pod.ips])
    cluster.forget(pod)


def state(cluster: Cluster, pod: Pod) -> str:
    """As the node's agent has it; "": it does not know it."""
    listed = cluster.ask(f"nodeagent-{pod.node}", "/status").get("host_workloads", [])
    return str(next((each["state"] for each in listed if each["uid"] == pod.uid), ""))


def is_in_mesh(cluster: Cluster, pod: Pod) -> bool:
    known = cluster.ask(f"ztunnel-{pod.node}", "/config_dump")["workloadState"]
    return state(cluster, pod) == "IN_MESH" and pod.uid in known
