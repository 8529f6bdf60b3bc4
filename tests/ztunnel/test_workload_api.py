"""Certificates and bundles from a stand-in for SPIRE's agent, and bundles from a CA, over real gRPC."""

import asyncio
from contextlib import asynccontextmanager

import grpc
import grpc.aio
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from mesh.gen.spiffe_pb2 import X509SVID, X509BundlesResponse, X509SVIDResponse
from mesh.gen.spiffe_pb2_grpc import SpiffeWorkloadAPIServicer, add_SpiffeWorkloadAPIServicer_to_server
from tests.ztunnel.authority import Authority, pem
from tests.ztunnel.conftest import until
from ztunnel.metrics import Metrics
from ztunnel.trust import Trust
from ztunnel.workload_api import Supplied, watch_bundles

WEB, DB = "spiffe://cluster.local/ns/shop/sa/web", "spiffe://cluster.local/ns/shop/sa/db"
DER = serialization.Encoding.DER
CA, PARTNER = Authority(), Authority()
ROOT, FOREIGN = CA.root.public_bytes(DER), PARTNER.root.public_bytes(DER)


def svid(identity, authority=CA):
    key = ec.generate_private_key(ec.SECP256R1())
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    chain = authority.chain(identity, request.public_bytes(serialization.Encoding.PEM).decode())
    leaf = x509.load_pem_x509_certificate(chain[0].encode())
    pkcs8 = key.private_bytes(DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    root = authority.root.public_bytes(DER)
    return X509SVID(spiffe_id=identity, x509_svid=leaf.public_bytes(DER), x509_svid_key=pkcs8, bundle=root)


class Agent(SpiffeWorkloadAPIServicer):
    """`say` sends to every open stream; `end` ends them with a code."""

    def __init__(self):
        self.metadata, self.streams = [], []
        self.first: list[object] = []

    def say(self, message):
        self.first = [message]
        for stream in self.streams:
            stream.put_nowait(message)

    def end(self, code):
        for stream in self.streams:
            stream.put_nowait(code)

    async def _speak(self, context):
        self.metadata.append(dict(context.invocation_metadata()))
        mine = asyncio.Queue()
        for message in self.first:
            mine.put_nowait(message)
        self.streams.append(mine)
        try:
            while not isinstance(said := await mine.get(), grpc.StatusCode):
                yield said
        finally:
            self.streams.remove(mine)
        await context.abort(said, "the agent's own words")

    async def FetchX509SVID(self, request, context):
        async for message in self._speak(context):
            yield message

    async def FetchX509Bundles(self, request, context):
        async for message in self._speak(context):
            yield message


@asynccontextmanager
async def serving(agent, credentials=None, address="localhost:0"):
    server = grpc.aio.server()
    add_SpiffeWorkloadAPIServicer_to_server(agent, server)
    port = server.add_secure_port(address, credentials) if credentials else server.add_insecure_port(address)
    await server.start()
    try:
        yield port
    finally:
        await server.stop(grace=None)


@pytest.fixture
def play(tmp_path, settings_for, dataplane, core):
    """Runs a story with an agent at a socket and a node that takes its certificates from there."""

    def run(story):
        socket = f"unix://{tmp_path}/agent.sock"
        settings = settings_for(NODEMESH_IDENTITY_SOURCE="spiffe", SPIFFE_ENDPOINT_SOCKET=socket)
        trust = Trust(settings, core.set_trust)
        supplied = Supplied(settings, dataplane, trust, Metrics())
        agent = Agent()

        async def whole():
            async with serving(agent, address=socket):
                work = asyncio.create_task(supplied.run())
                try:
                    await story(agent, supplied)
                finally:
                    work.cancel()
                    await asyncio.gather(work, return_exceptions=True)

        asyncio.run(whole())

    return run


def test_what_is_offered_and_needed_is_installed_and_nothing_else(play, core):
    async def story(agent, supplied):
        supplied.needed(WEB, "now")
        agent.say(X509SVIDResponse(svids=[svid(WEB), svid(DB)], federated_bundles={"spiffe://partner.org": FOREIGN}))
        await until(lambda: WEB in core.chains)
        assert agent.metadata[0]["workload.spiffe.io"] == "true"
        assert DB not in core.keys_held
        assert core.trust[-1]["bundles"] == {"cluster.local": pem(CA.root), "partner.org": pem(PARTNER.root)}
        supplied.needed(DB, "prefetch")
        await until(lambda: DB in core.chains)
        await until(lambda: supplied.rotation.expiries().keys() == {WEB, DB})
        supplied.unused(WEB)
        assert WEB not in core.keys_held

    play(story)


def test_an_update_replaces_and_what_it_no_longer_names_is_dropped(play, core):
    async def story(agent, supplied):
        supplied.needed(WEB, "now")
        supplied.needed(DB, "now")
        agent.say(X509SVIDResponse(svids=[svid(WEB), svid(DB)]))
        await until(lambda: {WEB, DB} <= core.chains.keys())
        first = core.chains[WEB]
        agent.say(X509SVIDResponse(svids=[svid(WEB)]))
        await until(lambda: core.chains.get(WEB, first) != first and DB not in core.chains)
        await until(lambda: (DB, f"the Workload API offers no certificate for {DB}") in core.failures)

    play(story)


def test_an_agent_that_goes_away_takes_nothing_along(play, core):
    async def story(agent, supplied):
        supplied.needed(WEB, "now")
        agent.say(X509SVIDResponse(svids=[svid(WEB)]))
        await until(lambda: WEB in core.chains)
        agent.end(grpc.StatusCode.UNAVAILABLE)
        await until(lambda: not agent.streams)
        supplied.needed(DB, "now")
        await until(lambda: any(name == DB for name, _ in core.failures))
        assert WEB in core.chains

    play(story)


def test_a_refusal_in_mid_stream_withdraws_everything(play, core):
    async def story(agent, supplied):
        supplied.needed(WEB, "now")
        agent.say(X509SVIDResponse(svids=[svid(WEB)]))
        await until(lambda: WEB in core.chains)
        agent.end(grpc.StatusCode.PERMISSION_DENIED)
        await until(lambda: WEB not in core.chains)

    play(story)


def test_who_waits_is_told_why_when_the_agent_refuses(play, core):
    async def story(agent, supplied):
        agent.first = [grpc.StatusCode.PERMISSION_DENIED]
        supplied.needed(WEB, "now")
        await until(lambda: any("PERMISSION_DENIED: the agent's own words" in why for _, why in core.failures))

    play(story)


def test_a_message_that_is_none_changes_nothing(play, core):
    async def story(agent, supplied):
        supplied.needed(WEB, "now")
        agent.say(X509SVIDResponse(svids=[svid(WEB)]))
        await until(lambda: WEB in core.chains)
        told = len(core.trust)
        agent.say(X509SVIDResponse(svids=[svid(WEB)], federated_bundles={"partner.org": FOREIGN}))
        await until(lambda: not agent.streams)
        assert (WEB in core.chains, len(core.trust)) == (True, told)

    play(story)


def test_a_name_without_a_key_of_its_own_is_refused_with_the_reason(play, core):
    async def story(agent, supplied):
        supplied.needed(WEB, "now")
        wrong = svid(WEB)
        wrong.x509_svid_key = svid(WEB).x509_svid_key
        agent.say(X509SVIDResponse(svids=[wrong]))
        await until(lambda: core.failures)
        assert core.failures[0][0] == WEB

    play(story)


def bundles_of(**domains):
    return X509BundlesResponse(bundles={f"spiffe://{name.replace('_', '.')}": der for name, der in domains.items()})


def test_bundles_of_a_ca_are_followed_and_a_ca_without_them_is_left_alone(settings_for, core, authority):
    async def story():
        agent = Agent()
        agent.first = [bundles_of(cluster_local=ROOT)]
        credentials = grpc.ssl_server_credentials([authority.server("localhost")])
        async with serving(agent, credentials) as port:
            settings = settings_for(port)
            trust = Trust(settings, core.set_trust)
            watching = asyncio.create_task(watch_bundles(settings, trust))
            await until(lambda: trust.own_roots() == pem(CA.root))
            assert agent.metadata[0]["authorization"] == "Bearer node-token"
            assert agent.metadata[0]["workload.spiffe.io"] == "true"
            agent.say(bundles_of(cluster_local=ROOT + FOREIGN))
            await until(lambda: trust.own_roots() == pem(CA.root) + pem(PARTNER.root))
            agent.end(grpc.StatusCode.UNIMPLEMENTED)
            await watching
            assert trust.own_roots() == pem(CA.root) + pem(PARTNER.root)

    asyncio.run(asyncio.wait_for(story(), 60))
