"""The kubelet's probes come in as plaintext under STRICT, with or without a tunnel; nobody else's plaintext does."""

import json
import shutil
import subprocess
from contextlib import contextmanager

import pytest

from lab import cgroups, daemons, documents, netns, processes
from lab.apps import ECHO_PORT, HTTP_PORT
from lab.documents import PodSpec
from lab.processes import wait_until
from nodeagent.redirect.plan import PROBE_SOURCES
from tests.lab import scripts

pytestmark = pytest.mark.lab

SOON_S = 30.0
KUBELET, AGENT, TUNNEL = daemons.KUBELET, "nodeagent-node1", "ztunnel-node1"
SOURCES = dict(zip((4, 6), PROBE_SOURCES, strict=True))
TCP = "connection.sendall(b'probe'); print(connection.recv(5), flush=True)"


@pytest.fixture(scope="module")
def strict(mesh):
    """`probed`: a pod of its own, for which STRICT is in force."""
    probed = mesh.add_pod(PodSpec("probed", "node1", app="probed"))
    mesh.apply("probed-strict", documents.peer_authentication("shop", "STRICT", "probed"))
    wait_until("STRICT is in force", lambda: not mesh.reaches(mesh.pods["plain-1"], probed), SOON_S)
    yield probed
    mesh.remove("probed-strict")
    mesh.delete_pod("probed")


def asked(command, pod, version, *options, patience_s=5):
    """HTTP status; 0: no answer."""
    curl = ["curl", "-s", "-g", "-o", "/dev/null", "-w", "%{http_code}", "--max-time", str(patience_s), *options]
    done = subprocess.run(
        [*command, *curl, f"http://{pod.at(HTTP_PORT, version)}/"], capture_output=True, text=True, timeout=60
    )
    return int(done.stdout)


def in_host(mesh, node="node1", group=""):
    return netns.inside(mesh.layout.node_netns(node), group)


def passes(mesh, pod, version):
    return asked(in_host(mesh, group=KUBELET), pod, version) == 200


def test_a_probe_of_the_kubelet_passes(mesh, strict, version):
    assert passes(mesh, strict, version)
    tcp = scripts.client(strict.address(version), ECHO_PORT, TCP)
    done = subprocess.run([*in_host(mesh, group=KUBELET), *tcp], capture_output=True, text=True, timeout=60)
    assert done.stdout == "b'probe'\n"


def test_what_else_runs_on_the_node_is_no_kubelet(mesh, strict, version):
    """So neither is what the node masquerades or forwards to the pod under its own address."""
    assert asked(in_host(mesh), strict, version) == 0


def test_to_whoever_is_not_probed_the_kubelet_comes_as_itself(mesh, strict, version):
    """From another node, under the same policy; and to a pod that is not in the mesh."""
    assert asked(in_host(mesh, "node2", KUBELET), strict, version) == 0
    assert asked(in_host(mesh, group=KUBELET), mesh.pods["plain-1"], version) == 200


@pytest.mark.parametrize("who", ["a pod of the node", "a pod of another node", "another node"])
def test_nobody_forges_the_address_of_probes(mesh, strict, version, who):
    """With all that a forger could wish for: the address is his, on his own interface."""
    source = SOURCES[version]
    pod = {"a pod of the node": "plain-1", "a pod of another node": "plain-2"}.get(who)
    space = mesh.pods[pod].netns if pod else mesh.layout.node_netns("node2")
    command = netns.inside(space)
    if pod:
        netns.run("ip", "-n", space, "addr", "add", source, "dev", "lo", *(["nodad"] if version == 6 else []))
    try:
        assert asked(command, strict, version, "--interface", f"host!{source}", patience_s=2) == 0
    finally:
        if pod:
            netns.run("ip", "-n", space, "addr", "del", f"{source}/{32 if version == 4 else 128}", "dev", "lo")
    assert passes(mesh, strict, version)


def test_probes_need_neither_tunnel_nor_agent(mesh, strict, version):
    try:
        mesh.daemons[TUNNEL].kill()
        mesh.daemons[AGENT].kill()
        assert passes(mesh, strict, version)
        assert not mesh.reaches(mesh.pods["plain-1"], strict, version)
    finally:
        mesh.start_agent("node1")
        mesh.start_tunnel("node1")


def test_a_kubelet_that_comes_back_in_a_new_group_is_known_again(mesh, strict, version):
    """A service manager removes the group with the service and makes another of the same name."""
    space = f"{mesh.layout.node_netns('node1')}/{KUBELET}"
    cgroups.delete(space)
    cgroups.create(space)
    wait_until("its probes pass", lambda: passes(mesh, strict, version), SOON_S, step_s=0.1)


@contextmanager
def agent_with(mesh, settings):
    """node1's, for as long as this lasts."""
    path = daemons.more_settings(mesh.layout, "node1")
    daemons.stop(mesh.daemons[AGENT])
    try:
        path.write_text(json.dumps(settings))
        mesh.start_agent("node1")
        yield
    finally:
        path.unlink()
        mesh.daemons[AGENT].kill()
        mesh.start_agent("node1")


def said_of_probes(mesh):
    return mesh.ask(AGENT, "/status")["capture"]["probes"]


def test_the_setting_takes_it_all_out(mesh, strict):
    """Also what an earlier agent put in."""

    def on_lo():
        done = subprocess.run([*in_host(mesh), "ip", "addr", "show", "dev", "lo"], capture_output=True, text=True)
        return [source for source in PROBE_SOURCES if source in done.stdout]

    assert on_lo() == list(PROBE_SOURCES)
    with agent_with(mesh, {"NODEMESH_EXEMPT_PROBES": "false"}):
        assert (said_of_probes(mesh), on_lo()) == ("off", [])
        assert not passes(mesh, strict, 4)
    wait_until("probes pass again", lambda: passes(mesh, strict, 4), SOON_S, step_s=0.1)
    assert (said_of_probes(mesh), on_lo()) == ("pass", list(PROBE_SOURCES))


def test_the_kubelet_is_found_by_its_process(mesh, strict, tmp_path):
    """Beside processes of that name in other namespaces, as in pods."""
    program = tmp_path / "kubelet"
    program.symlink_to(shutil.which("sleep"))
    space = mesh.layout.node_netns("node1")
    started = [processes.start(mesh.layout, "no-kubelet", mesh.pods["plain-1"].netns, [str(program), "600"])]
    try:
        with agent_with(mesh, {"NODEMESH_KUBELET_GROUP": ""}):
            assert said_of_probes(mesh) == "no kubelet runs here"
            started.append(processes.start(mesh.layout, "kubelet", space, [str(program), "600"], group="found"))
            found = in_host(mesh, group="found")
            wait_until("its probes pass", lambda: asked(found, strict, 4) == 200, SOON_S, step_s=0.1)
            assert not passes(mesh, strict, 4), "the one that was, no longer"
    finally:
        for process in started:
            process.kill()
        cgroups.delete(f"{space}/found")
    wait_until("they pass by the group's name", lambda: passes(mesh, strict, 4), SOON_S, step_s=0.1)
