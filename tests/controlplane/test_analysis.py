# ruff: noqa: E501 - one case per line reads better than three lines per case
"""Messages of `analyze`: Istio's codes, at the line that is meant; and none where all is well."""

import json
from pathlib import Path
from textwrap import dedent

import pytest
from click.testing import CliRunner

from controlplane.documents import parse
from controlplane.main import cli
from controlplane.objects import Mesh
from controlplane.store import Store
from controlplane.translate.messages import MESSAGES
from tests.controlplane.l7 import SHOP

POD = """
apiVersion: v1
kind: Pod
metadata: {name: web-1, namespace: shop, labels: {app: web, version: v1, istio: ingressgateway}}
spec: {nodeName: n}
status: {podIP: 10.0.0.1}
---
"""


def istio(kind, name, spec, namespace="shop", group="networking"):
    version = "v1alpha3" if kind == "EnvoyFilter" else "v1"
    head = f"apiVersion: {group}.istio.io/{version}\nkind: {kind}\nmetadata: {{name: {name}, namespace: {namespace}}}\n"
    return f"{head}spec: {spec}\n---\n"


def virtual(spec, name="a"):
    return istio("VirtualService", name, spec)


def to(destination, rest=""):
    return virtual(f"{{hosts: [web], http: [{{route: [{{destination: {{{destination}}}}}]{rest}}}]}}")


def rule(spec):
    return istio("DestinationRule", "a", spec)


def gateway(name="g", selector="{istio: ingressgateway}", tls="", host="'*'", port="80, name: a, protocol: HTTP"):
    return istio(
        "Gateway", name, f"{{selector: {selector}, servers: [{{port: {{number: {port}}}, hosts: [{host}]{tls}}}]}}"
    )


def lost():
    return istio("WorkloadEntry", "far", "{address: 1.2.3.4, network: there, labels: {app: web, version: v9}}")


SECURE = "443, name: a, protocol: HTTPS"
CASES = [
    (to("host: gone"), "IST0101", 'Referenced host not found: "gone"'),
    (to("host: web, subset: v9"), "IST0101", 'Referenced host+subset in destinationrule not found: "web+v9"'),
    (to("host: web, port: {number: 81}"), "IST0101", 'Referenced host:port not found: "web:81"'),
    (to("host: web", ", mirror: {host: gone}"), "IST0101", 'Referenced host not found: "gone"'),
    (to("host: db"), "IST0112", 'routes to a service "db" that exposes multiple ports [80 5432]'),
    (virtual("{hosts: [web], gateways: [gone], http: [{redirect: {uri: /}}]}"), "IST0101", 'Referenced gateway not found: "gone"'),
    (virtual("{hosts: [web], http: [{delegate: {name: gone}}]}"), "IST0101", 'Referenced delegate not found: "shop/gone"'),
    (gateway(host="a.b") + virtual("{hosts: [c.d], gateways: [g], http: [{redirect: {uri: /}}]}"), "IST0132", "one or more host [c.d] defined in VirtualService a not found in Gateway g."),
    (to("host: web") + virtual("{hosts: [web], http: [{redirect: {uri: /}}]}", "b"), "IST0109", "The VirtualServices shop/a,shop/b associated with mesh gateway define the same host web.shop.svc.cluster.local"),
    (virtual("{hosts: [web], http: [{redirect: {uri: /}}, {redirect: {uri: /b}}]}"), "IST0130", "VirtualService rule #1 not used (only the last rule can have no matches)."),
    (virtual("{hosts: [web], http: [{match: [{uri: {prefix: /a}}], redirect: {uri: /}}, {name: n, match: [{uri: {exact: /a/b}}], redirect: {uri: /b}}]}"), "IST0131", 'VirtualService rule "n" match #0 is not used (duplicate/overlapping match in rule #0).'),
    (to("host: web", ", match: [{headers: {'@request.auth.claims[a]': {exact: b}}}]"), "IST0149", "(key: @request.auth.claims[a]) but found no request authentication for the gateway (shop/way)"),
    (rule("{host: gone, trafficPolicy: {loadBalancer: {simple: RANDOM}}}"), "IST0174", "The host gone defined in the DestinationRule does not match any services"),
    (rule("{host: web, subsets: [{name: v9, labels: {version: v9}}]}"), "IST0173", "The Subset v9 defined in the DestinationRule does not select any pods."),
    (rule("{host: web, trafficPolicy: {tls: {mode: SIMPLE}}}"), "IST0128", "has TLS mode set to SIMPLE but no caCertificates are set"),
    (rule("{host: web, trafficPolicy: {portLevelSettings: [{port: {number: 80}, tls: {mode: SIMPLE}}]}}"), "IST0129", "for host: web at port 80"),
    (gateway(selector="{istio: gone}"), "IST0101", 'Referenced selector not found: "istio=gone"'),
    (gateway(tls=", tls: {credentialName: gone}", port=SECURE), "IST0161", "The credential referenced by the Gateway g in namespace shop is invalid"),
    (gateway() + gateway("h"), "IST0145", "Conflict with gateways shop/h (workload selector istio=ingressgateway, port 80, hosts *)."),
    (istio("ServiceEntry", "a", "{hosts: [a.b], ports: [{number: 1, name: tcp, protocol: TCP}]}"), "IST0134", "ServiceEntry addresses are required for this protocol."),
    (istio("ServiceEntry", "a", "{hosts: [a.b], ports: [{number: 1, name: x, protocol: TCP}]}") + istio("ServiceEntry", "b", "{hosts: [a.b], ports: [{number: 1, name: x, protocol: HTTP}]}"), "IST0177", 'define the same host "a.b" and port 1 with conflicting protocols'),
    ("apiVersion: v1\nkind: Service\nmetadata: {name: s, namespace: shop}\nspec: {ports: [{port: 1, name: odd}]}\n", "IST0118", "Port name odd (port: 1, targetPort: 1) doesn't follow"),
    (istio("AuthorizationPolicy", "a", "{selector: {matchLabels: {app: gone}}}", group="security"), "IST0127", "following labels: app=gone"),
    (istio("AuthorizationPolicy", "a", "{targetRefs: [{kind: Service, name: web}], action: CUSTOM, provider: {name: gone}, rules: [{}]}", group="security"), "IST0101", 'Referenced provider not found: "gone"'),
    (istio("AuthorizationPolicy", "a", "{rules: [{from: [{source: {namespaces: [gone]}}]}]}", group="security"), "IST0101", 'Referenced namespace not found: "gone"'),
    (istio("AuthorizationPolicy", "a", "{targetRefs: [{kind: Service, name: gone}]}", group="security"), "IST0171", "type=WaypointAccepted, reason=TargetNotFound, message=Service shop/gone does not exist."),
    (istio("RequestAuthentication", "a", "{selector: {matchLabels: {gateway.networking.k8s.io/gateway-name: way}}}", group="security"), "IST0166", "Ineffective selector on Kubernetes Gateway way."),
    (istio("Telemetry", "a", "{tracing: [{providers: [{name: gone}]}]}", group="telemetry"), "IST0101", 'Referenced provider not found: "gone"'),
    (istio("Telemetry", "a", "{tracing: [{providers: []}]}", group="telemetry"), "IST0157", "with empty providers will be ignored."),
    (istio("Telemetry", "a", "{}", group="telemetry") + istio("Telemetry", "b", "{}", group="telemetry"), "IST0160", "The Telemetries [a b]"),
    (lost(), "IST0171", "type=EndpointsReachable, reason=NetworkUnknown, message=no Gateway of class istio-remote with an address leads to network there."),
    (istio("ServiceEntry", "a", "{hosts: [a.b], ports: [{number: 80, name: http}], resolution: STATIC, endpoints: [{address: 1.2.3.4, network: there}]}"), "IST0171", "leads to network there"),
    (lost() + rule("{host: web, subsets: [{name: v9, labels: {version: v9}}]}"), "IST0173", "The Subset v9"),
    (istio("Sidecar", "a", "{}"), "IST0167", "The policy has no impact"),
    (rule("{host: web, trafficPolicy: {outlierDetection: {consecutiveErrors: 1}}}"), "IST0002", "Deprecated: spec.trafficPolicy.outlierDetection.consecutiveErrors"),
    (rule("{host: web, trafficPolicy: {}}"), "IST0106", "Schema validation error: spec.trafficPolicy: is empty"),
]  # fmt: skip


def reports(text, file="f.yaml"):
    """`file`: where the text is, for whoever looks up the lines of fields."""
    from controlplane.checks import reports

    store = Store(Mesh())
    store.update({file: parse(file, dedent(text).encode())})
    return reports(store)


@pytest.mark.parametrize(("text", "code", "says"), CASES, ids=[f"{code} {says[:40]}" for _, code, says in CASES])
def test_a_mistake_between_documents_has_istios_code(text, code, says):
    found = reports(SHOP + POD + text)
    assert [each for each in found if each["code"] == code and says in each["message"]], found


MISTAKES = Path(__file__).parent / "golden" / "analysis" / "mistakes.yaml"
# The reference's list of what users of Istio know.
KNOWN = {
    f"IST0{n}"
    for n in (101, 106, 109, 112, 118, 128, 129, 130, 131, 132, 134, 145, 149, 157, 161, 166, 167, 173, 174, 177)
}


def test_every_code_is_said_at_the_line_that_is_meant_and_nothing_else_is():
    text = MISTAKES.read_text()
    marked = [
        (number, code)
        for number, line in enumerate(text.splitlines(), 1)
        for code in line.partition("  # ")[2].split()
        if code.startswith("IST")
    ]
    found = [(int(each["reference"].rpartition(":")[2]), each["code"]) for each in reports(text, str(MISTAKES))]
    assert sorted(found) == sorted(marked)
    assert {code for _, code in marked} == set(MESSAGES) >= KNOWN


def test_nothing_is_said_when_all_is_well():
    text = to("host: web, subset: v1") + rule("{host: web, subsets: [{name: v1, labels: {version: v1}}]}")
    assert reports(SHOP + POD + text) == []


def invoke(*arguments):
    return CliRunner().invoke(cli, list(map(str, arguments)))


@pytest.fixture
def broken(tmp_path):
    """A file whose route, in the last line but one, goes nowhere."""
    file = tmp_path / "a.yaml"
    head = (
        SHOP + POD + "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: a, namespace: shop}\n"
    )
    file.write_text(head + "spec:\n  hosts: [web]\n  http:\n  - route:\n    - destination:\n        host: gone\n")
    return file


def test_the_output_is_istioctls(broken):
    result = invoke("analyze", broken)
    line = len(broken.read_text().splitlines())
    assert f'Error [IST0101] (VirtualService shop/a {broken}:{line}) Referenced host not found: "gone"' in result.output
    assert f"Error: Analyzers found issues when analyzing {broken}." in result.output
    assert result.exit_code == 1


def test_json_has_istioctls_keys(broken):
    [found] = json.loads(invoke("analyze", broken, "-o", "json").stdout)
    assert sorted(found) == ["code", "documentationUrl", "level", "message", "origin", "reference"]
    assert (found["code"], found["level"], found["origin"]) == ("IST0101", "Error", "VirtualService shop/a")


def test_the_threshold_decides_on_the_exit_code(tmp_path):
    (tmp_path / "a.yaml").write_text(SHOP + POD + rule("{host: gone, trafficPolicy: {loadBalancer: {simple: RANDOM}}}"))
    assert invoke("analyze", tmp_path).exit_code == 0
    assert invoke("analyze", tmp_path, "--failure-threshold", "Warning").exit_code == 1


def test_validate_says_of_each_file_whether_it_is_valid(broken, tmp_path):
    bad = tmp_path / "b.yaml"
    bad.write_text(rule("{hosts: web}"))
    assert invoke("validate", broken).output == f'"{broken}" is valid\n'
    result = invoke("validate", broken, bad)
    assert f"{bad}:4: error: DestinationRule shop/a: spec.hosts: unknown field" in result.output
    assert result.exit_code == 1


def test_a_path_that_is_not_there_is_one_sentence(tmp_path):
    assert "does not exist" in str(invoke("validate", tmp_path / "gone").exception)
