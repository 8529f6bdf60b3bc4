"""The CNI plugin as a runtime sees it: one table of behaviours, both twins."""

import json
import socket

import jsonschema
import pytest

from tests.cni.twins import CNI, call

VERSIONS = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]
SCHEMA = json.loads((CNI.parent / "proto/enrol.schema.json").read_text())
PREVIOUS = """{"cniVersion": "1.0.0", "interfaces": [{"name": "eth0", "mtu": 1500, "pciID": "unknown yet"}],
  "ips": [{"address": "10.0.0.5/24", "gateway": "10.0.0.1", "interface": 0}, {"address": "fd00::5/64"}],
  "routes": [{"dst": "0.0.0.0/0", "priority":   7}], "dns": {}, "later": {"é\\u00e9": [1.50, -0, 1e400, null]}}"""


def config(agent=None, version="1.0.0", previous=PREVIOUS, **more):
    """The network configuration as text, so that prevResult stands in it byte for byte."""
    keys = {"cniVersion": version, "name": "net", "type": "nodemesh-cni", "timeoutSeconds": 5}
    keys |= {"agentSocket": str(agent.path)} if agent else {}
    members = [f'"{key}": {json.dumps(value)}' for key, value in (keys | more).items() if value is not None]
    members += [f'"prevResult": {previous}'] if previous else []
    return ("{" + ", ".join(members) + "}").encode()


def check_against_schema(name, value):
    jsonschema.Draft202012Validator({"$defs": SCHEMA["$defs"], "$ref": f"#/$defs/{name}"}).validate(value)


def test_version_names_what_is_spoken(plugin):
    said = call(plugin, "VERSION", b"{}")
    assert (said.status, json.loads(said.stdout)) == (0, {"cniVersion": "1.1.0", "supportedVersions": VERSIONS})


def test_add_asks_the_agent_and_prints_the_previous_result_byte_for_byte(plugin, agent):
    said = call(plugin, "ADD", config(agent))
    assert (said.status, said.stderr) == (0, "")
    assert said.stdout == PREVIOUS.encode() + b"\n"
    ((line, body),) = agent.asked
    assert line == "POST /cni/add HTTP/1.1"
    check_against_schema("add", body)
    assert body == {
        "container_id": "c1",
        "netns": "/run/netns/c1",
        "ifname": "eth0",
        "pod_name": "web-1",
        "pod_namespace": "shop",
        "pod_uid": "u-1",
        "ips": ["10.0.0.5/24", "fd00::5/64"],
    }


@pytest.mark.parametrize(
    ("previous", "printed"),
    [
        ("{}", '{"cniVersion":"1.0.0"}'),
        ('{ "ips": [] }', '{"cniVersion":"1.0.0", "ips": [] }'),
        ('{"a":1,"cniVersion": "0.3.1" ,"b":2}', '{"a":1,"cniVersion": "1.0.0" ,"b":2}'),
        ('{"cniVersion":7}', '{"cniVersion":"1.0.0"}'),
        ('{"cni\\u0056ersion":"1.\\u0030.0"}', '{"cni\\u0056ersion":"1.\\u0030.0"}'),
        ('{"dns":{"cniVersion":"9"},"cniVersion":"1.0.0"}', '{"dns":{"cniVersion":"9"},"cniVersion":"1.0.0"}'),
    ],
)
def test_the_results_version_becomes_the_configurations_and_nothing_else_changes(plugin, agent, previous, printed):
    assert call(plugin, "ADD", config(agent, previous=previous)).stdout.decode() == printed + "\n"


@pytest.mark.parametrize("args", ["", "IgnoreUnknown=1", "IgnoreUnknown=1;K8S_POD_NAME=;K8S_POD_NAMESPACE=", None])
def test_what_is_no_pod_of_kubernetes_passes_without_a_question(plugin, args):
    said = call(plugin, "ADD", config(agentSocket="/nowhere"), CNI_ARGS=args)
    assert (said.status, said.stdout) == (0, PREVIOUS.encode() + b"\n")


@pytest.mark.parametrize("version", VERSIONS)
def test_every_supported_version_is_served(plugin, agent, version):
    said = call(plugin, "ADD", config(agent, version))
    assert json.loads(said.stdout)["cniVersion"] == version


@pytest.mark.parametrize("command", ["ADD", "CHECK"])
def test_without_the_agent_no_pod_starts(plugin, tmp_path, command):
    path = tmp_path / "absent.sock"
    error = call(plugin, command, config(agentSocket=str(path))).error
    assert error == {
        "cniVersion": "1.0.0",
        "code": 11,
        "msg": f"the node agent at {path} does not answer: No such file or directory",
    }


def test_an_agent_that_died_left_a_socket_that_refuses(plugin, tmp_path):
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "dead.sock"))
    error = call(plugin, "ADD", config(agentSocket=str(tmp_path / "dead.sock"))).error
    assert error["code"] == 11
    assert error["msg"].endswith("does not answer: Connection refused")


@pytest.mark.lab  # a second each: the shortest deadline that the configuration can ask for
def test_an_agent_that_never_answers_is_given_up(plugin, agent):
    agent.answer = None
    error = call(plugin, "ADD", config(agent, timeoutSeconds=1)).error
    assert (error["code"], error["msg"]) == (11, f"the node agent at {agent.path} did not answer within 1 s")


def test_the_agents_refusal_is_printed_with_the_configurations_version(plugin, agent):
    agent.refuse(503, '{"code": 100, "msg": "é \\"no\\"", "details": "why", "more": []}'.encode())
    error = call(plugin, "ADD", config(agent, "0.4.0")).error
    assert error == {"cniVersion": "0.4.0", "code": 100, "msg": 'é "no"', "details": "why"}


STRANGE_ANSWERS = {
    "nothing": b"",
    "no HTTP": b"hello\r\n\r\n",
    "half a head": b"HTTP/1.1 200 OK\r\n",
    "no status": b"HTTP/1.1 OK\r\n\r\n{}",
    "no body": b"HTTP/1.1 503 No\r\n\r\n",
    "no object": b'HTTP/1.1 503 No\r\n\r\n["code", "msg"]',
    "no code": b'HTTP/1.1 503 No\r\n\r\n{"msg": "no"}',
    "no sentence": b'HTTP/1.1 503 No\r\n\r\n{"code": 7}',
    "code is text": b'HTTP/1.1 503 No\r\n\r\n{"code": "7", "msg": "no"}',
    "code is true": b'HTTP/1.1 503 No\r\n\r\n{"code": true, "msg": "no"}',
    "negative code": b'HTTP/1.1 503 No\r\n\r\n{"code": -7, "msg": "no"}',
    "broken JSON": b'HTTP/1.1 503 No\r\n\r\n{"code": 7, "msg": "no"',
    "not UTF-8": b'HTTP/1.1 503 No\r\n\r\n{"code": 7, "msg": "\xff"}',
    "twice": b'HTTP/1.1 503 No\r\n\r\n{"code": 7, "code": 8, "msg": "no"}',
    "NUL": b"HTTP/1.1 503 No\r\n\r\n\x00" * 3,
    "too much": b"HTTP/1.1 200 OK" + b"x" * 100_000,
}


@pytest.mark.parametrize("what", STRANGE_ANSWERS)
def test_an_answer_that_is_none_does_not_start_a_pod(plugin, agent, what):
    agent.answer = STRANGE_ANSWERS[what]
    error = call(plugin, "ADD", config(agent)).error
    assert error["code"] == 11
    assert "and no reason" in error["msg"] or "does not answer" in error["msg"]


@pytest.mark.parametrize(
    ("code", "sentence", "stdin"),
    [
        (1, "CNI version 0.2.0 is not supported, 0.3.0 to 1.1.0 are", config(version="0.2.0")),
        (1, "CNI version 2.0.0 is not supported", config(version="2.0.0")),
        (7, "cniVersion of the network configuration is missing", config(version=None)),
        (7, "cniVersion", config(version=1)),
        (7, "name of the network configuration is missing", config(name=None)),
        (7, "name", config(name="")),
        (7, "prevResult is missing", config(previous=None)),
        (6, "prevResult is not a JSON object", config(previous="[]")),
        (6, "prevResult is not a JSON object", config(previous="null")),
        (6, "ips of prevResult is not a list", config(previous='{"ips": {}}')),
        (6, "an entry without an address", config(previous='{"ips": [{}]}')),
        (6, "an entry without an address", config(previous='{"ips": [{"address": 5}]}')),
        (6, "an entry without an address", config(previous='{"ips": ["10.0.0.1"]}')),
        (7, "agentSocket is not an absolute path of at most 107 bytes", config(agentSocket="relative")),
        (7, "agentSocket", config(agentSocket="/" + "x" * 107)),
        (7, "agentSocket", config(agentSocket="/a\0b")),
        (7, "agentSocket", config(agentSocket=5)),
        (7, "timeoutSeconds is not a whole number from 1 to 300", config(timeoutSeconds=0)),
        (7, "timeoutSeconds", config(timeoutSeconds=301)),
        (7, "timeoutSeconds", config(timeoutSeconds=3.5)),
        (7, "timeoutSeconds", config(timeoutSeconds=-3)),
        (7, "timeoutSeconds", config(timeoutSeconds="3")),
        (6, 'has "name" twice', b'{"cniVersion":"1.0.0","name":"a","name":"b"}'),
        (6, 'has "name" twice', b'{"cniVersion":"1.0.0","name":"a","n\\u0061me":"b"}'),
        (6, "larger than 1 MiB", b" " * (1024 * 1024 + 1)),
    ],
)
def test_a_configuration_that_is_wrong_is_refused_with_a_sentence(plugin, code, sentence, stdin):
    error = call(plugin, "ADD", stdin).error
    assert error["code"] == code
    assert sentence in error["msg"]


@pytest.mark.parametrize(
    ("sentence", "variables"),
    [
        ("CNI_CONTAINERID is not set", {"CNI_CONTAINERID": None}),
        ("CNI_CONTAINERID is not a container id", {"CNI_CONTAINERID": "-c1"}),
        ("CNI_CONTAINERID is not a container id", {"CNI_CONTAINERID": "c/1"}),
        ("CNI_NETNS is not set", {"CNI_NETNS": ""}),
        ("CNI_IFNAME is not set", {"CNI_IFNAME": None}),
        ("CNI_IFNAME is not an interface's name", {"CNI_IFNAME": "e" * 16}),
        ("CNI_IFNAME is not an interface's name", {"CNI_IFNAME": "a/b"}),
        ("CNI_IFNAME is not an interface's name", {"CNI_IFNAME": ".."}),
        ("CNI_ARGS holds a part that is not KEY=VALUE", {"CNI_ARGS": "K8S_POD_NAME"}),
        ("only one of K8S_POD_NAME and K8S_POD_NAMESPACE", {"CNI_ARGS": "K8S_POD_NAME=a"}),
        ("only one of K8S_POD_NAME and K8S_POD_NAMESPACE", {"CNI_ARGS": "K8S_POD_NAMESPACE=a"}),
        ("CNI_ARGS is longer than 8191 bytes", {"CNI_ARGS": "A=" + "x" * 8190}),
        ("CNI_NETNS is not UTF-8", {"CNI_NETNS": b"/\xff"}),
    ],
)
def test_an_environment_that_is_wrong_is_refused_with_a_sentence(plugin, sentence, variables):
    error = call(plugin, "ADD", config(), **variables).error
    assert error["code"] == 4
    assert sentence in error["msg"]


@pytest.mark.parametrize(("command", "sentence"), [("FLY", "CNI_COMMAND is none of"), (None, "CNI_COMMAND is not set")])
def test_a_command_that_nobody_knows(plugin, command, sentence):
    error = call(plugin, "", config(), CNI_COMMAND=command).error
    assert error["code"] == 4
    assert sentence in error["msg"]


def test_what_the_environment_says_is_escaped(plugin, agent):
    name, netns = 'a"\\\x01é', '/run/"netns"\t'
    call(plugin, "ADD", config(agent), CNI_NETNS=netns, CNI_ARGS=f"K8S_POD_NAME={name};K8S_POD_NAMESPACE=b=c")
    ((_, body),) = agent.asked
    assert (body["pod_name"], body["pod_namespace"], body["netns"]) == (name, "b=c", netns)
    assert "pod_uid" not in body


def test_a_request_too_large_for_the_agent_is_not_sent(plugin, agent):
    ips = json.dumps([{"address": "10.0.0.1/24"}] * 8000)
    error = call(plugin, "ADD", config(agent, previous=f'{{"ips": {ips}}}')).error
    assert (error["code"], agent.asked) == (7, [])


def test_check_is_silent_when_all_is_well(plugin, agent):
    said = call(plugin, "CHECK", config(agent))
    assert (said.status, said.stdout) == (0, b"")
    ((line, body),) = agent.asked
    assert line == "POST /cni/check HTTP/1.1"
    check_against_schema("check", body)


@pytest.mark.parametrize(("command", "version"), [("CHECK", "0.3.1"), ("GC", "1.0.0"), ("STATUS", "1.0.0")])
def test_a_command_newer_than_the_configuration_is_refused(plugin, agent, command, version):
    error = call(plugin, command, config(agent, version)).error
    assert (error["code"], agent.asked) == (1, [])


def test_del_tells_the_agent(plugin, agent):
    said = call(plugin, "DEL", config(agent, previous=None), CNI_NETNS=None, CNI_ARGS=None)
    assert (said.status, said.stdout, said.stderr) == (0, b"", "")
    ((line, body),) = agent.asked
    assert (line, body) == ("POST /cni/del HTTP/1.1", {"container_id": "c1"})
    check_against_schema("del", body)


@pytest.mark.parametrize("stdin", [b"", b"{", config(agentSocket="/nowhere"), config(version="9")])
def test_del_never_fails(plugin, stdin):
    said = call(plugin, "DEL", stdin)
    assert (said.status, said.stdout) == (0, b"")
    assert said.stderr.startswith("nodemesh-cni: DEL: ")


def test_del_succeeds_even_against_the_agents_will(plugin, agent):
    agent.refuse(500, b'{"code": 100, "msg": "no"}')
    assert call(plugin, "DEL", config(agent)).status == 0


def test_status_asks_the_agent(plugin, agent):
    said = call(plugin, "STATUS", config(agent, "1.1.0", None), CNI_CONTAINERID=None, CNI_NETNS=None, CNI_IFNAME=None)
    assert (said.status, said.stdout) == (0, b"")
    assert agent.asked == [("GET /cni/status HTTP/1.1", None)]


def test_status_is_not_available_without_the_agent_and_says_its_reason_with_it(plugin, agent):
    assert call(plugin, "STATUS", config(version="1.1.0", previous=None, agentSocket="/nowhere")).code == 50
    agent.refuse(503, b'{"code": 50, "msg": "no tunnel is connected"}')
    assert call(plugin, "STATUS", config(agent, "1.1.0", None)).error["msg"] == "no tunnel is connected"


def test_gc_hands_on_what_is_valid(plugin, agent):
    valid = [{"containerID": "c1", "ifname": "eth0", "more": 1}, {"containerID": "c2", "ifname": "eth1"}]
    said = call(plugin, "GC", config(agent, "1.1.0", None, **{"cni.dev/valid-attachments": valid}))
    assert (said.status, said.stdout) == (0, b"")
    ((line, body),) = agent.asked
    assert line == "POST /cni/gc HTTP/1.1"
    check_against_schema("gc", body)
    assert [(a["container_id"], a["ifname"]) for a in body["valid_attachments"]] == [("c1", "eth0"), ("c2", "eth1")]


def test_gc_of_nothing_valid_is_not_gc_of_nothing_said(plugin, agent):
    assert call(plugin, "GC", config(agent, "1.1.0", None, **{"cni.dev/valid-attachments": []})).status == 0
    assert agent.asked.pop() == ("POST /cni/gc HTTP/1.1", {"valid_attachments": []})
    assert call(plugin, "GC", config(agent, "1.1.0", None)).code == 7
    assert agent.asked == []


@pytest.mark.parametrize(
    "attachments", [{}, "x", [5], [{}], [{"containerID": "c"}], [{"containerID": 5, "ifname": "e"}]]
)
def test_gc_of_something_strange_is_refused(plugin, agent, attachments):
    assert call(plugin, "GC", config(agent, "1.1.0", None, **{"cni.dev/valid-attachments": attachments})).code == 6
    assert agent.asked == []
