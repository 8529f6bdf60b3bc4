"""`make bench [CASE=a,b] [QUICK=1] [ROUNDS=n] [CONTENDERS=a,b] [PEER="... || ..."] [CAPTURE=a,b]` and
`make bench-compare A=... B=...`: see bench/README.md.
"""

import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench import captures, hooks, instructions, report, rounds, syscalls, worlds
from bench.cases import BY_NAME, CASES, Case
from bench.contenders import Arena, Contender
from lab.cluster import Cluster
from mesh.errors import OperatorError

HERE = Path(__file__).parent
ROOT = HERE.parent
FULL = {"seconds": 1.5, "least": 3, "most": 5, "budget_s": 450.0}
EXACT = ("syscalls", "instructions")
"""What CASE may also name. A run without CASE has both, a quick one without CASE only the first."""
QUICK = {"seconds": 0.8, "least": 2, "most": 3, "budget_s": 130.0}


@dataclass(frozen=True, slots=True)
class Wish:
    """What the environment asks for. `exact`: what is counted and not timed, the extras below."""

    cases: tuple[Case, ...]
    exact: tuple[str, ...]
    contenders: tuple[str, ...]
    captures: list[str]
    peer: str
    plan: dict[str, Any]

    @classmethod
    def read(cls) -> "Wish":
        quick = os.environ.get("QUICK", "") not in ("", "0")
        names = _names("CONTENDERS") or ("direct", "ours", "envoy")
        peer = os.environ.get("PEER", "")
        plan = dict(QUICK if quick else FULL)
        if rounds_text := os.environ.get("ROUNDS", ""):
            if not rounds_text.isdecimal() or not int(rounds_text):
                raise OperatorError(f"ROUNDS is a number of at least 1, not {rounds_text!r}")
            plan["least"] = plan["most"] = int(rounds_text)
        return cls(
            _cases(quick),
            tuple(name for name in EXACT if name in (_names("CASE") or EXACT[: 1 if quick else None])),
            (*names, "peer") if peer and "peer" not in names else names,
            captures.chosen(os.environ.get("CAPTURE", "")),
            peer,
            plan,
        )


def _names(variable: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in os.environ.get(variable, "").split(",") if name.strip())


def _cases(quick: bool) -> tuple[Case, ...]:
    """Who names cases gets them, quick or not; always in the suite's order, for the idle ones need a fresh heap."""
    names = _names("CASE")
    for name in names:
        if name not in BY_NAME and name not in EXACT:
            raise OperatorError(f"CASE has no {name}; there are: {', '.join([*BY_NAME, *EXACT])}")
    return tuple(case for case in CASES if (case.name in names if names else case.quick or not quick))


def main(arguments: Sequence[str]) -> int:
    try:
        if arguments and (len(arguments) != 3 or arguments[0] != "compare"):
            print(__doc__)
            return 2
        if arguments:
            before, after = (_read(Path(path)) for path in arguments[1:])
            print(report.comparison(before, after))
            return 0
        return _bench(Wish.read())
    except OperatorError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2


def _read(path: Path) -> report.Results:
    try:
        return report.from_json(path.read_text())
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise OperatorError(f"{path} is no result file of `make bench`: {error}") from None


def _bench(wish: Wish) -> int:
    load = _build_load()
    os.environ.setdefault("ZTUNNEL_WORKER_THREADS", "1")  # one core per node, as Envoy's --concurrency 1
    plan = rounds.Plan(**wish.plan)
    counts = instructions.count(_say) if "instructions" in wish.exact else []
    if not wish.cases and "syscalls" not in wish.exact:
        return _publish(report.Results([], [], counts), {})
    with ExitStack() as labs:
        pairs: list[tuple[Arena, Contender]] = []
        if any(case.place != "here" for case in wish.cases) or "syscalls" in wish.exact:
            pairs = _in_order([pair for name in wish.captures for pair in _lab(labs, wish, load, name)])
        timed = [case for case in wish.cases if case.mode != "world"]
        everybody: list[rounds.Pair] = [*pairs]
        if any(case.place == "here" for case in timed):
            everybody += labs.enter_context(hooks.place(load, every=wish.plan["budget_s"] == FULL["budget_s"]))
        samples, failed = rounds.run(everybody, timed, plan, _say)
        calls = syscalls.count(pairs, _say) if "syscalls" in wish.exact else []
        more, failed_too = worlds.run(pairs, [case for case in wish.cases if case.mode == "world"], _say)
    about = {"rounds": f"{plan.least} to {plan.most}", "seconds": plan.seconds}
    return _publish(report.Results(samples + more, calls, counts, failed + failed_too), about)


def _lab(labs: ExitStack, wish: Wish, load: Path, capture: str) -> list[tuple[Arena, Contender]]:
    """A lab with this capture backend and who is measured in it: everybody in the first, only ours in the others."""
    ours = captures.contender(wish.captures, capture)
    name = f"bench{os.getpid() % 10000}{capture}"
    way, direct = captures.backend(capture), capture == captures.DIRECT
    cluster = Cluster.up(name, nodes=2, pods=0, say=_say, capture=way, direct=direct)
    labs.callback(cluster.down)
    arena = Arena(cluster, load, wish.peer, ours)
    names = wish.contenders if ours == "ours" else [ours] * ("ours" in wish.contenders)
    return [(arena, contender) for contender in arena.contenders(names)]


def _in_order(pairs: list[tuple[Arena, Contender]]) -> list[tuple[Arena, Contender]]:
    """Ours of further backends beside the first one."""
    return sorted(pairs, key=lambda pair: ("direct", "ours", "envoy", "peer").index(pair[1].name.split("-")[0]))


def _build_load() -> Path:
    binary = ROOT / "build" / "load"
    binary.parent.mkdir(exist_ok=True)
    subprocess.run(["gcc", "-O2", "-Wall", "-o", str(binary), str(HERE / "load.c")], check=True)
    return binary


def _publish(results: report.Results, about: dict[str, Any]) -> int:
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=ROOT)
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    about = {
        **about,
        "commit": commit.stdout.strip() or "unknown",
        "taken": stamp,
        "machine": f"{os.cpu_count()} cores, Linux {platform.release()}, {platform.machine()}",
    }
    directory = HERE / "results"
    directory.mkdir(exist_ok=True)
    (directory / f"{stamp}.json").write_text(report.to_json(results, about))
    text = report.markdown(results)
    (directory / f"{stamp}.md").write_text(f"{about}\n\n{text}\n")
    print(text)
    missed = report.missed(results.samples)
    print(f"\n{len(missed)} bars missed; figures in bench/results/{stamp}.json")
    return 1 if missed or results.failed else 0


def _say(line: str) -> None:
    print(f"==> {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
