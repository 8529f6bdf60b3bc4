"""What parses somebody else's bytes in Python: refused with a sentence, or understood; never a traceback."""

import asyncio
import contextlib
import json
import os
import socket
import tempfile
from pathlib import Path

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from google.protobuf.message import DecodeError
from hypothesis import strategies as st

from controlplane.ca import _load_csr
from controlplane.checks import reports
from controlplane.documents import parse
from controlplane.objects import Mesh
from controlplane.store import Store
from controlplane.translate.tunnel import translate
from mesh.delta import ADDRESS_TYPE, Publisher, Subscriber
from mesh.directory import Directory
from mesh.errors import MeshError, PeerError
from mesh.gen import zds_pb2
from mesh.gen.xds_pb2 import DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node, Resource
from mesh.ids import SpiffeId
from nodeagent import zds as agent_zds
from nodeagent.enrol.pods import FilePods, UnknownYet
from nodeagent.enrol.requests import parse_attachment, parse_container_id, parse_valid_attachments
from nodeagent.heirlooms import Heirlooms
from tests.fuzz.engine import damaged, fuzz
from ztunnel import zds as tunnel_zds
from ztunnel.dataplane import read_response

GOLDEN = sorted((Path(__file__).parents[1] / "controlplane/golden").glob("*.yaml"))
DOCUMENTS = [each.encode() for path in GOLDEN for each in path.read_text().split("\n---\n")]
L7_GOLDEN = sorted((Path(__file__).parents[1] / "controlplane/golden/l7").glob("*.yaml"))
L7_DOCUMENTS = [each.encode() for path in L7_GOLDEN for each in path.read_text().split("\n---\n")]
ATTACHMENT = {
    "container_id": "c1",
    "netns": "/run/netns/c1",
    "ifname": "eth0",
    "pod_name": "web-1",
    "pod_namespace": "shop",
    "pod_uid": "u",
    "ips": ["10.0.0.1/24", "fd00::1/64"],
}
NASTY = [
    b"null", b"", b"[]", b"{}", b"[[[[]]]]", b"{a: {b: {c: 1}}}", b"true", b"-1", b"65536", b"1e999", b".nan", b".inf",
    b"0x" + b"f" * 6000, b"9" * 6000, b"2024-02-30", b"2024-01-01T00:00:00Z", b"12:30:45", b"!!binary aGk=",
    b"!!set {a}", b"!!python/object:os.system x", b"&a [*a]", b"*nobody", b"'" + b"x" * 70000 + b"'", b'"\\u0000"',
    b'"a\\nb"', b"<<", b"=", b"10.0.0.1/33", b"::/129", b"fe80::1%eth0", b"999.1.1.1", b"*", b"*.*", b"..", b"-",
    b"[null]", b"[{}]", b"[1, a, {}]", b"{matchLabels: null}", b"[{from: null, to: [{operation: {}}]}]",
    b"? [a]\n  : b", b"{[a]: b}", b"&l {a: &m [1, 1], b: [*m, *m]}",
]  # fmt: skip
LAUGHS = b", ".join(b"l%d: &l%d [%s]" % (n, n, b", ".join([b"*l%d" % (n - 1) if n else b"1"] * 9)) for n in range(9))
NASTY.append(b"{" + LAUGHS + b"}")
POD = b"""apiVersion: v1
kind: Pod
metadata:
  name: web-1
  namespace: shop
  labels:
    app: web
    istio.io/dataplane-mode: ambient
  annotations:
    ambient.istio.io/redirection: enabled
spec:
  nodeName: n1
  serviceAccountName: web
  hostNetwork: false
"""


def replace_value(text: bytes, at: int, value: bytes) -> bytes:
    """Another value behind one of its keys."""
    lines = text.split(b"\n")
    keyed = [n for n, line in enumerate(lines) if b": " in line or line.endswith(b":")]
    if not keyed:
        return text
    number = keyed[at % len(keyed)]
    key, _, _ = lines[number].partition(b":")
    return b"\n".join([*lines[:number], key + b": " + value, *lines[number + 1 :]])


documents = st.one_of(
    damaged(DOCUMENTS),
    st.builds(replace_value, st.sampled_from(DOCUMENTS), st.integers(0, 1000), st.sampled_from(NASTY)),
)
requests = st.one_of(
    damaged(L7_DOCUMENTS),
    st.builds(replace_value, st.sampled_from(L7_DOCUMENTS), st.integers(0, 1000), st.sampled_from(NASTY)),
)
BODIES = [json.dumps(ATTACHMENT).encode(), b'{"valid_attachments":[{"container_id":"c1","ifname":"eth0"}]}']
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(list(ATTACHMENT)) | st.text(max_size=5), inner, max_size=8)
    ),
    max_leaves=12,
)


@fuzz("door 1", 1500, body=damaged(BODIES) | json_values.map(lambda value: json.dumps(value).encode()))
def test_a_request_over_door_1_is_understood_or_refused(body):
    for read in (parse_attachment, parse_container_id, parse_valid_attachments):
        with contextlib.suppress(ValueError):
            read(body)


@fuzz("documents of the control plane", 400, texts=st.lists(documents, min_size=1, max_size=4))
def test_a_document_becomes_objects_or_findings_and_the_world_can_be_told(texts):
    """The whole way: text, findings, world, resources."""
    store = Store(Mesh())
    store.update({path.name: parse(path.name, path.read_bytes()) for path in GOLDEN})
    store.update({"fuzz.yaml": parse("fuzz.yaml", b"\n---\n".join(texts))})
    translate(store.world)
    for finding in store.findings:
        assert "\n" not in str(finding)


@fuzz("documents of layer 7", 300, texts=st.lists(requests, min_size=1, max_size=4))
def test_a_document_about_requests_becomes_part_of_the_model_or_findings(texts):
    """The whole way: text, findings, model, conditions, analysis."""
    store = Store(Mesh())
    store.update({path.name: parse(path.name, path.read_bytes()) for path in L7_GOLDEN[:1]})
    store.update({"fuzz.yaml": parse("fuzz.yaml", b"\n---\n".join(texts))})
    store.conditions()
    for each in reports(store):
        assert "\n" not in each["message"]


@fuzz(
    "documents of the node agent",
    600,
    text=documents | st.builds(replace_value, st.just(POD), st.integers(0, 1000), st.sampled_from(NASTY)),
)
def test_a_pod_document_is_read_or_is_unknown(text):
    with tempfile.TemporaryDirectory() as directory:
        Path(directory, "fuzz.yaml").write_bytes(text)
        source = FilePods(Directory(Path(directory)))
        for name in _names(text):
            with contextlib.suppress(UnknownYet):
                source.pod("shop", name)
            with contextlib.suppress(UnknownYet):
                source.namespace_labels(name)


def _names(text):
    try:
        found = [each["metadata"]["name"] for each in yaml.safe_load_all(text)]
    except Exception:  # whatever the generated text is
        found = []
    # A runtime asks by a string. Writing out or comparing what aliases unfold to would take the memory or the day.
    return [*(each if isinstance(each, str) else type(each).__name__ for each in found), "web-1"]


class Pods:
    """Takes what the session gives it, as the data plane does: descriptors are its own from then on."""

    async def add(self, pod, handed):
        handed.close()
        return ""

    def listeners(self, uid):
        return [os.eventfd(0)]

    def use_direct(self, maps):
        return ""

    async def withdraw(self, uid):
        pass

    async def keep_only(self, uids):
        pass

    def knows(self, uid):
        return False


INFO = zds_pb2.WorkloadInfo(name="web-1", namespace="shop", service_account="web")
REQUESTS = [
    zds_pb2.WorkloadRequest(add=zds_pb2.AddWorkload(uid="u", workload_info=INFO)).SerializeToString(),
    zds_pb2.WorkloadRequest(
        add=zds_pb2.AddWorkload(uid="u", workload_info=INFO, keep_listeners=True)
    ).SerializeToString(),
    zds_pb2.WorkloadRequest(keep=zds_pb2.KeepWorkload(uid="u")).SerializeToString(),
    zds_pb2.WorkloadRequest(**{"del": zds_pb2.DelWorkload(uid="u")}).SerializeToString(),
    zds_pb2.WorkloadRequest(snapshot_sent=zds_pb2.SnapshotSent()).SerializeToString(),
]
packets = st.lists(st.tuples(damaged(REQUESTS), st.sampled_from([0, 0, 1, 1, 2, 16])), max_size=6)


def descriptors():
    return len(os.listdir("/proc/self/fd"))


@fuzz("ZDS, the tunnel's side", 400, packets=packets)
def test_the_tunnel_survives_any_agent_and_keeps_no_descriptor(packets):
    async def converse():
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        session = tunnel_zds.Session(Pods())
        with ours, theirs:
            for packet, count in packets:
                socket.send_fds(theirs, [packet], [theirs.fileno()] * count)
            theirs.shutdown(socket.SHUT_WR)
            while True:
                request, fds = await tunnel_zds.receive(ours)
                error, given = await session.handle(request, fds)
                tunnel_zds.close_all(given)
                assert len(tunnel_zds.answer(error)) < 4096

    before = descriptors()
    with contextlib.suppress(PeerError):
        asyncio.run(converse())
    assert descriptors() == before


HELLO = zds_pb2.ZdsHello(version=zds_pb2.V1, shares_listeners=True).SerializeToString()
ANSWERS = [HELLO, zds_pb2.WorkloadResponse(ack=zds_pb2.Ack(error="no")).SerializeToString()]


@fuzz("ZDS, the agent's side", 400, packets=st.lists(st.tuples(damaged(ANSWERS), st.integers(0, 3)), max_size=5))
def test_the_agent_survives_any_tunnel(packets):
    async def converse():
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        kept, netns = Heirlooms(3600.0), os.memfd_create("netns")
        connection = agent_zds.Connection(ours, kept)
        pod = agent_zds.Workload("u", "shop", "web-1", "web", os.fdopen(netns))
        with theirs, pod.netns:
            for packet, count in [(HELLO, 0), *packets]:
                socket.send_fds(theirs, [packet or b"\0"], [theirs.fileno()] * count)
            theirs.shutdown(socket.SHUT_WR)
            try:
                await connection.greet(lambda: [pod], lambda uid, why: None)
            finally:
                connection.close("the test is over")
                kept.drop_all()

    before = descriptors()
    with contextlib.suppress(PeerError):
        asyncio.run(converse())
    assert descriptors() == before


RESPONSE = DeltaDiscoveryResponse(
    type_url=ADDRESS_TYPE, nonce="1", resources=[Resource(name="a", version="1")], removed_resources=["b"]
)
REQUEST = DeltaDiscoveryRequest(
    type_url=ADDRESS_TYPE, resource_names_subscribe=["*"], initial_resource_versions={"a": "1"}, response_nonce="1"
)


@fuzz("delta xDS", 1500, data=damaged([RESPONSE.SerializeToString(), REQUEST.SerializeToString()]))
def test_either_end_of_the_configuration_stream_survives_the_other(data):
    with contextlib.suppress(DecodeError, MeshError):
        subscriber = Subscriber(Node(id="n"), [ADDRESS_TYPE])
        subscriber.start()
        subscriber.settle(subscriber.receive(read_response(data)))
    with contextlib.suppress(DecodeError, MeshError):
        Publisher().handle(DeltaDiscoveryRequest.FromString(data))


@fuzz(
    "SPIFFE IDs in Python",
    1500,
    text=damaged([b"spiffe://cluster.local/ns/shop/sa/web"]).map(lambda b: b.decode("latin-1")),
)
def test_an_identity_reads_back_the_same(text):
    with contextlib.suppress(ValueError):
        assert str(SpiffeId.parse(text)) == text


def _request():
    names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier("spiffe://cluster.local/ns/shop/sa/web")])
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).add_extension(names, critical=True)
    key = ec.derive_private_key(4711, ec.SECP256R1())
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


@fuzz("certificate requests", 800, data=damaged([_request()]))
def test_a_certificate_request_is_understood_or_refused(data):
    with contextlib.suppress(PeerError):
        _load_csr(data.decode("latin-1"))
