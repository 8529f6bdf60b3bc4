"""Door 2 from a tunnel's side: real SOCK_SEQPACKET sockets, a tunnel that answers as it is told."""

import array
import asyncio
import os
import socket

import pytest

from mesh.errors import OperatorError
from mesh.gen import zds_pb2
from nodeagent import zds
from nodeagent.heirlooms import Heirlooms


async def until(condition):
    """Lets the loop turn; a minute is the end of a hung test, not part of its meaning."""
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 - what is waited for is seen from outside only
            await asyncio.sleep(0)


class Namespace:
    """Stands for one: a descriptor that tells what it is when read."""

    def __init__(self, text):
        self.fd = os.memfd_create(text)
        os.write(self.fd, text.encode())

    def fileno(self):
        if self.fd < 0:
            raise ValueError("closed")
        return self.fd

    def close(self):
        os.close(self.fd)
        self.fd = -1


class Tunnel:
    """The other side of the socket. `conversation` is all that it was told; each message is acknowledged."""

    def __init__(self, path, refuse=(), gives=None, direct=False):
        """`gives`: text of the listening sockets that it says it has, per pod; None: it is Istio's."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.sock.connect(str(path))
        self.sock.setblocking(False)
        self.refuse, self.conversation, self.gives, self.direct = dict(refuse), [], gives, direct

    async def hello(self, version=zds_pb2.V1):
        hello = zds_pb2.ZdsHello(version=version, shares_listeners=self.gives is not None)
        hello.takes_direct = self.direct
        await asyncio.get_running_loop().sock_sendall(self.sock, hello.SerializeToString())

    async def receive(self):
        """One message and the text behind its descriptor."""
        loop, readable = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(self.sock, readable.set)
        try:
            await asyncio.wait_for(readable.wait(), 60)
        finally:
            loop.remove_reader(self.sock)
        data, ancillary, flags, _ = self.sock.recvmsg(1024, socket.CMSG_SPACE(4 * 16))
        assert data, "the agent hung up"
        assert not flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC)
        descriptors = array.array("i")
        for _, _, content in ancillary:
            descriptors.frombytes(content)
        return zds_pb2.WorkloadRequest.FromString(data), [read_and_close(fd) for fd in descriptors]

    async def turn(self):
        """Hears one message, acknowledges it."""
        request, texts = await self.receive()
        kind = request.WhichOneof("payload")
        uid = getattr(getattr(request, kind), "uid", "")
        self.conversation.append(" ".join(filter(None, [kind, uid, *texts])))
        response = zds_pb2.WorkloadResponse(ack=zds_pb2.Ack(error=self.refuse.get(uid, "")))
        given = [Namespace(text) for text in (self.gives or {}).get(uid, ())] if kind == "add" else []
        socket.send_fds(self.sock, [response.SerializeToString()], [each.fd for each in given])
        for each in given:
            each.close()
        return request

    async def live(self):
        await self.hello()
        while True:
            await self.turn()


def read_and_close(fd):
    with os.fdopen(fd) as file:
        return os.pread(file.fileno(), 100, 0).decode()


class Stage:
    """A server with pods, and what it said of them."""

    def __init__(self, path, *names, direct=None, **heirlooms):
        self.path, self.heard, self.lost = path, [], 0
        self.pods = [zds.Workload(f"uid-{name}", "shop", name, "sa", Namespace(f"netns of {name}")) for name in names]
        self.server = zds.ZdsServer(lambda: self.pods, self.hear, self.count_loss, None, Heirlooms(**heirlooms), direct)
        self.tasks = []

    def hear(self, *said):
        self.heard.append(said)

    def count_loss(self):
        self.lost += 1

    async def __aenter__(self):
        self.server.start(self.path)
        return self

    async def __aexit__(self, *_):
        for task, _ in self.tasks:
            task.cancel()
        await asyncio.gather(*(task for task, _ in self.tasks), return_exceptions=True)
        await self.server.stop()
        for _, tunnel in self.tasks:
            tunnel.sock.close()

    async def tunnel(self, **how):
        """A tunnel that lives, behind its snapshot."""
        tunnel = Tunnel(self.path, **how)
        self.tasks.append((asyncio.create_task(tunnel.live()), tunnel))
        await until(lambda: "snapshot_sent" in tunnel.conversation)
        return tunnel

    async def leave(self, tunnel):
        (task,) = (task for task, other in self.tasks if other is tunnel)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        others = self.server.connected - 1
        tunnel.sock.close()
        await until(lambda: self.server.connected == others)


def pod(name):
    return zds.Workload(f"uid-{name}", "shop", name, "sa", Namespace(f"netns of {name}"))


def run(path, story, *names, **heirlooms):
    async def main():
        async with Stage(path / "zds.sock", *names, **heirlooms) as stage:
            await story(stage)

    asyncio.run(main())


def test_a_tunnel_is_told_every_pod_with_its_namespace_then_that_this_was_all(tmp_path):
    async def story(stage):
        tunnel = await stage.tunnel()
        assert tunnel.conversation == [
            "add uid-a netns of a",
            "add uid-b netns of b",
            "snapshot_sent",
        ]
        assert stage.heard == [("uid-a", None), ("uid-b", None)]

    run(tmp_path, story, "a", "b")


def test_the_workload_is_described_as_istio_does(tmp_path):
    async def story(stage):
        tunnel = Tunnel(stage.path)
        await tunnel.hello()
        request = await tunnel.turn()
        info = request.add.workload_info
        assert (info.name, info.namespace, info.service_account) == ("a", "shop", "sa")
        tunnel.sock.close()

    run(tmp_path, story, "a")


def test_search_domains_are_told_as_far_as_they_fit_the_packet():
    long = tuple(f"{n}.{'x' * 60}.example" for n in range(32))
    search = ("corp.example", *long)
    workload = zds.Workload("u" * 300, "n" * 63, "p" * 253, "s" * 253, Namespace("netns"), search)
    request = zds._add(workload)
    told = list(request.add.workload_info.search)
    assert told == list(search[: len(told)])
    assert "corp.example" in told
    assert request.ByteSize() <= zds.MAX_PACKET_BYTES


def test_a_refusal_in_the_snapshot_is_heard_and_the_rest_goes_on(tmp_path):
    async def story(stage):
        tunnel = await stage.tunnel(refuse={"uid-a": "port 15001 is taken"})
        assert stage.heard == [("uid-a", "port 15001 is taken"), ("uid-b", None)]
        assert tunnel.conversation[-1] == "snapshot_sent"

    run(tmp_path, story, "a", "b")


def test_a_pod_that_left_before_its_turn_is_passed_over(tmp_path):
    async def story(stage):
        stage.pods[0].netns.close()
        tunnel = await stage.tunnel()
        assert tunnel.conversation == ["add uid-b netns of b", "snapshot_sent"]

    run(tmp_path, story, "a", "b")


def test_a_new_pod_goes_to_the_newest_tunnel_and_a_leaving_one_to_all(tmp_path):
    async def story(stage):
        older = await stage.tunnel()
        newer = await stage.tunnel()
        await stage.server.add(pod("a"))
        await stage.server.remove("uid-a")
        assert older.conversation == ["snapshot_sent", "del uid-a"]
        assert newer.conversation == ["snapshot_sent", "add uid-a netns of a", "del uid-a"]

    run(tmp_path, story)


def test_a_tunnel_that_takes_the_direct_path_gets_its_maps_before_the_snapshot_and_istios_does_not(tmp_path):
    maps = [Namespace(f"map {number}") for number in range(3)]

    async def offer():
        return [each.fileno() for each in maps]

    async def story():
        async with Stage(tmp_path / "zds.sock", "a", direct=offer) as stage:
            ours, istios = await stage.tunnel(direct=True), await stage.tunnel()
            assert ours.conversation == ["direct map 0 map 1 map 2", "add uid-a netns of a", "snapshot_sent"]
            assert istios.conversation == ["add uid-a netns of a", "snapshot_sent"]
            assert stage.server.direct_trouble == "the tunnel does not know of it"
            await stage.tunnel(direct=True, refuse={"": "not permitted"})
            assert stage.server.direct_trouble == "not permitted"

    asyncio.run(story())
    for each in maps:
        each.close()


def test_the_older_tunnel_takes_over_when_the_newest_leaves(tmp_path):
    async def story(stage):
        older = await stage.tunnel()
        newer = await stage.tunnel()
        await stage.leave(newer)
        await stage.server.add(pod("a"))
        assert older.conversation[-1] == "add uid-a netns of a"
        assert stage.lost == 0
        await stage.leave(older)
        await until(lambda: stage.lost == 1)

    run(tmp_path, story)


def test_a_new_pod_waits_for_a_tunnel_that_is_about_to_come(tmp_path):
    async def story(stage):
        adding = asyncio.create_task(stage.server.add(pod("a")))
        await asyncio.sleep(0)
        assert not adding.done()
        tunnel = await stage.tunnel()
        await adding
        assert tunnel.conversation == ["snapshot_sent", "add uid-a netns of a"]

    run(tmp_path, story)


def test_without_a_tunnel_it_fails_with_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(zds, "DEADLINE_S", 0.01)

    async def story(stage):
        with pytest.raises(zds.NotConnected, match=r"^no tunnel is connected$"):
            await stage.server.add(pod("a"))

    run(tmp_path, story)


def test_a_refused_pod_fails_with_the_tunnels_words(tmp_path):
    async def story(stage):
        await stage.tunnel(refuse={"uid-a": "no permission"})
        with pytest.raises(zds.Refused, match=r"^the tunnel refused it: no permission$"):
            await stage.server.add(pod("a"))

    run(tmp_path, story)


def test_a_pod_under_way_goes_to_the_next_tunnel_when_the_first_dies(tmp_path):
    async def story(stage):
        mute = Tunnel(stage.path)
        await mute.hello()
        await mute.turn()
        await until(lambda: stage.server.connected == 1)
        adding = asyncio.create_task(stage.server.add(pod("a")))
        await mute.receive()
        mute.sock.close()
        tunnel = await stage.tunnel()
        await adding
        assert tunnel.conversation[-1] == "add uid-a netns of a"

    run(tmp_path, story)


BROKEN = {
    "no protobuf": b"\xff\xff\xff",
    "an empty message is an unknown version": zds_pb2.ZdsHello().SerializeToString() or b"\x08\x00",
    "another version": b"\x08\x02",
    "too long": b"\x0a" * 1025,
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_tunnel_that_does_not_greet_properly_is_hung_up_on(tmp_path, what):
    async def story(stage):
        tunnel = Tunnel(stage.path)
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(tunnel.sock, BROKEN[what])
        assert await loop.sock_recv(tunnel.sock, 1024) == b""
        tunnel.sock.close()
        assert stage.server.connected == 0

    run(tmp_path, story)


def test_a_tunnel_that_speaks_out_of_turn_is_hung_up_on(tmp_path):
    async def story(stage):
        tunnel = await stage.tunnel()
        ack = zds_pb2.WorkloadResponse(ack=zds_pb2.Ack()).SerializeToString()
        tunnel.sock.send(ack)
        await until(lambda: stage.lost == 1)
        assert stage.server.connected == 0

    run(tmp_path, story)


def test_a_tunnel_that_never_answers_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(zds, "DEADLINE_S", 0.01)

    async def story(stage):
        mute = Tunnel(stage.path)
        await mute.hello()
        assert await asyncio.wait_for(asyncio.get_running_loop().sock_recv(mute.sock, 1024), 60)
        assert await asyncio.wait_for(asyncio.get_running_loop().sock_recv(mute.sock, 1024), 60) == b""
        mute.sock.close()

    run(tmp_path, story, "a")


def test_the_socket_is_for_its_owner_alone_and_a_dead_owners_file_is_replaced(tmp_path):
    async def story(stage):
        assert stage.path.stat().st_mode & 0o777 == 0o600
        with pytest.raises(OperatorError, match="another process is already listening there"):
            zds.ZdsServer(list, print, print).start(stage.path)

    run(tmp_path, story)
    run(tmp_path, story)


def test_no_more_tunnels_are_taken_than_an_upgrade_needs_many_times(tmp_path):
    async def story(stage):
        for _ in range(zds.MAX_CONNECTIONS):
            await stage.tunnel()
        late = Tunnel(stage.path)
        assert await asyncio.get_running_loop().sock_recv(late.sock, 1024) == b""
        late.sock.close()

    run(tmp_path, story)
