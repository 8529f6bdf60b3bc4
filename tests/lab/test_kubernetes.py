"""Agents and control plane on a Kubernetes API, with the manifests' roles: the stand-in, a process of its own.

With NODEMESH_REAL_KUBERNETES (docs/kubernetes.md) the real one.
"""

import os
import signal
import subprocess

import pytest
import yaml

from lab import daemons, documents
from lab.apps import HTTP_PORT
from lab.documents import PodSpec
from lab.kubernetes import NAMESPACE, KubernetesCluster
from lab.layout import Layout
from lab.needs import REPOSITORY
from lab.processes import wait_until
from lab.real import WHERE, RealCluster
from lab.runtime import CniRefused
from lab.watchdog import guarded

pytestmark = pytest.mark.lab

SOON_S = 60.0
GROUP = "security.istio.io/v1"
REAL = WHERE in os.environ


@pytest.fixture(scope="module")
def mesh():
    """`web-1` on node1, `web-2` on node2; nothing in the configuration's directory."""
    with guarded(Layout(f"k{os.getpid()}")) as layout:
        yield (RealCluster if REAL else KubernetesCluster).up(layout.name, nodes=2, pods=2)


def until(what, ready):
    """The seconds that it took."""
    return wait_until(what, ready, SOON_S)


def hbone(mesh, node, pod):
    """Whether node's tunnel would reach the pod by HBONE."""
    for each in mesh.ask(f"ztunnel-{node}", "/config_dump")["workloads"]:
        if each["uid"] == pod.uid:
            return each["protocol"] == "HBONE"
    return False


def condition(mesh, policy):
    """The first one that the policy's status has."""
    found = mesh.api.find("AuthorizationPolicy", "shop", policy, GROUP) or {}
    return found.get("status", {}).get("conditions", [{}])[0]


def taints(mesh, node):
    return [each["key"] for each in mesh.api.find("Node", "", node)["spec"].get("taints", [])]


def kill_api(mesh):
    mesh.api_process.signal(signal.SIGKILL)
    assert mesh.api_process.wait(SOON_S)


def trouble(mesh, daemon):
    return mesh.ask(daemon, "/status")["kubernetes"]["trouble"]


def test_pods_join_are_marked_and_speak_by_identity(mesh, web):
    for pod in web:
        until(f"{pod.name} is marked", lambda pod=pod: mesh.annotation("shop", pod.name) == "enabled")
        until("the other node knows", lambda pod=pod: hbone(mesh, "node1", pod) and hbone(mesh, "node2", pod))
    assert mesh.http(web[0], web[1].at(HTTP_PORT)).endswith("web-2")
    assert mesh.http(web[0], mesh.vip("web")).split()[-1] in ("web-1", "web-2")
    assert list(mesh.layout.config.iterdir()) == []


def test_tunnels_are_known_by_their_service_accounts(mesh):
    status = mesh.ask("controlplane", "/status")
    assert [each["node"] for each in status["nodes"]] == ["node1", "node2"]
    assert not (daemons.state_dir(mesh.layout, daemons.CONTROL) / "tokens").exists()
    if not REAL:
        asked = mesh.api.ask("GET", "/status")["asked"]
        reviewed = "system:serviceaccount:nodemesh-system:controlplane POST /apis/authentication"
        assert any(each.startswith(reviewed) for each in asked)


def test_the_roots_are_where_the_tunnels_mount_them(mesh):
    found = mesh.api.find("ConfigMap", NAMESPACE, "nodemesh-ca-root-cert")
    assert found["data"]["root-cert.pem"] == daemons.root_certificate(mesh.layout).read_text()


def test_the_nodes_have_lost_their_taint(mesh):
    """And kept the one that is the cluster's business: no kubelet says here that the node is ready."""
    for node in mesh.nodes:
        until("the taint is gone", lambda node=node: taints(mesh, node) == ["node.kubernetes.io/not-ready"])


def test_the_manifests_give_every_right_that_is_used(mesh):
    """The stand-in refuses what no role allows; the daemons would say so."""
    for name in mesh.daemons:
        log = mesh.layout.log(name).read_text()
        assert "says 403" not in log, name


def test_a_policy_in_the_api_takes_effect_and_its_condition_says_so(mesh, web, record_property):
    policy = documents.deny_from("shop", "not-web-1", "web", "cluster.local/ns/shop/sa/web-1")
    mesh.apply("policy", policy)
    try:
        took_s = until("web-1 is refused", lambda: not mesh.reaches(*web))
        record_property("policy_to_refusal_s", round(took_s, 3))
        print(f"from the API to a refused connection: {took_s * 1000:.0f} ms")
        until("the policy says so", lambda: condition(mesh, "not-web-1"))
        found = condition(mesh, "not-web-1")
        assert (found["type"], found["status"], found["observedGeneration"]) == ("ZtunnelAccepted", "True", 1)
    finally:
        mesh.remove("policy")
    until("web-1 is let in again", lambda: mesh.reaches(*web))


def test_a_policy_that_is_not_understood_says_why_and_the_last_good_one_stays(mesh, web):
    good = documents.deny_from("shop", "not-web-1", "web", "cluster.local/ns/shop/sa/web-1")
    mesh.apply("policy", good)
    try:
        until("web-1 is refused", lambda: not mesh.reaches(*web))
        # A mistake that the API server itself does not see.
        rules = [{"from": [{"source": {"ipBlocks": ["10.0.0.0/33"]}}]}]
        mesh.apply("policy", {**good, "spec": {**good["spec"], "rules": rules}})
        until("the policy says so", lambda: condition(mesh, "not-web-1").get("reason") == "Invalid")
        told = condition(mesh, "not-web-1")["message"]
        assert told.startswith("spec.rules[0].from[0].source.ipBlocks[0]: '10.0.0.0/33' is neither an IP address")
        assert not mesh.reaches(*web)
    finally:
        mesh.remove("policy")
    until("web-1 is let in again", lambda: mesh.reaches(*web))


EDGE = {"name": "web", "port": 80, "protocol": "HTTP"}


def gateway_api(kind, name, spec, namespace="shop"):
    about = {"name": name, "namespace": namespace} if namespace else {"name": name}
    return {"apiVersion": "gateway.networking.k8s.io/v1", "kind": kind, "metadata": about, "spec": spec}


@pytest.mark.skipif(REAL, reason="a real cluster need not have the Gateway API's kinds")
def test_gateways_and_routes_say_what_became_of_them_and_others_gateways_are_left_alone(mesh):
    def status(kind, name, namespace="shop"):
        found = mesh.api.find(kind, namespace, name, "gateway.networking.k8s.io/v1") or {}
        return found.get("status", {})

    def attached():
        return [each["attachedRoutes"] for each in status("Gateway", "edge").get("listeners", ())]

    parents = [{"name": "edge"}, {"name": "foreign"}]
    backends = [{"backendRefs": [{"name": "nowhere", "port": 80}]}]
    documents = {
        "class": gateway_api("GatewayClass", "theirs", {"controllerName": "example.com/theirs"}, ""),
        "mine": gateway_api("GatewayClass", "mine", {"controllerName": "nodemesh.io/controlplane"}, ""),
        "foreign": gateway_api("Gateway", "foreign", {"gatewayClassName": "theirs", "listeners": [EDGE]}),
        "edge": gateway_api("Gateway", "edge", {"gatewayClassName": "mine", "listeners": [EDGE]}),
        "route": gateway_api("HTTPRoute", "calls", {"parentRefs": parents, "rules": backends}),
    }
    try:
        for name, document in documents.items():
            mesh.apply(name, document)
        until("the route is counted", lambda: attached() == [1])
        until("the route was told", lambda: status("HTTPRoute", "calls"))
        [told] = status("HTTPRoute", "calls")["parents"]
        assert told["parentRef"] == {"name": "edge"}
        said = {each["type"]: (each["status"], each["reason"]) for each in told["conditions"]}
        assert said == {"Accepted": ("True", "Accepted"), "ResolvedRefs": ("False", "BackendNotFound")}
        [listener] = status("Gateway", "edge")["listeners"]
        said = {each["type"]: each["status"] for each in listener["conditions"]}
        assert said == {"Accepted": "True", "ResolvedRefs": "True", "Programmed": "True", "Conflicted": "False"}
        until("the class is accepted", lambda: status("GatewayClass", "mine", ""))
        mesh.remove("route")
        until("no route is counted", lambda: attached() == [0])
        assert status("Gateway", "foreign") == status("GatewayClass", "theirs", "") == {}
    finally:
        for name in reversed(documents):
            mesh.remove(name)


def test_a_label_takes_a_running_pod_out_and_brings_it_back(mesh, web):
    pytest.importorskip("nodeagent.enrol.keeper", reason="running pods neither join nor leave without it")
    _, second = web
    until("it is in", lambda: mesh.annotation("shop", "web-2") == "enabled")
    mesh.set_labels("shop", "web-2", documents.OUT_OF_MESH)
    until("the mark goes", lambda: mesh.annotation("shop", "web-2") is None)
    assert mesh.reaches(*web), "while it is still captured"
    until("it is out", lambda: second.uid not in [each["uid"] for each in mesh.ask("nodeagent-node2", "/pods")])
    assert mesh.reaches(*web), "in the clear"
    mesh.set_labels("shop", "web-2", {"istio.io/dataplane-mode": None})
    until("it is marked again", lambda: mesh.annotation("shop", "web-2") == "enabled")
    until("the other node knows", lambda: hbone(mesh, "node1", second))
    assert mesh.reaches(*web)


def test_without_the_api_everything_goes_on_and_new_pods_wait(mesh, web):
    policy = documents.deny_from("shop", "not-plain", "web", "cluster.local/ns/shop/sa/nobody")
    mesh.apply("policy", policy)
    until("the policy is known", lambda: condition(mesh, "not-plain"))
    kill_api(mesh)
    until("the agent notices", lambda: trouble(mesh, "nodeagent-node1"))
    until("the control plane notices", lambda: trouble(mesh, "controlplane"))
    assert mesh.reaches(*web)
    with pytest.raises(CniRefused) as refused:
        _add_in_vain(mesh)
    assert refused.value.code == 11
    assert "is not known yet: GET /api/v1/namespaces/shop/pods/late" in refused.value.msg

    # Neither an agent nor the control plane needs it to start again.
    daemons.stop(mesh.daemons["nodeagent-node1"])
    mesh.start_agent("node1")
    daemons.stop(mesh.daemons["controlplane"])
    mesh.start_controlplane()
    assert mesh.ask("controlplane", "/status")["kubernetes"]["from_disk"]
    assert "shop/not-plain" in str(mesh.ask("controlplane", "/resources"))
    assert mesh.reaches(*web)

    # It comes back another: what happened meanwhile, nobody can tell, so everything is listed again.
    mesh.lose(policy)
    mesh.start_api()
    until("the agent is in step", lambda: not trouble(mesh, "nodeagent-node1"))
    until("the control plane is in step", lambda: not mesh.ask("controlplane", "/status")["kubernetes"]["from_disk"])
    until("the policy is gone", lambda: "shop/not-plain" not in str(mesh.ask("controlplane", "/resources")))
    mesh._applied.pop("policy")
    late = mesh.add_pod(PodSpec("late", "node1", app="web"))
    until("it is marked", lambda: mesh.annotation("shop", "late") == "enabled")
    assert mesh.reaches(late, web[1])
    mesh.delete_pod("late")


def _add_in_vain(mesh):
    """What a kubelet with an older view would do: the API cannot be told of the pod."""
    from lab import netns
    from lab.runtime import Runtime, Sandbox

    space = mesh.layout.pod_netns("shop", "late")
    netns.create(space)
    try:
        Runtime(mesh.layout, "node1").add(Sandbox("f" * 32, space, "shop", "late", "no-such-uid"))
    finally:
        netns.delete(space)


def test_the_agents_container_may_set_pods_sysctls():
    """Its command, up to the agent, with its capabilities, in a mount namespace like a container's."""
    manifest = yaml.safe_load_all((REPOSITORY / "daemonset.yaml").read_text())
    pod = next(each for each in manifest if each["kind"] == "DaemonSet")["spec"]["template"]["spec"]
    agent = next(each for each in pod["containers"] if each["name"] == "nodeagent")
    bounding = ",".join(["-all", *(f"+{each.lower()}" for each in agent["securityContext"]["capabilities"]["add"])])
    script = agent["command"][-1].replace("exec nodeagent run", "echo 1 > /proc/sys/net/ipv4/tcp_fwmark_accept")
    inside = ["setpriv", f"--bounding-set={bounding}", "sh", "-ec", script]
    container = (
        'mount --make-rprivate /; mount --bind /proc/sys /proc/sys; mount -o remount,bind,ro /proc/sys; exec "$@"'
    )
    done = subprocess.run(
        ["unshare", "-n", "-m", "sh", "-ec", container, "sh", *inside], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
