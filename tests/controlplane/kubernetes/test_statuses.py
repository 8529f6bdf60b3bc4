"""Conditions on objects that others write conditions on, too: theirs stay theirs."""

import pytest

from controlplane.statuses import applied
from kube.objects import Metadata, Resource, Whole

POLICY = Resource("security.istio.io", "v1", "authorizationpolicies", "AuthorizationPolicy", Whole)
GATEWAY = Resource("gateway.networking.k8s.io", "v1", "gateways", "Gateway", Whole)
THEIRS = {"type": "Theirs", "status": "True"}
OURS = {"type": "Accepted", "status": "True", "reason": "Accepted", "message": ""}


@pytest.mark.parametrize(("kind", "written"), [(POLICY, ["Theirs", "Accepted"]), (GATEWAY, ["Accepted"])])
def test_a_list_that_is_one_value_is_written_as_it_was_seen_and_of_others_only_what_is_ours(kind, written):
    """Who writes another's condition beside its own owns it from then on, and it never goes again."""
    item = Whole(Metadata("a", "shop", "uid-1", "7"), status={"conditions": [THEIRS]})
    body = applied(kind, item, [OURS], "now")
    assert [each["type"] for each in body["status"]["conditions"]] == written
    assert body["metadata"] == {"name": "a", "namespace": "shop", "uid": "uid-1", "resourceVersion": "7"}
