"""Pods' listening sockets between two tunnels: who is given them, who gives them, and when nobody waits any longer."""

import asyncio
import os
import socket
import subprocess
from dataclasses import replace

import pytest

from nodeagent.heirlooms import Heirlooms
from nodeagent.opener import Opener, revive
from nodeagent.redirect.netns import run_on_thread
from tests.nodeagent.test_zds import Namespace, Stage, pod, until

OURS = (".".join(map(str, (127, *os.getpid().to_bytes(3, "big")))), 15001)
"""An address that no other test run has: like a pod's ports, this one is asked for by its number."""


def play(path, story, *names, patience_s=3600.0, make=lambda fd, _: [], revive=lambda *_: 0):
    async def main():
        async with Stage(path / "zds.sock", *names, patience_s=patience_s, make=make, revive=revive) as stage:
            await story(stage)

    asyncio.run(main())


def made_for(netns_fd, addresses):
    """Stands for the opener's: two descriptors that tell for which namespace they were made."""
    text = os.pread(netns_fd, 100, 0).decode()
    return [Namespace(f"{kind} of {text}").fd for kind in ("listener", "datagrams")]


def test_a_tunnel_gets_sockets_that_the_agent_made(tmp_path):
    async def story(stage):
        tunnel = await stage.tunnel(gives={})
        assert tunnel.conversation[0] == "add uid-a netns of a listener of netns of a datagrams of netns of a"

    play(tmp_path, story, "a", make=made_for)


def on_addresses(netns_fd, addresses):
    return [Namespace(f"listener on {address}").fd for address in addresses]


def test_who_shares_a_namespace_has_sockets_on_addresses_of_its_own(tmp_path):
    async def story(stage):
        [only] = stage.pods
        stage.pods[:] = [replace(only, addresses=("10.0.0.101", "fd00::1"))]
        first = await stage.tunnel(gives={})
        assert first.conversation[0] == "add uid-a netns of a listener on 10.0.0.101 listener on fd00::1"
        stage.pods[:] = [replace(only, addresses=("10.0.0.102",))]
        second = await stage.tunnel(gives={})
        assert second.conversation[0] == "add uid-a netns of a listener on 10.0.0.102"

    play(tmp_path, story, "a", make=on_addresses)


def test_who_has_more_addresses_than_one_packet_takes_leaves_the_sockets_to_its_tunnel(tmp_path):
    async def story(stage):
        stage.pods[:] = [replace(stage.pods[0], addresses=tuple(f"10.0.0.{n}" for n in range(1, 5)))]
        tunnel = await stage.tunnel(gives={})
        assert tunnel.conversation[0] == "add uid-a netns of a"

    play(tmp_path, story, "a", make=on_addresses)


def test_the_next_tunnel_gets_what_the_one_before_it_gave(tmp_path):
    async def story(stage):
        first = await stage.tunnel(gives={"uid-a": ["15001", "15006"], "uid-b": ["15008"]})
        assert first.conversation[0] == "add uid-a netns of a"
        await stage.server.add(late := pod("b"))
        await stage.leave(first)
        stage.pods.append(late)
        second = await stage.tunnel(gives={})
        assert second.conversation[:2] == ["add uid-a netns of a 15001 15006", "add uid-b netns of b 15008"]
        third = await stage.tunnel(gives={})
        assert third.conversation == second.conversation

    play(tmp_path, story, "a")


def test_istios_tunnel_is_given_the_namespace_alone_and_finds_the_ports_free(tmp_path):
    async def story(stage):
        ours = await stage.tunnel(gives={"uid-a": ["15001"]})
        await stage.leave(ours)
        istios = await stage.tunnel()
        assert istios.conversation[0] == "add uid-a netns of a"
        await stage.leave(istios)
        assert (await stage.tunnel(gives={})).conversation[0] == "add uid-a netns of a"

    play(tmp_path, story, "a")


def test_a_pod_that_left_takes_its_sockets_with_it(tmp_path):
    async def story(stage):
        await stage.tunnel(gives={"uid-a": ["15001"]})
        await stage.server.remove("uid-a")
        assert (await stage.tunnel(gives={})).conversation[0] == "add uid-a netns of a"

    play(tmp_path, story, "a")


def test_a_pod_that_came_back_in_another_namespace_does_not_get_the_old_ones(tmp_path):
    async def story(stage):
        tunnel = await stage.tunnel(gives={"uid-a": ["15001"]})
        await stage.leave(tunnel)
        stage.pods[:] = [pod("a")]
        assert (await stage.tunnel(gives={})).conversation[0] == "add uid-a netns of a"

    play(tmp_path, story, "a")


def test_nothing_is_asked_for_when_nothing_is_kept(tmp_path):
    async def story(stage):
        tunnel = await stage.tunnel(gives={})
        assert tunnel.conversation[0] == "add uid-a netns of a"

    play(tmp_path, story, "a", patience_s=0, make=made_for)


def test_a_pod_that_shall_listen_again_does_so_on_the_sockets_that_the_tunnel_has(tmp_path):
    async def story(stage):
        tunnel = await stage.tunnel(gives={"uid-a": ["15001", "15006"]})
        await stage.server.renew(stage.pods[0], [15006])
        assert tunnel.conversation[1:] == ["snapshot_sent", "add uid-a netns of a 15001 15006"]

    play(tmp_path, story, "a", revive=lambda fd, _: int(os.pread(fd, 100, 0)))


@pytest.mark.parametrize("revive", [lambda *_: 0, lambda *_: 15001], ids=["none can", "not that port"])
def test_a_pod_whose_sockets_do_not_listen_again_is_served_anew(tmp_path, revive):
    async def story(stage):
        tunnel = await stage.tunnel(gives={"uid-a": ["15001", "15006"]})
        await stage.server.renew(stage.pods[0], [15006])
        assert tunnel.conversation[1:] == ["snapshot_sent", "del uid-a", "add uid-a netns of a"]

    play(tmp_path, story, "a", revive=revive)


def test_a_socket_that_ceased_to_listen_does_so_again_and_whoever_accepts_from_it_notices_nothing():
    with socket.create_server(OURS) as listener, listener.dup() as kept:
        listener.shutdown(socket.SHUT_RD)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(OURS)
        assert revive(kept.fileno(), []) == OURS[1]
        with socket.create_connection(OURS) as client:
            accepted, _ = listener.accept()
            with accepted:
                client.sendall(b"hello")
                assert accepted.recv(10) == b"hello"


def test_one_that_listens_is_left_alone_unless_its_port_is_named():
    with socket.create_server(OURS) as listener:
        port = OURS[1]
        with socket.create_connection(OURS) as waiting:
            assert revive(listener.fileno(), [port + 1]) == port
            waiting.sendall(b"still in the queue")
            assert revive(listener.fileno(), [port]) == port
            with pytest.raises(ConnectionResetError):
                waiting.recv(1)


def test_what_never_listens_is_not_made_to():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
        datagrams.bind(("127.0.0.1", 0))
        assert revive(datagrams.fileno(), [datagrams.getsockname()[1]]) == 0


def test_without_a_tunnel_they_are_kept_for_a_while_and_then_given_up():
    async def main():
        kept, netns, socket_ = Heirlooms(0.001), Namespace("netns"), Namespace("listener")
        kept.keep("uid-a", netns, (), [os.dup(socket_.fd)])
        kept.run_out()
        kept.stay()
        assert kept.pods == 1
        kept.run_out()
        await until(lambda: kept.pods == 0)

    asyncio.run(main())


def test_descriptors_are_not_gathered(tmp_path):
    async def story(stage):
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(20):
            await stage.server.remove("uid-a")
            tunnel = await stage.tunnel(gives={"uid-a": ["15001", "15006"]})
            await stage.leave(tunnel)
        assert len(os.listdir("/proc/self/fd")) <= before + 2

    play(tmp_path, story, "a", make=made_for)


# The child that makes them -------------------------------------------------------------------------------------------

PORTS = {15001, 15006, 15008, 15053}


@pytest.fixture
def opener():
    made = Opener(None)
    yield made
    made.close()


@pytest.mark.lab
def test_the_child_makes_all_that_a_tunnel_listens_on_and_nothing_twice(opener, namespace):
    with open(namespace) as netns:
        fds = opener.open(netns.fileno())
        found = [socket.socket(fileno=fd) for fd in fds]
        assert {each.getsockname()[1] for each in found} == PORTS
        assert len(found) == 7
        assert all(each.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT) == 0 for each in found)
        assert opener.open(netns.fileno()) == [], "the ports are taken now"
        for each in found:
            each.close()
        again = opener.open(netns.fileno())
        assert len(again) == 7
        for fd in again:
            os.close(fd)


@pytest.mark.lab
def test_the_child_makes_them_on_some_addresses_alone(opener, namespace):
    with open(namespace) as netns:
        found = [socket.socket(fileno=fd) for fd in opener.open(netns.fileno(), ["127.0.0.9"])]
        assert sorted(each.getsockname() for each in found) == [("127.0.0.9", port) for port in sorted([*PORTS, 15053])]
        others = opener.open(netns.fileno(), ["127.0.0.10"])
        assert len(others) == 5, "side by side"
        for fd in (*(each.detach() for each in found), *others):
            os.close(fd)


@pytest.mark.lab
def test_when_one_port_is_occupied_the_others_are_free_as_soon_as_it_is_told(opener, namespace):
    """The tunnel tries next: it would name one that nobody but the child held."""
    with open(namespace) as netns, run_on_thread(netns.fileno(), lambda: socket.create_server(("", 15008))):
        for _ in range(50):
            assert opener.open(netns.fileno()) == []
            run_on_thread(netns.fileno(), lambda: socket.create_server(("", 15001))).close()


@pytest.mark.lab
def test_what_is_no_namespace_gives_no_sockets_and_a_dead_child_is_replaced(opener, namespace, tmp_path):
    with open(tmp_path / "file", "w") as file, open(namespace) as netns:
        assert opener.open(file.fileno()) == []
        opener._child[0].kill()
        opener._child[0].wait()
        assert opener.open(netns.fileno()) == []
        for fd in (again := opener.open(netns.fileno())):
            os.close(fd)
        assert len(again) == 7


@pytest.fixture
def namespace():
    name = f"nmh{os.getpid()}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    yield f"/run/netns/{name}"
    subprocess.run(["ip", "netns", "del", name], check=True)
