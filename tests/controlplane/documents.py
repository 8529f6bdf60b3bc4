"""Short spellings for the tests: text to objects, to a world, to findings."""

from textwrap import dedent

from controlplane.documents import parse
from controlplane.objects import Mesh
from controlplane.store import Store

AMBIENT = """
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}
---
"""


def store_of(text, file="f.yaml", **mesh):
    store = Store(Mesh(**mesh))
    store.update({file: parse(file, dedent(text).encode())})
    return store


def world_of(text, **mesh):
    """The world of documents that are all valid."""
    store = store_of(text, **mesh)
    assert not [str(finding) for finding in store.findings if finding.level == "error"]
    return store.world


def findings_of(text):
    return [str(finding) for finding in store_of(text).findings]


def pod(name, *, namespace="shop", ip="10.0.0.1", node="node1", account="default", labels="", extra=""):
    status = f"status: {{podIP: {ip}}}" if ip else ""
    return f"""
apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: {namespace}, labels: {{{labels}}}}}
spec: {{nodeName: {node}, serviceAccountName: {account}{extra}}}
{status}
---
"""
