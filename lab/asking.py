"""HTTP asked from inside a pod: one curl per question, answers as the client saw them."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final

from lab.cluster import Cluster, Pod

_MARK: Final = "\n--8<--"
_WRITE: Final = _MARK + "%{http_code} %{time_total}\n"


@dataclass(frozen=True)
class Answer:
    """`status` 0: none. `told`: what the application saw (`echo.py`), if it was the application that answered."""

    status: int
    seconds: float
    text: str
    told: dict[str, Any] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def version(self) -> str:
        return str(self.told.get("version", ""))

    def header(self, name: str) -> str:
        """As the application saw it."""
        return str(self.told.get("headers", {}).get(name, ""))


def ask_many(cluster: Cluster, client: Pod, url: str, times: int, *options: str) -> list[Answer]:
    """One after the other over as few connections as curl needs."""
    numbered = f"{url}{'&' if '?' in url else '?'}n=[1-{times}]" if times > 1 else url
    command = ["curl", "-gs" if times == 1 else "-s", "-i", "-m", "60", "-w", _WRITE, *options, numbered]
    return [_answer(*each) for each in _split(cluster.exec(client, command, timeout_s=300).stdout)]


def counted(answers: list[Answer]) -> Counter[str]:
    """How many came of which version, or with which status when no application answered."""
    return Counter(each.version or str(each.status) for each in answers)


def _split(out: str) -> list[tuple[str, str]]:
    """Each answer with the line that curl wrote after it."""
    found, rest = [], out
    while _MARK in rest:
        text, _, rest = rest.partition(_MARK)
        line, _, rest = rest.partition("\n")
        found.append((text, line))
    return found


def _answer(text: str, line: str) -> Answer:
    status, seconds = line.split()
    head, body = "", text
    while body.startswith("HTTP/"):
        head, _, body = body.partition("\n\n")  # text: line ends are translated
    fields = (each.partition(": ") for each in head.split("\n")[1:])
    headers = {name.lower(): value for name, _, value in fields}
    try:
        told = json.loads(body)
    except ValueError:
        told = {}
    return Answer(int(status), float(seconds), body, told if isinstance(told, dict) else {}, headers)
