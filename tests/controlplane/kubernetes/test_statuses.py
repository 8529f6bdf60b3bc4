"""What is written into the status of objects that others write into, too: theirs stays theirs."""

import pytest

from controlplane.objects import Mesh
from controlplane.sources.kinds import followed
from controlplane.sources.objects import origin, parsed
from controlplane.statuses import applied
from controlplane.store import Store
from controlplane.translate.classes import CONTROLLER
from kube.objects import Metadata, Resource, Whole

POLICY = Resource("security.istio.io", "v1", "authorizationpolicies", "AuthorizationPolicy", Whole)
GROUP = "gateway.networking.k8s.io"
KINDS = {versions[0].kind: versions[0] for versions in followed() if versions[0].group in (GROUP, "")}
THEIRS = {"type": "Theirs", "status": "True"}
OURS = {"type": "Accepted", "status": "True", "reason": "Accepted", "message": ""}
ROUTE_REFS = [{"name": "edge", "sectionName": "web"}, {"kind": "Service", "group": "", "name": "cart"}]
ANOTHERS = {"parentRef": {"name": "other"}, "controllerName": "example.com/other", "conditions": []}


class Everything:
    """Is ours to judge."""

    def judges_class(self, name):
        return bool(name)

    def judges_parent(self, ref, namespace):
        return bool(ref) and bool(namespace)


def write(kind, item, conditions, now="now"):
    return applied(kind, item, {"conditions": conditions}, now, Everything())


@pytest.mark.parametrize(("kind", "written"), [(POLICY, ["Theirs", "Accepted"]), (KINDS["Gateway"], ["Accepted"])])
def test_a_list_that_is_one_value_is_written_as_it_was_seen_and_of_others_only_what_is_ours(kind, written):
    """Who writes another's condition beside its own owns it from then on, and it never goes again."""
    item = Whole(Metadata("a", "shop", "uid-1", "7"), {"gatewayClassName": "istio"}, {"conditions": [THEIRS]})
    body = write(kind, item, [OURS])
    assert [each["type"] for each in body["status"]["conditions"]] == written
    assert body["metadata"] == {"name": "a", "namespace": "shop", "uid": "uid-1", "resourceVersion": "7"}


def route(status=None):
    about = Metadata(name="r", namespace="shop", uid="7", generation=3)
    return KINDS["HTTPRoute"], Whole(about, spec={"parentRefs": ROUTE_REFS}, status=status)


def told(kind, status, **parent):
    return {"type": kind, "status": status, "reason": "R", "message": "m", **parent}


SAID = [
    told("Accepted", "True", parent="Gateway shop/edge/web"),
    told("Accepted", "False", parent="Service shop/cart"),
    told("ResolvedRefs", "True"),
]


def test_a_route_is_told_by_each_parent_what_became_of_it():
    body = write(*route({"parents": [ANOTHERS]}), SAID)
    theirs, gateway, service = body["status"]["parents"]
    assert theirs == ANOTHERS, "another controller's view stays"
    assert [each["parentRef"] for each in (gateway, service)] == ROUTE_REFS
    assert {each["controllerName"] for each in (gateway, service)} == {CONTROLLER}
    verdicts = [[(c["type"], c["status"]) for c in each["conditions"]] for each in (gateway, service)]
    assert verdicts == [
        [("Accepted", "True"), ("ResolvedRefs", "True")],
        [("Accepted", "False"), ("ResolvedRefs", "True")],
    ]
    assert gateway["conditions"][0]["observedGeneration"] == 3


def test_what_a_route_was_told_is_not_written_again_and_keeps_its_time():
    status = write(*route(), SAID, "then")["status"]
    assert write(*route(status), SAID) is None
    changed = [told("Accepted", "False", parent="Gateway shop/edge/web"), *SAID[1:]]
    gateway, service = write(*route(status), changed)["status"]["parents"]
    assert [each["lastTransitionTime"] for each in gateway["conditions"]] == ["now", "then"]
    assert [each["lastTransitionTime"] for each in service["conditions"]] == ["then", "then"]


def test_a_route_that_no_longer_has_a_parent_here_loses_what_it_was_told():
    status = write(*route(), SAID, "then")["status"]
    assert write(*route({"parents": [ANOTHERS, *status["parents"]]}), [])["status"] == {"parents": [ANOTHERS]}


def test_a_route_that_cannot_be_read_says_so_to_each_parent():
    body = write(*route(), [told("Accepted", "False")])
    assert [[c["status"] for c in each["conditions"]] for each in body["status"]["parents"]] == [["False"], ["False"]]


class Api:
    """Objects as the API server has them, and what the control plane would write on each."""

    def __init__(self, *objects):
        self.items = {}
        for kind, namespace, name, spec in objects:
            about = Metadata(name, namespace, f"uid-{name}", "1", generation=1)
            item = Whole(about, spec=spec)
            self.items[origin(KINDS[kind], item)] = KINDS[kind], item
        self.store = Store(Mesh(shared=True))
        self.store.update({file: parsed(*found) for file, found in self.items.items()})

    def statuses(self):
        """By kind and name."""
        found = {}
        for entry in self.store.conditions():
            kind, item = self.items[entry["file"]]
            body = applied(kind, item, entry, "now", self.store.layer7)
            found[kind.kind, item.metadata.name] = body and body["status"]
        return found


def gateway(name, listeners, gateway_class="istio"):
    return "Gateway", "shop", name, {"gatewayClassName": gateway_class, "listeners": listeners}


def service(name):
    return "Service", "shop", name, {"clusterIP": "10.1.0.1", "ports": [{"name": "http", "port": 80}]}


def http_route(name, *parents, **more):
    spec = {"parentRefs": list(parents), "rules": [{"backendRefs": [{"name": "web", "port": 80}]}], **more}
    return "HTTPRoute", "shop", name, spec


def policy(name, target, **validation):
    refs = [{"group": "", "kind": "ConfigMap", "name": "ca"}]
    spec = {"targetRefs": [{"group": "", "kind": "Service", "name": target}]}
    validation = {"hostname": "web", "caCertificateRefs": refs, **validation}
    return "BackendTLSPolicy", "shop", name, {**spec, "validation": validation}


CLASS = "GatewayClass", "", "theirs", {"controllerName": "example.com/other"}
WEB = {"name": "web", "port": 80, "protocol": "HTTP"}


def short(conditions):
    return {each["type"]: (each["status"], each["reason"]) for each in conditions}


GOOD = {
    "Accepted": ("True", "Accepted"),
    "ResolvedRefs": ("True", "ResolvedRefs"),
    "Programmed": ("True", "Programmed"),
    "Conflicted": ("False", "NoConflicts"),
}


def bad(**conditions):
    wrong = {name: ("True" if name == "Conflicted" else "False", reason) for name, reason in conditions.items()}
    return {**GOOD, **wrong}


def test_a_gateway_says_of_each_listener_which_routes_it_takes_and_how_many_came():
    only = {**WEB, "name": "only", "port": 81, "allowedRoutes": {"kinds": [{"kind": "GRPCRoute"}]}}
    found = Api(
        gateway("edge", [WEB, only]),
        service("web"),
        http_route("one", {"name": "edge"}, {"name": "edge", "sectionName": "web"}),
        http_route("two", {"name": "edge", "port": 80}),
        http_route("elsewhere", {"name": "edge", "sectionName": "only"}),
    ).statuses()
    status = found["Gateway", "edge"]
    said = [
        (each["name"], each["attachedRoutes"], [kind["kind"] for kind in each["supportedKinds"]])
        for each in status["listeners"]
    ]
    assert said == [("web", 2, ["HTTPRoute", "GRPCRoute"]), ("only", 0, ["GRPCRoute"])]
    assert [short(each["conditions"]) for each in status["listeners"]] == [GOOD, GOOD]
    assert short(status["conditions"]) == {name: GOOD[name] for name in ("Accepted", "Programmed")}
    [parent] = found["HTTPRoute", "elsewhere"]["parents"]
    assert short(parent["conditions"])["Accepted"] == ("False", "NotAllowedByListeners")


def test_a_listeners_status_is_not_written_again():
    api = Api(gateway("edge", [WEB]))
    kind, item = api.items["Gateway shop/edge"]
    [entry] = api.store.conditions()
    status = applied(kind, item, entry, "then", api.store.layer7)["status"]
    item = Whole(item.metadata, item.spec, status)
    assert applied(kind, item, entry, "now", api.store.layer7) is None
    more = {**entry, "listeners": [{**entry["listeners"][0], "attachedRoutes": 1}]}
    [listener] = applied(kind, item, more, "now", api.store.layer7)["status"]["listeners"]
    assert {each["lastTransitionTime"] for each in listener["conditions"]} == {"then"}


TLS = {"certificateRefs": [{"name": "missing"}]}
PASS = {"mode": "Passthrough"}


def conflict(reason):
    return bad(Accepted=reason, Programmed=reason, Conflicted=reason)


def takes(*kinds):
    return [{**WEB, "allowedRoutes": {"kinds": [{"kind": each} for each in kinds]}}]


@pytest.mark.parametrize(
    ("listeners", "expected"),
    [
        ([{**WEB, "protocol": "UDP"}], {"web": bad(Accepted="UnsupportedProtocol", Programmed="Invalid")}),
        (
            [{"name": "tls", "port": 443, "protocol": "HTTPS", "tls": TLS}],
            {"tls": bad(ResolvedRefs="InvalidCertificateRef", Programmed="Invalid")},
        ),
        (
            [WEB, {"name": "tcp", "port": 80, "protocol": "TCP"}],
            dict.fromkeys(("web", "tcp"), conflict("ProtocolConflict")),
        ),
        (
            [
                {"name": "a", "port": 443, "protocol": "TLS", "hostname": "x.com", "tls": PASS},
                {"name": "b", "port": 443, "protocol": "HTTPS", "hostname": "x.com", "tls": TLS},
                {"name": "c", "port": 443, "protocol": "TLS", "hostname": "y.com", "tls": PASS},
            ],
            {**dict.fromkeys(("a", "b"), conflict("HostnameConflict")), "c": GOOD},
        ),
        (takes("TCPRoute", "HTTPRoute"), {"web": bad(ResolvedRefs="InvalidRouteKinds")}),
        (takes("TCPRoute"), {"web": bad(ResolvedRefs="InvalidRouteKinds", Programmed="Invalid")}),
    ],
    ids=["protocol", "certificate", "protocols", "names", "one-kind", "kinds"],
)
def test_a_listener_that_is_not_served_says_why(listeners, expected):
    status = Api(gateway("edge", listeners)).statuses()["Gateway", "edge"]
    assert {each["name"]: short(each["conditions"]) for each in status["listeners"]} == expected
    served = any(each["Programmed"][0] == "True" for each in expected.values())
    whole = short(status["conditions"])
    assert whole["Accepted"] == ("True" if served else "False", "ListenersNotValid")
    assert whole["Programmed"] == (("True", "Programmed") if served else ("False", "Invalid"))


def test_listeners_that_cannot_be_told_apart_are_not_served():
    clear = [WEB, {"name": "tcp", "port": 80, "protocol": "TCP"}, {**WEB, "name": "other", "port": 81}]
    api = Api(gateway("edge", clear), service("web"), http_route("r", {"name": "edge"}))
    assert [each.port for each in api.store.l7.proxies["shop/edge"].servers] == [81]


def test_of_gateways_of_another_controller_nothing_is_said_and_nothing_served():
    ref = {"name": "foreign"}
    api = Api(
        CLASS,
        gateway("foreign", [WEB], "theirs"),
        gateway("unclaimed", [WEB], "nobody-has-made-this-class"),
        gateway("edge", [WEB]),
        service("web"),
        http_route("both", {"name": "edge"}, ref),
        http_route("only", ref, {"name": "unclaimed"}, {"name": "missing"}),
    )
    found = api.statuses()
    assert list(api.store.l7.proxies) == ["shop/edge"]
    assert [name for name in found if name[0] in ("Gateway", "GatewayClass")] == [("Gateway", "edge")]
    assert [each["parentRef"] for each in found["HTTPRoute", "both"]["parents"]] == [{"name": "edge"}]
    assert found["HTTPRoute", "only"] is None


def test_a_document_that_cannot_be_read_says_nothing_for_another_controller():
    broken = http_route("r", {"name": "foreign"}, {"name": "edge"}, hostnames=["no host"])
    other = gateway("strange", [{**WEB, "port": 0}], "theirs")
    found = Api(CLASS, gateway("foreign", [WEB], "theirs"), gateway("edge", [WEB]), other, broken).statuses()
    [parent] = found["HTTPRoute", "r"]["parents"]
    assert (parent["parentRef"], short(parent["conditions"])) == ({"name": "edge"}, {"Accepted": ("False", "Invalid")})
    assert found["Gateway", "strange"] is None


def test_a_class_of_ours_is_accepted():
    found = Api(("GatewayClass", "", "mine", {"controllerName": CONTROLLER}), gateway("edge", [WEB], "mine")).statuses()
    assert short(found["GatewayClass", "mine"]["conditions"]) == {"Accepted": ("True", "Accepted")}
    assert short(found["Gateway", "edge"]["conditions"])["Programmed"] == ("True", "Programmed")


def test_a_policy_of_tls_to_backends_is_told_by_each_gateway_that_sends_there():
    found = Api(
        gateway("edge", [WEB]),
        service("web"),
        service("lonely"),
        http_route("r", {"name": "edge"}),
        policy("first", "web"),
        policy("second", "web"),
        policy("third", "lonely"),
        policy("lost", "nothing"),
    ).statuses()
    for name, ancestor, accepted in (
        ("first", ("Gateway", "edge"), "NoValidCACertificate"),
        ("second", ("Gateway", "edge"), "Conflicted"),
        ("third", ("Service", "lonely"), "NoValidCACertificate"),
        ("lost", ("Service", "nothing"), "TargetNotFound"),
    ):
        [said] = found["BackendTLSPolicy", name]["ancestors"]
        assert (said["ancestorRef"]["kind"], said["ancestorRef"]["name"]) == ancestor
        assert said["controllerName"] == CONTROLLER
        wanted = {"Accepted": ("False", accepted), "ResolvedRefs": ("False", "InvalidCACertificateRef")}
        assert short(said["conditions"]) == wanted


def test_a_policy_that_cannot_be_read_says_so_of_its_targets():
    found = Api(policy("p", "web", hostname="no host")).statuses()
    [said] = found["BackendTLSPolicy", "p"]["ancestors"]
    assert said["ancestorRef"] == {"group": "", "kind": "Service", "name": "web"}
    assert short(said["conditions"]) == {"Accepted": ("False", "Invalid")}
