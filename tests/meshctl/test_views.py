"""`meshctl` over a recorded config dump: the columns of `istioctl ztunnel-config`, in its own words."""

import json
from datetime import UTC, datetime

import pytest
import yaml
from click.testing import CliRunner

from meshctl import views
from meshctl.main import COMMANDS, cli

NOW = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
WEB = "spiffe://cluster.local/ns/shop/sa/web"
DUMP = {
    "workloads": [
        {
            "uid": "Kubernetes//Pod/shop/web-1",
            "name": "web-1",
            "namespace": "shop",
            "workloadIps": ["10.244.1.2"],
            "node": "node1",
            "protocol": "HBONE",
            "status": "Healthy",
            "waypoint": {"destination": "/10.96.0.99"},
        },
        {
            "uid": "Kubernetes//Pod/blog/api-1",
            "name": "api-1",
            "namespace": "blog",
            "workloadIps": ["10.244.2.3"],
            "node": "node2",
            "protocol": "TCP",
            "status": "Unhealthy",
        },
    ],
    "services": [
        {
            "name": "web",
            "namespace": "shop",
            "hostname": "web.shop.svc.cluster.local",
            "vips": ["/10.96.0.10"],
            "endpoints": {
                "a": {"workloadUid": "Kubernetes//Pod/shop/web-1"},
                "b": {"workloadUid": "Kubernetes//Pod/blog/api-1"},
            },
        },
        {"name": "way", "namespace": "shop", "hostname": "way.shop.svc.cluster.local", "vips": ["/10.96.0.99"]},
    ],
    "policies": [{"name": "deny-api", "namespace": "shop", "action": "Deny", "scope": "WorkloadSelector", "rules": []}],
    "certificates": [
        {
            "identity": WEB,
            "state": "Available",
            "certChain": [
                {
                    "serialNumber": "255",
                    "validFrom": "2026-11-20T11:00:00Z",
                    "expirationTime": "2026-11-21T11:00:00Z",
                }
            ],
            "rootCerts": [
                {"serialNumber": "1", "validFrom": "2016-11-20T11:00:00Z", "expirationTime": "2026-11-20T11:59:59Z"}
            ],
        },
        {"identity": "spiffe://cluster.local/ns/shop/sa/new", "state": "Initializing", "certChain": []},
        {"identity": "spiffe://cluster.local/ns/shop/sa/old", "state": "Unavailable: CA says no", "certChain": []},
    ],
    "workloadState": {
        "Kubernetes//Pod/shop/web-1": {
            "state": "Up",
            "info": {"name": "web-1", "namespace": "shop"},
            "connections": {
                "inbound": [
                    {
                        "src": "10.244.2.3:41000",
                        "originalDst": "10.244.1.2:8080",
                        "actualDst": "10.244.1.2:8080",
                        "protocol": "HBONE",
                    }
                ],
                "outbound": [
                    {
                        "src": "10.244.1.2:35380",
                        "originalDst": "10.96.0.10:80",
                        "actualDst": "10.244.2.3:15008",
                        "protocol": "HBONE",
                    }
                ],
            },
        }
    },
}


@pytest.fixture
def recorded(tmp_path):
    path = tmp_path / "dump.json"
    path.write_text(json.dumps(DUMP))
    return str(path)


@pytest.fixture
def meshctl(recorded):
    def run(*arguments):
        return CliRunner().invoke(cli, [*arguments, "--file", recorded], catch_exceptions=False)

    return run


def test_workloads_have_the_columns_people_know(meshctl):
    assert meshctl("workloads").output.splitlines() == [
        "NAMESPACE POD NAME ADDRESS    NODE  WAYPOINT PROTOCOL",
        "blog      api-1    10.244.2.3 node2 None     TCP",
        "shop      web-1    10.244.1.2 node1 way      HBONE",
    ]


def test_services_count_healthy_and_all_endpoints(meshctl):
    assert meshctl("services").output.splitlines() == [
        "NAMESPACE SERVICE NAME SERVICE VIP WAYPOINT ENDPOINTS",
        "shop      way          10.96.0.99  None     0/0",
        "shop      web          10.96.0.10  None     1/2",
    ]


def test_policies_show_action_and_scope(meshctl):
    assert meshctl("policies").output.splitlines() == [
        "NAMESPACE POLICY NAME ACTION SCOPE",
        "shop      deny-api    Deny   WorkloadSelector",
    ]


def test_certificates_show_type_state_and_validity():
    assert views.certificate_rows(DUMP["certificates"], NOW) == [
        [WEB, "Leaf", "Available", "true", "ff", "2026-11-21T11:00:00Z", "2026-11-20T11:00:00Z"],
        [WEB, "Root", "Available", "false", "1", "2026-11-20T11:59:59Z", "2016-11-20T11:00:00Z"],
        ["spiffe://cluster.local/ns/shop/sa/new", "NA", "Initializing", "false", "NA", "NA", "NA"],
        ["spiffe://cluster.local/ns/shop/sa/old", "NA", "Unavailable", "false", "NA", "NA", "NA"],
    ]


def test_connections_name_the_other_side_unless_raw_is_wanted(meshctl):
    assert meshctl("connections").output.splitlines() == [
        "WORKLOAD   DIRECTION LOCAL            REMOTE           REMOTE TARGET                 PROTOCOL",
        "web-1.shop Inbound   10.244.1.2:8080  api-1.blog:41000 web-1.shop:8080               HBONE",
        "web-1.shop Outbound  10.244.1.2:35380 api-1.blog:15008 web.shop.svc.cluster.local:80 HBONE",
    ]
    assert meshctl("connections", "--raw", "--direction", "outbound").output.splitlines()[1:] == [
        "web-1.shop Outbound  10.244.1.2:35380 10.244.2.3:15008 10.96.0.10:80 HBONE"
    ]


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (("--workload-namespace", "shop"), ["web-1"]),
        (("--workload-node", "node2"), ["api-1"]),
        (("--address", "10.244.1.2"), ["web-1"]),
        (("--address", "10.9.9.9"), []),
    ],
)
def test_filters_keep_what_was_asked_for(meshctl, arguments, names):
    found = json.loads(meshctl("workloads", "-o", "json", *arguments).output)
    assert [w["name"] for w in found["items"]] == names


@pytest.mark.parametrize("command", ["workloads", "services", "policies", "certificates", "connections"])
def test_json_and_yaml_say_the_same(meshctl, command):
    as_json = json.loads(meshctl(command, "-o", "json").output)
    assert as_json == yaml.safe_load(meshctl(command, "-o", "yaml").output)
    assert as_json["apiVersion"] == "nodemesh/v1"
    assert as_json["items"]


def test_a_cell_is_never_cut_in_a_pipe(meshctl, tmp_path):
    name = "x" * 200
    path = tmp_path / "long.json"
    path.write_text(json.dumps({"workloads": [{"name": name, "namespace": "shop"}]}))
    output = CliRunner().invoke(cli, ["workloads", "--file", str(path)]).output
    assert name in output


def test_every_command_explains_itself():
    for name in COMMANDS:
        result = CliRunner().invoke(cli, [name, "--help"])
        assert result.exit_code == 0, name
        assert "Usage:" in result.output
