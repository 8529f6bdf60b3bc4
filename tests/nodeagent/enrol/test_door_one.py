"""Door 1: the requests agree with proto/enrol.schema.json, and the server answers over a real Unix socket."""

import asyncio
import http.client
import json
import socket
from pathlib import Path

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.errors import OperatorError
from nodeagent.enrol import plugin_server
from nodeagent.enrol.plugin_server import PluginServer
from nodeagent.enrol.requests import parse_attachment, parse_container_id, parse_valid_attachments
from tests.nodeagent.enrol.test_registry import JOINS, LEAVES, Node

SCHEMA = json.loads((Path(__file__).parents[3] / "proto/enrol.schema.json").read_text())
ADD = {
    "container_id": "c1",
    "netns": "/ns/web-1",
    "ifname": "eth0",
    "pod_name": "web-1",
    "pod_namespace": "shop",
    "ips": ["10.0.0.5/24", "fd00::5"],
}


def schema_accepts(name, value):
    schema = {"$defs": SCHEMA["$defs"], "$ref": f"#/$defs/{name}"}
    return jsonschema.Draft202012Validator(schema).is_valid(value)


def parser_accepts(parse, value):
    try:
        parse(json.dumps(value).encode())
    except ValueError:
        return False
    return True


def test_an_attachment_is_read_with_bare_addresses():
    assert parse_attachment(json.dumps(ADD | {"pod_uid": "u"}).encode()).ips == ("10.0.0.5", "fd00::5")


MUTATIONS = st.one_of(
    st.just({}),
    st.dictionaries(
        st.sampled_from([*ADD, "pod_uid"]), st.sampled_from(["", "/x", "-a", "a b", "é", 5, None, [], {}, "x" * 300])
    ),
    st.dictionaries(st.just("ips"), st.lists(st.sampled_from(["10.0.0.1", "10.0.0.1/8", "::1"]), max_size=20)),
    st.dictionaries(st.text(max_size=8), st.text(max_size=3)),
)


@settings(max_examples=50)
@given(change=MUTATIONS, drop=st.sampled_from(["", *ADD]))
def test_the_parser_of_attachments_agrees_with_the_schema(change, drop):
    value = {key: inner for key, inner in (ADD | change).items() if key != drop}
    assert parser_accepts(parse_attachment, value) == schema_accepts("add", value)


@pytest.mark.parametrize(
    "value", [{"container_id": "c"}, {"container_id": "c", "netns": "/x"}, {}, {"container_id": 5}, []]
)
def test_the_parser_of_del_agrees_with_the_schema(value):
    assert parser_accepts(parse_container_id, value) == (isinstance(value, dict) and schema_accepts("del", value))


VALID = {"container_id": "c", "ifname": "eth0"}


@pytest.mark.parametrize("attachments", [[], [VALID], [VALID, {}], {}, None, [{"container_id": "c"}], [5]])
def test_the_parser_of_gc_agrees_with_the_schema(attachments):
    value = {"valid_attachments": attachments}
    assert parser_accepts(parse_valid_attachments, value) == schema_accepts("gc", value)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"5", b'"x"', b"\xff", b"[" * 100_000])
def test_what_is_no_object_is_refused_with_a_sentence(body):
    with pytest.raises(ValueError, match="the body is not"):
        parse_attachment(body)


@pytest.mark.parametrize("ip", ["", "10.0.0.256", "host", "10.0.0.1/99"])
def test_what_is_no_address_is_refused(ip):
    with pytest.raises(ValueError, match=r"does not appear to be|ips"):
        parse_attachment(json.dumps(ADD | {"ips": [ip]}).encode())


def ask(path, method, target, body=b""):
    """(status, answer) as the plugin asks: one connection, one request."""
    connection = http.client.HTTPConnection("nodemesh", timeout=60)
    connection.sock = socket.socket(socket.AF_UNIX)
    try:
        connection.sock.connect(str(path))
        connection.request(method, target, body, {"Connection": "close"})
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def serve(tmp_path, story, ready=True):
    async def main():
        node, path = Node(tmp_path), tmp_path / "run/cni.sock"
        server = PluginServer(node.registry, lambda: ready)
        await server.start(path)

        async def asking(method, target, body=b""):
            return await asyncio.to_thread(ask, path, method, target, body)

        try:
            await story(node, asking)
        finally:
            await server.stop()
            await node.registry.stop()

    asyncio.run(main())


BODY = json.dumps(ADD).encode()


def test_a_container_comes_is_checked_and_goes(tmp_path):
    async def story(node, asking):
        assert await asking("POST", "/cni/add", BODY) == (200, {})
        node.claim(*JOINS)
        assert await asking("POST", "/cni/check", BODY) == (200, {})
        node.claim("compare", "prove")
        assert await asking("POST", "/cni/gc", json.dumps({"valid_attachments": [VALID]}).encode()) == (200, {})
        node.claim(*LEAVES)
        assert await asking("POST", "/cni/del", b'{"container_id": "c1"}') == (200, {})
        node.claim()
        assert await asking("GET", "/cni/status") == (200, {})

    serve(tmp_path, story)


def test_a_refusal_is_an_error_object_of_the_schema(tmp_path):
    async def story(node, asking):
        node.tunnel.is_there = False
        status, answer = await asking("POST", "/cni/add", BODY)
        assert status == 503
        assert answer == {"code": 11, "msg": "pod shop/web-1 is not in the mesh: no tunnel is connected"}
        assert schema_accepts("error", answer)

    serve(tmp_path, story)


def test_without_a_tunnel_the_status_is_not_available(tmp_path):
    async def story(node, asking):
        assert await asking("GET", "/cni/status") == (
            503,
            {"code": 50, "msg": "no tunnel is connected to the node agent"},
        )

    serve(tmp_path, story, ready=False)


@pytest.mark.parametrize(
    ("method", "target", "body", "status"),
    [
        ("POST", "/cni/add", b"{", 400),
        ("POST", "/cni/add", b"x" * (64 * 1024 + 1), 413),
        ("GET", "/cni/add", b"", 405),
        ("POST", "/elsewhere", b"{}", 404),
    ],
)
def test_a_request_of_no_meaning_is_answered_with_a_sentence(tmp_path, method, target, body, status):
    async def story(node, asking):
        got, answer = await asking(method, target, body)
        assert (got, answer["code"]) == (status, 6)
        assert target in answer["msg"]
        node.claim()

    serve(tmp_path, story)


def test_only_root_is_answered(tmp_path, monkeypatch):
    monkeypatch.setattr(plugin_server, "may_speak", lambda peer: False)

    async def story(node, asking):
        assert await asking("POST", "/cni/add", BODY) == (403, {"code": 100, "msg": "only root may ask the node agent"})
        node.claim()

    serve(tmp_path, story)


def test_the_socket_is_roots_alone(tmp_path):
    async def story(node, asking):
        assert (tmp_path / "run/cni.sock").stat().st_mode & 0o777 == 0o600

    serve(tmp_path, story)


def test_a_socket_in_use_and_a_file_in_the_way_are_the_operators(tmp_path):
    async def story(node, asking):
        with pytest.raises(OperatorError, match=r"cni.sock: another process is already listening there"):
            await PluginServer(node.registry, lambda: True).start(tmp_path / "run/cni.sock")
        (tmp_path / "file").touch()
        with pytest.raises(OperatorError, match="file: is there and is no socket"):
            await PluginServer(node.registry, lambda: True).start(tmp_path / "file")

    serve(tmp_path, story)
