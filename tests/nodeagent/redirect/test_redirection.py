"""Which backend captures whom, and what an operator hears when none does."""

import pytest

from mesh.errors import MeshError, OperatorError
from nodeagent.redirect.backend import Sandbox
from nodeagent.redirect.plan import Options
from nodeagent.redirect.redirection import ORDER, Choice, Redirection

POD = Sandbox("pod", None, None, Options())


class Way:
    """A backend: why the node cannot, why the workload cannot."""

    def __init__(self, name, node=None, workload=None):
        self.name, self._node, self._workload = name, node, workload

    def unusable(self):
        return self._node

    def cannot(self, sandbox):
        return self._workload


@pytest.mark.parametrize(
    ("ways", "setting", "choice"),
    [
        ([Way("iptables"), Way("nft"), Way("bpf")], "auto", Choice("bpf", "first of bpf, nft, iptables")),
        ([Way("nft"), Way("bpf", "Linux 4.18")], "auto", Choice("nft", "not bpf: Linux 4.18")),
        ([Way("nft"), Way("bpf", None, "no cgroup")], "auto", Choice("nft", "not bpf: no cgroup")),
        (
            [Way("iptables"), Way("nft", "not installed"), Way("bpf", "too old")],
            "auto",
            Choice("iptables", "not bpf: too old; not nft: not installed"),
        ),
        ([Way("bpf"), Way("nft")], "nft", Choice("nft", "NODEMESH_CAPTURE=nft")),
    ],
)
def test_the_first_that_can_is_chosen_or_the_one_that_was_named(ways, setting, choice):
    assert Redirection(ways, setting).choose(POD) == choice


@pytest.mark.parametrize(
    ("ways", "setting", "sentence"),
    [
        ([], "bpf", "NODEMESH_CAPTURE=bpf: no pod can be captured: bpf: this agent was built without it"),
        ([Way("bpf", "too old"), Way("nft")], "bpf", "NODEMESH_CAPTURE=bpf: no pod can be captured: bpf: too old"),
        (
            [Way("nft", "not installed"), Way("iptables", "not installed")],
            "auto",
            "NODEMESH_CAPTURE=auto: no pod can be captured: nft: not installed; iptables: not installed",
        ),
    ],
)
def test_a_node_that_cannot_is_the_operators_to_mend(ways, setting, sentence):
    with pytest.raises(OperatorError) as refused:
        Redirection(ways, setting)
    assert str(refused.value) == sentence


@pytest.mark.parametrize("setting", ["auto", "bpf"])
def test_a_workload_that_cannot_be_captured_is_refused_with_the_reason(setting):
    with pytest.raises(MeshError, match=f"NODEMESH_CAPTURE={setting}: it cannot be captured: not bpf: no cgroup"):
        Redirection([Way("bpf", None, "no cgroup")], setting).choose(POD)


def test_every_backend_has_its_place_in_the_order():
    assert ORDER == ("bpf", "nft", "iptables")


def test_a_pod_that_ran_before_it_joins_is_captured_like_every_other():
    running = Sandbox("pod", None, None, Options(keep_connections=True))
    assert Redirection([Way("bpf"), Way("nft")]).choose(running) == Choice("bpf", "first of bpf, nft, iptables")
