"""daemonset.yaml and controlplane.yaml against what the daemons really read, open, listen on and ask for."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from controlplane.conditions import KINDS
from controlplane.roots import KEY, NAME
from controlplane.settings import load
from controlplane.sources.kinds import SECRETS, followed
from controlplane.sources.objects import called
from kube.access import Access
from nodeagent.cluster.taint import ISTIO, OURS
from nodeagent.settings import Settings as AgentSettings
from tools import crds
from ztunnel.settings import Settings as TunnelSettings

ROOT = Path(__file__).parent.parent.parent
DOCUMENTS = [
    each for name in ("controlplane.yaml", "daemonset.yaml") for each in yaml.safe_load_all((ROOT / name).read_text())
]
ARCHITECTURE = (ROOT / "ARCHITECTURE.md").read_text()
WORKLOADS = [each for each in DOCUMENTS if each["kind"] in ("DaemonSet", "Deployment")]
PODS = {each["metadata"]["name"]: each["spec"]["template"] for each in WORKLOADS}
CONTAINERS = {
    each["name"]: (each, template["spec"])
    for template in PODS.values()
    for each in (*template["spec"].get("initContainers", ()), *template["spec"]["containers"])
}
DAEMONS = ("nodeagent", "ztunnel", "controlplane")
VERBS = {"get", "list", "watch", "create", "update", "patch", "delete", "deletecollection"}


def find(kind, name):
    return next(each for each in DOCUMENTS if (each["kind"], each["metadata"]["name"]) == (kind, name))


def variables(container):
    """As the kubelet would set them: a field's value is a made-up word."""
    given = {each["name"]: each.get("value", "node-1") for each in CONTAINERS[container][0].get("env", ())}
    return {**given, "KUBERNETES_SERVICE_HOST": "10.96.0.1", "KUBERNETES_SERVICE_PORT": "443"}


def test_every_document_has_a_header_and_a_name_of_its_own():
    names = [(each["kind"], each["metadata"].get("namespace"), each["metadata"]["name"]) for each in DOCUMENTS]
    assert len(names) == len(set(names))
    for each in DOCUMENTS:
        assert re.fullmatch(r"([a-z.0-9]+/)?v1", each["apiVersion"])
        assert each["metadata"].get("namespace", "nodemesh-system") == "nodemesh-system"


def test_the_api_server_is_told_of_the_kinds_that_are_ours():
    assert (ROOT / "deploy/crds.yaml").read_text() == crds.definitions()
    specs = [each["spec"] for each in yaml.safe_load_all(crds.definitions())]
    known = {(each["group"], each["names"]["plural"]) for each in specs}
    followed_ = {(each.group, each.plural) for versions in followed() for each in versions if "nodemesh" in each.group}
    assert followed_ == known


@pytest.mark.parametrize("daemon", DAEMONS)
def test_every_variable_is_a_setting_and_its_value_is_taken(daemon):
    given = variables(daemon)
    for name in given:
        assert f"`{name}`" in ARCHITECTURE, f"{name} is no setting"
    {"nodeagent": AgentSettings.read, "ztunnel": TunnelSettings.read, "controlplane": load}[daemon](given)


def test_daemons_meet_where_they_expect_each_other():
    agent, tunnel = AgentSettings.read(variables("nodeagent")), variables("ztunnel")
    assert str(agent.zds_socket) == tunnel["INPOD_UDS"]
    install = CONTAINERS["install"][0]["command"]
    assert install[install.index("--agent-socket") + 1] == str(agent.plugin_socket)
    kept = CONTAINERS["keep-installed"][0]["command"]
    assert [word for word in kept if word != "watch"] == [word for word in install if word != "install"]
    assert str(agent.admin_socket) in CONTAINERS["nodeagent"][0]["readinessProbe"]["exec"]["command"]
    assert isinstance(agent.api, Access)


def test_the_tunnel_finds_the_control_plane_its_roots_and_its_token():
    tunnel, control = variables("ztunnel"), load(variables("controlplane"))
    service = find("Service", "controlplane")
    host = f"{service['metadata']['name']}.{service['metadata']['namespace']}.svc"
    assert tunnel["XDS_ADDRESS"] == tunnel["CA_ADDRESS"] == f"https://{host}:{service['spec']['ports'][0]['port']}"
    assert host in control.sans
    assert service["spec"]["ports"][0]["targetPort"] == control.address[1] == 15012
    assert service["spec"]["selector"].items() <= PODS["controlplane"]["metadata"]["labels"].items()
    account = find("ServiceAccount", "ztunnel")["metadata"]
    assert control.kubernetes.tunnel_accounts == (f"{account['namespace']}/{account['name']}",)
    volumes = {each["name"]: each for each in CONTAINERS["ztunnel"][1]["volumes"]}
    (token,) = volumes["token"]["projected"]["sources"]
    assert token["serviceAccountToken"]["audience"] == control.kubernetes.audience
    assert volumes["roots"]["configMap"]["name"] == find("ConfigMap", NAME)["metadata"]["name"]
    mounts = {each["mountPath"]: each["name"] for each in CONTAINERS["ztunnel"][0]["volumeMounts"]}
    for path, volume, file in (
        (tunnel["XDS_ROOT_CA"], "roots", KEY),
        (tunnel["AUTH_TOKEN"], "token", token["serviceAccountToken"]["path"]),
    ):
        assert mounts[str(Path(path).parent)] == volume
        assert Path(path).name == file


@pytest.mark.parametrize("container", CONTAINERS)
def test_every_mount_has_a_volume_and_every_written_path_a_mount(container):
    about, pod = CONTAINERS[container]
    volumes = {each["name"] for each in pod["volumes"]}
    mounts = {each["mountPath"]: each for each in about["volumeMounts"]}
    assert {each["name"] for each in mounts.values()} <= volumes
    assert about["securityContext"]["readOnlyRootFilesystem"]
    for name, value in variables(container).items():
        if name.endswith("_DIR") or name in ("ZDS_SOCKET", "INPOD_UDS"):
            parents = [str(each) for each in (Path(value), *Path(value).parents)]
            mount = next((mounts[each] for each in parents if each in mounts), None)
            assert mount is not None, f"{name}: nothing is mounted at {value}"
            assert not mount.get("readOnly"), f"{name}: {value} cannot be written"


def test_every_volume_is_used():
    for template in PODS.values():
        spec = template["spec"]
        containers = (*spec.get("initContainers", ()), *spec["containers"])
        used = {mount["name"] for each in containers for mount in each["volumeMounts"]}
        assert used == {each["name"] for each in spec["volumes"]}


def test_privileges_are_those_of_the_systemd_units():
    """Which were measured; in a container the tunnel's socket is root's, and the tunnel is root."""
    for container, unit, more, less in (
        ("nodeagent", "nodeagent", set(), {"CHOWN"}),
        ("ztunnel", "ztunnel", {"NET_ADMIN"}, set()),
    ):
        text = (ROOT / f"deploy/systemd/nodemesh-{unit}.service").read_text()
        measured = {each.removeprefix("CAP_") for each in re.search(r"CapabilityBoundingSet=(.*)", text)[1].split()}
        capabilities = CONTAINERS[container][0]["securityContext"]["capabilities"]
        assert capabilities["drop"] == ["ALL"]
        assert set(capabilities["add"]) == (measured | more) - less


def test_the_agents_view_of_sysctls_is_made_writable_as_a_shell_understands_it():
    """With what the container has: a mount of its own that is read-only, and these capabilities."""
    about = CONTAINERS["nodeagent"][0]
    *_, script = about["command"]
    assert script.endswith("exec nodeagent run")
    assert subprocess.run(["sh", "-n", "-c", script], check=True).returncode == 0
    assert "SYS_ADMIN" in about["securityContext"]["capabilities"]["add"]


def test_nobody_is_privileged_and_the_control_plane_is_restricted():
    for about, _ in CONTAINERS.values():
        assert not about["securityContext"].get("privileged")
    about, pod = CONTAINERS["controlplane"]
    assert about["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert about["securityContext"]["allowPrivilegeEscalation"] is False
    assert pod["securityContext"]["runAsNonRoot"]
    assert not any("hostPath" in each for each in pod["volumes"])
    assert not pod.get("hostNetwork")


def test_nodes_daemons_go_everywhere_first_and_stay():
    for name in ("nodemesh-node", "ztunnel"):
        spec = PODS[name]["spec"]
        assert spec["priorityClassName"] == "system-node-critical"
        assert spec["tolerations"] == [{"operator": "Exists"}]
        strategy = next(each for each in WORKLOADS if each["metadata"]["name"] == name)["spec"]["updateStrategy"]
        assert strategy == {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1, "maxSurge": 0}}


def test_the_control_plane_does_not_wait_for_nodes_that_wait_for_it():
    keys = {each["key"] for each in PODS["controlplane"]["spec"]["tolerations"]}
    assert {ISTIO, OURS} <= keys


def test_the_mesh_is_not_in_the_mesh():
    for template in PODS.values():
        assert template["metadata"]["labels"]["istio.io/dataplane-mode"] == "none"
    assert PODS["ztunnel"]["metadata"]["labels"]["app"] == "ztunnel"


@pytest.mark.parametrize("daemon", DAEMONS)
def test_probes_ask_what_is_answered(daemon):
    about = CONTAINERS[daemon][0]
    for kind in ("readinessProbe", "startupProbe"):
        probe = about[kind]
        port = probe.get("httpGet", probe.get("tcpSocket", {})).get("port")
        assert port in {None, *(each["containerPort"] for each in about.get("ports", ()))}
    assert "livenessProbe" not in about, "what it would kill is what pods wait for"


def rules(account):
    """(verb, group, resource) that an account may."""
    found = set()
    for binding in DOCUMENTS:
        if binding["kind"] in ("ClusterRoleBinding", "RoleBinding"):
            assert binding["subjects"][0]["namespace"] == "nodemesh-system"
            if binding["subjects"][0]["name"] == account:
                for rule in find(binding["roleRef"]["kind"], binding["roleRef"]["name"])["rules"]:
                    found |= {(v, g, r) for v in rule["verbs"] for g in rule["apiGroups"] for r in rule["resources"]}
    return found


def test_no_role_has_more_verbs_than_it_says_nor_secrets():
    for account in ("nodemesh-node", "controlplane", "ztunnel"):
        for verb, _, resource in rules(account):
            assert verb in VERBS - {"update", "delete", "deletecollection"}
            assert resource != "secrets"
            if verb in ("create", "patch"):
                assert resource in ("events", "nodes", "configmaps", "tokenreviews") or resource.endswith("/status")
    assert rules("ztunnel") == set()


def test_what_the_control_plane_follows_it_may_read():
    given = rules("controlplane")
    for versions in followed():
        for kind in versions:
            for verb in ("list", "watch"):
                assert {(verb, kind.group, kind.plural), (verb, kind.group, "*")} & given, f"{verb} {kind.plural}"
    assert ("list", "", SECRETS.plural) not in given, "NODEMESH_READ_SECRETS is off"
    (role,) = (each for each in DOCUMENTS if each["kind"] == "Role")
    assert role["rules"][0]["resourceNames"] == [NAME]


def test_of_what_the_control_plane_judges_it_may_write_the_status():
    """Or its 403 is repeated for ever. Routes have their parents', a BackendTLSPolicy its ancestors' status."""
    given = rules("controlplane")
    for versions in followed():
        kind = versions[0]
        if called(kind) in KINDS - {"BackendTLSPolicy"}:
            assert ("patch", kind.group, f"{kind.plural}/status") in given, kind.plural


def test_the_images_files_are_those_that_the_manifests_name():
    text = (ROOT / "deploy/Containerfile").read_text()
    install = CONTAINERS["install"][0]["command"]
    assert install[install.index("--binary") + 1] in text
    assert "curl" in text
