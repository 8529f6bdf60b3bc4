"""`make bench [CASE=a,b] [QUICK=1] [PEER="... || ..."] [ROUNDS=n]` and `make bench-compare A=... B=...`.

One run, one lab, all contenders interleaved; the order turns round every round (A B C, C B A). A disturbed sample is
taken again, at most twice.
"""

import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench import report
from bench.cases import BY_NAME, CASES, Case
from bench.contenders import NAMESPACE, PORT, Arena, Contender
from bench.measure import Sample, machine_busy_s, take
from lab import documents
from lab.cluster import Cluster
from mesh.errors import OperatorError

HERE = Path(__file__).parent
ROOT = HERE.parent
SETTLE_S, RETAKES = 0.1, 2


def main(arguments: Sequence[str]) -> int:
    try:
        if arguments and (len(arguments) != 3 or arguments[0] != "compare"):
            print(__doc__)
            return 2
        if arguments:
            before, after = (report.from_json(Path(path).read_text()) for path in arguments[1:])
            print(report.comparison(before, after))
            return 0
        return _bench()
    except OperatorError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2


def _bench() -> int:
    quick = os.environ.get("QUICK", "") not in ("", "0")
    cases = _chosen(os.environ.get("CASE", ""), quick)
    rounds, seconds = int(os.environ.get("ROUNDS", "3" if quick else "5")), 1.0 if quick else 2.0
    names = [n.strip() for n in os.environ.get("CONTENDERS", "direct,ours,envoy").split(",")]
    peer = os.environ.get("PEER", "")
    load = _build_load()
    os.environ.setdefault("ZTUNNEL_WORKER_THREADS", "1")  # one core per node, as Envoy's --concurrency 1
    cluster = Cluster.up(f"bench{os.getpid() % 10000}", nodes=2, pods=0, say=_say)
    try:
        cluster.apply(f"namespace-{NAMESPACE}", documents.namespace(NAMESPACE, documents.AMBIENT))
        arena = Arena(cluster, load, peer)
        contenders = arena.contenders([*names, "peer"] if peer else names)
        samples = _rounds(arena, contenders, cases, rounds, seconds)
    finally:
        cluster.down()
    return _publish(samples, {"rounds": rounds, "seconds": seconds})


def _chosen(names: str, quick: bool) -> list[Case]:
    try:
        chosen = [BY_NAME[name.strip()] for name in names.split(",")] if names else list(CASES)
    except KeyError as error:
        raise OperatorError(f"CASE has no {error}; there are: {', '.join(BY_NAME)}") from None
    return [case for case in chosen if case.quick or not quick]


def _build_load() -> Path:
    binary = ROOT / "build" / "load"
    binary.parent.mkdir(exist_ok=True)
    subprocess.run(["gcc", "-O2", "-Wall", "-o", str(binary), str(HERE / "load.c")], check=True)
    return binary


def _rounds(arena: Arena, contenders: list[Contender], cases: list[Case], rounds: int, seconds: float) -> list[Sample]:
    samples = []
    for case in cases:
        for number in range(rounds):
            order = contenders if number % 2 == 0 else contenders[::-1]
            for contender in order:
                if case.same_node and contender.name in ("envoy", "peer"):
                    continue  # they are two ends on two nodes
                samples.append(_sample(arena, contender, case, number, seconds))
        done = [s for s in samples if s.case == case.name]
        _say(f"{case.name}: " + "  ".join(_brief(done, c.name) for c in contenders))
    return samples


def _brief(samples: list[Sample], contender: str) -> str:
    own = [s for s in samples if s.contender == contender]
    if not own:
        return f"{contender} –"
    figure = "memory" if own[0].memory else "rate"
    return f"{contender} {sorted(getattr(s, figure) for s in own)[len(own) // 2]:.1f}"


def _sample(arena: Arena, contender: Contender, case: Case, number: int, seconds: float) -> Sample:
    pod = contender.near if case.same_node else contender.far
    ends = contender.near_ends if case.same_node else contender.ends
    assert pod
    servers = [p.pid for p in contender.servers]
    for attempt in range(RETAKES + 1):
        _settle()
        bulk = None
        if case.behind_bulk:
            bulk = arena.run(contender.client, ["send", pod.ip, str(PORT), "1", str(seconds + 1)])
        run = lambda arguments: arena.run(contender.client, arguments)  # noqa: E731
        sample = take(case, contender.name, number, seconds, run, f"{pod.ip} {PORT}", ends, servers)
        if bulk:
            bulk.communicate(timeout=30)
        if not sample.disturbed or case.behind_bulk or attempt == RETAKES:
            return sample
    raise AssertionError("unreachable")


def _settle() -> None:
    """Waits until the machine is nearly idle, at most two seconds."""
    for _ in range(20):
        before = machine_busy_s()
        time.sleep(SETTLE_S)
        if machine_busy_s() - before < 0.06 * SETTLE_S * (os.cpu_count() or 1) + 0.02:
            return


def _publish(samples: list[Sample], about: dict[str, Any]) -> int:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=ROOT)
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    about = {
        **about,
        "commit": commit.stdout.strip() or "unknown",
        "taken": stamp,
        "machine": f"{os.cpu_count()} cores, Linux {platform.release()}, {platform.machine()}",
    }
    results = HERE / "results"
    results.mkdir(exist_ok=True)
    (results / f"{stamp}.json").write_text(report.to_json(samples, about))
    text = report.markdown(samples)
    (results / f"{stamp}.md").write_text(f"{about}\n\n{text}\n")
    print(text)
    missed = report.missed(samples)
    print(f"\n{len(missed)} bars missed; figures in bench/results/{stamp}.json")
    return 1 if missed else 0


def _say(line: str) -> None:
    print(f"==> {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
