"""Door 2 from the agent's side of a real socket."""

import asyncio
import os
import select
import socket

import pytest

from mesh.gen.zds_pb2 import (
    V1,
    AddWorkload,
    DelWorkload,
    DirectPath,
    KeepWorkload,
    SnapshotSent,
    WorkloadInfo,
    WorkloadRequest,
    WorkloadResponse,
    ZdsHello,
)
from tests.fakes.core import AddressTaken, NamespaceGone
from tests.ztunnel.conftest import until
from ztunnel.pods import Pods
from ztunnel.zds import MAX_PACKET, ZdsClient

SNAPSHOT_SENT = WorkloadRequest(snapshot_sent=SnapshotSent())


def add(uid):
    info = WorkloadInfo(name=uid, namespace="shop", service_account="web")
    return WorkloadRequest(add=AddWorkload(uid=uid, workload_info=info))


def keep(uid):
    return WorkloadRequest(keep=KeepWorkload(uid=uid))


def delete(uid):
    return WorkloadRequest(**{"del": DelWorkload(uid=uid)})


class Agent:
    """The node agent's side of one connection: says a message, claims its answer."""

    def __init__(self, path):
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.listener.bind(str(path))
        self.listener.listen()
        self.listener.setblocking(False)
        self.loop = asyncio.get_running_loop()
        self.connection = None

    async def accept(self):
        if self.connection:
            self.connection.close()
        self.connection, _ = await self.loop.sock_accept(self.listener)
        hello = ZdsHello.FromString(await self.loop.sock_recv(self.connection, MAX_PACKET))
        assert hello.version == V1

    async def say_with(self, request, *files):
        """The answer's error text and the descriptors that came with it, as names in /proc."""
        socket.send_fds(self.connection, [request.SerializeToString()], list(files))
        await self.loop.run_in_executor(None, select.select, [self.connection], [], [], 5)
        packet, fds, _, _ = socket.recv_fds(self.connection, MAX_PACKET, 16)
        names = [os.readlink(f"/proc/self/fd/{fd}") for fd in fds]
        for fd in fds:
            os.close(fd)
        return WorkloadResponse.FromString(packet).ack.error, names

    async def say(self, request, fds=0):
        """Sends with that many descriptors of our own namespace; returns the answer's error text."""
        packet = request if isinstance(request, bytes) else request.SerializeToString()
        files = [os.open("/proc/self/ns/net", os.O_RDONLY) for _ in range(fds)]
        socket.send_fds(self.connection, [packet], files)
        for file in files:
            os.close(file)
        answer = await self.loop.sock_recv(self.connection, MAX_PACKET)
        return WorkloadResponse.FromString(answer).ack.error if answer else "closed"

    async def is_closed(self):
        return await self.loop.sock_recv(self.connection, MAX_PACKET) == b""

    def hang_up(self):
        self.connection.close()

    def close(self):
        self.hang_up()
        self.listener.close()


@pytest.fixture
def pods(dataplane):
    return Pods(dataplane)


@pytest.fixture
def client(pods, tmp_path):
    return ZdsClient(tmp_path / "zds.sock", pods)


@pytest.fixture
def talk(client, tmp_path):
    """Runs a story with a connected agent; no descriptor may be left afterwards."""

    def run(story):
        async def main():
            agent = Agent(tmp_path / "zds.sock")
            work = asyncio.create_task(client.run())
            try:
                await agent.accept()
                await story(agent)
            finally:
                work.cancel()
                await asyncio.gather(work, return_exceptions=True)
                client._pods.close()
                agent.close()

        before = namespaces_held()
        asyncio.run(main())
        assert namespaces_held() == before

    return run


def namespaces_held():
    held = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            held += os.readlink(f"/proc/self/fd/{name}").startswith("net:")
        except FileNotFoundError:
            continue
    return held


def test_a_pod_is_enrolled_and_withdrawn(talk, core):
    async def story(agent):
        assert await agent.say(SNAPSHOT_SENT) == ""
        assert await agent.say(add("web-1"), fds=1) == ""
        assert core.pods() == ["web-1"]
        assert await agent.say(delete("web-1")) == ""
        assert core.pods() == []
        assert await agent.say(delete("never-here")) == ""

    talk(story)


def test_listening_sockets_are_given_to_an_agent_that_keeps_them_and_taken_from_it(talk, core):
    netns = os.open("/proc/self/ns/net", os.O_RDONLY)

    async def story(agent):
        with socket.create_server(("127.0.0.1", 0)) as left:
            name = os.readlink(f"/proc/self/fd/{left.fileno()}")
            request = add("web-1")
            assert await agent.say_with(request, netns) == ("", []), "Istio's agent gets what it knows"
            request = add("web-2")
            request.add.keep_listeners = True
            error, own = await agent.say_with(request, netns)
            assert (error, len(own)) == ("", 1)
            request = add("web-3")
            request.add.keep_listeners = True
            assert await agent.say_with(request, netns, left.fileno()) == ("", [name])
            core.refuses_pods["web-4"] = AddressTaken("15001 is taken")
            request = add("web-4")
            request.add.keep_listeners = True
            assert await agent.say_with(request, netns, left.fileno()) == ("15001 is taken", [])
        del core.refuses_pods["web-4"]
        assert await agent.say(delete("web-3")) == ""

    talk(story)
    os.close(netns)


def test_a_waiting_pod_keeps_what_was_left_to_it(talk, core, pods):
    """Without them it would find its ports taken: by the agent, which holds those sockets."""

    netns = os.open("/proc/self/ns/net", os.O_RDONLY)

    async def story(agent):
        with socket.create_server(("127.0.0.1", 0)) as left:
            request = add("web-1")
            request.add.keep_listeners = True
            core.refuses_pods["web-1"] = OSError(24, "Too many open files")
            await agent.say_with(request, netns, left.fileno())
            del core.refuses_pods["web-1"]
            await pods.retry()
            (kept,) = core.listeners("web-1")
            assert os.fstat(kept).st_ino == os.fstat(left.fileno()).st_ino
            os.close(kept)

    talk(story)
    os.close(netns)


def test_the_direct_path_is_what_the_agent_hands_over_in_this_conversation(talk, core):
    maps = [os.eventfd(0) for _ in range(3)]
    direct = WorkloadRequest(direct=DirectPath())

    async def story(agent):
        assert await agent.say_with(direct, *maps) == ("", [])
        assert await agent.say(SNAPSHOT_SENT) == ""
        assert core.direct_maps == [os.fstat(fd).st_ino for fd in maps]
        agent.hang_up()
        await agent.accept()
        assert core.direct_maps, "the agent may be back in a moment"
        assert await agent.say(SNAPSHOT_SENT) == ""
        assert core.direct_maps == []

    talk(story)
    for fd in maps:
        os.close(fd)


def test_a_tunnel_that_may_not_grant_the_direct_path_says_so_and_goes_on(talk, core):
    core.refuses_direct = PermissionError(1, "Operation not permitted")

    async def story(agent):
        assert "not permitted" in await agent.say(WorkloadRequest(direct=DirectPath()), fds=3)
        assert await agent.say(SNAPSHOT_SENT) == ""
        assert core.direct_maps == []

    talk(story)


@pytest.mark.parametrize("fds", [0, 2, 4])
def test_the_direct_path_without_its_three_maps_ends_the_conversation(talk, fds):
    async def story(agent):
        assert "without its maps" in await agent.say(WorkloadRequest(direct=DirectPath()), fds=fds)
        assert await agent.is_closed()

    talk(story)


def test_what_the_snapshot_does_not_name_is_dropped(talk, core, client):
    async def story(agent):
        for uid in ("web-1", "web-2", "web-3"):
            assert await agent.say(add(uid), fds=1) == ""
        assert not client.snapshot
        assert await agent.say(SNAPSHOT_SENT) == ""
        await until(lambda: client.snapshot)
        agent.hang_up()
        await agent.accept()
        assert core.pods() == ["web-1", "web-2", "web-3"], "served on while the agent was away"
        assert await agent.say(add("web-1"), fds=1) == ""
        assert await agent.say(keep("web-2")) == ""
        assert await agent.say(SNAPSHOT_SENT) == ""
        assert core.pods() == ["web-1", "web-2"]

    talk(story)


def test_a_pod_that_cannot_be_served_is_refused_and_tried_again(talk, core, pods):
    async def story(agent):
        await agent.say(SNAPSHOT_SENT)
        core.refuses_pods["web-1"] = AddressTaken("15001 is taken")
        assert await agent.say(add("web-1"), fds=1) == "15001 is taken"
        assert pods.waiting == {"web-1": "15001 is taken"}
        await pods.retry()
        assert pods.waiting == {"web-1": "15001 is taken"}
        del core.refuses_pods["web-1"]
        await pods.retry()
        assert (pods.waiting, pods.served) == ({}, ["web-1"])

    talk(story)


def test_a_waiting_pod_that_is_deleted_is_not_tried_again(talk, core, pods):
    async def story(agent):
        await agent.say(SNAPSHOT_SENT)
        core.refuses_pods["web-1"] = OSError(24, "Too many open files")
        assert "Too many open files" in await agent.say(add("web-1"), fds=1)
        assert await agent.say(delete("web-1")) == ""
        core.refuses_pods.clear()
        await pods.retry()
        assert core.pods() == []

    talk(story)


def test_a_pod_whose_namespace_is_gone_is_forgotten(talk, core, pods):
    async def story(agent):
        core.refuses_pods["web-1"] = NamespaceGone("no such namespace")
        assert await agent.say(add("web-1"), fds=1) == "no such namespace"
        assert pods.waiting == {}

    talk(story)


@pytest.mark.parametrize(
    ("request_", "fds", "why"),
    [
        (add("web-1"), 0, "AddWorkload with 0 descriptors instead of one"),
        (add("web-1"), 2, "AddWorkload with 2 descriptors instead of one"),
        (WorkloadRequest(add=AddWorkload(uid="web-1")), 1, "AddWorkload without uid or workload_info"),
        (b"\xff\xff\xff", 1, "closed"),
        (b"x" * (MAX_PACKET + 1), 1, "closed"),
        (SNAPSHOT_SENT.SerializeToString(), 24, "closed"),
    ],
    ids=["no fd", "two fds", "no info", "garbage", "too long", "more fds than fit"],
)
def test_a_broken_message_ends_the_connection_and_leaves_no_descriptor(talk, core, request_, fds, why):
    async def story(agent):
        assert await agent.say(request_, fds) == why
        assert await agent.is_closed()
        await agent.accept()
        assert core.pods() == []

    talk(story)


@pytest.mark.parametrize("late", [keep("web-1"), SNAPSHOT_SENT], ids=["keep", "second snapshot"])
def test_what_belongs_into_the_snapshot_is_refused_after_it(talk, late):
    async def story(agent):
        await agent.say(SNAPSHOT_SENT)
        assert "Snapshot" in (error := await agent.say(late)) or "snapshot" in error
        assert await agent.is_closed()
        await agent.accept()

    talk(story)


def test_descriptors_with_a_message_that_needs_none_are_closed(talk):
    async def story(agent):
        assert await agent.say(SNAPSHOT_SENT, fds=2) == ""

    talk(story)


def test_a_long_reason_fits_into_the_packet(talk, core):
    async def story(agent):
        core.refuses_pods["web-1"] = OSError("ü" * 2000)
        assert (await agent.say(add("web-1"), fds=1)).startswith("üüü")

    talk(story)


def test_without_an_agent_the_tunnel_keeps_trying(client, tmp_path):
    async def main():
        work = asyncio.create_task(client.run())
        await asyncio.sleep(0)
        agent = Agent(tmp_path / "zds.sock")
        await agent.accept()
        await until(lambda: client.connected)
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
        assert not client.connected
        agent.close()

    asyncio.run(main())
