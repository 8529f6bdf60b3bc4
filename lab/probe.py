"""Small clients that run inside a pod: plain sockets and the standard library, knowing nothing of a mesh.

`python -I -S probe.py hold|loop|rr IP PORT …` prints one JSON object per line. Times are CLOCK_MONOTONIC seconds, which
every process of the machine shares, so the caller can subtract its own. Ends at its first line of input or on EOF.
"""

import json
import os
import select
import socket
import sys
import time
from typing import Any, NoReturn

TIMEOUT_S = 30.0


def say(event: str, **fields: Any) -> None:
    print(json.dumps({"event": event, "at": time.monotonic(), **fields}), flush=True)


def told_to_stop() -> bool:
    return bool(select.select([0], [], [], 0)[0])


def hold(ip: str, port: int, pause_s: float) -> None:
    """One connection, a numbered message there and back again every `pause_s`: says `open` after the first echo, and
    `cut` (with the error) or `stopped` at the end. `worst_s` is the longest time without an answer."""
    count, worst = 0, 0.0
    try:
        with socket.create_connection((ip, port), TIMEOUT_S) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while not told_to_stop():
                began = time.monotonic()
                exchange(connection, b"%015d\n" % count)
                worst = max(worst, time.monotonic() - began)
                count += 1
                if count == 1:
                    say("open", local=connection.getsockname()[1])
                time.sleep(pause_s)
    except OSError as error:
        say("cut", why=str(error), count=count, worst_s=worst)
        return
    say("stopped", count=count, worst_s=worst)


def exchange(connection: socket.socket, message: bytes) -> None:
    """Raises ConnectionError: the end came, or the answer is not the message."""
    connection.sendall(message)
    answer = b""
    while len(answer) < len(message):
        piece = connection.recv(len(message) - len(answer))
        if not piece:
            raise ConnectionError("closed by the other side")
        answer += piece
    if answer != message:
        raise ConnectionError(f"{answer!r} came back for {message!r}")


def loop(ip: str, port: int, pause_s: float) -> None:
    """A new connection with one message every `pause_s`, until told to stop: `done`, with how many failed and why."""
    fine, failures = 0, []
    while not told_to_stop():
        try:
            with socket.create_connection((ip, port), TIMEOUT_S) as connection:
                exchange(connection, b"x" * 16)
            fine += 1
            if fine == 1:
                say("open")
        except OSError as error:
            failures.append(str(error))
        time.sleep(pause_s)
    say("done", fine=fine, failed=len(failures), why=failures[:3])


def rr(ip: str, port: int, seconds: float) -> None:
    """GET /one over one kept connection as fast as the answers come, after a tenth of the time as warm-up:
    `latency` with `count`, `p50_s` and `p99_s`."""
    request = f"GET /one HTTP/1.1\r\nHost: {ip}\r\n\r\n".encode()
    taken: list[float] = []
    with socket.create_connection((ip, port), TIMEOUT_S) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        began = time.perf_counter()
        while (now := time.perf_counter()) < began + seconds:
            connection.sendall(request)
            if not connection.recv(4096).startswith(b"HTTP/1.1 200"):
                raise SystemExit("the answer is not 200")
            if now > began + seconds / 10:
                taken.append(time.perf_counter() - now)
    taken.sort()
    say("latency", count=len(taken), p50_s=taken[len(taken) // 2], p99_s=taken[len(taken) * 99 // 100])


def main() -> NoReturn:
    command, ip, port, number = sys.argv[1:5]
    if len(sys.argv) > 5:
        os.sched_setaffinity(0, {int(sys.argv[5])})
    {"hold": hold, "loop": loop, "rr": rr}[command](ip, int(port), float(number))
    sys.exit(0)


if __name__ == "__main__":
    main()
