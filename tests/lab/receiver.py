"""A backend for metrics, of every kind that a waypoint can send to; run in a pod, prints a line of JSON per sample.

`python -m tests.lab.receiver`: statsd on UDP and TCP, dogstatsd, graphite, OTLP by gRPC and HTTP, Envoy's metrics
service. It reads the wire by itself: nothing of Envoy's or ours is believed. A sample is [kind, name, labels, value].
"""

import asyncio
import json
import struct

import grpc
from aiohttp import web

STATSD, DOGSTATSD, GRAPHITE, OTLP, OTLP_HTTP, METRICS_SERVICE = 8125, 8126, 8127, 4317, 4318, 9000
STRING, DOUBLE, INTEGER = 1, 4, 6


def tell(kind, name, labels, value):
    print(json.dumps([kind, name, labels, value]), flush=True)


def fields(data):
    """Number and value of each field of a protobuf message; fixed64 and nested ones as bytes."""
    at = 0

    def varint():
        nonlocal at
        found = shift = 0
        while True:
            byte = data[at]
            at, found, shift = at + 1, found | (byte & 127) << shift, shift + 7
            if byte < 128:
                return found

    while at < len(data):
        key = varint()
        match key & 7:
            case 0:
                yield key >> 3, varint()
            case 1 | 5 as wire:
                length = 8 if wire == 1 else 4
                yield key >> 3, data[at : at + length]
                at += length
            case 2:
                length = varint()
                yield key >> 3, data[at : at + length]
                at += length


def inside(data, *numbers):
    """What is found down this way of field numbers."""
    if not numbers:
        yield data
        return
    for number, value in fields(data):
        if number == numbers[0]:
            yield from inside(value, *numbers[1:])


def text(data, number):
    return next((value.decode() for value in inside(data, number)), "")


def otlp(kind, data):
    for metric in inside(data, 1, 2, 2):  # resource_metrics, scope_metrics, metrics
        for point in inside(metric, 7, 1):  # sum, data_points
            said = dict(fields(point))
            labels = {text(each, 1): text(next(inside(each, 2)), STRING) for each in inside(point, 7)}
            value = struct.unpack("<q", said[INTEGER]) if INTEGER in said else struct.unpack("<d", said[DOUBLE])
            tell(kind, text(metric, 1), labels, value[0])


def metric_families(data):
    for family in inside(data, 2):
        for metric in inside(family, 4):
            labels = {text(each, 1): text(each, 2) for each in inside(metric, 1)}
            for counter in inside(metric, 3):
                value = next(inside(counter, 1), None)
                tell("metrics-service", text(family, 1), labels, struct.unpack("<d", value)[0] if value else 0)


def line(kind, said):
    """NAME:VALUE|c, with |#label:value,… of Datadog or ;label=value… of Graphite. What is no counter is left out."""
    said, _, tags = said.partition("|#")
    name, _, rest = said.rpartition(":")
    value, _, sort = rest.partition("|")
    labels = dict(each.split(":", 1) for each in tags.split(",") if ":" in each)
    name, *more = name.split(";")
    labels |= dict(each.split("=", 1) for each in more if "=" in each)
    if sort == "c":
        tell(kind, name, labels, int(value))


class Datagrams(asyncio.DatagramProtocol):
    def __init__(self, kind):
        self.kind = kind

    def datagram_received(self, data, addr):
        for each in data.decode().splitlines():
            line(self.kind, each)


async def stream(reader, writer):
    while said := await reader.readline():
        line("statsd+tcp", said.decode().rstrip())
    writer.close()


async def exported(request, context):
    otlp("otlp", request)
    return b""


async def streamed(requests, context):
    async for each in requests:
        metric_families(each)
    return b""


async def posted(request):
    otlp("otlp+http", await request.read())
    return web.Response()


async def main():
    loop = asyncio.get_running_loop()
    for kind, port in (("statsd", STATSD), ("dogstatsd", DOGSTATSD), ("graphite", GRAPHITE)):
        await loop.create_datagram_endpoint(lambda kind=kind: Datagrams(kind), local_addr=("::", port))
    await asyncio.start_server(stream, None, STATSD)
    servers = []  # one that nobody holds ends
    for service, method, handler, port in (
        ("opentelemetry.proto.collector.metrics.v1.MetricsService", "Export",
         grpc.unary_unary_rpc_method_handler(exported), OTLP),
        ("envoy.service.metrics.v3.MetricsService", "StreamMetrics",
         grpc.stream_unary_rpc_method_handler(streamed), METRICS_SERVICE),
    ):  # fmt: skip
        server = grpc.aio.server()
        server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(service, {method: handler})])
        server.add_insecure_port(f"[::]:{port}")
        await server.start()
        servers.append(server)
    app = web.Application(client_max_size=1 << 26)
    app.add_routes([web.post("/v1/metrics", posted)])
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, None, OTLP_HTTP).start()
    print("listening", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
