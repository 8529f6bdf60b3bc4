"""`meshctl waypoint`: the documents that it writes are the ones the control plane reads."""

import yaml
from click.testing import CliRunner

from mesh.errors import MeshError
from meshctl.main import cli
from tests.meshctl.test_exit_codes import daemon  # noqa: F401

PROXY = {
    "namespace": "shop",
    "name": "way",
    "role": "waypoint",
    "services": ["shop/web.shop.svc.cluster.local"],
    "servers": 0,
    "connected": [{"peer": "ipv4:10.0.0.1:1", "connected_since": "now", "synced_version": 3, "last_nack": None}],
}


def run(*arguments):
    """(exit code, stdout or the sentence)."""
    result = CliRunner().invoke(cli, ["waypoint", *arguments])
    if isinstance(result.exception, MeshError):
        return 2, str(result.exception)
    return result.exit_code, result.output


def test_what_is_written_is_what_is_generated_and_goes_again(tmp_path):
    place = ["way", "-n", "shop", "--config-dir", str(tmp_path)]
    assert run("apply", *place, "--for", "all")[0] == 0
    [path] = tmp_path.iterdir()
    assert path.read_text() == run("generate", "way", "-n", "shop", "--for", "all")[1]
    document = yaml.safe_load(path.read_text())
    assert document["spec"]["gatewayClassName"] == "istio-waypoint"
    assert document["metadata"]["labels"] == {"istio.io/waypoint-for": "all"}
    assert run("delete", *place) == (0, "waypoint shop/way deleted\n")
    assert list(tmp_path.iterdir()) == []
    assert run("delete", *place)[0] == 2


def test_a_name_that_cannot_be_an_identity_is_refused_and_nothing_is_written(tmp_path):
    code, said = run("apply", "Way", "--config-dir", str(tmp_path))
    assert code == 2
    assert "Way" in said
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_is_none_is_said(tmp_path):
    assert run("apply", "--config-dir", str(tmp_path / "x"))[1].startswith(f"{tmp_path}/x: is no directory")


def test_who_is_connected_is_listed(daemon):  # noqa: F811
    where = ["--run-dir", str(daemon("controlplane", {"proxies": [PROXY]}))]
    header, line = run("list", *where)[1].splitlines()
    assert header.split() == ["NAMESPACE", "NAME", "ROLE", "SERVES", "CONNECTED", "STATE"]
    assert line.split() == ["shop", "way", "waypoint", "1", "1", "ready"]
    assert len(run("list", "-n", "other", *where)[1].splitlines()) == 1


def test_the_status_of_one_is_an_exit_code_too(daemon):  # noqa: F811
    refused = {**PROXY, "connected": [{**PROXY["connected"][0], "last_nack": {"message": "no"}}]}
    where = ["--run-dir", str(daemon("controlplane", {"proxies": [PROXY, {**refused, "name": "bad"}]}))]
    assert run("status", "way", "-n", "shop", *where)[0] == 0
    code, said = run("status", "bad", "-n", "shop", *where)
    assert (code, "refused a part" in said) == (1, True)
    assert run("status", "none", "-n", "shop", *where)[0] == 2
