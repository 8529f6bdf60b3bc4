"""Door 3 over real gRPC and TLS on loopback, with the tunnel's side of the conversation from `mesh.delta`."""

import asyncio
import ssl
from contextlib import asynccontextmanager
from datetime import timedelta

import grpc
import grpc.aio
import pytest
from cryptography import x509

from controlplane import server
from controlplane.attest import Tokens
from controlplane.ca import load_authority
from controlplane.envoys import Envoys
from controlplane.l7.model import L7, Proxy, Role
from controlplane.push import Board
from mesh.delta import ADDRESS_TYPE, AUTHORIZATION_TYPE, Subscriber
from mesh.errors import OperatorError
from mesh.gen.ca_pb2 import IstioCertificateRequest
from mesh.gen.ca_pb2_grpc import IstioCertificateServiceStub
from mesh.gen.xds_pb2 import DeltaDiscoveryRequest, Node
from mesh.gen.xds_pb2_grpc import AggregatedDiscoveryServiceStub
from tests.controlplane.documents import AMBIENT, pod, world_of
from tests.controlplane.test_ca import request
from ztunnel.dataplane import read_response

WEB = "spiffe://cluster.local/ns/shop/sa/web"
PODS = AMBIENT + pod("web", account="web")


class ControlPlane:
    """The whole door, on a port of the kernel's choice."""

    def __init__(self, state, world):
        self.tokens = Tokens(state)
        self.authority = load_authority(state, "cluster.local")
        self.board = Board(world)
        self.envoys = Envoys(world, L7())
        self.discovery = server.Discovery(self.board, self.tokens, self.envoys)
        self.certificates = server.Certificates(self.authority, self.tokens, self.board, "cluster.local", self.envoys)
        self.certificate = server.ServerCertificate(self.authority, server.NAMES)
        self.bundles = server.Bundles(self.authority, self.tokens, "cluster.local")
        self.server, self.port = self.listen(0)
        self.token = self.tokens.create("node1", 3600)

    def listen(self, port):
        return server.listen(("127.0.0.1", port), self.certificate, self.discovery, self.certificates, self.bundles)

    def channel(self):
        credentials = grpc.ssl_channel_credentials(self.authority.root_pem)
        return grpc.aio.secure_channel(f"127.0.0.1:{self.port}", credentials)

    def metadata(self, token=None):
        return (("authorization", f"Bearer {token or self.token}"), ("clusterid", "Kubernetes"))


class Sessions(list):
    """Says when the first one has gone."""

    def __init__(self):
        super().__init__()
        self.gone = asyncio.Event()

    def remove(self, session):
        super().remove(session)
        self.gone.set()


@asynccontextmanager
async def running(state, text=PODS):
    control = ControlPlane(state, world_of(text))
    await control.server.start()
    pushing = asyncio.create_task(control.board.run())
    try:
        yield control
    finally:
        pushing.cancel()
        await control.server.stop(None)


async def certificate(control, identity=WEB, token=None, **more):
    sent = IstioCertificateRequest(csr=request(WEB), **more)
    if identity is not None:
        sent.metadata.fields["ImpersonatedIdentity"].string_value = identity
    async with control.channel() as channel:
        stub = IstioCertificateServiceStub(channel)
        return await stub.CreateCertificate(sent, metadata=control.metadata(token), timeout=60)


async def read_from(stream):
    return read_response((await stream.read()).SerializeToString())


def test_a_tunnel_is_sent_the_world_and_then_what_changes(tmp_path):
    async def play():
        async with running(tmp_path) as control, control.channel() as channel:
            subscriber = Subscriber(Node(id="ztunnel"), [ADDRESS_TYPE, AUTHORIZATION_TYPE])
            stream = AggregatedDiscoveryServiceStub(channel).DeltaAggregatedResources(metadata=control.metadata())
            for first in subscriber.start():
                await stream.write(first)
            while not subscriber.synced:
                await stream.write(subscriber.settle(subscriber.receive(await read_from(stream))))
            [session] = control.discovery.sessions
            control.board.propose(world_of(PODS + pod("db", ip="10.0.0.2")))
            batch = subscriber.receive(await read_from(stream))
            await stream.write(subscriber.settle(batch, [(batch.upserts[0][0], "too new")]))
            control.board.propose(world_of("# nothing"))
            while "Kubernetes//Pod/shop/web" in subscriber.held(ADDRESS_TYPE):
                await stream.write(subscriber.settle(subscriber.receive(await read_from(stream))))
            return session.describe(), batch

    session, batch = asyncio.run(play())
    assert [name for name, _, _ in batch.upserts] == ["Kubernetes//Pod/shop/db"]
    assert session["node"] == "node1"
    assert session["last_nack"]["message"] == "Kubernetes//Pod/shop/db: too new"


def test_a_tunnel_that_goes_is_forgotten(tmp_path):
    async def play():
        async with running(tmp_path) as control:
            sessions = control.discovery.sessions = Sessions()
            async with control.channel() as channel:
                stream = AggregatedDiscoveryServiceStub(channel).DeltaAggregatedResources(metadata=control.metadata())
                await stream.write(DeltaDiscoveryRequest(type_url=ADDRESS_TYPE))
                await stream.read()
                assert len(control.discovery.sessions) == 1
            await sessions.gone.wait()
            assert not sessions

    asyncio.run(play())


@pytest.mark.parametrize("token", ["wrong", ""])
def test_a_wrong_token_opens_nothing(tmp_path, token):
    async def play():
        async with running(tmp_path) as control, control.channel() as channel:
            wrong = (("authorization", f"Bearer {token}"),)
            stream = AggregatedDiscoveryServiceStub(channel).DeltaAggregatedResources(metadata=wrong)
            with pytest.raises(grpc.aio.AioRpcError) as discovery:
                await stream.read()
            with pytest.raises(grpc.aio.AioRpcError) as issuing:
                await certificate(control, token="wrong")
            return discovery.value, issuing.value

    for error in asyncio.run(play()):
        assert error.code() is grpc.StatusCode.UNAUTHENTICATED
        assert "join token" in error.details()


def test_a_request_that_breaks_the_protocol_ends_its_stream(tmp_path):
    async def play():
        async with running(tmp_path) as control, control.channel() as channel:
            stream = AggregatedDiscoveryServiceStub(channel).DeltaAggregatedResources(metadata=control.metadata())
            await stream.write(DeltaDiscoveryRequest())
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stream.read()
            return caught.value

    error = asyncio.run(play())
    assert (error.code(), error.details()) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "a discovery request without a type_url",
    )


def test_a_node_is_issued_its_pods_certificate(tmp_path):
    async def play():
        async with running(tmp_path) as control:
            return (await certificate(control, validity_duration=7200)).cert_chain

    leaf, root = (x509.load_pem_x509_certificate(each.encode()) for each in asyncio.run(play()))
    leaf.verify_directly_issued_by(root)
    assert leaf.not_valid_after_utc - leaf.not_valid_before_utc == timedelta(hours=2, minutes=2)


@pytest.mark.parametrize(
    ("identity", "code", "why"),
    [
        ("spiffe://cluster.local/ns/shop/sa/db", grpc.StatusCode.PERMISSION_DENIED, "no workload in the mesh on node"),
        ("spiffe://cluster.local/ns/shop", grpc.StatusCode.INVALID_ARGUMENT, "is not of the form spiffe://"),
        (None, grpc.StatusCode.INVALID_ARGUMENT, "must name the ImpersonatedIdentity"),
    ],
)
def test_an_identity_that_is_not_due_is_refused_with_a_sentence(tmp_path, identity, code, why):
    async def play():
        async with running(tmp_path) as control:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await certificate(control, identity)
            return caught.value

    error = asyncio.run(play())
    assert error.code() is code
    assert why in error.details()


@pytest.mark.parametrize("metadata", [{}, {"CertSigner": ""}])
def test_a_gateway_that_names_no_identity_as_istios_agent_does_is_issued_its_own(tmp_path, metadata):
    async def play():
        async with running(tmp_path) as control:
            gateway = Proxy("ingress", "shop", Role.GATEWAY, "ingress-account")
            control.envoys.propose(control.board.latest, L7(proxies={gateway.key: gateway}))
            token = control.tokens.create("shop@ingress", 3600)
            sent = IstioCertificateRequest(csr=request("spiffe://cluster.local/ns/shop/sa/ingress-account"))
            sent.metadata.update(metadata)
            async with control.channel() as channel:
                stub = IstioCertificateServiceStub(channel)
                return await stub.CreateCertificate(sent, metadata=control.metadata(token), timeout=60)

    leaf = x509.load_pem_x509_certificate(asyncio.run(play()).cert_chain[0].encode())
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == [
        "spiffe://cluster.local/ns/shop/sa/ingress-account"
    ]


def test_a_pod_that_is_only_just_known_to_its_node_gets_its_certificate_too(tmp_path):
    async def play():
        async with running(tmp_path, "# no pod yet") as control:
            asking = asyncio.create_task(certificate(control))
            original = control.board.later_than

            async def later_than(world, deadline_s):
                control.board.propose(world_of(PODS))
                return await original(world, deadline_s)

            control.board.later_than = later_than
            return (await asking).cert_chain

    assert len(asyncio.run(play())) == 2


def test_the_requests_own_name_counts_and_not_what_is_said_beside_it(tmp_path):
    """Cure53 SPI-01-004: an identity that is due does not carry one in the CSR that is not."""

    async def play():
        both = PODS + pod("db", ip="10.0.0.2", account="db")
        async with running(tmp_path, both) as control:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await certificate(control, "spiffe://cluster.local/ns/shop/sa/db")
            return caught.value

    error = asyncio.run(play())
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "must carry exactly one URI name, spiffe://cluster.local/ns/shop/sa/db" in error.details()


def test_the_server_proves_its_names(tmp_path):
    async def play():
        async with running(tmp_path) as control:
            context = ssl.create_default_context(cadata=control.authority.root_pem.decode())
            context.set_alpn_protocols(["h2"])
            for name in ("controlplane", "istiod.istio-system.svc", "localhost", "127.0.0.1"):
                opening = asyncio.open_connection("127.0.0.1", control.port, ssl=context, server_hostname=name)
                _, writer = await opening
                writer.transport.abort()

    asyncio.run(play())


def test_the_servers_certificate_is_replaced_after_half_its_life(tmp_path):
    authority = load_authority(tmp_path, "cluster.local")
    certificate, begin = server.ServerCertificate(authority, server.NAMES), authority.now()
    assert certificate.renewed() is None
    authority.now = lambda: begin + timedelta(hours=11)
    assert certificate.renewed() is None
    authority.now = lambda: begin + timedelta(hours=13)
    assert certificate.renewed() is certificate.configuration
    assert certificate.renewed() is None


def test_an_occupied_port_is_one_sentence(tmp_path):
    async def play():
        async with running(tmp_path) as control:
            with pytest.raises(OperatorError, match=rf"cannot listen on 127\.0\.0\.1:{control.port}"):
                control.listen(control.port)

    asyncio.run(play())
