"""The whole shell: control plane and agent on real sockets, a core without a data path, signals as the kernel's."""

import asyncio
import logging
import os
import signal
import socket

import aiohttp
import pytest
import structlog
from grpc import StatusCode

from mesh.delta import ADDRESS_TYPE, Versioned
from mesh.errors import OperatorError
from mesh.gen.workload_pb2 import Address, Workload
from tests.fakes.core import FakeCore, NamespaceGone
from tests.ztunnel.authority import Authority, pem
from tests.ztunnel.conftest import until
from tests.ztunnel.control_plane import ControlPlane, listening
from tests.ztunnel.test_zds import SNAPSHOT_SENT, Agent, add
from ztunnel import main
from ztunnel.dataplane import Dataplane

WEB = "spiffe://cluster.local/ns/shop/sa/web"
ADDRESS = Address(workload=Workload(uid="web")).SerializeToString()


@pytest.fixture
def quiet():
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
def live(settings_for, tmp_path, authority):
    """Runs a story beside a tunnel: `story(plane, core, task, get)`."""

    def run(story, core_class=FakeCore, worlds=None, **more):
        async def whole():
            plane, cores = ControlPlane(authority), []
            plane.worlds = worlds or {}

            def open_core(config):
                cores.append(core_class(config))
                return Dataplane(cores[0], NamespaceGone)

            async with listening(plane) as port:
                task = asyncio.create_task(main.run(settings_for(port, **more), open_core))
                await until(lambda: cores or task.done())
                try:
                    await story(plane, cores[0], task, lambda path: get(tmp_path / "run" / "ztunnel.sock", path))
                finally:
                    task.cancel()
                    await asyncio.gather(task, return_exceptions=True)
            assert not (tmp_path / "run" / "ztunnel.sock").exists()

        asyncio.run(whole())

    return run


async def get(path, url):
    await until(path.exists)
    async with (
        aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path))) as session,
        session.get(f"http://x{url}") as response,
    ):
        return await response.text() if "metrics" in url else await response.json()


def test_a_pod_is_served_once_configuration_is_in_force_and_gets_its_certificate(live, tmp_path):
    async def story(plane, core, task, fetch):
        agent = Agent(tmp_path / "zds.sock")
        await agent.accept()
        assert await agent.say(add("web-1"), fds=1) == ""
        assert (await fetch("/status"))["pending"] == ["zds"]
        assert await agent.say(SNAPSHOT_SENT) == ""
        core.tell("need_certificate", WEB, "now")
        await until(lambda: WEB in core.chains)
        status = await fetch("/status")
        assert status["ready"] is True
        assert status["zds"]["pods"] == ["web-1"]
        assert status["certificates"]["expiries"].keys() == {WEB}
        core.tell("identity_unused", WEB)
        await until(lambda: WEB not in core.chains)
        core.tell("fault", "worker", "contained")
        agent.close()

    live(story)


def test_no_pod_is_taken_before_policies_and_addresses_are_in_force(live, tmp_path):
    async def story(plane, core, task, fetch):
        agent = Agent(tmp_path / "zds.sock")
        await until(lambda: plane.nacks)
        assert (await fetch("/status"))["pending"] == ["xds", "zds"]
        with pytest.raises(BlockingIOError):
            agent.listener.accept()
        plane.publish(ADDRESS_TYPE, web=("2", ADDRESS))
        await agent.accept()
        agent.close()

    live(story, worlds={ADDRESS_TYPE: {"web": Versioned("1", ADDRESS_TYPE, b"\xff\xff")}})


def test_asked_to_end_it_leaves_the_agent_drains_and_says_so(live, tmp_path):
    async def story(plane, core, task, fetch):
        agent = Agent(tmp_path / "zds.sock")
        await agent.accept()
        assert await agent.say(add("web-1"), fds=1) == ""
        os.kill(os.getpid(), signal.SIGTERM)
        assert await task is True
        assert await agent.is_closed()
        agent.close()

    live(story)


def test_a_second_signal_cuts_the_drain_short(live):
    class Busy(FakeCore):
        def drain(self, deadline_s):
            self.drains = deadline_s

    async def story(plane, core, task, fetch):
        await until(lambda: plane.requests)
        os.kill(os.getpid(), signal.SIGTERM)
        await until(lambda: hasattr(core, "drains"))
        assert (await fetch("/status"))["pending"][0] == "draining"
        os.kill(os.getpid(), signal.SIGINT)
        assert await task is False

    live(story, Busy, CONNECTION_TERMINATION_DEADLINE="1h")


def test_its_numbers_are_beside_the_cores(live):
    async def story(plane, core, task, fetch):
        await until(lambda: plane.requests)
        text = await fetch("/metrics")
        assert text.startswith('istio_build{component="ztunnel"')
        assert "nodemesh_xds_connected" in text
        assert "process_open_fds" in text
        names = [line.split(" ")[2] for line in text.splitlines() if line.startswith("# TYPE")]
        assert len(names) == len(set(names))
        assert (await fetch("/config_dump"))["config"]["node_name"] == "node-1"

    live(story)


def start_with(monkeypatch, environment, *arguments):
    monkeypatch.setattr("sys.argv", ["ztunnel", *arguments])
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


def test_an_unknown_command_is_one_sentence_and_exit_code_2(environment, monkeypatch, capsys, quiet):
    start_with(monkeypatch, environment, "--help")
    with pytest.raises(SystemExit) as caught:
        main.main()
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("ztunnel: the only command is `ztunnel run`")


def test_a_refused_token_ends_the_whole_tunnel(live):
    async def story(plane, core, task, fetch):
        plane.refuses = (StatusCode.UNAUTHENTICATED, "no such token")
        plane.end_streams()
        with pytest.raises(ExceptionGroup) as caught:
            await task
        assert caught.group_contains(OperatorError, match="AUTH_TOKEN: .*no such token")
        with pytest.raises(RuntimeError):
            core.pods()

    live(story, worlds={ADDRESS_TYPE: {"web": Versioned("1", ADDRESS_TYPE, b"\xff\xff")}})


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"XDS_ROOT_CA": "/nowhere/root.pem"}, "ztunnel: XDS_ROOT_CA: /nowhere/root.pem: No such file or directory"),
        ({"CA_ROOT_CA": "/dev/null"}, "ztunnel: CA_ROOT_CA: holds no certificate in PEM"),
        ({"AUTH_TOKEN": "/nowhere/token"}, "ztunnel: AUTH_TOKEN: /nowhere/token: No such file or directory"),
        ({"AUTH_TOKEN": "two\nlines"}, "ztunnel: AUTH_TOKEN: is not a token: printable ASCII is expected"),
        (
            {"NODEMESH_ACCESS_LOG": "/nowhere/log"},
            "ztunnel: NODEMESH_ACCESS_LOG: /nowhere/log: No such file or directory",
        ),
        ({"ADMIN_ADDR": "occupied"}, "ztunnel: ADMIN_ADDR: 'occupied' is not ADDRESS:PORT"),
    ],
)
def test_what_is_missing_is_one_sentence_and_exit_code_2(environment, change, sentence, monkeypatch, capsys, quiet):
    start_with(monkeypatch, environment | change)
    with pytest.raises(SystemExit) as caught:
        main.main()
    assert caught.value.code == 2
    assert capsys.readouterr().err == sentence + "\n"


def test_an_occupied_port_is_one_sentence_and_exit_code_2(environment, monkeypatch, capsys, quiet):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        start_with(monkeypatch, environment | {"STATS_ADDR": f"127.0.0.1:{port}"})
        with pytest.raises(SystemExit) as caught:
            main.main()
    assert caught.value.code == 2
    assert capsys.readouterr().err == f"ztunnel: STATS_ADDR: 127.0.0.1:{port} is in use by another process\n"


def test_a_control_plane_whose_root_is_another_is_not_believed(live, tmp_path):
    (tmp_path / "other.pem").write_text(pem(Authority().root))

    async def story(plane, core, task, fetch):
        async def error():
            return (await fetch("/status"))["xds"]["error"]

        while not await error():
            pass
        assert not plane.requests

    live(story, XDS_ROOT_CA=str(tmp_path / "other.pem"))
