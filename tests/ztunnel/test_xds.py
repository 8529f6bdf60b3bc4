"""The configuration stream over real gRPC and TLS on loopback, with a core that only keeps tables."""

import asyncio

import grpc
import pytest

from mesh.delta import ADDRESS_TYPE, AUTHORIZATION_TYPE, PARTIAL
from mesh.errors import OperatorError, PeerError
from mesh.gen import xds_pb2_grpc
from mesh.gen.authorization_pb2 import Authorization
from mesh.gen.workload_pb2 import Address, Workload
from mesh.gen.xds_pb2 import DeltaDiscoveryRequest, DeltaDiscoveryResponse
from tests.ztunnel.conftest import kept, until
from tests.ztunnel.control_plane import ControlPlane, listening
from ztunnel import xds
from ztunnel.channel import open_channel
from ztunnel.dataplane import read_response
from ztunnel.identity import CaClient
from ztunnel.lastgood import LastGood
from ztunnel.metrics import Metrics
from ztunnel.xds import XdsClient, make_node, rest, send

WEB = Address(workload=Workload(uid="web", name="web")).SerializeToString()
DENY = Authorization(name="deny", namespace="shop").SerializeToString()
GARBAGE = b"\xff\xff"


@pytest.fixture
def plane(authority):
    return ControlPlane(authority)


@pytest.fixture
def make(dataplane, settings_for):
    def client(port, store=None, together_s=3600.0, rest=rest, **more):
        settings = settings_for(port, **more)
        return XdsClient(settings, dataplane, Metrics(), store, together_s=together_s, rest=rest)

    return client


async def during(work, story):
    """The story while the work goes on; an error that ends the work ends the story."""
    task, told = asyncio.create_task(work), asyncio.create_task(story)
    try:
        await asyncio.wait({task, told}, return_when=asyncio.FIRST_COMPLETED)
        (told if told.done() else task).result()
    finally:
        for one in (task, told):
            one.cancel()
        await asyncio.gather(task, told, return_exceptions=True)


def test_policies_and_addresses_come_into_force_and_changes_follow(plane, make, core):
    async def main():
        plane.publish(ADDRESS_TYPE, web=("1", WEB))
        plane.publish(AUTHORIZATION_TYPE, deny=("1", DENY))
        async with listening(plane) as port:
            client = make(port)

            async def story():
                await client.in_force.wait()
                assert core.tables[ADDRESS_TYPE] == {"web": WEB}
                assert core.tables[AUTHORIZATION_TYPE] == {"deny": DENY}
                plane.publish(AUTHORIZATION_TYPE)
                await until(lambda: core.tables[AUTHORIZATION_TYPE] == {})

            await during(client.run(), story())

    asyncio.run(main())
    assert plane.metadata[0]["authorization"] == "Bearer node-token"
    assert plane.metadata[0]["clusterid"] == "Kubernetes"
    first, second = plane.requests[:2]
    assert (first.type_url, second.type_url) == (AUTHORIZATION_TYPE, ADDRESS_TYPE)
    assert first.node.metadata["NODE_NAME"] == "node-1"


def test_what_the_core_refuses_walks_back_and_the_rest_is_in_force(plane, make, core):
    async def main():
        plane.publish(ADDRESS_TYPE, bad=("1", GARBAGE), web=("1", WEB))
        async with listening(plane) as port:
            client = make(port)

            async def story():
                await until(lambda: plane.nacks)
                assert core.tables[ADDRESS_TYPE] == {"web": WEB}
                assert not client.in_force.is_set()
                plane.publish(ADDRESS_TYPE, bad=("2", WEB), web=("1", WEB))
                await client.in_force.wait()

            await during(client.run(), story())

    asyncio.run(main())
    assert plane.nacks == ["bad: cannot be decoded"]


def test_a_stream_that_ends_is_resumed_with_what_is_held(plane, make):
    async def main():
        plane.publish(ADDRESS_TYPE, web=("7", WEB))
        async with listening(plane) as port:
            client = make(port)

            async def story():
                await client.in_force.wait()
                told = len(plane.metadata)
                plane.end_streams()
                await until(lambda: len(plane.metadata) > told)
                resumed = [r for r in plane.requests if r.initial_resource_versions]
                await until(lambda: client.connected)
                assert [dict(r.initial_resource_versions) for r in resumed] in ([], [{"web": "7"}])
                await until(lambda: any(r.initial_resource_versions for r in plane.requests))

            await during(client.run(), story())

    asyncio.run(main())
    assert dict(plane.requests[-1].initial_resource_versions) in ({}, {"web": "7"})


def test_a_vanished_control_plane_changes_nothing_and_is_found_again(plane, make, core, settings_for):
    async def main():
        plane.publish(ADDRESS_TYPE, web=("1", WEB))
        async with listening(plane) as port:
            client = make(port)
            work = asyncio.create_task(client.run())
            await client.in_force.wait()
        await until(lambda: not client.connected)
        assert core.tables[ADDRESS_TYPE] == {"web": WEB}
        assert client.in_force.is_set()
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)

    asyncio.run(main())


def test_a_token_that_nobody_knows_ends_a_tunnel_that_has_nothing_to_serve(plane, make):
    plane.refuses = (grpc.StatusCode.UNAUTHENTICATED, "no such join token")

    async def main():
        async with listening(plane) as port:
            await make(port).run()

    with pytest.raises(OperatorError) as caught:
        asyncio.run(main())
    assert str(caught.value).startswith("AUTH_TOKEN: the control plane at localhost:")
    assert str(caught.value).endswith("refuses it: UNAUTHENTICATED: no such join token")


def test_a_refusal_that_comes_while_we_are_still_asking_is_heard_at_the_next_read(plane, settings_for):
    plane.refuses = (grpc.StatusCode.UNAUTHENTICATED, "no such join token")

    async def main():
        async with listening(plane) as port, open_channel(settings_for(port).xds) as channel:
            call = xds_pb2_grpc.AggregatedDiscoveryServiceStub(channel).DeltaAggregatedResources()
            assert await call.code() is grpc.StatusCode.UNAUTHENTICATED
            await send(call, DeltaDiscoveryRequest())
            with pytest.raises(grpc.aio.AioRpcError, match="no such join token"):
                await anext(aiter(call))

    asyncio.run(main())


def test_a_tunnel_with_something_to_serve_outlives_a_refused_token(plane, make):
    async def main():
        async with listening(plane) as port:
            client = make(port)

            async def story():
                await client.in_force.wait()
                plane.refuses = (grpc.StatusCode.UNAUTHENTICATED, "expired")
                plane.end_streams()
                await until(lambda: client.last_error == "UNAUTHENTICATED: expired")

            await during(client.run(), story())

    asyncio.run(main())


def test_a_certificate_with_another_name_is_accepted_only_if_told_so(plane, make):
    async def main():
        async with listening(plane, dns_name="istiod.istio-system.svc") as port:
            wrong, right = make(port), make(port, ALT_XDS_HOSTNAME="istiod.istio-system.svc")

            async def refused():
                await until(lambda: wrong.last_error)
                assert not wrong.in_force.is_set()

            await during(wrong.run(), refused())
            await during(right.run(), right.in_force.wait())

    asyncio.run(main())


def test_a_tunnel_restarted_without_a_control_plane_serves_what_it_had(plane, make, core, tmp_path):
    async def first_life():
        plane.publish(ADDRESS_TYPE, web=("7", WEB))
        plane.publish(AUTHORIZATION_TYPE, deny=("1", DENY))
        async with listening(plane) as port:
            store = LastGood(tmp_path / "state")
            client = make(port, store)

            async def story():
                await client.in_force.wait()
                plane.publish(ADDRESS_TYPE, web=("7", WEB), bad=("1", GARBAGE))
                await until(lambda: plane.nacks)

            await during(client.run(), story())
            await store.flush()

    async def second_life():
        client = make(1, LastGood(tmp_path / "state"))
        await client.restore()
        assert client.in_force.is_set()
        assert core.tables == {ADDRESS_TYPE: {"web": WEB}, AUTHORIZATION_TYPE: {"deny": DENY}}
        assert client.resources() == {ADDRESS_TYPE: 1, AUTHORIZATION_TYPE: 1}

    asyncio.run(first_life())
    for table in core.tables.values():
        table.clear()
    asyncio.run(second_life())


def test_what_is_not_yet_complete_is_not_stored(make, core, tmp_path):
    async def main():
        store = LastGood(tmp_path)
        client = make(1, store)
        await client.take(_response(ADDRESS_TYPE, web=WEB))
        await store.flush()
        assert kept(tmp_path) == {}, "addresses without their policies would widen access"
        await client.take(_response(AUTHORIZATION_TYPE, deny=DENY))
        await store.flush()
        assert kept(tmp_path).keys() == {ADDRESS_TYPE, AUTHORIZATION_TYPE}

    asyncio.run(main())


def test_a_damaged_store_is_an_empty_one(make, tmp_path):
    (tmp_path / "ztunnel-resources.binpb").write_bytes(b"\xff\xff")

    async def main():
        client = make(1, LastGood(tmp_path))
        await client.restore()
        assert not client.in_force.is_set()

    asyncio.run(main())


@pytest.mark.parametrize(("type_url", "serves"), [(ADDRESS_TYPE, True), (AUTHORIZATION_TYPE, False)])
def test_what_the_core_no_longer_takes_is_asked_for_again_and_a_policy_is_waited_for(make, tmp_path, type_url, serves):
    async def main():
        store = LastGood(tmp_path)
        client = make(1, store)
        batch = client._subscriber.receive(_response(type_url, good=b"", bad=GARBAGE))
        await store.record(batch, [])
        store.changed()
        await store.flush()
        again = make(1, LastGood(tmp_path))
        await again.restore()
        assert again.resources()[type_url] == 1
        assert again.in_force.is_set() is serves

    asyncio.run(main())


def test_a_policy_that_was_refused_is_refused_again_after_a_restart_and_the_rest_serves(make, core, tmp_path):
    async def main():
        store = LastGood(tmp_path)
        client = make(1, store)
        await client.take(_response(ADDRESS_TYPE, web=WEB))
        await client.take(_response(AUTHORIZATION_TYPE, deny=DENY))
        await client.take(_response(AUTHORIZATION_TYPE, bad=GARBAGE, deny=GARBAGE))
        await store.flush()
        assert kept(tmp_path)[AUTHORIZATION_TYPE] == {"deny": ("1", DENY), "bad": ("", GARBAGE)}
        again = make(1, LastGood(tmp_path))
        await again.restore()
        assert again.in_force.is_set()
        versions = {each.type_url: dict(each.initial_resource_versions) for each in again._subscriber.start()}
        assert versions[AUTHORIZATION_TYPE] == {"deny": "1", "bad": ""}

    asyncio.run(main())


def test_parts_come_into_force_together_and_those_of_an_offer_that_breaks_off_without_the_rest(make, core):
    async def main():
        client = make(1)
        await client.take(_part(web=WEB))
        assert core.tables[ADDRESS_TYPE] == {}
        await during(client.run(), until(lambda: core.tables[ADDRESS_TYPE] == {"web": WEB}))

    asyncio.run(main())


def test_parts_that_are_kept_waiting_come_into_force_without_the_rest(make, core):
    async def main():
        client = make(1, together_s=0.0)
        for name in ("web", "api"):
            await client.take(_part(**{name: WEB}))
            await until(lambda name=name: name in core.tables[ADDRESS_TYPE])

    asyncio.run(main())


def test_policies_do_not_wait_as_long_for_their_other_parts_as_addresses(make, core):
    async def main():
        client = make(1)
        await client.take(_part(web=WEB))
        await client.take(_response(AUTHORIZATION_TYPE, PARTIAL, deny=DENY))
        await until(lambda: core.tables[AUTHORIZATION_TYPE] == {"deny": DENY} and "web" in core.tables[ADDRESS_TYPE])

    asyncio.run(main())


def test_the_next_part_is_asked_for_after_a_rest_while_somebody_is_connected(make, core):
    rests = []

    async def rested(worked_s):
        rests.append(worked_s > 0)

    async def main():
        client = make(1, rest=rested)
        await client.take(_part(web=WEB))
        assert rests == []
        core.busy = True
        await client.take(_part(api=WEB))
        assert rests == [True]
        await client.take(_response(ADDRESS_TYPE, last=WEB))
        assert rests == [True]

    asyncio.run(main())


def _part(**data):
    return _response(ADDRESS_TYPE, PARTIAL, **data)


def _response(type_url, info="", /, **data):
    response = DeltaDiscoveryResponse(type_url=type_url, nonce="1", system_version_info=info)
    for name, value in data.items():
        resource = response.resources.add(name=name, version="1")
        resource.resource.type_url, resource.resource.value = type_url, value
    return read_response(response.SerializeToString())


def test_a_type_nobody_asked_for_is_acknowledged_and_not_applied(make, core):
    async def main():
        answer = await make(1).take(_response("type/X", a=b"1"))
        assert not answer.HasField("error_detail")
        assert answer.response_nonce == "1"

    asyncio.run(main())


def test_the_node_introduces_itself_as_istios_tunnel_does(settings_for):
    settings = settings_for(1, POD_NAME="zt-1", POD_NAMESPACE="istio-system", INSTANCE_IP="10.0.0.9")
    node = make_node(settings)
    assert node.id == "ztunnel~10.0.0.9~zt-1.istio-system~istio-system.svc.cluster.local"
    assert dict(node.metadata)["INSTANCE_IPS"] == "10.0.0.9"


def test_the_ca_is_asked_for_the_identity_by_name(plane, settings_for, core):
    identity = "spiffe://cluster.local/ns/shop/sa/web"

    async def main():
        async with listening(plane) as port:
            client = CaClient(settings_for(port))
            return await client.sign(identity, core.new_key(identity).decode())

    chain = asyncio.run(main())
    assert len(chain) == 2
    (request,) = plane.certificate_requests
    assert request.metadata["ImpersonatedIdentity"] == identity
    assert request.validity_duration == 86400
    assert plane.metadata[0]["authorization"] == "Bearer node-token"


def test_a_ca_that_says_no_or_is_away_is_quoted(plane, settings_for, core):
    identity = "spiffe://cluster.local/ns/shop/sa/web"
    plane.refuses = (grpc.StatusCode.PERMISSION_DENIED, "not on this node")

    async def main():
        async with listening(plane) as port:
            client = CaClient(settings_for(port))
            with pytest.raises(PeerError, match="says PERMISSION_DENIED: not on this node"):
                await client.sign(identity, core.new_key(identity).decode())
        with pytest.raises(PeerError, match="says UNAVAILABLE"):
            await client.sign(identity, core.new_key(identity).decode())

    asyncio.run(main())


def test_a_response_that_cannot_be_read_ends_the_stream_and_everything_is_asked_for_again(plane, make, monkeypatch):
    spoilt = iter([b"\xff"])
    monkeypatch.setattr(xds, "read_response", lambda response: read_response(next(spoilt, response)))

    async def main():
        plane.publish(ADDRESS_TYPE, web=("1", WEB))
        async with listening(plane) as port:
            client = make(port)

            async def story():
                await until(lambda: client.last_error)
                assert client.last_error == "a response that cannot be read: it is no DeltaDiscoveryResponse"
                await client.in_force.wait()

            await during(client.run(), story())

    asyncio.run(main())
    assert len(plane.metadata) == 2


def test_a_response_is_read_as_it_was_written():
    response = DeltaDiscoveryResponse(type_url="a/B", nonce="7", system_version_info=PARTIAL, removed_resources=["x"])
    for name, url in (("web", "a/B"), ("wölfe", "a/B"), ("odd", "c/D"), ("none", "")):
        resource = response.resources.add(name=name, version="1")
        resource.resource.type_url, resource.resource.value = url, name.encode()
    whole = response.SerializeToString()
    upserts = [("web", "1", b"web"), ("wölfe", "1", "wölfe".encode())]
    assert read_response(whole) == ("a/B", "7", PARTIAL, upserts, [("odd", "c/D"), ("none", "")], ["x"], whole)
