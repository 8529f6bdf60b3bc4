import json

import pytest

from mesh.errors import OperatorError
from ztunnel.settings import Collector, Settings


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
        "cluster_domain": "cluster.local",
        "node_name": "",
        "workers": 2,
        "packet_mark": 1337,
        "ipv6": True,
        "same_node_tls": False,
        "outbound_policy": "ALLOW_ANY",
        "key_dir": "",
        "access_log": "stderr",
        "log_level": "info",
        "log_format": "console",
        "trace_ratio": None,
    }


def test_what_is_shown_to_people_holds_no_secret():
    otlp = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", "OTEL_EXPORTER_OTLP_HEADERS": "key=s3cret"}
    shown = Settings.read({"AUTH_TOKEN": "s3cret", "CA_HEADER_KEY": "s3cret", **otlp}).public()
    assert "s3cret" not in str(shown)
    assert shown["collector"] == {"url": "http://c:4318/v1/traces", "ratio": 0.01}


def test_a_collector_is_configured_as_opentelemetry_says():
    read = Settings.read(
        {
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "https://c/x",
            "OTEL_EXPORTER_OTLP_HEADERS": "a=b%20c, d=e",
            "OTEL_TRACES_SAMPLER_ARG": "0.5",
        }
    )
    assert read.collector == Collector("https://c/x", (("a", "b c"), ("d", "e")), 0.5)
    assert json.loads(read.core_config())["trace_ratio"] == 0.5
    assert Settings.read({}).collector is None


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
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "c:4318"}, "OTEL_EXPORTER_OTLP_ENDPOINT: 'c:4318/v1/traces' is not http"),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c", "OTEL_TRACES_SAMPLER_ARG": "2"},
            "OTEL_TRACES_SAMPLER_ARG: '2' is not a number between 0 and 1",
        ),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c", "OTEL_EXPORTER_OTLP_HEADERS": "x"},
            "OTEL_EXPORTER_OTLP_HEADERS: is not name=value",
        ),
        ({"ISTIO_METAJSON_X": "{"}, "ISTIO_METAJSON_X: is not JSON"),
    ],
)
def test_a_bad_variable_is_named_in_one_sentence(variables, sentence):
    with pytest.raises(OperatorError) as caught:
        Settings.read(variables)
    assert str(caught.value).startswith(sentence)


def test_an_ipv6_control_plane_keeps_its_brackets():
    assert Settings.read({"XDS_ADDRESS": "https://[2001:db8::1]:15012"}).xds.target == "[2001:db8::1]:15012"
