"""The agent's settings, its mistakes of the operator, and its admin socket's words."""

import pytest

from mesh.errors import OperatorError
from nodeagent import main
from nodeagent.settings import Settings


def test_the_defaults_are_those_of_the_architecture():
    settings = Settings.read({"NODE_NAME": "node-1"})
    assert str(settings.plugin_socket) == "/run/nodemesh/cni.sock"
    assert str(settings.admin_socket) == "/run/nodemesh/nodeagent.sock"
    assert str(settings.zds_socket) == "/var/run/ztunnel/ztunnel.sock"
    assert str(settings.state_dir) == "/var/lib/nodemesh"
    assert str(settings.pods_dir) == "/etc/nodemesh/config"
    assert settings.canary
    assert settings.dns_capture
    assert settings.exempt_probes
    assert settings.kubelet_group == ""
    assert settings.cluster == "Kubernetes"


def test_a_node_without_a_name_is_refused():
    with pytest.raises(OperatorError, match=r"^NODE_NAME: is required and not set$"):
        Settings.read({})


@pytest.mark.parametrize(
    ("variables", "arguments", "sentence"),
    [
        ({}, [], "nodeagent: NODE_NAME: is required and not set\n"),
        (
            {"NODE_NAME": "n", "NODEMESH_CANARY": "maybe"},
            [],
            "nodeagent: NODEMESH_CANARY: 'maybe' is neither true nor false\n",
        ),
        (
            {"NODE_NAME": "n", "NODEMESH_KUBELET_GROUP": "system.slice/../.."},
            [],
            "nodeagent: NODEMESH_KUBELET_GROUP: 'system.slice/../..' is no name of a control group\n",
        ),
        (
            {"NODE_NAME": "n"},
            ["fly"],
            "nodeagent: the commands are `run` and `uninstall`; all settings come from the environment\n",
        ),
    ],
)
def test_an_operators_mistake_is_one_sentence_and_exit_code_2(variables, arguments, sentence, capsys):
    with pytest.raises(SystemExit) as ended:
        main.main(variables, arguments)
    assert ended.value.code == 2
    assert capsys.readouterr().err == sentence
