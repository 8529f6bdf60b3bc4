"""What is in dashboards/ is what tools/ writes from its tables."""

import json

import pytest

from tools import dashboards, slo


@pytest.mark.parametrize("board", dashboards.ALL, ids=lambda board: board.name)
def test_a_dashboard_is_written_from_its_table(board):
    text = dashboards.text(board)
    assert (dashboards.TARGET / f"{board.name}.json").read_text(encoding="utf-8") == text, "run: make dashboards"
    found = json.loads(text)
    places = [(each["gridPos"]["x"], each["gridPos"]["y"]) for each in found["panels"]]
    assert len(places) == len(set(places)) == len(board.panels)
    chosen = {each["name"] for each in found["templating"]["list"]}
    assert all(f"${name}" in text for name in chosen - {"datasource"})


def test_nothing_else_lies_there():
    written = {f"{board.name}.json" for board in dashboards.ALL} | {slo.TARGET.name}
    assert {each.name for each in dashboards.TARGET.iterdir()} == written


def test_the_rules_are_written_from_their_table():
    assert slo.TARGET.read_text(encoding="utf-8") == slo.rules(), "run: make dashboards"
