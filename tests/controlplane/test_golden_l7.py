"""Documents in, the layer-7 model out: each `golden/l7/NAME.yaml` gives exactly `golden/l7/NAME.json`.

After an intended change: `GOLDEN=write pytest tests/controlplane/test_golden_l7.py`, and read the diff.
"""

import json
import os
from pathlib import Path

import pytest

from controlplane.documents import parse
from controlplane.objects import Mesh
from controlplane.store import Store
from tests.controlplane.l7 import plain

CASES = sorted((Path(__file__).parent / "golden" / "l7").glob("*.yaml"))


@pytest.mark.parametrize("case", CASES, ids=lambda path: path.stem)
def test_documents_become_this_model(case):
    store = Store(Mesh())
    store.update({case.name: parse(case.name, case.read_bytes())})
    notices = [
        f"{each.kind} {each.namespace}/{each.name} [{each.parent}] {each.type} {each.reason}: {each.message}"
        for each in store.notices
        if not each.good
    ]
    found = {"findings": [str(each) for each in store.findings], "notices": notices, **plain(store.l7)}
    expected = case.with_suffix(".json")
    if os.environ.get("GOLDEN") == "write":
        expected.write_text(json.dumps(found, indent=1) + "\n")
    assert found == json.loads(expected.read_text())
