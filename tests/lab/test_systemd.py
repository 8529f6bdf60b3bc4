"""The mesh on a machine with a real systemd: the units as they are, set up by provision.sh, two slices as workloads.

The machine is a container of systemd-nspawn on a copy of this one's files, which ends with it.
"""

import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(shutil.which("systemd-nspawn") is None, reason="systemd-nspawn is not installed"),
    pytest.mark.skipif(
        not Path(f"/usr/bin/python3.{sys.version_info[1]}").exists(), reason="the system's Python is of another version"
    ),
]

# The programs are this working copy's: what pip would do is the vagrant test's affair.
MAKE = """
set -eu
root=$1 shared=$2 repository=$3 packages=$4
mount -t tmpfs tmpfs "$root"
mkdir "$root/upper" "$root/work" "$root/machine" "$root/bpf"
mount -t bpf bpf "$root/bpf"
mount -t overlay overlay -o "lowerdir=/,upperdir=$root/upper,workdir=$root/work" "$root/machine"
cd "$root/machine"
rm -rf etc/systemd/system/multi-user.target.wants etc/nodemesh var/lib/nodemesh*
mkdir -p opt/nodemesh/bin shared etc/systemd/system/multi-user.target.wants etc/nodemesh/config
for program in controlplane nodeagent ztunnel meshctl; do
  file=opt/nodemesh/bin/$program
  run="PYTHONPATH=/nodemesh:$packages exec /usr/bin/python3 -m $program.main"
  printf '#!/bin/sh\\n%s "$@"\\n' "$run" >$file
  chmod 755 $file
done
sha256sum "$shared/dist"/*.whl | cut -d' ' -f1 >opt/nodemesh/.wheel
printf '[Service]\\nType=oneshot\\nExecStart=/bin/sh /shared/story.sh\\n' >etc/systemd/system/story.service
ln -s ../story.service etc/systemd/system/multi-user.target.wants/story.service
# nspawn leaves its control groups behind: in a group of its own they go with that, and its files with this /run.
mount -t tmpfs tmpfs /run
tops=$(awk '$3 == "cgroup2" || $4 ~ /name=systemd/ { print $2 }' /proc/mounts)
for top in $tops; do mkdir -p $top/nodemesh-lab-boot$$; echo $$ >$top/nodemesh-lab-boot$$/cgroup.procs; done
timeout 400 systemd-nspawn --quiet --directory="$root/machine" --boot --register=no --keep-unit \\
  --private-network --capability=all --system-call-filter=bpf --machine=nodemesh-test \\
  --bind="$root/bpf:/sys/fs/bpf" --bind="$shared:/shared" --bind-ro="$repository:/nodemesh" || true
for top in $tops; do
  echo $$ >$top/cgroup.procs
  find $top/nodemesh-lab-boot$$ -depth -type d -exec rmdir {} \\;
done
"""
# Hears the whole request first: a server that closes before is one that resets, and its answer may be lost.
SERVE = """#!/bin/sh
while read -r line && [ "${line%?}" ]; do :; done
printf 'HTTP/1.0 200 OK\\r\\n\\r\\n'
"""
STORY = """
exec >/shared/said 2>&1
cd /
ip link add eth0 type veth peer name far0
ip link set lo up; ip link set far0 up; ip link set eth0 up
ip addr add 10.99.0.1/24 dev eth0; ip route add default via 10.99.0.2
ip addr add 10.99.0.101/32 dev eth0; ip addr add 10.99.0.102/32 dev eth0
printf 'apiVersion: v1\\nkind: Namespace\\nmetadata: {name: shop}\\n' >/etc/nodemesh/config/shop.yaml
export PATH=/opt/nodemesh/bin:/usr/sbin:/usr/bin:/sbin:/bin
export SOURCE=/shared NODES=$(hostname) EXCHANGE=/nowhere/nothing
setup() { "/shared/vagrant/provision.sh" "$1" 10.99.0.1 10.99.0.1; }
setup control
cp "/var/lib/nodemesh-control/nodes/$(hostname)"/* /etc/nodemesh/
setup node
setup control | sed 's/^/again: /'
setup node | sed 's/^/again: /'
for name in web db; do
  address=10.99.0.10$([ $name = web ] && echo 1 || echo 2)
  systemd-run -q --slice=$name.slice socat "TCP-LISTEN:8080,bind=$address,fork,reuseaddr" EXEC:/shared/serve.sh
  meshctl enroll --slice $name.slice --service-account $name -n shop --address $address
done
in_mesh() { curl -s --unix-socket /run/nodemesh/nodeagent.sock http://x/status | grep -c IN_MESH; }
until [ "$(in_mesh)" = 2 ]; do sleep 0.1; done
get="curl -s -o /dev/null -m 60 http://10.99.0.102:8080/"
ask() { systemd-run -q --slice=web.slice --pipe --wait $get -w "$1 %{http_code}\\n"; }
until ask trial | grep 200; do sleep 0.1; done
ask open
systemctl stop nodemesh-ztunnel
ask away
systemctl start nodemesh-ztunnel
until ask trial | grep 200; do sleep 0.1; done
ask back
meshctl check
systemctl is-active nodemesh-controlplane nodemesh-nodeagent nodemesh-ztunnel
systemctl show -p NRestarts nodemesh-controlplane nodemesh-nodeagent nodemesh-ztunnel
for unit in nodeagent ztunnel; do
  grep CapEff "/proc/$(systemctl show -p MainPID --value nodemesh-$unit)/status" | sed "s/^/$unit /"
done
export DIRECT=true
setup node | sed 's/^/direct: /'
until [ "$(in_mesh)" = 2 ]; do sleep 0.1; done
until ask trial | grep 200; do sleep 0.1; done
curl -s --unix-socket /run/nodemesh/nodeagent.sock http://x/status | grep -oE '"(bpf|direct)": *"[^"]*"'
grep CapEff "/proc/$(systemctl show -p MainPID --value nodemesh-ztunnel)/status" | sed "s/^/direct ztunnel /"
journalctl --no-pager -q -o cat -u nodemesh-controlplane -u nodemesh-nodeagent -u nodemesh-ztunnel | sed 's/^/log: /'
echo told
systemctl poweroff
"""


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """What the machine's story printed."""
    shared, root = tmp_path_factory.mktemp("shared"), tmp_path_factory.mktemp("root")
    for part in ("vagrant", "deploy"):
        shutil.copytree(ROOT / part, shared / part)
    (shared / "dist").mkdir()
    (shared / "dist/nodemesh-0-py3-none-any.whl").write_bytes(b"")
    (shared / "story.sh").write_text(STORY)
    (shared / "serve.sh").write_text(SERVE)
    (shared / "serve.sh").chmod(0o755)
    packages = sysconfig.get_path("purelib").replace(str(ROOT), "/nodemesh")
    # In namespaces of its own: every mount ends with it.
    command = ["unshare", "--mount", "sh", "-c", MAKE, "sh", str(root), str(shared), str(ROOT), packages]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=460)
    lines = (shared / "said").read_text().splitlines() if (shared / "said").exists() else []
    assert "told" in lines, "\n".join(lines[-40:]) + done.stdout[-2000:] + done.stderr[-2000:]
    return lines


def test_the_script_sets_a_machine_up_and_a_second_run_changes_nothing(said):
    assert [line for line in said if line.startswith("again: ")] == [
        "again: ==> control at 10.99.0.1: 0 changed",
        "again: ==> node at 10.99.0.1: 0 changed",
    ]


def test_the_daemons_run_in_their_sandbox(said):
    assert said.count("active") == 3
    assert said.count("NRestarts=0") == 3
    assert not [line for line in said if "Traceback" in line]


def test_two_slices_talk_with_identities_of_their_own(said):
    line = next(
        line for line in said if line.startswith("log: ") and "direction=inbound" in line and "complete" in line
    )
    assert "src.identity=spiffe://cluster.local/ns/shop/sa/web" in line
    assert "dst.identity=spiffe://cluster.local/ns/shop/sa/db" in line


def test_without_the_tunnel_they_are_refused_until_it_is_back(said):
    told = [line for line in said if re.fullmatch(r"(open|away|back) \d+", line)]
    assert told == ["open 200", "away 000", "back 200"], "\n".join(said[-30:])


def test_check_finds_nothing_wrong(said):
    assert next(line for line in said if line.endswith(" fail")).endswith(", 0 fail")
    assert not [line for line in said if line.startswith("FAIL")]


def test_a_node_is_given_the_direct_path_by_one_word(said):
    """The tunnel refuses the maps when it may not ask for sockets of namespaces, or read what it was handed."""
    told = [line for line in said if line.startswith(('"bpf"', '"direct"'))]
    assert '"direct": "on"' in told, told
    (held,) = [line for line in said if line.startswith("direct ztunnel CapEff")]
    assert int(held.split()[-1], 16) == 1 << 12 | 1 << 13 | 1 << 21  # NET_ADMIN, NET_RAW, SYS_ADMIN
