# ruff: noqa: E501 - one mistake per line reads better than three lines per mistake
"""Every mistake in a document is a sentence with its file and line; the object is then not taken."""

import pytest

from controlplane.documents import parse
from tests.controlplane.documents import findings_of, store_of


def istio(kind, spec, group="security"):
    return f"apiVersion: {group}.istio.io/v1\nkind: {kind}\nmetadata:\n  name: x\n  namespace: shop\nspec:\n{spec}"


def policy(spec):
    return istio("AuthorizationPolicy", spec)


def entry(spec):
    return istio("ServiceEntry", spec, "networking")


def kube(kind, rest, version="v1"):
    return f"apiVersion: {version}\nkind: {kind}\nmetadata:\n  name: x\n  namespace: shop\n{rest}"


MISTAKES = [
    ("kind: Pod\nmetadata: {name: x}", 1, "apiVersion: is required"),
    ("apiVersion: v1\nkind: Pod", 1, "metadata: is required"),
    ("apiVersion: v1\nkind: Pod\nmetadata:\n  name: Web_1", 4, "metadata.name: 'Web_1' is not a name"),
    ("apiVersion: v1\nkind: Pod\nmetadata:\n  name: 7", 4, "metadata.name: must be a string, not a number: put '7' in quotes"),
    ("apiVersion: v1\nkind: Pod\nmetadata: {name: x, namespace: a.b}", 3, "metadata.namespace: 'a.b' is not a DNS label"),
    ("- a\n- b", 1, "document: must be a mapping with apiVersion, kind and metadata"),
    ("apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: x}", 1, "kind: 'Deployment' is not used here; known: Auth"),
    ("apiVersion: v2\nkind: Pod\nmetadata: {name: x}", 1, "apiVersion: 'v2' of Pod is not known; allowed: v1"),
    ("a: [", 2, "is not valid YAML: while parsing a flow node"),
    ("a: \"\x01\"", 0, "is not valid YAML"),
    ("a: *b", 1, "is not valid YAML: found undefined alias"),
    (kube("Pod", "status:\n  podIP: 10.0.0.256"), 7, "status.podIP: '10.0.0.256' is not an IP address"),
    (kube("Pod", "status:\n  phase: Runing"), 7, "status.phase: 'Runing' is not one of Pending, Running"),
    (kube("Pod", "spec:\n  hostNetwork: 'true'"), 7, "spec.hostNetwork: must be true or false, not a string"),
    (kube("Pod", "spec:\n  nodeName: a\n  nodeName: b"), 8, "spec.nodeName: given twice"),
    (kube("Pod", "spec:\n  containers: {}"), 7, "spec.containers: must be a list, not a mapping"),
    (kube("Pod", "spec:\n  containers:\n  - ports:\n    - containerPort: 70000"), 9, "70000 is not from 1 to 65535"),
    (kube("Service", "spec:\n  clusterIP: web"), 7, "spec.clusterIP: 'web' is not an IP address"),
    (kube("Service", "spec:\n  ports:\n  - name: a"), 8, "spec.ports[0].port: is required"),
    (kube("Service", "spec:\n  ports:\n  - port: 80\n  - port: 80"), 9, "spec.ports[1]: port 80 is given twice"),
    (kube("Service", "spec:\n  ports:\n  - port: http"), 8, "must be a number from 1 to 65535, not a string"),
    (kube("Service", "spec:\n  selector:\n    version: 2"), 8, "spec.selector[version]: must be a string"),
    (kube("Service", "spec:\n  trafficDistribution: Near"), 7, "'Near' is not one of PreferClose"),
    (kube("EndpointSlice", "addressType: IPv4", "discovery.k8s.io/v1"), 3, "labels.kubernetes.io/service-name: is required"),
    (policy("  selectors: {}"), 7, "spec.selectors: unknown field; allowed: action, provider, rules, selector"),
    (policy("  action: BLOCK"), 7, "spec.action: 'BLOCK' is not one of ALLOW, DENY, AUDIT, CUSTOM"),
    (policy("  rules:\n  -"), 8, "spec.rules[0]: is empty; a rule that always matches is written {}"),
    (policy("  rules:\n  - from:\n    - source: {}"), 9, "source: is empty; leave it out, or name at least one value"),
    (policy("  rules:\n  - from:\n    - {}"), 9, "spec.rules[0].from[0].source: is required"),
    (policy("  rules:\n  - to:\n    - operation:\n        ports: [80]"), 10, "ports[0]: must be a string, not a number"),
    (policy("  rules:\n  - to:\n    - operation:\n        ports: ['http']"), 10, "'http' is not a port from 1 to 65535"),
    (policy("  rules:\n  - from:\n    - source:\n        ipBlocks:\n        - 10.0.0.0/33"), 11, "neither an IP address nor a CIDR"),
    (policy("  rules:\n  - from:\n    - source:\n        principals: ['spiffe://a/ns/b/sa/c']"), 10, "without spiffe://"),
    (policy("  rules:\n  - from:\n    - source:\n        principals: ['a*b']"), 10, "'a*b': a value is exact"),
    (policy("  rules:\n  - from:\n    - source:\n        serviceAccounts: ['a/*']"), 10, "no wildcards"),
    (policy("  rules:\n  - from:\n    - source: {serviceAccounts: [a], namespaces: [b]}"), 9, "excludes principals and namespaces"),
    (policy("  rules:\n  - when:\n    - key: source.host\n      values: [a]"), 9, "'source.host' is not a known attribute; at layer 4"),
    (policy("  rules:\n  - when:\n    - key: source.ip"), 9, "spec.rules[0].when[0]: needs values or notValues"),
    (policy("  selector: {matchLabels: {app: 'w*'}}"), 7, "'*' is not allowed"),
    (policy("  selector: {matchLabels: {a: b}}\n  targetRefs:\n  - {kind: Service, name: w}"), 9, "exclude each other"),
    (istio("PeerAuthentication", "  mtls:\n    mode: STRIKT"), 8, "spec.mtls.mode: 'STRIKT' is not one of UNSET, DISABLE"),
    (istio("PeerAuthentication", "  portLevelMtls:\n    80: {mode: STRICT}"), 7, "needs a selector"),
    (istio("PeerAuthentication", "  selector: {matchLabels: {a: b}}\n  portLevelMtls:\n    http: {}"), 9, "'http' is not a port"),
    (entry("  ports: []"), 6, "spec.hosts: is required"),
    (entry("  hosts: [a.b]\n  resolution: STATIC\n  endpoints:\n  - address: db.local"), 10, "as resolution STATIC requires"),
    (entry("  hosts: [a.b]\n  endpoints:\n  - address: 10.0.0.1"), 8, "resolution NONE goes to the address the client chose"),
    (entry("  hosts: [a.b]\n  resolution: DNS\n  addresses:\n  - 10.0.0.0/8"), 10, "a CIDR range needs resolution NONE or STATIC"),
    (entry("  hosts: ['*.b']\n  resolution: DNS"), 7, "resolution DNS without endpoints needs full host names"),
    (entry("  hosts: ['a*.b']"), 7, "'a*.b' is not a host"),
    (entry("  hosts: [a.b]\n  ports:\n  - {number: 80, name: x}\n  - {number: 81, name: x}"), 10, "port name 'x' is given twice"),
    (entry("  hosts: [a.b]\n  ports:\n  - {number: 80, name: x, protocol: SMTP}"), 9, "'SMTP' is not one of HTTP, HTTP2"),
    (istio("WorkloadEntry", "  ports: {}", "networking"), 6, "spec.address: is required"),
    (istio("WorkloadEntry", "  address: unix:///x", "networking"), 7, "Unix sockets are not supported"),
    (istio("WorkloadEntry", "  address: 10.0.0.1\n  weight: 0", "networking"), 8, "spec.weight: 0 is not from 1 to"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "line", "why"), MISTAKES, ids=[why for _, _, why in MISTAKES])
def test_a_mistake_is_reported_where_it_is(text, line, why):
    store = store_of(text)
    found = [finding for finding in store.findings if finding.level == "error" and why in finding.why]
    assert [(finding.file, finding.line) for finding in found] == [("f.yaml", line)], list(map(str, store.findings))
    assert not store.counts


def test_all_mistakes_of_a_document_are_reported_at_once():
    text = policy("  action: BLOCK\n  rules:\n  - from:\n    - source:\n        ipBlocks: [x]\n        foo: [y]")
    assert len([finding for finding in findings_of(text) if ": error: " in finding]) == 3


def test_the_line_is_that_of_the_whole_file_not_of_the_document():
    text = "apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n---\n" + kube("Pod", "status:\n  podIP: x")
    assert findings_of(text)[0].startswith("f.yaml:11: error: Pod shop/x: status.podIP")


def test_members_of_a_list_are_documents():
    text = """
    apiVersion: v1
    kind: List
    items:
    - {apiVersion: v1, kind: Namespace, metadata: {name: a}}
    - {apiVersion: v1, kind: Node, metadata: {name: b}}
    """
    assert store_of(text).counts == {"Namespace": 1, "Node": 1}


def test_json_is_yaml():
    text = '{\n\t"apiVersion": "v1",\n\t"kind": "Node",\n\t"metadata": {"name": "n", "labels": {"a": "\\u00e4"}}\n}'
    assert store_of(text).counts == {"Node": 1}


@pytest.mark.parametrize("text", ["[" * 100_000, "- " * 100_000, "a: &a\n  b: *a\n"], ids=["flow", "block", "cycle"])
def test_nesting_without_end_is_a_finding_and_not_the_end_of_the_process(text):
    parsed = parse("f.yaml", text.encode())
    assert parsed.broken
    assert "nested deeper" in parsed.findings[0].why


def test_snake_case_names_are_read_as_protobuf_does():
    text = istio("PeerAuthentication", "  selector: {match_labels: {a: b}}\n  port_level_mtls: {80: {mode: STRICT}}")
    assert findings_of(text) == []


def test_a_finding_is_one_line_whatever_the_document_calls_itself():
    """Found by fuzzing: a name could write lines of its own into the log."""
    found = findings_of('apiVersion: v1\nkind: "Pod\\nforged: line\\e[31m"\nmetadata: {name: a}')
    assert found
    assert all(finding.isprintable() for finding in found), found
