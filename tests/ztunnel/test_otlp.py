"""Spans of finished connections reach a collector as OTLP, or wait, or are counted as lost."""

import asyncio
import json

import aiohttp
import pytest
from aiohttp import web

from ztunnel.metrics import Metrics
from ztunnel.otlp import BATCH, MOST, PERIOD_S, Exporter
from ztunnel.settings import Collector

LINE = {
    "level": "warn",
    "time": "2026-11-20T10:00:00.500000Z",
    "scope": "span",
    "message": "connection failed",
    "src.workload": "web-1",
    "dst.service": "cart.shop.svc.cluster.local",
    "direction": "outbound",
    "bytes_sent": 7,
    "trace_id": "4bf92f3577b34da6a3ce929d0e0e4736",
    "response_flags": "DENY",
    "error": "denied",
    "parent_span": "0000000000000000",
    "span": "00f067aa0ba902b7",
    "duration_ns": 250_000_000,
}


@pytest.fixture
def collect(dataplane, core):
    """Runs `story(exporter turn, answers)` against a collector; gives what it received and the metrics."""

    def run(story, answers):
        received, metrics = [], Metrics()

        async def traces(request):
            received.append((dict(request.headers), await request.json()))
            return web.Response(status=answers.pop(0) if answers else 200)

        async def main():
            app = web.Application()
            app.router.add_post("/v1/traces", traces)
            runner = web.AppRunner(app)
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            port = site._server.sockets[0].getsockname()[1]
            collector = Collector(f"http://127.0.0.1:{port}/v1/traces", (("tenant", "blue"),), 1.0)
            exporter = Exporter(collector, dataplane, metrics, {"service.name": "ztunnel", "k8s.pod.name": ""})
            async with aiohttp.ClientSession(headers=dict(collector.headers)) as session:
                await story(lambda: exporter.turn(session))
            await runner.cleanup()

        asyncio.run(main())
        return received, metrics

    return run


def counted(metrics):
    lines = metrics.render().decode().splitlines()
    return [line for line in lines if line.startswith("nodemesh_spans_total")]


def test_a_connection_becomes_a_span_with_its_times_kind_and_status(collect, core):
    child = {**LINE, "direction": "inbound", "parent_span": "00f067aa0ba902b7", "span": "00f067aa0ba902b8"}
    del child["error"]
    core.spans = [json.dumps(LINE), json.dumps(child)]

    async def story(turn):
        assert await turn() == PERIOD_S

    ((headers, body),), metrics = collect(story, [])
    assert headers["tenant"] == "blue"
    (resource,) = body["resourceSpans"]
    assert resource["resource"]["attributes"] == [{"key": "service.name", "value": {"stringValue": "ztunnel"}}]
    one, two = resource["scopeSpans"][0]["spans"]
    assert (one["traceId"], one["spanId"], one["kind"]) == (LINE["trace_id"], LINE["span"], 3)
    assert one["startTimeUnixNano"] == "1795168800250000000"
    assert one["endTimeUnixNano"] == "1795168800500000000"
    assert one["status"] == {"code": 2, "message": "denied"}
    assert "parentSpanId" not in one
    assert {"key": "bytes_sent", "value": {"intValue": "7"}} in one["attributes"]
    assert {"key": "response_flags", "value": {"stringValue": "DENY"}} in one["attributes"]
    assert (two["parentSpanId"], two["kind"], "status" in two) == (LINE["span"], 2, False)
    assert counted(metrics) == ['nodemesh_spans_total{result="sent"} 2']


def test_what_a_busy_collector_does_not_take_is_tried_again_later(collect, core):
    core.spans = [json.dumps(LINE)] * (BATCH + 1)

    async def story(turn):
        assert await turn() >= PERIOD_S
        assert await turn() == PERIOD_S

    received, metrics = collect(story, [503])
    assert [len(body["resourceSpans"][0]["scopeSpans"][0]["spans"]) for _, body in received] == [BATCH, BATCH, 1]
    assert counted(metrics) == [f'nodemesh_spans_total{{result="sent"}} {BATCH + 1}']


def test_what_a_collector_refuses_for_good_is_not_sent_again(collect, core):
    core.spans = [json.dumps(LINE)]

    async def story(turn):
        assert await turn() == PERIOD_S
        assert await turn() == PERIOD_S

    received, metrics = collect(story, [400])
    assert len(received) == 1
    assert 'nodemesh_spans_total{result="refused"} 1' in counted(metrics)


def test_what_waits_is_bounded(collect, core):
    core.spans = [json.dumps(LINE)] * (MOST + 2)

    async def story(turn):
        await turn()

    _, metrics = collect(story, [503])
    assert counted(metrics) == ['nodemesh_spans_total{result="dropped"} 2']
