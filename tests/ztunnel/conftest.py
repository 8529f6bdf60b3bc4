from __future__ import annotations

import asyncio
import zlib

import pytest

from mesh.gen.xds_pb2 import DeltaDiscoveryResponse
from tests.fakes.core import FakeCore, NamespaceGone
from tests.ztunnel.authority import Authority, pem
from ztunnel.dataplane import Dataplane
from ztunnel.lastgood import LastGood
from ztunnel.settings import Settings


async def until(condition, what="the expected state"):
    """Lets the loop turn until it is so; a minute is the end of a hung test, not part of its meaning."""
    try:
        async with asyncio.timeout(60):
            while not condition():  # noqa: ASYNC110 - what is waited for is seen from outside only
                await asyncio.sleep(0)
    except TimeoutError:
        raise AssertionError(f"never came to {what}") from None


@pytest.fixture(scope="session")
def authority():
    return Authority()


@pytest.fixture
def core():
    core = FakeCore()
    yield core
    core.close()


@pytest.fixture
def dataplane(core):
    return Dataplane(core, NamespaceGone)


@pytest.fixture
def environment(tmp_path, authority):
    """A complete environment of a tunnel in a directory of its own, on ports that the kernel chooses."""
    (tmp_path / "root.pem").write_text(pem(authority.root))
    (tmp_path / "token").write_text("node-token\n")
    loopback = dict.fromkeys(("ADMIN_ADDR", "STATS_ADDR", "READINESS_ADDR"), "127.0.0.1:0")
    return loopback | {
        "NODE_NAME": "node-1",
        "XDS_ROOT_CA": str(tmp_path / "root.pem"),
        "CA_ROOT_CA": str(tmp_path / "root.pem"),
        "AUTH_TOKEN": str(tmp_path / "token"),
        "INPOD_UDS": str(tmp_path / "zds.sock"),
        "NODEMESH_RUN_DIR": str(tmp_path / "run"),
        "CONNECTION_TERMINATION_DEADLINE": "1s",
    }


@pytest.fixture
def settings_for(environment):
    def settings(port: int = 1, **more: str) -> Settings:
        address = f"https://localhost:{port}"
        return Settings.read(environment | {"XDS_ADDRESS": address, "CA_ADDRESS": address} | more)

    return settings


def resources(bundle):
    return DeltaDiscoveryResponse.FromString(zlib.decompress(bundle)).resources


def kept(directory):
    """By type and name: the version and the data."""
    found = {}
    for url, bundle in LastGood(directory).load():
        for each in resources(bundle):
            assert each.name not in found.setdefault(url, {})
            found[url][each.name] = each.version, each.resource.value
    return found
