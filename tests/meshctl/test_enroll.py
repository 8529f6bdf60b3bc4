"""`meshctl enroll` and `withdraw`: one document, whole or not at all; mistakes are one sentence."""

import pytest
import yaml
from click.testing import CliRunner

from mesh.errors import OperatorError
from meshctl.main import cli

WEB = ["--slice", "web.slice", "--service-account", "web", "--node", "node1"]


def run(*words):
    return CliRunner().invoke(cli, list(words), standalone_mode=False)


def test_a_slice_is_enrolled_by_a_document(tmp_path):
    words = [*WEB, "-n", "shop", "--address", "fd00::1", "--address", "10.0.0.101", "--label", "app=web"]
    assert run("enroll", *words, "--config-dir", str(tmp_path)).exception is None
    document = yaml.safe_load((tmp_path / "host-shop-web.yaml").read_text())
    assert document["metadata"]["annotations"] == {
        "nodemesh/node": "node1",
        "nodemesh/cgroup": "web.slice",
        "nodemesh/addresses": "fd00::1",
    }
    assert document["spec"] == {"address": "10.0.0.101", "serviceAccount": "web", "labels": {"app": "web"}}


def test_withdrawn_it_is_gone_and_only_once(tmp_path):
    run("enroll", *WEB, "--address", "10.0.0.101", "--config-dir", str(tmp_path))
    assert run("withdraw", "web", "--config-dir", str(tmp_path)).exception is None
    assert list(tmp_path.iterdir()) == []
    again = run("withdraw", "web", "--config-dir", str(tmp_path)).exception
    assert str(again) == "default/web is not enrolled here; there are: none"


def test_printed_it_changes_nothing(tmp_path):
    done = run("enroll", *WEB, "--address", "10.0.0.101", "--config-dir", str(tmp_path), "--print")
    assert yaml.safe_load(done.output)["kind"] == "WorkloadEntry"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([*WEB, "--address", "10.0.0.300"], "--address: '10.0.0.300' does not appear to be an IPv4 or IPv6 address"),
        ([*WEB, "--address", "10.0.0.1", "--address", "10.0.0.2"], "one of each family at most"),
        ([*WEB, "--cgroup", "x.service", "--address", "10.0.0.1"], "one of --slice and --cgroup"),
        ([*WEB, "--address", "10.0.0.1", "--label", "app"], "'app' is not KEY=VALUE"),
        ([*WEB, "--address", "10.0.0.1", "--name", "Web"], "'Web' is not a name"),
    ],
)
def test_a_mistake_is_a_sentence_and_writes_nothing(tmp_path, words, sentence):
    error = run("enroll", *words, "--config-dir", str(tmp_path)).exception
    assert isinstance(error, OperatorError)
    assert sentence in str(error)
    assert list(tmp_path.iterdir()) == []
