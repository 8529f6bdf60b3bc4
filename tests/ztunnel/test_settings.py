import json

import pytest

from mesh.errors import OperatorError
from ztunnel.settings import Settings


def test_without_any_variable_the_defaults_are_istios():
    settings = Settings.read({})
    assert settings.xds.target == "localhost:15012"
    assert str(settings.zds_socket) == "/var/run/ztunnel/ztunnel.sock"
    assert (settings.secret_ttl_s, settings.drain_deadline_s) == (86400.0, 5.0)
    assert (settings.admin, settings.stats) == (("127.0.0.1", 15000), ("0.0.0.0", 15020))
    assert settings.state_dir is None


def test_istios_metadata_and_headers_are_passed_on():
    settings = Settings.read(
        {"ISTIO_META_CLUSTER_ID": "east", "ISTIO_METAJSON_LABELS": '{"a": "b"}', "XDS_HEADER_Tenant": "blue"}
    )
    assert settings.cluster_id == "east"
    assert settings.metadata == {"CLUSTER_ID": "east", "LABELS": {"a": "b"}}
    assert settings.xds.headers == (("tenant", "blue"),)
    assert settings.ca.headers == ()


def test_the_core_gets_only_keys_it_knows():
    config = json.loads(Settings.read({"NETWORK": "n1", "ZTUNNEL_WORKER_THREADS": "2"}).core_config())
    assert config == {
        "network": "n1",
        "cluster_id": "Kubernetes",
        "trust_domain": "cluster.local",
        "node_name": "",
        "workers": 2,
        "packet_mark": 1337,
        "ipv6": True,
        "same_node_tls": False,
        "outbound_policy": "ALLOW_ANY",
        "access_log": "stderr",
        "log_level": "info",
    }


def test_what_is_shown_to_people_holds_no_secret():
    shown = str(Settings.read({"AUTH_TOKEN": "s3cret", "CA_HEADER_KEY": "s3cret"}).public())
    assert "s3cret" not in shown


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        ({"XDS_ADDRESS": "localhost:15012"}, "XDS_ADDRESS: 'localhost:15012' is not https://HOST:PORT"),
        ({"CA_ADDRESS": "http://a:1"}, "CA_ADDRESS: 'http://a:1' is not https://HOST:PORT"),
        ({"XDS_ADDRESS": "https://a:99999"}, "XDS_ADDRESS: Port out of range 0-65535"),
        ({"SECRET_TTL": "1 day"}, "SECRET_TTL: '1 day' is not a duration such as 250ms, 5s or 24h"),
        ({"ADMIN_ADDR": "15000"}, "ADMIN_ADDR: '15000' is not ADDRESS:PORT"),
        ({"LOG_LEVEL": "loud"}, "LOG_LEVEL: 'loud' is none of error, warn, info, debug, trace"),
        ({"PACKET_MARK": "-1"}, "PACKET_MARK: -1 is not between 0 and 2147483647"),
        ({"ISTIO_METAJSON_X": "{"}, "ISTIO_METAJSON_X: is not JSON"),
    ],
)
def test_a_bad_variable_is_named_in_one_sentence(variables, sentence):
    with pytest.raises(OperatorError) as caught:
        Settings.read(variables)
    assert str(caught.value).startswith(sentence)


def test_an_ipv6_control_plane_keeps_its_brackets():
    assert Settings.read({"XDS_ADDRESS": "https://[2001:db8::1]:15012"}).xds.target == "[2001:db8::1]:15012"
