"""What a real istiod said of every shape of document: the core takes all of it, and knows what it is."""

import base64
import json
from pathlib import Path

import pytest

from mesh.delta import ADDRESS_TYPE, AUTHORIZATION_TYPE
from mesh.gen.authorization_pb2 import Authorization
from mesh.gen.workload_pb2 import Address
from tests.ztunnel.test_core_contract import real_class

SAID = json.loads((Path(__file__).parent / "golden/istiod.json").read_text())
RESOURCES = {url: {name: base64.b64decode(each) for name, each in SAID[url].items()} for url in list(SAID)[1:]}


@pytest.fixture
def core():
    core = real_class()(json.dumps({"workers": 1, "access_log": "off", "log_level": "error"}).encode())
    yield core
    core.close()


@pytest.mark.parametrize("url", [AUTHORIZATION_TYPE, ADDRESS_TYPE])
def test_nothing_of_it_is_refused(core, url):
    assert core.apply(url, list(RESOURCES[url].items()), []) == []


@pytest.mark.parametrize(("url", "shape"), [(AUTHORIZATION_TYPE, Authorization), (ADDRESS_TYPE, Address)])
def test_our_schema_knows_every_field_of_it(url, shape):
    for name, data in RESOURCES[url].items():
        message = shape.FromString(data)
        message.DiscardUnknownFields()
        assert message.ByteSize() == len(data), name


def test_all_of_it_together_is_what_the_tunnel_shows(core):
    for url in (AUTHORIZATION_TYPE, ADDRESS_TYPE):
        core.apply(url, list(RESOURCES[url].items()), [])
    dump = json.loads(core.dump())
    services = [name for name in RESOURCES[ADDRESS_TYPE] if name.count("/") == 1]
    assert len(dump["services"]) == len(services)
    assert len(dump["workloads"]) == len(RESOURCES[ADDRESS_TYPE]) - len(services)
    assert {f"{each['namespace']}/{each['name']}" for each in dump["policies"]} == set(RESOURCES[AUTHORIZATION_TYPE])
