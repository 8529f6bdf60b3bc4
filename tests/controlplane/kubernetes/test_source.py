"""The cluster as a source of configuration: nothing before all of it, then every change, and a copy for bad days."""

import asyncio

import pytest

from controlplane.cluster import Cluster
from controlplane.objects import Mesh
from controlplane.settings import load
from controlplane.sources.kinds import followed
from controlplane.sources.kubernetes import KubernetesSource
from controlplane.sources.objects import parsed
from controlplane.sources.saved import Saved
from controlplane.store import Store
from kube.objects import PODS, Metadata, Pod
from mesh.membership import MODE_LABEL
from tests.kube import cluster
from tests.kube.cluster import BY_PATH, play, pod, running, until

AMBIENT = {MODE_LABEL: "ambient"}
ENABLED = {"ambient.istio.io/redirection": "enabled"}
WEB = "Kubernetes//Pod/shop/web"
DENY = {"metadata": {"name": "deny"}, "spec": {"action": "DENY", "rules": [{}]}}
SERVER = {"port": {"number": 80, "name": "http", "protocol": "HTTP"}, "hosts": ["*"]}
VERSIONS = [version for versions in followed() for version in versions]


class Control:
    """A source with a store behind it, as `main` has them."""

    def __init__(self, api, directory):
        self.store = Store(Mesh(marked=True))
        self.saved = Saved(directory / "state", VERSIONS)
        self.source = KubernetesSource(api.connect(), followed(), self.saved, self.store.judge)

    async def begin(self, **how):
        self.store.update(await self.source.first(**how))

    async def follow(self):
        async for news in self.source.changes():
            self.store.update(*news)

    @property
    def web(self):
        return self.store.world.workloads.get(WEB)


def shop(api):
    api.create(cluster.NAMESPACES, "", {"metadata": {"name": "shop", "labels": AMBIENT}})
    api.create(cluster.PODS, "shop", pod("web", metadata={"annotations": ENABLED}))
    status = {"phase": "Running", "podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}]}
    api.set_status(cluster.PODS, "shop", "web", status)
    api.create(cluster.POLICIES, "shop", dict(DENY))


def follows(story, directory):
    async def main(api):
        shop(api)
        control = Control(api, directory)
        async with running(control.source.run()):
            await control.begin()
            async with running(control.follow()):
                await story(api, control)

    play(directory, main)


def test_the_first_state_is_the_whole_cluster(tmp_path):
    async def story(api, control):
        assert (control.web.hbone, [str(ip) for ip in control.web.addresses]) == (True, ["10.0.0.1"])
        assert "shop/deny" in control.store.world.policies
        assert control.store.counts == {"AuthorizationPolicy": 1, "Namespace": 1, "Pod": 1}
        assert control.source.describe() == {"synced": True, "from_disk": False, "trouble": {}}

    follows(story, tmp_path)


def test_nothing_is_said_before_everything_is_listed(tmp_path):
    """Without the right to read policies there is no world without them."""

    async def main(api):
        shop(api)
        rule = {"apiGroups": ["*"], "resources": sorted({each.plural for each in VERSIONS}), "verbs": ["*"]}
        rule["resources"].remove("authorizationpolicies")
        api.create(
            BY_PATH["rbac.authorization.k8s.io", "v1", "clusterroles"], "", {"metadata": {"name": "r"}, "rules": [rule]}
        )
        subject = {"kind": "ServiceAccount", "namespace": "mesh", "name": "agent"}
        binding = {"metadata": {"name": "r"}, "roleRef": {"kind": "ClusterRole", "name": "r"}, "subjects": [subject]}
        api.create(BY_PATH["rbac.authorization.k8s.io", "v1", "clusterrolebindings"], "", binding)
        control = Control(api, tmp_path)
        async with running(control.source.run()):
            first = asyncio.ensure_future(control.begin())
            await until(lambda: set(control.source.describe()["trouble"]) == {"AuthorizationPolicy"})
            assert not first.done()
            rule["resources"].append("authorizationpolicies")
            await first
            assert "shop/deny" in control.store.world.policies

    play(tmp_path, main, rbac=True)


def test_changes_reach_the_world(tmp_path):
    async def story(api, control):
        api.change(cluster.PODS, "shop", "web", labels={"app": "web"}, annotations=ENABLED)
        await until(lambda: control.web.labels == {"app": "web"})
        api.delete(cluster.POLICIES, "shop", "deny")
        await until(lambda: "shop/deny" not in control.store.world.policies)
        api.delete(cluster.PODS, "shop", "web")
        await until(lambda: control.web is None)

    follows(story, tmp_path)


def test_a_pod_is_reached_by_hbone_only_while_its_agent_says_that_it_is_captured(tmp_path):
    async def story(api, control):
        account = ("node-1", "shop", "default")
        api.change(cluster.PODS, "shop", "web", annotations={})
        await until(lambda: not control.web.hbone)
        assert account in control.store.world.joining, "its tunnel gets certificates already"
        api.change(cluster.PODS, "shop", "web", annotations=ENABLED)
        await until(lambda: control.web.hbone)
        assert not control.store.world.joining
        api.change(cluster.NAMESPACES, "", "shop", labels={})
        await until(lambda: not control.web.hbone)
        assert not control.store.world.joining

    follows(story, tmp_path)


def test_an_object_that_cannot_be_read_keeps_its_last_good_state_and_is_named(tmp_path):
    async def story(api, control):
        item = api.store.get(cluster.POLICIES, "shop", "deny")
        before = control.store.world.policies["shop/deny"]
        api.store.replace(cluster.POLICIES, "shop", {**item, "spec": {"action": "DENI"}})
        api.server.wake()
        await until(lambda: control.store.findings)
        (finding,) = control.store.findings
        assert str(finding).startswith("AuthorizationPolicy shop/deny: error: spec.action")
        assert control.store.world.policies["shop/deny"] == before
        (told,) = control.store.conditions()
        assert told["conditions"][0]["message"].startswith("spec.action: 'DENI' is not one of")

    follows(story, tmp_path)


def test_the_two_kinds_of_gateway_do_not_stand_in_each_others_way(tmp_path):
    async def story(api, control):
        istio, gateway = (
            BY_PATH[group, "v1", "gateways"] for group in ("networking.istio.io", "gateway.networking.k8s.io")
        )
        api.create(istio, "shop", {"metadata": {"name": "g"}, "spec": {"servers": [SERVER]}})
        spec = {
            "gatewayClassName": "istio-waypoint",
            "listeners": [{"name": "mesh", "port": 15008, "protocol": "HBONE"}],
        }
        api.create(gateway, "shop", {"metadata": {"name": "g"}, "spec": spec})
        await until(lambda: {"Gateway", "Gateway.networking.istio.io"} <= control.store.counts.keys())
        for called, kind in (("Gateway", gateway), ("Gateway.networking.istio.io", istio)):
            resource, _ = control.source.find(f"{called} shop/g")
            assert resource.group == kind.group

    follows(story, tmp_path)


def test_without_an_api_server_the_copy_on_disk_is_in_force_until_it_is_back(tmp_path):
    async def main(api):
        shop(api)
        control = Control(api, tmp_path)
        async with running(control.source.run()):
            await control.begin()
        await api.stop()
        again = Control(api, tmp_path)
        async with running(again.source.run()):
            await again.begin(patience_s=0.01)
            assert again.source.describe()["from_disk"]
            assert again.store.world.workloads == control.store.world.workloads
            assert again.store.world.policies == control.store.world.policies
            api.delete(cluster.PODS, "shop", "web")
            api.forget_history()
            async with running(again.follow()):
                await api.start()
                await until(lambda: again.web is None)
                assert not again.source.describe()["from_disk"]
                assert "shop/deny" in again.store.world.policies

    play(tmp_path, main)


@pytest.mark.parametrize("harm", ["no copy", "a kind is missing", "not JSON"])
def test_half_a_copy_is_none(tmp_path, harm):
    saved = Saved(tmp_path, VERSIONS)
    if harm != "no copy":
        saved.save([(PODS, [Pod(Metadata(name="a"))])], [PODS])
        assert saved.load() == [(PODS, [Pod(Metadata(name="a"))])]
        path = tmp_path / "kubernetes" / "pods.v1.json"
        path.unlink() if harm == "a kind is missing" else path.write_text("[{")
    assert saved.load() is None


def test_what_is_nested_too_deep_is_a_finding():
    spec = {}
    for _ in range(100):
        spec = {"a": spec}
    policies = next(each for each in VERSIONS if each.kind == "AuthorizationPolicy")
    found = parsed(policies, policies.shape(metadata=Metadata(name="a", namespace="b"), spec=spec))
    assert (found.broken, [each.why for each in found.findings]) == (True, ["nested deeper than 64 levels"])


def test_conditions_and_roots_are_written_and_stay(tmp_path):
    async def main(api):
        from controlplane.ca import load_authority

        shop(api)
        roots = BY_PATH["", "v1", "configmaps"]
        api.create(roots, "nodemesh-system", {"metadata": {"name": "nodemesh-ca-root-cert"}})
        state = tmp_path / "state"
        variables = {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": str(api.port)}
        variables |= {"NODEMESH_SERVICE_ACCOUNT_DIR": str(api.directory / "account"), "NODEMESH_STATE_DIR": str(state)}
        settings = load(variables)
        authority, store = load_authority(state, "cluster.local"), Store(settings.mesh)
        made = Cluster(settings, settings.kubernetes, authority, store.judge, store.conditions, lambda: store.layer7)
        made.start()
        store.update(await made.source.first())
        made.statuses.touch()
        async with running(made.run()):
            await until(lambda: "status" in api.store.get(cluster.POLICIES, "shop", "deny"))
            (condition,) = api.store.get(cluster.POLICIES, "shop", "deny")["status"]["conditions"]
            assert condition.pop("lastTransitionTime")
            assert condition == {
                "type": "ZtunnelAccepted",
                "status": "True",
                "reason": "Accepted",
                "message": "in force as written",
                "observedGeneration": 1,
            }
            await until(lambda: "data" in api.store.get(roots, "nodemesh-system", "nodemesh-ca-root-cert"))
            pem = api.store.get(roots, "nodemesh-system", "nodemesh-ca-root-cert")["data"]["root-cert.pem"]
            assert pem.encode() == authority.root_pem
            version = api.store.version
            made.statuses.touch()
            await until(lambda: made.statuses.settled)
            assert api.store.version == version, "what stands there already is not written again"
        await made.stop()

    play(tmp_path, main)
