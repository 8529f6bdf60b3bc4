"""The C plugin under address and undefined-behaviour sanitizers: configurations, and answers of an agent gone mad."""

import json
import random
import subprocess
from pathlib import Path

from tests.cni.test_plugin import PREVIOUS, config
from tests.cni.twins import ENVIRONMENT, SANITIZED, WARNINGS
from tests.fuzz.engine import damage_by, rounds, tell

CASES = 1000
GC = {
    "cniVersion": "1.1.0",
    "name": "n",
    "type": "t",
    "cni.dev/valid-attachments": [{"containerID": "c", "ifname": "e"}],
}
CONFIGURATIONS = [
    config(previous=PREVIOUS),
    json.dumps(GC).encode(),
    b'{"cniVersion":"1.0.0","name":"\\u006e","timeoutSeconds":3,"agentSocket":"/run/x","prevResult":{"ips":[]}}',
]
ANSWERS = [
    b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
    b'HTTP/1.1 503 Service Unavailable\r\nX: y\r\n\r\n{"code":11,"msg":"try \\u00e4gain","details":"\\ud83d\\ude00"}',
    b"HTTP/1.1 400 Bad\r\n\r\n" + b"[" * 70,
    b"",
]


def test_no_configuration_and_no_answer_breaks_the_plugin(tmp_path):
    binary, source = str(tmp_path / "plugin"), str(Path(__file__).with_name("plugin.c"))
    # The kernel's own calls are looked through: the harness leaves their results to the next line.
    subprocess.run(["gcc", *SANITIZED, *WARNINGS, "-o", binary, source], check=True)
    ran = 0
    for number in rounds():
        dice = random.Random(number)
        stdin = b"".join(
            bytes([dice.randrange(5)]) + sized(damage_by(dice, CONFIGURATIONS)) + sized(damage_by(dice, ANSWERS))
            for _ in range(CASES)
        )
        # What is killed by a sanitizer exits with 99, which the plugin itself never does.
        environment = ENVIRONMENT | {"ASAN_OPTIONS": "exitcode=99:detect_leaks=0"}
        done = subprocess.run([binary], input=stdin, env=environment, capture_output=True, timeout=600)
        assert (done.returncode, done.stdout) == (0, b"%d\n" % CASES), (
            f"round {number}: {done.stdout} {done.stderr[-3000:]}"
        )
        ran += CASES
    tell("the CNI plugin", ran)


def sized(text: bytes) -> bytes:
    return len(text).to_bytes(4, "big") + text
