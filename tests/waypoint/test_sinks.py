"""STATS_SINKS: what it may say, what is wrong in one sentence, and that Envoy takes all of it."""

import asyncio
import json
import socket

import pytest

from mesh.errors import OperatorError
from tests.waypoint.beside import envoy_beside
from tests.waypoint.test_acceptance import model, waypoint, world
from waypoint.sinks import PATTERNS, Kind, Sink, clusters_of, parse, patterns, sinks_of


@pytest.mark.parametrize(
    ("text", "sinks"),
    [
        ("", ()),
        (" , ", ()),
        ("statsd://10.0.0.9:8125", (Sink(Kind.STATSD, "10.0.0.9", 8125),)),
        ("dogstatsd://[fd00::9]:8125?prefix=mesh.eu", (Sink(Kind.DOGSTATSD, "fd00::9", 8125, prefix="mesh.eu"),)),
        ("graphite://10.0.0.9:8125/", (Sink(Kind.GRAPHITE, "10.0.0.9", 8125),)),
        ("statsd+tcp://agent.mon:8125", (Sink(Kind.STATSD_TCP, "agent.mon", 8125),)),
        ("otlp+http://c:4318", (Sink(Kind.OTLP_HTTP, "c", 4318, "/v1/metrics"),)),
        ("otlp+http://c:4318/in/v1", (Sink(Kind.OTLP_HTTP, "c", 4318, "/in/v1"),)),
        (
            "otlp://c:4317?prefix=a, metrics-service://m:9000 ,hystrix",
            (Sink(Kind.OTLP, "c", 4317, prefix="a"), Sink(Kind.METRICS_SERVICE, "m", 9000), Sink(Kind.HYSTRIX)),
        ),
    ],
)
def test_sinks_are_a_list_with_commas(text, sinks):
    assert parse(text) == sinks


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("10.0.0.9:8125", "is neither KIND://HOST:PORT with one of statsd, statsd+tcp, dogstatsd, graphite, otlp"),
        ("kafka://a:1", "is neither KIND://HOST:PORT"),
        ("hystrix://a:1", "is neither KIND://HOST:PORT"),
        ("otlp://c:70000", "is neither KIND://HOST:PORT"),
        ("statsd://10.0.0.9", "is not statsd://HOST:PORT"),
        ("statsd://:8125", "is not statsd://HOST:PORT"),
        ("otlp://me@c:4317", "is not otlp://HOST:PORT"),
        ("statsd://agent.mon:8125", "names agent.mon, but statsd goes by UDP and needs an IP address"),
        ("otlp://c:4317/v1/metrics", "has the path /v1/metrics, which only otlp+http takes"),
        ("statsd://10.0.0.9:8125?prefix=", "takes ?prefix=NAME"),
        ("statsd://10.0.0.9:8125?prefix=a b", "takes ?prefix=NAME"),
        ("statsd://10.0.0.9:8125?prefix=a&prefix=b", "takes ?prefix=NAME"),
        ("statsd://10.0.0.9:8125?flush=1s", "takes ?prefix=NAME"),
        ("metrics-service://m:1?prefix=a", "has a prefix, which metrics-service does not take"),
        ("hystrix,hystrix", "is there twice"),
    ],
)
def test_a_mistake_is_one_sentence_that_names_the_sink(text, why):
    with pytest.raises(OperatorError) as refused:
        parse(text)
    assert f"STATS_SINKS: '{text.split(',')[-1]}' {why}" in str(refused.value)


def test_what_goes_by_udp_needs_no_cluster():
    found = clusters_of(parse("statsd://10.0.0.9:1,otlp://c:2,hystrix,statsd+tcp://10.0.0.9:3"))
    assert [(each["name"], each["type"]) for each in found] == [
        ("stats-sink-1", "STRICT_DNS"),
        ("stats-sink-3", "STATIC"),
    ]
    assert ["typed_extension_protocol_options" in each for each in found] == [True, False]


def test_only_what_does_not_grow_with_the_services_goes_out():
    assert patterns(()) == []
    assert patterns(parse("otlp://c:1")) == [{"prefix": each} for each in PATTERNS]
    assert {"contains": "upstream_rq"} in patterns(parse("hystrix"))


def test_a_collector_knows_who_tells():
    [told] = sinks_of(parse("otlp://c:1"), "shop/way")
    [detector] = told["typed_config"]["resource_detectors"]
    assert detector["typed_config"]["attributes"] == {"service.name": "shop/way"}


EVERY = (
    "statsd://127.0.0.1:{udp}?prefix=a,dogstatsd://127.0.0.1:{udp},graphite://[::1]:{udp}?prefix=b,"
    "statsd+tcp://localhost:{tcp},otlp://127.0.0.1:{tcp}?prefix=c,otlp+http://[::1]:{tcp}/x,"
    "metrics-service://localhost:{tcp},hystrix"
)


def test_envoy_takes_every_sink_and_the_stream_is_served(tmp_path):
    async def play():
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp, socket.create_server(("127.0.0.1", 0)) as tcp:
            udp.bind(("127.0.0.1", 0))
            udp.setblocking(False)
            ports = {"udp": udp.getsockname()[1], "tcp": tcp.getsockname()[1]}
            made = waypoint()
            async with envoy_beside(tmp_path, world(), model(made), made.key, parse(EVERY.format(**ports))) as beside:
                async with asyncio.timeout(30):
                    line = (await asyncio.get_running_loop().sock_recv(udp, 65536)).decode()
                    stream = beside.runner.current.stream("/hystrix_event_stream")
                    told = await anext(aiter(stream))
                    await stream.aclose()
                assert line.startswith(("a.", "envoy."))
                assert json.loads(told.partition(b"data: ")[2].partition(b"\n")[0])["type"].startswith("Hystrix")
                dump = await beside.ask("/stats?usedonly")
                assert not [each for each in dump.splitlines() if "circuit_breakers" in each]

    asyncio.run(play())
