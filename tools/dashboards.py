"""Writes dashboards/*.json for Grafana from the table below: a panel is a title, a unit and PromQL.

`python -m tools.dashboards`; `tests/lab/test_l7_dashboards.py` asks a real Prometheus every query after some traffic.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

TARGET: Final = Path(__file__).parent.parent / "dashboards"
SOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}
_WIDTH, _ROW = 24, 7
Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Query:
    """`always`: there is an answer whenever there are requests (with a few errors) and connections."""

    expr: str
    legend: str = ""
    always: bool = True


@dataclass(frozen=True, slots=True)
class Panel:
    """`width` of 24. `kind`: Grafana's."""

    title: str
    unit: str
    queries: tuple[Query, ...]
    width: int = 12
    kind: str = "timeseries"


@dataclass(frozen=True, slots=True)
class Dashboard:
    """`variables`: name -> (metric, label) whose values can be chosen; all of them at first."""

    name: str
    title: str
    panels: tuple[Panel, ...]
    variables: tuple[tuple[str, str, str], ...] = ()


def rate(metric: str, labels: str, by: str = "") -> str:
    """Per second, summed."""
    return f"sum{f' by ({by}) ' if by else ''}(rate({metric}{{{labels}}}[$__rate_interval]))"


def quantile(share: float, metric: str, labels: str, by: str = "") -> str:
    inner = rate(f"{metric}_bucket", labels, ", ".join(filter(None, ("le", by))))
    return f"histogram_quantile({share}, {inner})"


def good(labels: str, by: str = "") -> str:
    """The share of requests that were not answered by a 5xx. No error at all is no series, so it is made from all."""
    everything = rate(REQUESTS, labels, by)
    return f"1 - ({rate(REQUESTS, f'{labels},{BAD}', by)} or 0 * {everything}) / {everything}"


def quantiles(metric: str, labels: str) -> tuple[Query, ...]:
    return tuple(Query(quantile(share, metric, labels), f"p{share * 100:.0f}") for share in (0.5, 0.9, 0.99))


def stat(title: str, unit: str, expr: str) -> Panel:
    return Panel(title, unit, (Query(expr),), 6, "stat")


def graph(title: str, unit: str, expr: str, legend: str, *, always: bool = True) -> Panel:
    return Panel(title, unit, (Query(expr, legend, always),))


def rates(title: str, unit: str, metric: str, labels: str, by: str, *, always: bool = True) -> Panel:
    """A line for each value of `by`."""
    legend = " ".join(f"{{{{{each}}}}}" for each in by.split(", "))
    return graph(title, unit, rate(metric, labels, by), legend, always=always)


def traffic(title: str, labels: str, by: str = "") -> Panel:
    """Both directions of connections, in bytes."""
    told = f"{{{{{by}}}}} " if by else ""
    return Panel(
        title,
        "Bps",
        tuple(
            Query(rate(metric, labels, by), told + name) for metric, name in ((RECEIVED, "requests"), (SENT, "answers"))
        ),
    )


REQUESTS: Final = "istio_requests_total"
DURATION: Final = "istio_request_duration_milliseconds"
OPENED, FAILED = "istio_tcp_connections_opened_total", "istio_tcp_connections_failed_total"
SENT, RECEIVED = "istio_tcp_sent_bytes_total", "istio_tcp_received_bytes_total"
PLAIN: Final = 'connection_security_policy!="mutual_tls"'
BAD: Final = 'response_code=~"5.."'
WAY: Final = 'reporter="waypoint"'
# Each connection is counted at both its ends; one of them is enough for a sum.
ONE_END, OTHER_END = 'reporter="destination"', 'reporter="source"'
TO: Final = 'destination_service=~"$service"'
SERVICE: Final = f"{WAY},{TO}"
_IN: Final = 'destination_workload_namespace=~"$namespace",destination_workload=~"$workload"'
_OUT: Final = 'source_workload_namespace=~"$namespace",source_workload=~"$workload"'
TURNED_AWAY: Final = "nodemesh_tunnels_turned_away_total"
RESOURCES: Final = "nodemesh_xds_resources"
TUNNEL: Final = 'instance=~"$instance"'
EDGE: Final = "source_workload, destination_service_name"

MESH: Final = Dashboard(
    "mesh",
    "nodemesh / mesh",
    (
        stat("Requests", "reqps", rate(REQUESTS, WAY)),
        stat("Answered without a 5xx", "percentunit", good(WAY)),
        stat("Duration, p99", "ms", quantile(0.99, DURATION, WAY)),
        stat("Open connections", "short", 'sum(istio_tcp_sockets_open{reporter="destination"})'),
        rates("Requests by service", "reqps", REQUESTS, WAY, "destination_service"),
        rates(
            "Errors by service and status",
            "reqps",
            REQUESTS,
            f'{WAY},response_code=~"[45].."',
            "destination_service, response_code",
        ),
        graph(
            "Duration by service, p99",
            "ms",
            quantile(0.99, DURATION, WAY, "destination_service"),
            "{{destination_service}}",
        ),
        graph(
            "Who calls whom",
            "reqps",
            f"topk(20, {rate(REQUESTS, WAY, EDGE)})",
            "{{source_workload}} → {{destination_service_name}}",
        ),
        traffic("Bytes between workloads", ONE_END),
        rates("Refused and failed connections", "cps", FAILED, "", "reporter, response_flags", always=False),
        rates(
            "Requests through gateways",
            "reqps",
            REQUESTS,
            'reporter="source"',
            "source_workload, response_code",
            always=False,
        ),
        graph("Tunnels by version", "short", "count by (component, tag) (istio_build)", "{{component}} {{tag}}"),
    ),
)
OF_SERVICE: Final = Dashboard(
    "service",
    "nodemesh / service",
    (
        stat("Requests", "reqps", rate(REQUESTS, SERVICE)),
        stat("Answered without a 5xx", "percentunit", good(SERVICE)),
        stat("Error budget left, 3 days", "percentunit", f"min(slo:budget_left:availability{{{TO}}})"),
        stat("Latency budget left, 3 days", "percentunit", f"min(slo:budget_left:latency{{{TO}}})"),
        rates("Requests by status", "reqps", REQUESTS, SERVICE, "response_code"),
        Panel("Duration", "ms", quantiles(DURATION, SERVICE)),
        rates("By caller", "reqps", REQUESTS, SERVICE, "source_workload, source_workload_namespace"),
        rates("By version", "reqps", REQUESTS, SERVICE, "destination_version"),
        graph(
            "Without a 5xx, by version", "percentunit", good(SERVICE, "destination_version"), "{{destination_version}}"
        ),
        rates("Flags of Envoy's", "reqps", REQUESTS, f'{SERVICE},response_flags!="-"', "response_flags", always=False),
        Panel("Size of requests", "bytes", quantiles("istio_request_bytes", SERVICE)),
        Panel("Size of answers", "bytes", quantiles("istio_response_bytes", SERVICE)),
        graph(
            "Burn rate of the availability objective",
            "none",
            f"slo:burn_rate1h:availability{{{TO}}}",
            "{{destination_service}}",
        ),
        rates("Connections (TCP)", "cps", OPENED, TO, "reporter", always=False),
    ),
    (("service", REQUESTS, "destination_service"),),
)
WORKLOAD: Final = Dashboard(
    "workload",
    "nodemesh / workload",
    (
        rates("Requests in", "reqps", REQUESTS, f"{WAY},{_IN}", "destination_workload, response_code"),
        rates(
            "Requests out",
            "reqps",
            REQUESTS,
            f"{WAY},{_OUT}",
            "source_workload, destination_service_name, response_code",
        ),
        Panel("Duration of requests in", "ms", quantiles(DURATION, f"{WAY},{_IN}")),
        Panel("Duration of requests out", "ms", quantiles(DURATION, f"{WAY},{_OUT}")),
        rates("Connections in, by peer", "cps", OPENED, f"{ONE_END},{_IN}", "source_workload, destination_workload"),
        rates(
            "Connections out, by peer", "cps", OPENED, f"{OTHER_END},{_OUT}", "source_workload, destination_workload"
        ),
        traffic("Bytes in", f"{ONE_END},{_IN}"),
        traffic("Bytes out", f"{OTHER_END},{_OUT}"),
        rates(
            "Connections refused at it",
            "cps",
            FAILED,
            f"{ONE_END},{_IN}",
            "source_workload, response_flags",
            always=False,
        ),
        rates(
            "Its connections that failed",
            "cps",
            FAILED,
            f"{OTHER_END},{_OUT}",
            "destination_service, response_flags",
            always=False,
        ),
        rates(
            "Connections without mutual TLS",
            "cps",
            OPENED,
            f"{ONE_END},{_IN},{PLAIN}",
            "source_workload, destination_workload",
            always=False,
        ),
    ),
    (
        ("namespace", OPENED, "destination_workload_namespace"),
        ("workload", OPENED, "destination_workload"),
    ),
)
CONTROL_PLANE: Final = Dashboard(
    "control-plane",
    "nodemesh / control plane, as the tunnels see it",
    (
        stat("Tunnels with a stream", "short", "sum(nodemesh_xds_connected)"),
        stat("Tunnels without", "short", "count(nodemesh_xds_connected == 0) or vector(0)"),
        stat("Longest silence", "s", "time() - min(nodemesh_xds_last_message_timestamp_seconds)"),
        stat("First certificate to end", "s", "min(nodemesh_certificate_expiry_seconds) - time()"),
        graph("Resources in force", "short", "max by (url) (nodemesh_xds_resources)", "{{url}}"),
        graph(
            "Difference between tunnels", "short", f"max by (url) ({RESOURCES}) - min by (url) ({RESOURCES})", "{{url}}"
        ),
        rates("Resources refused", "short", "nodemesh_xds_refused_total", "", "instance, url", always=False),
        rates("Certificates asked for", "short", "nodemesh_certificate_requests_total", "", "result"),
        graph(
            "Policies that are named and missing",
            "short",
            "sum by (instance) (nodemesh_policies_missing)",
            "{{instance}}",
        ),
        graph("Stream up", "bool", "nodemesh_xds_connected", "{{instance}}"),
    ),
)
NODE: Final = Dashboard(
    "tunnel",
    "nodemesh / node tunnel",
    (
        stat("Pods served", "short", f"sum(workload_manager_active_proxy_count{{{TUNNEL}}})"),
        stat("Pods waiting", "short", f"sum(nodemesh_pods_waiting{{{TUNNEL}}})"),
        stat("Open connections", "short", f"sum(istio_tcp_sockets_open{{{TUNNEL}}})"),
        stat("Agents connected", "short", f"sum(nodemesh_zds_connected{{{TUNNEL}}})"),
        rates("Connections", "cps", OPENED, TUNNEL, "instance, reporter"),
        rates("Refused and failed", "cps", FAILED, TUNNEL, "instance, reporter, response_flags", always=False),
        traffic("Bytes", TUNNEL, "instance"),
        rates("Tunnels turned away", "cps", TURNED_AWAY, TUNNEL, "instance, reason", always=False),
        rates(
            "Busy share of each worker",
            "percentunit",
            "tokio_worker_total_busy_duration_seconds",
            TUNNEL,
            "instance, worker",
        ),
        graph("Tasks", "short", f"tokio_num_alive_tasks{{{TUNNEL}}}", "{{instance}}"),
        graph(
            "Open descriptors, share of the limit",
            "percentunit",
            f"process_open_fds{{{TUNNEL}}} / process_max_fds{{{TUNNEL}}}",
            "{{instance}}",
        ),
        rates(
            "Decisions by policies",
            "ops",
            "nodemesh_policy_hits_total",
            TUNNEL,
            "policy_namespace, policy_name, action",
            always=False,
        ),
        Panel(
            "Lost: log lines, spans, series; accepts that failed",
            "short",
            tuple(
                Query(rate(f"nodemesh_{name}_total", TUNNEL), name.replace("_", " "))
                for name in ("log_lines_dropped", "spans_dropped", "metric_series_evicted", "accept_failures")
            ),
        ),
        graph("Private keys in memory", "short", f"nodemesh_private_keys{{{TUNNEL}}}", "{{instance}}"),
    ),
    (("instance", "nodemesh_zds_connected", "instance"),),
)
ALL: Final = (MESH, OF_SERVICE, WORKLOAD, CONTROL_PLANE, NODE)


def queries() -> Iterator[tuple[str, str, Query]]:
    """Dashboard, panel, query."""
    for board in ALL:
        for panel in board.panels:
            for query in panel.queries:
                yield board.name, panel.title, query


def text(board: Dashboard) -> str:
    """A line per panel, so that a change reads as one."""
    panels = [f"  {json.dumps(each, ensure_ascii=False)}" for each in _panels(board)]
    whole = {
        "uid": f"nodemesh-{board.name}",
        "title": board.title,
        "tags": ["nodemesh"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": [_datasource(), *(_variable(*each) for each in board.variables)]},
    }
    lines = [f" {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in whole.items()]
    return "{\n" + ",\n".join([*lines, ' "panels": [\n' + ",\n".join(panels) + "\n ]"]) + "\n}\n"


def _panels(board: Dashboard) -> Iterator[Json]:
    x = y = 0
    for number, panel in enumerate(board.panels, 1):
        if x + panel.width > _WIDTH:
            x, y = 0, y + _ROW
        place = {"x": x, "y": y, "w": panel.width, "h": _ROW}
        x += panel.width
        yield {
            "id": number,
            "title": panel.title,
            "type": panel.kind,
            "gridPos": place,
            "datasource": SOURCE,
            "fieldConfig": {"defaults": {"unit": panel.unit}, "overrides": []},
            "targets": [
                {"refId": chr(ord("A") + n), "expr": query.expr, "legendFormat": query.legend}
                for n, query in enumerate(panel.queries)
            ],
        }


def _datasource() -> Json:
    return {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus"}


def _variable(name: str, metric: str, label: str) -> Json:
    return {
        "name": name,
        "type": "query",
        "datasource": SOURCE,
        "query": f"label_values({metric}, {label})",
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
    }


def main() -> None:
    TARGET.mkdir(exist_ok=True)
    for board in ALL:
        (TARGET / f"{board.name}.json").write_text(text(board), encoding="utf-8")


if __name__ == "__main__":
    main()
