"""`meshctl explain` over a saved dump: a core is started over it and answers for itself."""

import json

import pytest
from click.testing import CliRunner

from meshctl.main import cli

PODS = {"web-1": "10.244.1.1", "api-1": "10.244.2.1", "cart-1": "10.244.2.2"}
DUMP = {
    "workloads": [
        {
            "uid": f"Kubernetes//Pod/shop/{name}",
            "name": name,
            "namespace": "shop",
            "serviceAccount": name[:-2],
            "trustDomain": "cluster.local",
            "workloadIps": [ip],
            "protocol": "HBONE",
            "node": "node1" if name == "web-1" else "node2",
            "status": "Healthy",
            "services": {"shop/cart.shop.svc.cluster.local": {"80": 8080}} if name == "cart-1" else {},
        }
        for name, ip in PODS.items()
    ],
    "services": [
        {
            "name": "cart",
            "namespace": "shop",
            "hostname": "cart.shop.svc.cluster.local",
            "vips": ["/10.96.0.10"],
            "ports": {"80": 8080},
        }
    ],
    "policies": [
        {
            "name": "allow-web",
            "namespace": "shop",
            "scope": "Namespace",
            "action": "Allow",
            "rules": [[[{"principals": [{"Exact": "cluster.local/ns/shop/sa/web"}]}]]],
        }
    ],
}


@pytest.fixture
def explain(tmp_path):
    pytest.importorskip("ztunnel._core")
    path = tmp_path / "dump.json"
    path.write_text(json.dumps(DUMP))

    def run(*arguments):
        return CliRunner().invoke(cli, ["explain", "-f", str(path), *arguments])

    return run


def test_an_allowed_call_is_told_hop_by_hop(explain):
    result = explain("shop/web-1", "cart.shop:80")
    assert result.exit_code == 0, result.output
    assert result.output.splitlines() == [
        "from       shop/web-1, 10.244.1.1, on node1, as spiffe://cluster.local/ns/shop/sa/web",
        "to         10.96.0.10:80, service shop/cart.shop.svc.cluster.local",
        "",
        "route      tunnel to 10.244.2.2:15008 (shop/cart-1 on node2), CONNECT 10.244.2.2:8080",
        "expects    spiffe://cluster.local/ns/shop/sa/cart",
        "arrives    at shop/cart-1, 10.244.2.2:8080, from 10.244.1.1 as spiffe://cluster.local/ns/shop/sa/web",
        "mtls       PERMISSIVE: plaintext would be accepted",
        "policy     shop/allow-web (ALLOW, namespace): rules[0] matches",
        "verdict    ALLOWED: allowed by policy shop/allow-web, rules[0]",
    ]


def test_a_denied_call_says_where_and_what_does_not_match(explain):
    result = explain("shop/api-1", "cart.shop:80")
    assert result.exit_code == 1
    assert "  rules[0]: principal cluster.local/ns/shop/sa/api is not cluster.local/ns/shop/sa/web" in result.output
    assert "DENIED at the destination: no ALLOW policy matched (shop/allow-web)" in result.output


def test_programs_get_everything(explain):
    document = json.loads(explain("shop/web-1", "cart.shop:80", "-o", "json").output)
    assert document["kind"] == "Explanation"
    assert document["items"]["ways"][0]["verdict"]["by"] == "shop/allow-web"


@pytest.mark.parametrize(
    ("arguments", "why"), [(("shop/x", "cart.shop"), "is no workload"), (("shop/web-1", "10.0.0.1"), "which port")]
)
def test_a_question_about_nothing_is_one_sentence(explain, arguments, why):
    result = explain(*arguments)
    assert why in str(result.exception)
    assert "\n" not in str(result.exception)
