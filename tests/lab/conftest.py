"""One mesh for the whole session: two nodes, four pods in it, two beside it. It ends with pytest, even by SIGKILL."""

import os

import pytest

from lab import documents
from lab.cluster import Cluster
from lab.documents import PodSpec
from lab.layout import Layout
from lab.watchdog import guarded
from tests.lab import settle
from tests.lab.damage import captured_by
from tests.lab.mall import Mall

LAST_WORDS = 12  # lines of a dead daemon's log


@pytest.fixture(scope="session")
def capture(request):
    """What the agents are told to capture with."""
    return request.config.getoption("--mesh-capture")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    """Which of the shared lab's daemons are dead, and what they said last, stands beside the failure."""
    report = yield
    mesh = getattr(item, "funcargs", {}).get("mesh")
    for name, process in mesh.daemons.items() if report.failed and mesh else ():
        if not process.alive and mesh.layout.log(name).exists():  # a lab that was taken down has none
            said = mesh.layout.log(name).read_text(errors="replace").splitlines()[-LAST_WORDS:]
            report.sections.append((f"{name} is dead", "\n".join(said)))
    return report


@pytest.fixture(scope="session")
def mesh(capture, request):
    """`web-1` and `web-3` on node1, `web-2` and `web-4` on node2, `plain-1` and `plain-2` outside the mesh."""
    direct = request.config.getoption("--mesh-direct")
    with guarded(Layout(f"t{os.getpid()}")) as layout:
        made = Cluster.up(layout.name, nodes=2, pods=4, capture=capture, direct=direct)
        for number in (1, 2):
            made.add_pod(PodSpec(f"plain-{number}", f"node{number}", labels=documents.OUT_OF_MESH))
        yield made


@pytest.fixture
def web(mesh):
    """Of one lab's own mesh, a pod of each node."""
    return mesh.pods["web-1"], mesh.pods["web-2"]


@pytest.fixture(params=[4, 6], ids=["ipv4", "ipv6"])
def version(request):
    """The family of every address in a test that takes it: the same mesh serves both."""
    return request.param


@pytest.fixture
def pods(mesh):
    """The pods by name; before each test the configuration holds no policy, and no tunnel has one any more."""
    before = {path.name for path in mesh.layout.config.iterdir()}
    yield mesh.pods
    settle.clean(mesh, before)


@pytest.fixture(scope="session")
def built_mall(mesh):
    """Once for all tests of layer 7."""
    made = Mall(mesh)
    made.build()
    return made


@pytest.fixture
def mall(built_mall):
    """What a test applies is gone after it."""
    yield built_mall
    built_mall.clean()


@pytest.fixture(scope="module")
def by_bpf(mesh):
    if captured_by(mesh, mesh.pods["web-1"]) != "bpf":
        pytest.skip("the agents capture with something else")
