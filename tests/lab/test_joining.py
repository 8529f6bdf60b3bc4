"""A pod that runs and is about to be captured by BPF: its first client may come before anything is captured."""

import asyncio
import os
import subprocess

import pytest

from lab import cgroups, netns
from lab.layout import Layout
from nodeagent.redirect.backend import Sandbox
from nodeagent.redirect.bpf import Bpf
from nodeagent.redirect.plan import CONNECTION_MARK, MARK_MASK, Options
from tests.lab import scripts
from tests.lab.pairs import NEIGHBOUR, POD, TRANSPARENT, pair

pytestmark = pytest.mark.lab

TUNNEL = """
import socket
print("up", flush=True)
input()
with socket.socket(socket.{family}) as dial:
    dial.setsockopt(*{transparent}, 1)
    dial.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, 0x539)
    dial.bind(({client!r}, 0))
    dial.settimeout(30)
    dial.connect(({pod!r}, 80))
    print(dial.getsockopt(socket.SOL_SOCKET, socket.SO_MARK))
"""


@pytest.mark.parametrize("version", [4, 6])
def test_what_a_tunnel_opens_for_a_client_finds_its_way_back_before_anything_is_captured(version):
    family = "AF_INET6" if version == 6 else "AF_INET"
    ends = {"client": NEIGHBOUR[version], "pod": POD[version]}
    script = TUNNEL.format(family=family, transparent=TRANSPARENT[version], **ends)
    layout = Layout(f"p{os.getpid()}")
    with pair() as (pod, _), pod.listening(80, version):
        cgroups.create(pod.name)
        command = [*netns.inside(pod.name), *scripts.python(script)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as tunnel:
            assert tunnel.stdout.readline() == "up\n"
            bpf = Bpf(layout.bpf_dir("node1"))
            bpf.meet(tunnel.pid)
            sandbox = Sandbox("pod", pod.namespace, None, Options(keep_connections=True))
            asyncio.run(bpf.release(sandbox))
            said, _ = tunnel.communicate("now\n", timeout=90)
            asyncio.run(bpf.take_out(sandbox))
    assert int(said) & MARK_MASK == CONNECTION_MARK
