#!/usr/bin/env -S python3 -I -S
"""nodemesh-cni, the readable twin of plugin.c: same behaviour, same tests, for hosts that have Python.

A chained CNI plugin, specification 1.1. Asks the node agent over its Unix socket (proto/enrol.schema.json) and passes
the previous plugin's result through, byte for byte. Decides nothing and holds nothing. Fail closed: without the
agent's yes a pod of Kubernetes does not start. DEL alone always succeeds, so that nothing keeps a pod from going away.
Standard library only; one file.
"""

from __future__ import annotations

import json
import os
import re
import socket
import sys
import time
from collections.abc import Iterator
from typing import Any, NoReturn

MAX_CONFIG = 1024 * 1024
MAX_REQUEST = 64 * 1024
MAX_RESPONSE = 64 * 1024
MAX_DEPTH = 64
MAX_SOCKET_PATH = 107
MAX_TIMEOUT_S = 300
VERSIONS = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]

# CNI specification, "Error"
BAD_VERSION = 1
BAD_ENVIRONMENT = 4
IO_FAILURE = 5
BAD_JSON = 6
BAD_CONFIG = 7
TRY_AGAIN_LATER = 11
NOT_AVAILABLE = 50

SPACE = re.compile(r"[ \t\r\n]*")
STRING_OR_BRACKET = re.compile(r'"(?:[^"\\]|\\.)*"|[\[{]|[\]}]', re.DOTALL)


class Failure(Exception):
    """What goes to stdout: an error object of the CNI specification."""

    def __init__(self, code: int, msg: str, details: str = "") -> None:
        self.code, self.msg, self.details = code, msg, details


class TwiceError(ValueError):
    """An object names a member twice that matters here."""


# --- JSON with the text of its values -------------------------------------------------------------------------------


def refuse_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is not JSON")


# Numbers stay text: none is counted with, and Python limits how long an int may be.
DECODER = json.JSONDecoder(parse_int=str, parse_float=str, parse_constant=refuse_constant)


def is_json(text: str) -> bool:
    """Well-formed, and nested at most MAX_DEPTH deep."""
    try:
        _, end = DECODER.raw_decode(text, skip_space(text, 0))
    except (ValueError, RecursionError):
        return False
    return skip_space(text, end) == len(text) and depth_of(text) <= MAX_DEPTH


def depth_of(text: str) -> int:
    """Of well-formed JSON."""
    depth = deepest = 0
    for token in STRING_OR_BRACKET.findall(text):
        depth += (token in "[{") - (token in "]}")
        deepest = max(deepest, depth)
    return deepest


def skip_space(text: str, at: int) -> int:
    found = SPACE.match(text, at)
    return found.end() if found else at


def values(text: str, at: int) -> Iterator[tuple[str, int, int]]:
    """Of a well-formed container whose inside begins at `at`: each value with its name ("" in a list) and its place."""
    is_object = text[at - 1] == "{"
    at, name = skip_space(text, at), ""
    while text[at] not in "]}":
        if is_object:
            name, at = DECODER.raw_decode(text, at)
            at = skip_space(text, skip_space(text, at) + 1)  # behind the colon
        _, end = DECODER.raw_decode(text, at)
        yield name, at, end
        at = skip_space(text, end)
        if text[at] == ",":
            at = skip_space(text, at + 1)


def members(text: str) -> Iterator[tuple[str, int, int]]:
    return values(text, skip_space(text, 0) + 1)


def elements(text: str) -> Iterator[str]:
    return (text[begin:end] for _, begin, end in values(text, 1))


def find(text: str, name: str) -> tuple[int, int] | None:
    """Where the member's value stands in a well-formed object. Raises TwiceError."""
    places = [(begin, end) for member, begin, end in members(text) if member == name]
    if len(places) > 1:
        raise TwiceError(name)
    return places[0] if places else None


def find_in_config(text: str, name: str) -> str | None:
    try:
        place = find(text, name)
    except TwiceError:
        raise Failure(BAD_JSON, f'the network configuration has "{name}" twice') from None
    return text[slice(*place)] if place else None


def parse_text(value: str | None) -> str | None:
    """A JSON string as an operating system can take it: no NUL, no half surrogate pair."""
    if value is None or not value.startswith('"'):
        return None
    text = json.loads(value)
    is_plain = isinstance(text, str) and "\0" not in text and not any("\ud800" <= c <= "\udfff" for c in text)
    return text if is_plain else None


# --- configuration and environment ----------------------------------------------------------------------------------


class Config:
    """The network configuration. `previous` and `attachments` are text; None when absent."""

    def __init__(self, text: str, version: str) -> None:
        self.version = version
        if not parse_text(find_in_config(text, "name")):
            raise Failure(BAD_CONFIG, "name of the network configuration is missing or no name")
        self.socket = parse_socket(find_in_config(text, "agentSocket"))
        self.timeout_s = parse_timeout(find_in_config(text, "timeoutSeconds"))
        self.previous = find_in_config(text, "prevResult")
        if self.previous is not None and not self.previous.startswith("{"):
            raise Failure(BAD_JSON, "prevResult is not a JSON object")
        self.attachments = find_in_config(text, "cni.dev/valid-attachments")
        if self.attachments is not None and not self.attachments.startswith("["):
            raise Failure(BAD_JSON, "cni.dev/valid-attachments is not a list")

    def require_version(self, least: str, command: str) -> None:
        if VERSIONS.index(self.version) < VERSIONS.index(least):
            raise Failure(BAD_VERSION, f"{command} needs CNI version {least} or newer")

    def require_previous(self) -> str:
        if self.previous is None:
            raise Failure(BAD_CONFIG, "prevResult is missing: nodemesh-cni has to follow another plugin in the list")
        return self.previous


def parse_socket(value: str | None) -> str:
    if value is None:
        return "/run/nodemesh/cni.sock"
    path = parse_text(value)
    if path is None or not path.startswith("/") or len(path.encode()) > MAX_SOCKET_PATH:
        raise Failure(BAD_CONFIG, f"agentSocket is not an absolute path of at most {MAX_SOCKET_PATH} bytes")
    return path


def parse_timeout(value: str | None) -> int:
    if value is None:
        return 30
    if not re.fullmatch("[0-9]{1,3}", value) or not 1 <= int(value) <= MAX_TIMEOUT_S:
        raise Failure(BAD_CONFIG, f"timeoutSeconds is not a whole number from 1 to {MAX_TIMEOUT_S}")
    return int(value)


def read_config() -> str:
    """stdin as text that is a JSON object."""
    try:
        given = sys.stdin.buffer.read(MAX_CONFIG + 1)
    except OSError as error:
        raise Failure(IO_FAILURE, f"the network configuration on stdin cannot be read: {error.strerror}") from None
    if len(given) > MAX_CONFIG:
        raise Failure(BAD_JSON, "the network configuration on stdin is larger than 1 MiB")
    try:
        text = given.decode("utf-8")
    except UnicodeDecodeError:
        text = ""
    if not is_json(text) or not text.lstrip().startswith("{"):
        raise Failure(BAD_JSON, "the network configuration on stdin is not a JSON object")
    return text


def parse_version(text: str) -> str:
    version = parse_text(find_in_config(text, "cniVersion"))
    if version is None or len(version.encode()) > 15:
        raise Failure(BAD_CONFIG, "cniVersion of the network configuration is missing or no version")
    if version not in VERSIONS:
        raise Failure(BAD_VERSION, f"CNI version {version} is not supported, 0.3.0 to 1.1.0 are")
    return version


def variable(name: str) -> str:
    try:
        return os.environb.get(name.encode(), b"").decode("utf-8")
    except UnicodeDecodeError:
        raise Failure(BAD_ENVIRONMENT, f"{name} is not UTF-8") from None


def required(name: str) -> str:
    value = variable(name)
    if not value:
        raise Failure(BAD_ENVIRONMENT, f"{name} is not set")
    return value


def container_id() -> str:
    value = required("CNI_CONTAINERID")
    if not re.fullmatch(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*", value):
        raise Failure(BAD_ENVIRONMENT, "CNI_CONTAINERID is not a container id")
    return value


def interface_name() -> str:
    value = required("CNI_IFNAME")
    if not re.fullmatch(r"[^/: ]+", value) or len(value.encode()) > 15 or value in (".", ".."):
        raise Failure(BAD_ENVIRONMENT, "CNI_IFNAME is not an interface's name")
    return value


def kubernetes_arguments() -> dict[str, str]:
    """CNI_ARGS, "KEY=VALUE;KEY=VALUE"; empty when the pod is none of Kubernetes."""
    given = variable("CNI_ARGS")
    if len(given.encode()) > 8191:
        raise Failure(BAD_ENVIRONMENT, "CNI_ARGS is longer than 8191 bytes")
    pairs = [pair.partition("=") for pair in given.split(";") if pair]
    if not all(separator for _, separator, _ in pairs):
        raise Failure(BAD_ENVIRONMENT, "CNI_ARGS holds a part that is not KEY=VALUE")
    values = {key: value for key, _, value in pairs}
    name, namespace = values.get("K8S_POD_NAME", ""), values.get("K8S_POD_NAMESPACE", "")
    if bool(name) != bool(namespace):
        raise Failure(BAD_ENVIRONMENT, "CNI_ARGS has only one of K8S_POD_NAME and K8S_POD_NAMESPACE")
    if not name:
        return {}
    uid = {"pod_uid": values["K8S_POD_UID"]} if values.get("K8S_POD_UID") else {}
    return {"pod_name": name, "pod_namespace": namespace} | uid


# --- the agent ------------------------------------------------------------------------------------------------------


def ask_agent(config: Config, method: str, path: str, body: dict[str, Any], code: int = TRY_AGAIN_LATER) -> None:
    """Returns when the agent said yes; `code` is the error's when it says nothing. Raises Failure."""
    content = json.dumps(body).encode() if body else b""
    head = (
        f"{method} {path} HTTP/1.1\r\nHost: nodemesh\r\nConnection: close\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(content)}\r\n\r\n"
    )
    if len(head) + len(content) > MAX_REQUEST:
        raise Failure(BAD_CONFIG, f"the request to the node agent is larger than {MAX_REQUEST // 1024} KiB")
    try:
        answer = exchange(config, head.encode() + content)
    except (TimeoutError, BlockingIOError):
        raise Failure(code, f"the node agent at {config.socket} did not answer within {config.timeout_s} s") from None
    except OSError as error:
        raise Failure(code, f"the node agent at {config.socket} does not answer: {error.strerror}") from None
    status, reason = parse_response(answer)
    if status != 200:
        raise reason or Failure(code, f"the node agent at {config.socket} answered with status {status} and no reason")


def exchange(config: Config, request: bytes) -> bytes:
    """One connection, one deadline for all of it. Raises OSError."""
    until = time.monotonic() + config.timeout_s
    answer = b""

    def give_deadline() -> None:
        left = until - time.monotonic()
        if left <= 0:
            raise TimeoutError
        agent.settimeout(left)

    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as agent:
        give_deadline()
        agent.connect(config.socket)
        give_deadline()
        agent.sendall(request)
        while len(answer) < MAX_RESPONSE:
            give_deadline()
            if not (part := agent.recv(MAX_RESPONSE - len(answer))):
                break
            answer += part
    return answer


def parse_response(answer: bytes) -> tuple[int, Failure | None]:
    """The status, 0 when this is not HTTP; and the error that the agent gave as its reason."""
    head, blank, body = answer.partition(b"\r\n\r\n")
    found = re.match(rb"HTTP/1\.. ([0-9]{3})", head)
    status = int(found[1]) if blank and found else 0
    try:
        text = body.decode("utf-8").strip()
    except UnicodeDecodeError:
        return status, None
    return status, parse_reason(text) if text.startswith("{") and is_json(text) else None


def parse_reason(text: str) -> Failure | None:
    try:
        places = [find(text, name) for name in ("code", "msg", "details")]
    except TwiceError:
        return None
    code, msg, details = [json.loads(text[slice(*place)]) if place else None for place in places]
    if not isinstance(code, int) or isinstance(code, bool) or code < 0 or not isinstance(msg, str):
        return None
    return Failure(code, msg, details if isinstance(details, str) else "")


# --- the commands ---------------------------------------------------------------------------------------------------


def attachment(previous: str) -> dict[str, Any]:
    """The request for this container; empty when there is nothing to ask."""
    sandbox = {"container_id": container_id(), "netns": required("CNI_NETNS"), "ifname": interface_name()}
    pod = kubernetes_arguments()
    return sandbox | pod | {"ips": addresses(previous)} if pod else {}


def addresses(previous: str) -> list[str]:
    """prevResult.ips[].address, as they stand."""
    ips = find_in_config(previous, "ips")
    if ips is None:
        return []
    if not ips.startswith("["):
        raise Failure(BAD_JSON, "ips of prevResult is not a list")
    found = [string_of(ip, "address") for ip in elements(ips)]
    if None in found:
        raise Failure(BAD_JSON, "ips of prevResult holds an entry without an address")
    return [address for address in found if address is not None]


def string_of(text: str, name: str) -> str | None:
    """The string member of what should be an object."""
    value = find_in_config(text, name) if text.startswith("{") else None
    return str(json.loads(value)) if value is not None and value.startswith('"') else None


def result(config: Config, previous: str) -> str:
    """prevResult with the configuration's cniVersion: changed only where that member differs or is missing."""
    place = find(previous, "cniVersion")
    if place is None:
        comma = "," if any(members(previous)) else ""
        return f'{{"cniVersion":"{config.version}"{comma}{previous[1:]}'
    begin, end = place
    if parse_text(previous[begin:end]) == config.version:
        return previous
    return f'{previous[:begin]}"{config.version}"{previous[end:]}'


def add(config: Config) -> str:
    previous = config.require_previous()
    if request := attachment(previous):
        ask_agent(config, "POST", "/cni/add", request)
    return result(config, previous)


def check(config: Config) -> str:
    config.require_version("0.4.0", "CHECK")
    if request := attachment(config.require_previous()):
        ask_agent(config, "POST", "/cni/check", request)
    return ""


def delete(config: Config) -> str:
    ask_agent(config, "POST", "/cni/del", {"container_id": container_id()})
    return ""


def collect_garbage(config: Config) -> str:
    config.require_version("1.1.0", "GC")
    if config.attachments is None:
        raise Failure(BAD_CONFIG, "cni.dev/valid-attachments is missing")
    valid = [(string_of(a, "containerID"), string_of(a, "ifname")) for a in elements(config.attachments)]
    if any(None in pair for pair in valid):
        raise Failure(BAD_JSON, "cni.dev/valid-attachments holds an entry without containerID and ifname")
    kept = [{"container_id": container, "ifname": ifname} for container, ifname in valid]
    ask_agent(config, "POST", "/cni/gc", {"valid_attachments": kept})
    return ""


def status(config: Config) -> str:
    config.require_version("1.1.0", "STATUS")
    ask_agent(config, "GET", "/cni/status", {}, NOT_AVAILABLE)
    return ""


COMMANDS = {"ADD": add, "CHECK": check, "DEL": delete, "GC": collect_garbage, "STATUS": status}


def report(version: str, failure: Failure) -> int:
    error = {"cniVersion": version, "code": failure.code, "msg": failure.msg}
    print(json.dumps(error | ({"details": failure.details} if failure.details else {})))
    return 1


def main() -> int:
    """The exit status. Nothing but the result or the error goes to stdout."""
    command, version = "", VERSIONS[-1]
    try:
        command = required("CNI_COMMAND")
        if command == "VERSION":
            print(json.dumps({"cniVersion": VERSIONS[-1], "supportedVersions": VERSIONS}))
            return 0
        if command not in COMMANDS:
            raise Failure(BAD_ENVIRONMENT, "CNI_COMMAND is none of ADD, CHECK, DEL, GC, STATUS, VERSION")
        text = read_config()
        version = parse_version(text)
        said = COMMANDS[command](Config(text, version))
    except Failure as failure:
        if command == "DEL":
            print(f"nodemesh-cni: DEL: {failure.msg}", file=sys.stderr)
            return 0
        return report(version, failure)
    sys.stdout.buffer.write(f"{said}\n".encode() if said else b"")
    return 0


if __name__ == "__main__":
    sys.exit(main())
