"""The machines of vagrant/ without a hypervisor: the files are valid, and the script does its work once."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "vagrant/provision.sh"
TWICE = """
set -eu
root=$1 role=$2 source=$3
mount -t tmpfs tmpfs "$root"
for place in etc opt usr var; do
  mkdir -p "$root/$place" "$root/.$place"
  mount -t overlay overlay -o "lowerdir=/$place,upperdir=$root/$place,workdir=$root/.$place" "/$place"
done
mount -t tmpfs tmpfs /run
hostname node1
mkdir -p /etc/nodemesh
if [ "$role" = node ]; then echo token >/etc/nodemesh/join-token; echo root >/etc/nodemesh/root-cert.pem; fi
export SOURCE="$source" EXCHANGE=/nowhere/nothing
state() {
  cd "$root"
  find etc opt usr var -type f -printf '%p %m %T@ %s\\n' -o -type l -printf '%p %l\\n' | sort
}
"$source/vagrant/provision.sh" "$role" 192.0.2.11 192.0.2.10
state >/run/first
"$source/vagrant/provision.sh" "$role" 192.0.2.11 192.0.2.10
state >/run/second
diff /run/first /run/second
if [ "$role" = node ]; then
  drop_in=/etc/systemd/system/nodemesh-ztunnel.service.d/direct.conf
  DIRECT=true "$source/vagrant/provision.sh" node 192.0.2.11 192.0.2.10 | sed 's/^/direct: /'
  cmp "$source/deploy/systemd/nodemesh-ztunnel-direct.conf" $drop_in
  grep -qx NODEMESH_SAME_NODE_DIRECT=true /etc/nodemesh/node.env
  DIRECT=true "$source/vagrant/provision.sh" node 192.0.2.11 192.0.2.10 | sed 's/^/direct again: /'
  "$source/vagrant/provision.sh" node 192.0.2.11 192.0.2.10 | sed 's/^/back: /'
  ! [ -e $drop_in ] && ! grep SAME_NODE /etc/nodemesh/node.env
fi
ls /opt/nodemesh/bin /etc/systemd/system /etc/systemd/system/multi-user.target.wants
cat /etc/nodemesh/*.env
"""


def run(*words, **options):
    return subprocess.run(words, capture_output=True, text=True, timeout=120, **options)


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_the_scripts_are_clean():
    done = run("shellcheck", str(SCRIPT), str(ROOT / "tools/setup.sh"), str(ROOT / "tools/real.sh"))
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.lab
@pytest.mark.skipif(shutil.which("vagrant") is None, reason="vagrant is not installed")
def test_vagrant_finds_the_file_valid(tmp_path):
    for file in ("Vagrantfile", "provision.sh"):
        shutil.copy(ROOT / "vagrant" / file, tmp_path)
    variables = {"PATH": "/usr/bin:/bin:/usr/sbin:/sbin", "HOME": str(tmp_path), "NODES": "5"}
    done = run("vagrant", "validate", "--ignore-provider", cwd=tmp_path, env=variables)
    assert "Vagrantfile validated successfully" in done.stdout, done.stdout + done.stderr
    assert "node5" in done.stdout


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ((), "three arguments are needed: ROLE IP CONTROL_IP"),
        (("master", "192.0.2.1", "192.0.2.2"), "the role is control or node, not master"),
        (("node", "here", "192.0.2.2"), "here is not an IP address"),
    ],
)
def test_a_mistake_is_a_sentence(words, sentence):
    done = run(str(SCRIPT), *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"provision: {sentence}\n"


@pytest.fixture
def working_copy(tmp_path):
    """This one's scripts and units, and a wheel of its Python."""
    copy = tmp_path / "copy"
    for part in ("vagrant", "deploy"):
        shutil.copytree(ROOT / part, copy / part)
    (copy / "dist").mkdir()
    packages = ["mesh", "nodeagent", "ztunnel", "controlplane", "meshctl"]
    scripts = "".join(f"{name} = {name}.main:main\n" for name in packages[1:])
    with zipfile.ZipFile(copy / "dist/nodemesh-0.1.0-py3-none-any.whl", "w") as wheel:
        for path in (p for name in packages for p in sorted((ROOT / name).rglob("*.py"))):
            wheel.write(path, path.relative_to(ROOT))
        about = "nodemesh-0.1.0.dist-info/"
        wheel.writestr(about + "METADATA", "Metadata-Version: 2.1\nName: nodemesh\nVersion: 0.1.0\n")
        wheel.writestr(
            about + "WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(about + "entry_points.txt", f"[console_scripts]\n{scripts}")
        wheel.writestr(about + "RECORD", "")
    return copy


@pytest.mark.lab
@pytest.mark.parametrize(
    ("role", "units", "said"),
    [
        ("control", ["nodemesh-controlplane.service"], "CONTROLPLANE_SANS=192.0.2.11"),
        ("node", ["nodemesh-nodeagent.service", "nodemesh-ztunnel.service"], "XDS_ADDRESS=https://192.0.2.10:15012"),
    ],
)
def test_a_second_run_changes_nothing(tmp_path, working_copy, role, units, said):
    """In namespaces of its own, on copies of /etc, /opt, /usr and /var that end with it."""
    (tmp_path / "root").mkdir()
    variables = {"PATH": f"{Path(sys.base_prefix) / 'bin'}:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/nowhere"}
    inside = ["unshare", "--mount", "--net", "--uts", "sh", "-c", TWICE, "sh"]
    done = run(*inside, str(tmp_path / "root"), role, str(working_copy), env=variables)
    assert done.returncode == 0, done.stdout + done.stderr
    totals = [line for line in done.stdout.splitlines() if line.endswith(" changed") and line.startswith("==>")]
    aside = [line.partition(": ")[0] for line in done.stdout.splitlines() if line.endswith(": 0 changed")]
    assert "direct" not in aside
    assert ("direct again" in aside) == (role == "node")
    assert "back" not in aside
    assert [line.rpartition(": ")[2] == "0 changed" for line in totals] == [False, True]
    enabled = done.stdout.split("multi-user.target.wants:")[1]
    assert all(unit in enabled for unit in units)
    assert said in done.stdout


@pytest.mark.lab
def test_a_node_without_its_token_says_where_it_is(tmp_path, working_copy):
    (tmp_path / "root").mkdir()
    script = TWICE.replace("echo token >/etc/nodemesh/join-token", "true")
    variables = {"PATH": f"{Path(sys.base_prefix) / 'bin'}:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/nowhere"}
    inside = ["unshare", "--mount", "--net", "--uts", "sh", "-c", script, "sh"]
    done = run(*inside, str(tmp_path / "root"), "node", str(working_copy), env=variables)
    assert done.returncode == 2
    assert done.stderr.strip().endswith("copy it from /var/lib/nodemesh-control/nodes/node1 of 192.0.2.10")
