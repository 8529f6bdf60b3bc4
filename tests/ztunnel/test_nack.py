"""What a control plane sends and the real core cannot use: the NACK names object and field, what is in force stays."""

import json

import pytest

from mesh.delta import ADDRESS_TYPE, AUTHORIZATION_TYPE, Subscriber
from mesh.gen.authorization_pb2 import DENY, Address, Authorization, Clause, Match, Rule, StringMatch
from mesh.gen.workload_pb2 import Address as AddressMessage
from mesh.gen.workload_pb2 import NetworkAddress, Port, PortList, Service, Workload
from mesh.gen.xds_pb2 import DeltaDiscoveryResponse, Node
from ztunnel.dataplane import read_response

PLACE = "rules[0].clauses[0].matches[0]"


def policy(match, **more):
    rules = [Rule(clauses=[Clause(matches=[match])])]
    return "shop/p", Authorization(
        **{"name": "p", "namespace": "shop", "scope": 1, "action": DENY, "rules": rules, **more}
    )


def workload(**more):
    fields = {
        "uid": "w",
        "name": "w",
        "namespace": "shop",
        "service_account": "w",
        "addresses": [b"\x0a\0\0\1"],
        **more,
    }
    return "w", AddressMessage(workload=Workload(**fields))


def service(**more):
    fields = {"name": "s", "namespace": "shop", "hostname": "s.shop.svc", **more}
    return "shop/s.shop.svc", AddressMessage(service=Service(**fields))


GOOD = {
    AUTHORIZATION_TYPE: [policy(Match(destination_ports=[80]))],
    ADDRESS_TYPE: [workload(), service(addresses=[NetworkAddress(address=b"\x0a\x60\0\1")])],
}
UNUSABLE = [
    (policy(Match(source_ips=[Address(address=b"\x0a\0\0\0", length=33)])), f"shop/p: {PLACE}.source_ips[0]: address"),
    (policy(Match(not_source_ips=[Address(address=b"\x0a\0", length=8)])), f"{PLACE}.not_source_ips[0]: address has"),
    (policy(Match(destination_ips=[Address()])), f"{PLACE}.destination_ips[0]: address has 0 bytes"),
    (policy(Match(principals=[StringMatch()])), f"shop/p: {PLACE}.principals[0]: match_type is empty"),
    (policy(Match(not_namespaces=[StringMatch(exact="a"), StringMatch()])), f"{PLACE}.not_namespaces[1]: match_type"),
    (policy(Match(destination_ports=[65536])), f"shop/p: {PLACE}.destination_ports[0]: port: 65536 is not a port"),
    (policy(Match(not_destination_ports=[2**32 - 1])), f"{PLACE}.not_destination_ports[0]: port: 4294967295"),
    (policy(Match(), scope=9), "shop/p: scope has the unknown value 9"),
    (policy(Match(), action=7), "shop/p: action has the unknown value 7"),
    (workload(addresses=[b"\x0a\0"]), "w: addresses has 2 bytes instead of 4 or 16"),
    (workload(services={"shop/s": PortList(ports=[Port(service_port=65536)])}), "w: service_port: 65536 is not a port"),
    (service(addresses=[NetworkAddress(address=b"\x0a\0\0\0", length=33)]), "addresses: a prefix of 33 bits"),
    (service(ports=[Port(service_port=80, target_port=70000)]), "shop/s.shop.svc: target_port: 70000 is not a port"),
]  # fmt: skip


@pytest.fixture
def tunnel():
    core = pytest.importorskip("ztunnel._core", reason="the native core is not built")
    core = core.Core(json.dumps({"workers": 1, "access_log": "off", "log_level": "error"}).encode())
    subscriber = Subscriber(Node(id="n"), [ADDRESS_TYPE, AUTHORIZATION_TYPE])

    def push(type_url, *resources):
        response = DeltaDiscoveryResponse(type_url=type_url, nonce="1")
        for name, message in resources:
            resource = response.resources.add(name=name, version="1")
            resource.resource.type_url, resource.resource.value = type_url, message.SerializeToString()
        batch = subscriber.receive(read_response(response.SerializeToString()))
        refused = core.apply(type_url, [(name, data) for name, _, data in batch.upserts], batch.removed)
        return subscriber.settle(batch, refused).error_detail.message

    push.core = core
    yield push
    core.close()


def in_force(core):
    dump = json.loads(core.dump())
    return {key: dump[key] for key in ("policies", "workloads", "services")}


@pytest.mark.parametrize(("resource", "why"), UNUSABLE, ids=[why for _, why in UNUSABLE])
def test_the_nack_names_object_and_field_and_the_last_good_state_stays(tunnel, resource, why):
    for type_url, resources in GOOD.items():
        assert tunnel(type_url, *resources) == ""
    before = in_force(tunnel.core)
    type_url = AUTHORIZATION_TYPE if isinstance(resource[1], Authorization) else ADDRESS_TYPE
    assert why in tunnel(type_url, resource)
    assert in_force(tunnel.core) == before


def test_a_name_of_a_policy_that_is_not_there_is_no_reason_to_keep_the_older_record(tunnel):
    """It would be in force without the policy; the new one denies until the policy comes (docs/decisions/0002)."""
    assert tunnel(ADDRESS_TYPE, workload()) == ""
    assert tunnel(ADDRESS_TYPE, workload(authorization_policies=["shop/late"])) == ""
    [record] = in_force(tunnel.core)["workloads"]
    assert record["authorizationPolicies"] == ["shop/late"]
