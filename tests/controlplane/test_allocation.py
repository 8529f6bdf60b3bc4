"""Hosts of ServiceEntries without addresses get some, always the same ones."""

from ipaddress import ip_network
from itertools import permutations

import pytest

from controlplane.translate import allocation
from tests.controlplane.documents import AMBIENT, findings_of, world_of

V4, V6 = ip_network("240.240.0.0/16"), ip_network("2001:2::/48")


def entry(name, *hosts, namespace="shop", created="", labels="", **spec):
    fields = {
        "hosts": str(list(hosts)),
        "ports": "[{number: 443, name: tls, protocol: TLS}]",
        "resolution": "DNS",
        **spec,
    }
    about = f"name: {name}, namespace: {namespace}, labels: {{{labels}}}"
    return f"""
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{{about}{f", creationTimestamp: '{created}'" if created else ""}}}
spec: {{{", ".join(f"{key}: {value}" for key, value in fields.items())}}}
---
"""


def addresses(text):
    return {
        key: [str(vip.prefix) for vip in service.vips] for key, service in world_of(AMBIENT + text).services.items()
    }


def test_every_host_gets_one_address_of_each_family_and_keeps_it():
    alone = addresses(entry("db", "db.example.com", "replica.example.com"))
    for found in alone.values():
        v4, v6 = map(ip_network, found)
        assert v4.subnet_of(V4)
        assert v6.subnet_of(V6)
        assert (v4.num_addresses, v6.num_addresses) == (1, 1)
    assert len({tuple(found) for found in alone.values()}) == 2
    others = "".join(entry(f"other-{n}", f"host-{n}.example.org") for n in range(50))
    together = addresses(others + entry("db", "db.example.com", "replica.example.com"))
    assert {key: together[key] for key in alone} == alone
    assert len({tuple(found) for found in together.values()}) == 52


@pytest.mark.parametrize(
    "text",
    [
        entry("db", "db.example.com", addresses="[10.1.2.3]"),
        entry("db", "db.example.com", labels="networking.istio.io/enable-autoallocate-ip: 'false'"),
        entry("db", "db.example.com", resolution="NONE"),
        entry("db", "*.example.com", resolution="STATIC"),
    ],
    ids=["has its own", "says no", "goes to where the client went", "stands for many"],
)
def test_who_gets_none(text):
    (found,) = addresses(text).values()
    assert not any(ip_network(each).subnet_of(V4) for each in found if "." in each)


def test_the_same_host_in_two_namespaces_is_two_services():
    both = addresses(entry("a", "db.example.com") + entry("a", "db.example.com", namespace="bank"))
    assert len({tuple(found) for found in both.values()}) == 2


def test_where_two_want_the_same_the_older_object_has_it_whatever_the_order(monkeypatch):
    monkeypatch.setattr(allocation, "_first", lambda namespace, host: 7)
    entries = [
        entry("young", "young.example.com", created="2026-03-01T00:00:00Z"),
        entry("old", "old.example.com", created="2026-01-01T00:00:00Z"),
        entry("unknown", "unknown.example.com"),
    ]
    for order in permutations(entries):
        found = {key: each[0] for key, each in addresses("".join(order)).items()}
        assert found == {
            "shop/old.example.com": "240.240.0.8/32",
            "shop/young.example.com": "240.240.0.9/32",
            "shop/unknown.example.com": "240.240.0.10/32",
        }


def test_when_all_are_taken_the_youngest_go_without(monkeypatch):
    monkeypatch.setattr(allocation, "_USABLE", 2)
    found = addresses(
        "".join(entry(f"e{n}", f"h{n}.example.com", created=f"2026-01-0{n}T00:00:00Z") for n in (1, 2, 3))
    )
    assert [bool(each) for _, each in sorted(found.items())] == [True, True, False]


def test_only_who_gets_none_is_warned_about():
    assert not [each for each in findings_of(AMBIENT + entry("db", "db.example.com")) if "IST0134" in each]
    (warning,) = [
        each for each in findings_of(AMBIENT + entry("db", "db.example.com", resolution="NONE")) if "IST0134" in each
    ]
    assert "without addresses no connection can be recognised" in warning
