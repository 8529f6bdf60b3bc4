"""The list of enrolled pods on disk."""

import json

import pytest

from mesh.errors import OperatorError
from nodeagent.enrol.store import Member, Store

WEB = Member(
    "c//Pod/shop/web",
    "shop",
    "web",
    "sa",
    "c1",
    "/ns/web",
    "cookie:7",
    ("10.0.0.5", "fd00::5"),
    True,
    True,
    ("corp.example",),
)


def test_what_was_saved_is_loaded(tmp_path):
    Store(tmp_path / "state").save([WEB])
    assert Store(tmp_path / "state").load() == [WEB]
    assert (tmp_path / "state/enrolled.json").stat().st_mode & 0o777 == 0o600


def test_what_an_older_agent_saved_keeps_the_rules_that_it_made(tmp_path):
    store = Store(tmp_path)
    store.save([WEB])
    path = tmp_path / "enrolled.json"
    content = json.loads(path.read_text())
    del content["members"][0]["dns_capture"], content["members"][0]["search"]
    path.write_text(json.dumps(content))
    (found,) = store.load()
    assert (found.uid, found.dns_capture, found.search) == (WEB.uid, False, ())


def test_nothing_was_saved_yet(tmp_path):
    assert Store(tmp_path).load() == []


def test_a_list_of_another_boot_is_void(tmp_path):
    store = Store(tmp_path)
    store.save([WEB])
    path = tmp_path / "enrolled.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"boot_id": "earlier"}))
    assert store.load() == []


@pytest.mark.parametrize("content", ["", "{", "[]", '{"boot_id": 1}', '{"members": []}', "\x00" * 20])
def test_a_damaged_list_is_reported_and_void(tmp_path, content, capsys):
    (tmp_path / "enrolled.json").write_text(content)
    assert Store(tmp_path).load() == []
    assert "enrolled.json" in "".join(capsys.readouterr()) or content == '{"boot_id": 1}'


def test_a_directory_that_cannot_be_made_is_the_operators(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OperatorError, match="file/state: cannot be made: Not a directory"):
        Store(tmp_path / "file/state")
