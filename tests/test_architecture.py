"""The house rules that a reader relies on: who may import whom, what is pure, what a file may grow to."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("mesh", "kube", "nodeagent", "ztunnel", "controlplane", "waypoint", "meshctl", "lab", "cni", "bench")
MAY_IMPORT = {name: {"mesh", name} for name in PACKAGES} | {
    "mesh": {"mesh"},
    "cni": {"cni"},
    "bench": {"mesh", "lab", "bench", "nodeagent"},  # bench/hooks.py puts one backend into force by itself
}
MAY_IMPORT["nodeagent"] |= {"kube"}
MAY_IMPORT["controlplane"] |= {"kube"}
MAY_IMPORT["meshctl"] = {"mesh", "meshctl", "lab"}  # `meshctl lab` is the lab's command line
PURE = (
    "mesh/ids.py",
    "mesh/errors.py",
    "mesh/model.py",
    "mesh/delta.py",
    "mesh/membership.py",
    "mesh/policy.py",
    "kube/reflect.py",
    "kube/objects.py",
    "lab/apiserver/patches.py",
    "lab/apiserver/selectors.py",
    "nodeagent/enrol/machine.py",
    "nodeagent/redirect/plan.py",
    "nodeagent/redirect/nft.py",
    "nodeagent/redirect/iptables.py",
    "nodeagent/redirect/verify.py",
    "nodeagent/redirect/diversions.py",
    "nodeagent/redirect/bpf_records.py",
    "nodeagent/diag/events.py",
    "ztunnel/rotation.py",
    "controlplane/translate/*.py",
    "controlplane/l7/*.py",
    "controlplane/schema/*.py",
    "controlplane/translate/envoy/*.py",
    "mesh/envoy.py",
    "mesh/backoff.py",
    "mesh/spiffe_bundle.py",
    "waypoint/bootstrap.py",
    "waypoint/clusters.py",
    "waypoint/sinks.py",
    "meshctl/edges.py",
)
IMPURE_MODULES = {"asyncio", "os", "socket", "time", "subprocess", "threading", "random"}
LONGEST_FILE, LONGEST_FUNCTION = 450, 55
SOURCES = [
    p for name in PACKAGES for p in sorted((ROOT / name).rglob("*.py")) if "gen" not in p.relative_to(ROOT).parts
]


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(node.module or "")
    return found


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_a_package_imports_only_what_its_border_allows(path):
    package = path.relative_to(ROOT).parts[0]
    ours = {name.split(".")[0] for name in imports(path)} & set(PACKAGES)
    assert ours <= MAY_IMPORT[package]


@pytest.mark.parametrize("pattern", PURE)
def test_what_decides_touches_no_clock_and_no_kernel(pattern):
    paths = sorted(ROOT.glob(pattern))
    assert paths, f"{pattern} names nothing"
    for path in paths:
        touched = {name.split(".")[0] for name in imports(path)} & IMPURE_MODULES
        assert not touched, f"{relative(path)} imports {touched}"


def test_feature_packages_of_a_daemon_meet_only_in_its_main():
    for daemon in ("nodeagent", "controlplane"):
        features = {p.name for p in (ROOT / daemon).iterdir() if (p / "__init__.py").exists()}
        features -= {"l7", "schema"}  # vocabularies, like mesh.model
        for path in (ROOT / daemon).glob("*/*.py"):
            others = {f"{daemon}.{name}" for name in features - {path.parent.name}}
            met = {name for name in imports(path) if any(name == o or name.startswith(o + ".") for o in others)}
            assert not met, f"{relative(path)} imports {met}"


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_files_and_functions_stay_readable(path):
    text = path.read_text()
    assert text.count("\n") <= LONGEST_FILE
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            length = (node.end_lineno or 0) - node.lineno + 1
            assert length <= LONGEST_FUNCTION, f"{relative(path)}:{node.lineno} {node.name} has {length} lines"


def test_the_rust_core_reads_no_clock_and_opens_no_socket():
    touched = re.compile(r"std::(time|net::(Tcp|Udp)|env|fs|thread|process)|tokio|SystemTime|Instant::now")
    for path in (ROOT / "ztunnel/crates/core/src").rglob("*.rs"):
        code = "\n".join(line for line in path.read_text().split("\n") if not line.lstrip().startswith("//"))
        assert not touched.search(code), f"{relative(path)}: {touched.search(code)}"


def test_only_the_dataplane_module_crosses_the_language_border():
    crossing = {relative(p) for p in SOURCES if "ztunnel._core" in imports(p)}
    crossing |= {relative(p) for p in SOURCES if "ztunnel" in imports(p) and "import _core" in p.read_text()}
    assert crossing <= {"ztunnel/dataplane.py"}


def test_generated_code_follows_the_protos(tmp_path):
    """`make gen` was run after the last change to proto/ (Python side; the Rust side is built from the same files)."""
    names = ("xds", "workload", "authorization", "ca", "zds")
    protos = [f"mesh/gen/{name}.proto" for name in names]
    command = [
        sys.executable,
        "-m",
        "grpc_tools.protoc",
        f"-Imesh/gen={ROOT}/proto",
        f"--python_out={tmp_path}",
        *protos,
    ]
    subprocess.run(command, check=True)
    for name in names:
        fresh = (tmp_path / f"mesh/gen/{name}_pb2.py").read_text()
        assert fresh == (ROOT / f"mesh/gen/{name}_pb2.py").read_text(), f"proto/{name}.proto changed: run `make gen`"


def test_the_tunnel_starts_without_what_is_large_and_few_settings_want():
    """Resident memory of every node: what these import is 21 MiB. See `bench/README.md`."""
    program = "import sys, ztunnel.main; print(sorted({'aiohttp', 'cryptography'} & {*sys.modules}))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
