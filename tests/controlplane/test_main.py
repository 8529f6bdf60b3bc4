"""The command line, and the whole daemon in this process: files in, status out."""

import asyncio
import gc
import json
import logging
import os
import signal

import aiohttp
import pytest
import structlog

from controlplane import main as program
from controlplane.settings import load
from mesh.errors import OperatorError

NODE = "apiVersion: v1\nkind: Node\nmetadata: {name: node1}\n"
WRONG = "apiVersion: v1\nkind: Nod\nmetadata: {name: node2}\n"


@pytest.fixture(autouse=True)
def logging_set_up_anew():
    """A daemon that was started under `capsys` logs to a stream that ends with its test."""
    handlers = logging.root.handlers[:]
    yield
    logging.root.handlers[:] = handlers
    structlog.reset_defaults()


@pytest.fixture
def config(tmp_path):
    directory = tmp_path / "config"
    directory.mkdir()
    (directory / "node.yaml").write_text(NODE)
    return directory


@pytest.fixture
def environment(tmp_path, config):
    return {
        "NODEMESH_CONFIG_DIR": str(config),
        "NODEMESH_STATE_DIR": str(tmp_path / "state"),
        "NODEMESH_RUN_DIR": str(tmp_path / "run"),
        "CONTROLPLANE_ADDR": "127.0.0.1:0",
    }


@pytest.fixture
def command(monkeypatch, capsys, environment):
    def run(*arguments, **more):
        for name, value in {**environment, **more}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr("sys.argv", ["controlplane", *arguments])
        with pytest.raises(SystemExit) as ended:
            program.main()
        out, err = capsys.readouterr()
        return ended.value.code, out, err

    return run


def test_check_accepts_what_is_valid(command, config):
    assert command("check", str(config)) == (0, "1 Node accepted; 0 errors, 0 warnings\n", "")


def test_check_says_where_what_is_wrong(command, config):
    (config / "wrong.yaml").write_text(NODE.replace("node1", "node2") + "---\n" + WRONG)
    code, out, _ = command("check", str(config))
    assert code == 1
    assert out.startswith(f"{config}/wrong.yaml:5: error: Nod default/node2: kind: 'Nod' is not used here; known: ")
    assert out.endswith("2 Node accepted; 1 errors, 0 warnings\n")


def test_tokens_are_made_listed_and_revoked(command):
    code, token, _ = command("token", "create", "--node", "node1", "--ttl", "1h")
    assert (code, len(token.strip())) == (0, 43)
    assert command("token", "list")[1].startswith("node1   20")
    assert command("token", "revoke", "--node", "node1") == (0, "", "")
    assert command("token", "list")[1] == ""


@pytest.mark.parametrize(
    ("arguments", "settings", "sentence"),
    [
        (("check", "/nonexistent"), {}, "controlplane: /nonexistent: cannot be read: No such file or directory"),
        (("run",), {"NODEMESH_CONFIG_DIR": "/nonexistent"}, "controlplane: /nonexistent: cannot be read: No such file"),
        ((), {"CONTROLPLANE_ADDR": "x"}, "controlplane: CONTROLPLANE_ADDR: 'x' is not ADDRESS:PORT"),
        ((), {"TRUST_DOMAIN": "A"}, "controlplane: TRUST_DOMAIN: 'A' is not a trust domain"),
        ((), {"ROOT_NAMESPACE": "a.b"}, "controlplane: ROOT_NAMESPACE: 'a.b' is not a namespace"),
        ((), {"CLUSTER_ID": "a/b"}, "controlplane: CLUSTER_ID: 'a/b' contains '/'"),
        ((), {"NODEMESH_STATE_DIR": "/proc/x"}, "controlplane: /proc/x/ca: cannot be used as a private directory"),
        (("token", "create", "--node", "../x"), {}, "controlplane: '../x' is not a node's name"),
        (("token", "create", "--node", "a", "--ttl", "soon"), {}, "controlplane: --ttl: 'soon' is not a duration"),
        (("token", "revoke", "--node", "a"), {}, "controlplane: node a has no join token"),
    ],
)
def test_an_operators_mistake_is_one_sentence_and_exit_code_2(command, arguments, settings, sentence):
    code, _, err = command(*arguments, **settings)
    assert code == 2
    assert err.startswith(sentence)
    assert err.count("\n") == 1


async def started(environment):
    """The daemon's task, once it answers."""
    ready = asyncio.get_running_loop().create_future()
    daemon = asyncio.create_task(program.serve(load(environment), ready.set_result))
    await asyncio.wait((ready, daemon), return_when=asyncio.FIRST_COMPLETED)
    assert not daemon.done(), daemon.exception()
    return daemon


async def ask(path, target):
    connector = aiohttp.UnixConnector(str(path))
    async with aiohttp.ClientSession(connector=connector) as session, session.get(f"http://x{target}") as response:
        return await response.json()


def test_the_daemon_serves_follows_its_files_and_ends_cleanly(environment, config, tmp_path):
    socket = tmp_path / "run" / "controlplane.sock"

    async def play():
        daemon = await started(environment)
        mode = socket.stat().st_mode & 0o777
        before = await ask(socket, "/status")
        (config / "wrong.yaml").write_text(WRONG + "---\n" + NODE.replace("node1", "node2"))
        after = before
        while after["objects"] != {"Node": 2}:
            after = await ask(socket, "/status")
        resources = await ask(socket, "/resources")
        os.kill(os.getpid(), signal.SIGTERM)
        await daemon
        return mode, before, after, resources

    mode, before, after, resources = asyncio.run(play())
    assert mode == 0o600
    assert (before["objects"], before["findings"], before["nodes"]) == ({"Node": 1}, [], [])
    [finding] = after["findings"]
    assert (finding["file"], finding["line"], finding["kind"]) == (str(config / "wrong.yaml"), 1, "Nod")
    assert after["world"]["version"] == 2
    assert list(resources["istio.security.Authorization"]) == ["istio-system/istio_converted_static_strict"]
    assert not socket.exists()


def test_the_garbage_collector_leaves_out_what_was_read_and_looks_at_what_comes_then(environment):
    async def play():
        daemon = await started(environment)
        seen = gc.isenabled(), gc.get_freeze_count()
        os.kill(os.getpid(), signal.SIGTERM)
        await daemon
        return seen

    gc.unfreeze()
    enabled, frozen = asyncio.run(play())
    gc.unfreeze()
    assert enabled
    assert frozen


def test_a_second_daemon_does_not_take_the_socket_of_the_first(environment):
    async def play():
        first = await started(environment)
        with pytest.raises(OperatorError, match="another process answers there"):
            await program.serve(load(environment))
        os.kill(os.getpid(), signal.SIGTERM)
        await first

    asyncio.run(play())


def test_a_secret_never_reaches_status(environment, command):
    token = command("token", "create", "--node", "node1")[1].strip()

    async def play():
        daemon = await started(environment)
        said = json.dumps(await ask(os.path.join(environment["NODEMESH_RUN_DIR"], "controlplane.sock"), "/status"))
        os.kill(os.getpid(), signal.SIGTERM)
        await daemon
        return said

    assert token not in asyncio.run(play())
