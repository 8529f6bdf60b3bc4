"""A pod's wishes about its capture, in Istio's words."""

import pytest

from nodeagent.enrol import annotations
from nodeagent.enrol.annotations import Exceptions

PREFIX = "traffic.sidecar.istio.io/"


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ({}, Exceptions()),
        ({f"{PREFIX}excludeInboundPorts": "9090, 9091"}, Exceptions(excluded_inbound_ports=(9090, 9091))),
        ({f"{PREFIX}excludeOutboundPorts": "25,"}, Exceptions(excluded_outbound_ports=(25,))),
        (
            {f"{PREFIX}excludeOutboundIPRanges": "10.1.2.3/16,fd00::1"},
            Exceptions(excluded_outbound_ranges=("10.1.0.0/16", "fd00::1/128")),
        ),
        ({"istio.io/reroute-virtual-interfaces": "virt0,virt1"}, Exceptions(virtual_interfaces=("virt0", "virt1"))),
    ],
)
def test_what_is_understood(given, meant):
    assert annotations.read(given) == meant


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        (f"{PREFIX}excludeInboundPorts", "0", "'0' is not a port"),
        (f"{PREFIX}excludeOutboundPorts", "http", "'http' is not a port"),
        (f"{PREFIX}excludeOutboundPorts", "65536", "'65536' is not a port"),
        (f"{PREFIX}excludeOutboundIPRanges", "10.0.0.0/33", "'10.0.0.0/33' is not a range of addresses"),
        ("istio.io/reroute-virtual-interfaces", 'a"; drop', "'a\"; drop' is not an interface's name"),
        (
            "istio.io/reroute-virtual-interfaces",
            "averylongnameindeed",
            "'averylongnameindeed' is not an interface's name",
        ),
    ],
)
def test_what_is_not_understood_is_a_sentence(name, value, why):
    with pytest.raises(ValueError, match="annotation") as raised:
        annotations.read({name: value})
    assert str(raised.value) == f"annotation {name}: {why}"
