"""Documents in, resources out: each `golden/NAME.yaml` gives exactly `golden/NAME.json`.

After an intended change: `GOLDEN=write pytest tests/controlplane/test_golden.py`, and read the diff.
"""

import json
import os
from pathlib import Path

import pytest

from controlplane.admin import describe
from controlplane.documents import parse
from controlplane.objects import Mesh
from controlplane.store import Store
from controlplane.translate.tunnel import translate

CASES = sorted((Path(__file__).parent / "golden").glob("*.yaml"))


@pytest.mark.parametrize("case", CASES, ids=lambda path: path.stem)
def test_documents_become_these_resources(case):
    store = Store(Mesh())
    store.update({case.name: parse(case.name, case.read_bytes())})
    resources = describe(translate(store.world))
    for named in resources.values():
        for resource in named.values():
            del resource["version"]  # a hash of the rest
    found = {"findings": [str(each) for each in store.findings], **resources}
    expected = case.with_suffix(".json")
    if os.environ.get("GOLDEN") == "write":
        expected.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
    assert found == json.loads(expected.read_text())
