from ipaddress import ip_address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.ids import NetworkAddress, SpiffeId, make_uid, pod_uid


def test_an_identity_is_read_into_its_three_names_and_written_back():
    text = "spiffe://cluster.local/ns/shop/sa/web"
    assert SpiffeId.parse(text) == SpiffeId("cluster.local", "shop", "web")
    assert str(SpiffeId.parse(text)) == text


def test_what_a_workload_leaves_out_has_istios_defaults():
    assert str(SpiffeId.for_workload("", "shop", "")) == "spiffe://cluster.local/ns/shop/sa/default"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "spiffe://",
        "spiffe://td",
        "spiffe:///ns/a/sa/b",
        "SPIFFE://td/ns/a/sa/b",
        "https://td/ns/a/sa/b",
        "spiffe://TD/ns/a/sa/b",
        "spiffe://td:80/ns/a/sa/b",
        "spiffe://user@td/ns/a/sa/b",
        "spiffe://%61/ns/a/sa/b",
        "spiffe://[::1]/ns/a/sa/b",
        "spiffe://" + "t" * 256 + "/ns/a/sa/b",
        "spiffe://td/ns/a/sa/b/",
        "spiffe://td/ns/a/sa/b/c",
        "spiffe://td//ns/a/sa/b",
        "spiffe://td/ns//sa/b",
        "spiffe://td/ns/a/sa/",
        "spiffe://td/ns/./sa/b",
        "spiffe://td/ns/../sa/b",
        "spiffe://td/ns/a/sa/..",
        "spiffe://td/ns/%2e%2e/sa/b",
        "spiffe://td/ns/a/sa/b?q",
        "spiffe://td/ns/a/sa/b#f",
        "spiffe://td/ns/A/sa/b",
        "spiffe://td/ns/a/sa/B",
        "spiffe://td/ns/a/sa/-b",
        "spiffe://td/ns/a_b/sa/b",
        "spiffe://td/ns/a/sa/b\0",
        "spiffe://td/ns/a/sa/b\n",
        "spiffe://td/ns/a/sa/ b",
        "spiffe://td/ns/a/sa/é",
        "spiffe://td/sa/a/ns/b",
        "spiffe://td/ns/" + "a" * 64 + "/sa/b",
        "spiffe://td/ns/a/sa/" + "b" * 254,
        "spiffe://td/ns/a/sa/" + "b" * 2048,
    ],
)
def test_what_is_no_workload_identity_is_refused(text):
    with pytest.raises(ValueError, match=r"is not|has at most"):
        SpiffeId.parse(text)


@pytest.mark.parametrize("trust_domain", ["t", "10.0.0.1", "a_b-c.d", "t" * 255, ".", "-"])
def test_a_trust_domain_need_not_look_like_a_host_name(trust_domain):
    assert SpiffeId.parse(f"spiffe://{trust_domain}/ns/a/sa/b").trust_domain == trust_domain


def test_a_service_account_may_have_dots_a_namespace_may_not():
    assert SpiffeId("td", "a", "b.c").service_account == "b.c"
    with pytest.raises(ValueError, match="namespace"):
        SpiffeId("td", "a.b", "c")


@settings(max_examples=60)
@given(st.text(alphabet="spife:/nsatd.-_%AZ09é\0", max_size=30).map(lambda tail: "spiffe://td/ns/" + tail))
def test_reading_any_text_ends_in_the_same_text_or_in_a_refusal(text):
    try:
        identity = SpiffeId.parse(text)
    except ValueError:
        return
    assert str(identity) == text


def test_a_uid_is_spelled_as_istio_spells_it():
    assert pod_uid("Kubernetes", "shop", "web-1") == "Kubernetes//Pod/shop/web-1"
    entry = make_uid("Kubernetes", "networking.istio.io", "ServiceEntry", "shop", "db", "10.0.0.1")
    assert entry == "Kubernetes/networking.istio.io/ServiceEntry/shop/db/10.0.0.1"


@pytest.mark.parametrize("text", ["net/10.0.0.1", "/10.0.0.1", "/2001:db8::1", "a/b/10.0.0.1"])
def test_an_address_belongs_to_a_network(text):
    address = NetworkAddress.parse(text)
    assert str(address) == text
    assert NetworkAddress.from_packed(address.network, address.packed) == address


def test_an_ipv4_address_in_ipv6_clothes_is_the_ipv4_address():
    packed = ip_address("::ffff:10.0.0.1").packed
    assert NetworkAddress.from_packed("", packed) == NetworkAddress.parse("10.0.0.1")
