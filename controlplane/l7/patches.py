"""What an EnvoyFilter changes in the resources that everything else was made of. Values only."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Part(StrEnum):
    """Of Envoy's resources."""

    HTTP_FILTER = "HTTP_FILTER"
    NETWORK_FILTER = "NETWORK_FILTER"
    HTTP_ROUTE = "HTTP_ROUTE"
    VIRTUAL_HOST = "VIRTUAL_HOST"
    CLUSTER = "CLUSTER"


class Operation(StrEnum):
    """Filters are inserted, all else is merged."""

    FIRST = "INSERT_FIRST"
    BEFORE = "INSERT_BEFORE"
    AFTER = "INSERT_AFTER"
    MERGE = "MERGE"


@dataclass(frozen=True, slots=True)
class Patch:
    """`value`: JSON, valid by Envoy's schema, in its own field names. The rest says where, "" and 0 being anywhere.

    `role`: of the proxy. `filter`: beside which an HTTP filter is inserted, or which network filter is merged with.
    `host`: a virtual host's name or domain, or a cluster's service. `action`: what a route does.
    """

    name: str
    part: Part
    operation: Operation
    value: str
    role: str = ""
    port: int = 0
    filter: str = ""
    host: str = ""
    route: str = ""
    action: str = ""
    subset: str = ""
