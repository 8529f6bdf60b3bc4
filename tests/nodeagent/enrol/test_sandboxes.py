"""libcni's cache, as containerd leaves it."""

import json

import pytest

from nodeagent.enrol.requests import Attachment
from nodeagent.enrol.sandboxes import CniCache

ENTRY = {
    "kind": "cniCacheV1",
    "containerId": "c1",
    "config": "eyJjbmlWZXJzaW9uIjoiMS4wLjAifQ==",
    "ifName": "eth0",
    "networkName": "k8s-pod-network",
    "netns": "/var/run/netns/cni-1",
    "cniArgs": [["IgnoreUnknown", "1"], ["K8S_POD_NAMESPACE", "shop"], ["K8S_POD_NAME", "web"], ["K8S_POD_UID", "u1"]],
    "result": {"cniVersion": "1.0.0", "ips": [{"address": "10.0.0.5/24"}, {"address": "fd00::5/64"}]},
}
WEB = Attachment("c1", "/var/run/netns/cni-1", "eth0", "web", "shop", ("10.0.0.5", "fd00::5"), "u1")


@pytest.fixture
def results(tmp_path):
    (tmp_path / "results").mkdir()
    return tmp_path / "results"


def test_pods_are_read_once_and_again_when_they_change(tmp_path, results):
    cache = CniCache(tmp_path)
    assert cache.attachments() == []
    (results / "k8s-pod-network-c1-eth0").write_text(json.dumps(ENTRY))
    assert cache.attachments() == cache.attachments() == [WEB]
    (results / "k8s-pod-network-c1-eth0").unlink()
    assert cache.attachments() == []


@pytest.mark.parametrize(
    "entry",
    [
        "{",
        "[]",
        json.dumps(ENTRY | {"kind": "cniCacheV2"}),
        json.dumps(ENTRY | {"cniArgs": [["IgnoreUnknown", "1"]]}),
        json.dumps(ENTRY | {"cniArgs": 7}),
        json.dumps(ENTRY | {"netns": ""}),
        json.dumps(ENTRY | {"result": {"ips": [{"address": "nowhere"}]}}),
    ],
)
def test_what_is_no_pods_or_not_understood_is_nobodys(tmp_path, results, entry):
    (results / "x").write_text(entry)
    assert CniCache(tmp_path).attachments() == []


def test_a_node_without_a_cache_has_no_records(tmp_path):
    assert CniCache(tmp_path / "nowhere").attachments() == []
