import asyncio
import json
import socket

import aiohttp
import pytest

from mesh import profiles
from mesh.errors import OperatorError
from ztunnel.admin import Answers, admin_routes, extend_dump, readiness_routes, serve, stats_routes
from ztunnel.listen import bind_tcp, bind_unix


class Asked:
    """Answers that remember what was asked of them."""

    def __init__(self):
        self.waits, self.levels, self.quits = ["xds", "zds"], [], 0

    def answers(self):
        async def metrics():
            return b"a 1\n"

        async def dump():
            return b'{"workloads":[]}'

        async def explain(source, destination):
            if not source:
                raise ValueError("'' is no workload")
            return json.dumps({"from": source, "to": destination}).encode()

        def quit():
            self.quits += 1

        status = {"ready": False}
        return Answers(lambda: status, lambda: self.waits, metrics, dump, explain, self.set_level, quit)

    def set_level(self, wanted):
        if wanted == "loud":
            raise ValueError("level must be one of error, warn")
        self.levels.append(wanted)
        return wanted or "info"


@pytest.fixture
def asked():
    return Asked()


@pytest.fixture
def fetch(asked, tmp_path):
    """`fetch("admin", "GET", "/status")` is (status, body), over a Unix socket."""

    def run(door, method, path):
        async def main():
            make = {"admin": admin_routes, "stats": stats_routes, "readiness": readiness_routes}[door]
            server = await serve(make(asked.answers()), bind_unix(tmp_path / door))
            connector = aiohttp.UnixConnector(str(tmp_path / door))
            async with (
                aiohttp.ClientSession(connector=connector) as session,
                session.request(method, f"http://x{path}") as response,
            ):
                answer = response.status, await response.text()
            await server.close()
            (tmp_path / door).unlink()
            return answer

        return asyncio.run(main())

    return run


def test_a_question_about_a_connection_is_answered_or_refused_with_a_sentence(fetch):
    assert json.loads(fetch("admin", "GET", "/explain?src=a/b&dst=c:80")[1]) == {"from": "a/b", "to": "c:80"}
    assert fetch("admin", "GET", "/explain") == (400, "'' is no workload\n")


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf", "301", "soon"])
def test_the_length_of_a_profile_is_a_number_of_seconds(asked, tmp_path, seconds):
    async def main():
        server = await serve(admin_routes(asked.answers(), profiles.doors()), bind_unix(tmp_path / "d"))
        connector = aiohttp.UnixConnector(str(tmp_path / "d"))
        async with (
            aiohttp.ClientSession(connector=connector) as session,
            session.get(f"http://x/debug/pprof/heap?seconds={seconds}") as response,
        ):
            assert response.status == 400
            assert await response.text() == f"seconds: '{seconds}' is not a number up to 300\n"
        await server.close()

    asyncio.run(main())


def test_people_and_tools_read_state_and_metrics(fetch):
    assert fetch("admin", "GET", "/status") == (200, '{"ready": false}')
    assert fetch("admin", "GET", "/config_dump") == (200, '{"workloads":[]}')
    assert fetch("admin", "GET", "/metrics") == (200, "a 1\n")
    assert fetch("stats", "GET", "/metrics") == fetch("stats", "GET", "/stats/prometheus") == (200, "a 1\n")


def test_the_log_level_is_changed_by_post_only_and_to_a_level_only(fetch, asked):
    assert fetch("admin", "POST", "/logging?level=debug") == (200, "current log level is debug\n")
    assert fetch("admin", "POST", "/logging?level=loud") == (400, "level must be one of error, warn\n")
    assert fetch("admin", "POST", "/logging") == (200, "current log level is info\n")
    assert fetch("admin", "POST", "/logging?reset")[0] == 200
    assert fetch("admin", "GET", "/logging?level=debug")[0] == 405
    assert asked.levels == ["debug", None, "reset"]


def test_the_end_is_asked_for_by_post_only(fetch, asked):
    assert fetch("admin", "GET", "/quitquitquit")[0] == 405
    assert asked.quits == 0
    assert fetch("admin", "POST", "/quitquitquit")[0] == 200
    assert asked.quits == 1


def test_readiness_names_what_it_waits_for(fetch, asked):
    assert fetch("readiness", "GET", "/healthz/ready") == (500, "not ready, pending: xds, zds\n")
    asked.waits = []
    assert fetch("readiness", "GET", "/healthz/ready") == (200, "ready\n")


def test_the_public_doors_offer_nothing_that_changes_anything(fetch, asked):
    for door in ("stats", "readiness"):
        for path in ("/logging?level=debug", "/quitquitquit", "/config_dump"):
            assert fetch(door, "POST", path)[0] == 404
    assert (asked.levels, asked.quits) == ([], 0)


@pytest.mark.parametrize("dump", [b"{}", b'{"a": 1}', b' {"a": [1]}\n'])
def test_a_dump_is_extended_without_being_read(dump):
    assert json.loads(extend_dump(dump, {"version": 1})) == json.loads(dump) | {"version": 1}


def test_an_occupied_port_is_one_sentence():
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(OperatorError) as caught:
            bind_tcp(("127.0.0.1", port), "ADMIN_ADDR")
    assert str(caught.value) == f"ADMIN_ADDR: 127.0.0.1:{port} is in use by another process"


def test_an_address_that_is_not_here_is_one_sentence():
    with pytest.raises(OperatorError, match=r"^STATS_ADDR: 192.0.2.1:80 Cannot assign requested address$"):
        bind_tcp(("192.0.2.1", 80), "STATS_ADDR")


def test_the_socket_is_the_owners_and_a_dead_ones_is_replaced(tmp_path):
    path = tmp_path / "run" / "ztunnel.sock"
    bind_unix(path).close()
    with bind_unix(path):
        assert path.stat().st_mode & 0o777 == 0o600
        with pytest.raises(OperatorError, match="another ztunnel is running"):
            bind_unix(path)


def test_a_file_in_the_sockets_place_is_not_removed(tmp_path):
    (tmp_path / "s").write_text("mine")
    with pytest.raises(OperatorError, match="Address already in use"):
        bind_unix(tmp_path / "s")
    assert (tmp_path / "s").read_text() == "mine"
