"""Documents in, Envoy's resources out: each `golden/envoy/NAME.yaml` gives exactly `golden/envoy/NAME.json`.

After an intended change: `GOLDEN=write pytest tests/controlplane/test_golden_envoy.py`, and read the diff.
"""

import json
import os
from pathlib import Path

import pytest

from controlplane.documents import parse
from controlplane.objects import Mesh
from controlplane.store import Store
from controlplane.translate.envoy.blocks import Cache
from controlplane.translate.envoy.resources import Translation
from controlplane.translate.envoy.world import View
from mesh.envoy import unpack

CASES = sorted((Path(__file__).parent / "golden" / "envoy").glob("*.yaml"))


@pytest.mark.parametrize("case", CASES, ids=lambda path: path.stem)
def test_documents_become_these_resources(case):
    store = Store(Mesh())
    store.update({case.name: parse(case.name, case.read_bytes())})
    translation = Translation(View(store.world), store.l7, Cache())
    found = {"findings": [str(each) for each in store.findings]} | {
        proxy.key: {
            type_url.rpartition(".")[2]: {name: unpack(item) for name, item in named.items()}
            for type_url, named in translation.of(proxy).items()
        }
        for proxy in store.l7.proxies.values()
    }
    expected = case.with_suffix(".json")
    if os.environ.get("GOLDEN") == "write":
        expected.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
    assert found == json.loads(expected.read_text())
