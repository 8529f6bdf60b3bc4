"""`explain` says what the data path would do, and a saved dump says the same as the process that wrote it."""

import json

import jsonschema
import pytest
from google.protobuf import text_format
from google.protobuf.wrappers_pb2 import StringValue

from mesh.delta import ADDRESS_TYPE, AUTHORIZATION_TYPE
from mesh.gen.authorization_pb2 import Authorization
from mesh.gen.workload_pb2 import Address
from ztunnel.undump import resources

WORKLOADS = {
    "web-1": r'addresses: "\n\364\001\001" node: "node1" tunnel_protocol: HBONE',
    "api-1": r'addresses: "\n\364\002\001" node: "node2" tunnel_protocol: HBONE workload_name: "api"',
    "shut": r"""nodemesh/outbound-policy=REGISTRY_ONLY;nodemesh/egress-policy=shop/out;
        addresses: "\n\364\002\010" tunnel_protocol: HBONE""",
    "bare": r'addresses: "\n\364\002\011" node: "node2"',
    "cart-1": r"""addresses: "\n\364\002\002" node: "node2" tunnel_protocol: HBONE
        authorization_policies: "shop/allow-web"
        services { key: "shop/cart.shop.svc.cluster.local" value { ports { service_port: 80 target_port: 8080 } } }
        capacity { value: 2 } locality { region: "r" zone: "z" subzone: "s" } workload_type: CRONJOB""",
    "cart-2": r"""addresses: "\n\364\001\002" node: "node1" tunnel_protocol: HBONE status: UNHEALTHY
        services { key: "shop/cart.shop.svc.cluster.local" value { ports { service_port: 80 target_port: 8080 } } }""",
    "way-1": r"""addresses: "\n\364\002\003" tunnel_protocol: HBONE native_tunnel: true network_mode: HOST_NETWORK
        application_tunnel { protocol: PROXY port: 15088 } hostname: "x.example"
        waypoint { hostname { namespace: "shop" hostname: "way.shop.svc.cluster.local" } hbone_mtls_port: 15008 }
        network_gateway { address { network: "n2" address: "\n\001\001\001" } hbone_mtls_port: 15008 }""",
}
CART = r"""name: "cart" namespace: "shop" hostname: "cart.shop.svc.cluster.local"
    ports { service_port: 80 target_port: 8080 } addresses { address: "\n\140\000\n" }"""
ODD = r"""nodemesh/load-balancing=client-address;name: "odd" namespace: "shop" hostname: "odd.example"
    ports { service_port: 80 } ports { service_port: 443 }
    addresses { address: "\n\140\000\013" } addresses { network: "n2" address: "\n\140\001\000" length: 24 }
    subject_alt_names: "spiffe://cluster.local/ns/shop/sa/other" canonical: true visibility: NAMESPACE ip_families: DUAL
    load_balancing { mode: FAILOVER routing_preference: REGION routing_preference: ZONE health_policy: ALLOW_ALL }
    weighted_waypoints { weight: 3 destination { address { address: "\n\140\000\n" } hbone_mtls_port: 15008 } }"""
ALLOW = r"""name: "allow-web" namespace: "shop" scope: WORKLOAD_SELECTOR rules { clauses { matches {
    principals { exact: "cluster.local/ns/shop/sa/web" } } } clauses { matches { destination_ports: 8080 } } }"""
DENY = r"""name: "deny" namespace: "blog" scope: NAMESPACE action: DENY dry_run: true rules { clauses { matches {
    namespaces { prefix: "a" } not_namespaces { suffix: "b" } not_principals { presence {} }
    source_ips { address: "\n\364\000\000" length: 16 } not_destination_ips { address: "\n\364\001\001" length: 32 }
    not_destination_ports: 9 service_accounts { namespace: "shop" serviceAccount: "web" } } } }"""
OUT = r"""name: "out" namespace: "shop" scope: WORKLOAD_SELECTOR
    rules { clauses { matches { destination_ports: 80 } } }"""
STRICT = r"""name: "istio_converted_static_strict" namespace: "istio-system" scope: GLOBAL action: DENY
    rules { clauses { matches { not_principals { presence {} } } } }"""


def address(kind, text):
    """`NAME=VALUE;` before the text: our extensions."""
    message, (*extensions, text) = Address(), text.split(";")
    getattr(message, kind).CopyFrom(text_format.Parse(text, type(getattr(message, kind))()))
    for name, _, value in (each.partition("=") for each in extensions):
        getattr(message, kind).extensions.add(name=name).config.Pack(StringValue(value=value))
    return message.SerializeToString()


def pod(name, text):
    *extensions, text = text.split(";")
    common = f'uid: "Kubernetes//Pod/shop/{name}" name: "{name}" namespace: "shop" service_account: "{name[:-2]}"'
    return f"Kubernetes//Pod/shop/{name}", address("workload", ";".join([*extensions, f"{common} {text}"]))


def policy(text):
    message = text_format.Parse(text, Authorization())
    return f"{message.namespace}/{message.name}", message.SerializeToString()


@pytest.fixture
def new_core():
    try:
        from ztunnel import _core
    except ImportError:
        pytest.skip("the native core is not built")
    cores = []

    def make():
        cores.append(_core.Core(json.dumps({"workers": 1, "access_log": "off", "log_level": "error"}).encode()))
        return cores[-1]

    yield make
    for core in cores:
        core.close()


@pytest.fixture
def core(new_core):
    core = new_core()
    services = [("shop/cart.shop.svc.cluster.local", CART), ("shop/odd.example", ODD)]
    addresses = [*(pod(*each) for each in WORKLOADS.items()), *((key, address("service", s)) for key, s in services)]
    assert core.apply(ADDRESS_TYPE, addresses, []) == []
    assert core.apply(AUTHORIZATION_TYPE, [policy(ALLOW), policy(DENY), policy(OUT)], []) == []
    return core


def ask(core, source, destination):
    said = json.loads(core.explain(source, destination))
    return said, said["ways"][0]


@pytest.mark.parametrize("source", ["shop/web-1", "10.244.1.1", "Kubernetes//Pod/shop/web-1"])
@pytest.mark.parametrize("destination", ["cart.shop", "cart:80", "shop/cart:80", "10.96.0.10:80"])
def test_an_allowed_call_names_endpoint_policy_and_rule(core, source, destination):
    said, way = ask(core, source, destination)
    assert said["verdict"] == "allowed"
    assert way["route"]["kind"] == "tunnel"
    assert (way["route"]["dial"], way["route"]["authority"]) == ("10.244.2.2:15008", "10.244.2.2:8080")
    assert way["inbound"]["target"] == "10.244.2.2:8080"
    assert (way["verdict"]["by"], way["verdict"]["rule"]) == ("shop/allow-web", 0)
    assert [(e["workload"], e["eligible"]) for e in said["endpoints"]] == [
        ("shop/cart-1", True),
        ("shop/cart-2", False),
    ]
    assert "not healthy" in said["endpoints"][1]["because"]


def test_a_denied_call_says_what_does_not_match(core):
    said, way = ask(core, "shop/api", "shop/cart")
    assert said["verdict"] == "denied"
    assert way["verdict"]["why"] == "no ALLOW policy matched (shop/allow-web)"
    (allow,) = way["policies"]
    assert allow["because"] == ["principal cluster.local/ns/shop/sa/api is not cluster.local/ns/shop/sa/web"]
    assert ask(core, "shop/web-1", "shop/cart-1:9090")[1]["policies"][0]["because"] == ["port 9090 is not 8080"]


def test_plaintext_is_judged_where_it_arrives_and_peer_authentication_is_told(core):
    said, way = ask(core, "10.9.9.9", "shop/web-1:80")
    assert said["verdict"] == "allowed"
    assert way["route"]["kind"] == "uncaptured"
    assert way["peerAuthentication"]["mode"] == "PERMISSIVE"
    strict = "istio-system/istio_converted_static_strict"
    assert core.apply(AUTHORIZATION_TYPE, [policy(STRICT)], []) == []
    said, way = ask(core, "shop/bare", "shop/web-1:80")
    assert said["verdict"] == "denied"
    assert way["peerAuthentication"] == {"mode": "STRICT", "by": strict}
    assert way["verdict"]["by"] == strict


def test_who_shares_the_node_goes_without_tls_and_who_is_outside_in_plaintext(core):
    assert ask(core, "shop/cart-1", "shop/api-1:80")[1]["route"]["kind"] == "joined"
    assert not ask(core, "shop/cart-1", "shop/api-1:80")[1]["route"]["direct"], "nobody has switched it on"
    outside = ask(core, "shop/web-1", "10.1.2.3:80")[1]
    assert (outside["route"]["kind"], outside["verdict"]["allowed"]) == ("passthrough", True)
    assert ask(core, "shop/web-1", "shop/bare:80")[1]["route"]["because"] == "the destination workload has no tunnel"


def test_the_source_decides_too_by_its_egress_policies_and_its_outbound_policy(core):
    said, way = ask(core, "shop/shut", "shop/api-1:81")
    assert said["verdict"] == "denied"
    assert (way["verdict"]["end"], way["verdict"]["why"]) == ("source", "no ALLOW policy matched (shop/out)")
    assert ask(core, "shop/shut", "shop/api-1:80")[0]["verdict"] == "allowed"
    outside = ask(core, "shop/shut", "10.1.2.3:80")[1]
    assert "REGISTRY_ONLY" in outside["route"]["because"]


@pytest.mark.parametrize(
    ("source", "destination", "why"),
    [
        ("shop/nobody", "shop/cart", "is no workload"),
        ("shop/web-1", "shop/nothing:80", "neither a service nor a workload"),
        ("shop/web-1", "odd.example", "which port.*80, 443"),
        ("shop/web-1", "10.1.2.3", "which port"),
        ("shop/web-1", "shop/cart:0", "no port between"),
        ("10.9.9.9", "shop/cart", "virtual address"),
    ],
)
def test_a_question_about_nothing_is_a_sentence(core, source, destination, why):
    with pytest.raises(ValueError, match=why):
        core.explain(source, destination)


def test_a_dump_read_back_into_another_core_dumps_and_explains_the_same(core, new_core):
    before, other = json.loads(core.dump()), new_core()
    for type_url, named in resources(before).items():
        assert other.apply(type_url, named, []) == []
    after = json.loads(other.dump())
    for key in ("workloads", "services", "policies"):
        assert sorted(after[key], key=str) == sorted(before[key], key=str)
    assert other.explain("shop/api-1", "shop/cart") == core.explain("shop/api-1", "shop/cart")


STRINGS = {"type": "array", "items": {"type": "string"}}
PORTS = {"type": "object", "additionalProperties": {"type": "integer"}, "propertyNames": {"pattern": "^[0-9]+$"}}
GATEWAY = {"type": ["object", "null"], "properties": {"destination": {"type": "string"}}, "required": ["destination"]}


def texts(*names):
    return {name: {"type": ["string", "null"]} for name in names}


ISTIOCTL = {
    "workloads": texts("uid", "protocol", "name", "namespace", "serviceAccount", "workloadName", "workloadType")
    | texts("canonicalName", "canonicalRevision", "clusterId", "trustDomain", "node", "network", "status", "hostname")
    | {"workloadIps": STRINGS, "waypoint": GATEWAY, "networkGateway": GATEWAY, "capacity": {"type": "integer"}}
    | {"authorizationPolicies": STRINGS, "locality": {"type": "object", "properties": texts("region", "zone")}},
    "services": texts("name", "namespace", "hostname", "ipFamilies")
    | {"vips": STRINGS, "ports": PORTS, "waypoint": GATEWAY, "subjectAltNames": STRINGS}
    | {"loadBalancer": {"type": "object", "properties": {**texts("mode"), "routingPreferences": STRINGS}}}
    | {
        "endpoints": {
            "type": "object",
            "additionalProperties": {"properties": {**texts("workloadUid", "service"), "port": PORTS}},
        }
    },
    "policies": texts("name", "namespace", "scope", "action") | {"rules": {"type": "array"}},
}


@pytest.mark.parametrize("kind", ISTIOCTL)
def test_istioctl_can_read_every_object_of_the_dump(core, kind):
    """Its Go structs fail on a wrong type; a missing key would show as an empty cell."""
    found = json.loads(core.dump())[kind]
    assert found
    for item in found:
        jsonschema.validate(item, {"properties": ISTIOCTL[kind], "required": sorted(ISTIOCTL[kind])})


def test_the_dump_has_the_other_keys_of_istios(core):
    dump = json.loads(core.dump())
    assert dump.keys() >= {"certificates", "workloadState", "stagedServices", "staticConfig"}
