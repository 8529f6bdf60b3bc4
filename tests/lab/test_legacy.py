"""python-iptables reads legacy tables as iptables-legacy-save does, touches nothing, and is bypassed when it cannot."""

import fcntl
import shlex
import sys
from contextlib import closing
from pathlib import Path

import psutil
import pytest
from click.testing import CliRunner

from lab.netns import run
from lab.processes import wait_until
from mesh.errors import OperatorError
from meshctl.main import cli
from nodeagent.redirect import iptables, legacy
from nodeagent.redirect.legacy import Reader, Unreadable
from nodeagent.redirect.plan import Options, make_plan
from tests.deploy.units import capabilities
from tests.lab.captures import Capture
from tests.lab.pairs import NEIGHBOUR, pair
from tests.nodeagent.redirect.test_plan import VARIANTS

pytestmark = pytest.mark.lab

GOLDEN = Path(__file__).parents[1] / "nodeagent/redirect/golden"
SOON_S = 60.0
PROGRAMS = {4: "iptables-legacy", 6: "ip6tables-legacy"}
NAMES = ("ip_tables_names", "ip6_tables_names")
CHILD = "nodeagent.redirect.legacy_child"
REDIRECT = "-p tcp -j REDIRECT --to-ports 9999"

FOREIGN = """
nat OUTPUT -p tcp -j REDIRECT --to-ports 9999
nat OUTPUT -p tcp -m owner --uid-owner 0 -m comment --comment "it's a b" -j LOG --log-prefix "a b"
nat OUTPUT -p tcp -m multiport ! --dports 1,2:9 -m limit --limit 3/min -j NODEMESH_PRERT
nat PREROUTING -i eth+ -p sctp -g NODEMESH_PRERT
nat POSTROUTING ! -o lo -j MASQUERADE
raw OUTPUT -p tcp -j NOTRACK
raw OUTPUT -p tcp -j CT --notrack
mangle OUTPUT -m state --state NEW,ESTABLISHED -j MARK --set-mark 7
mangle OUTPUT -m conntrack ! --ctstate NEW
mangle OUTPUT -p tcp --tcp-flags SYN,RST SYN -j TCPMSS --set-mss 1200
mangle OUTPUT -m addrtype --dst-type LOCAL -j CONNMARK --save-mark
mangle PREROUTING -p tcp -j TPROXY --on-port 15006 --tproxy-mark 0x1/0x1
"""
FOREIGN_4 = "nat OUTPUT ! -s 10.1.2.3 -d 10.0.0.0/8 -p tcp -j DNAT --to-destination 10.0.0.1:80\nraw OUTPUT ! -f"
FOREIGN_6 = "nat OUTPUT ! -s fd00::1 -d fd00::/8 -p tcp -j DNAT --to-destination [fd00::1]:80"


def words(listing):
    """table -> its rules and chains, in order and in words, without counters; those of ours."""
    found = {}
    for line in listing.splitlines():
        if line.startswith("*"):
            rows = found[line[1:]] = []
        elif line.startswith(":"):
            rows.append(line.split()[:2])
        elif line.startswith("-A"):
            rows.append(shlex.split(line))
    return {table: rows for table, rows in found.items() if table in iptables.TABLES}


@pytest.fixture(scope="module", autouse=True)
def kernel():
    try:
        run("unshare", "--net", "iptables-legacy", "-t", "nat", "-S")
    except OperatorError as error:
        pytest.skip(f"this kernel has no legacy tables: {error}")


@pytest.fixture
def pod():
    """A fresh one: without any table."""
    with pair() as (pod, _):
        yield pod


@pytest.fixture
def rules(pod):
    return Capture("iptables-legacy", pod)


@pytest.fixture(scope="module")
def reader():
    with closing(Reader(deadline_s=SOON_S)) as reader:
        yield reader


def both(pod, reader, version):
    """By python-iptables, by the program."""
    by_program = words(pod.command(f"{PROGRAMS[version]}-save"))
    return words(pod.run(lambda: reader.read(version))), by_program


def add(pod, version, rule):
    table, chain, *rest = shlex.split(rule)
    pod.command(PROGRAMS[version], "-t", table, "-A", chain, *rest)


def named(pod):
    return [pod.run(lambda name=name: Path(f"/proc/thread-self/net/{name}").read_text().split()) for name in NAMES]


def test_both_readers_see_the_same_whatever_the_plan_and_whatever_stands_beside_it(pod, reader, version):
    ranges = ("10.1.0.0/16", "10.2.3.4", "fd01::/64", "fd02::1")
    more = Options(excluded_outbound_ranges=ranges, excluded_inbound_ports=(9090,), virtual_interfaces=("virt0",))
    for options in (*VARIANTS.values(), more):
        pod.run(lambda options=options: legacy.xtables.put("legacy", make_plan(options)))
        by_python, by_program = both(pod, reader, version)
        assert by_python == by_program
        listing = pod.run(lambda: reader.read(version))
        assert iptables.differences(make_plan(options), version, iptables.read(listing, version)) == []
    for rule in [*FOREIGN.strip().splitlines(), *(FOREIGN_4 if version == 4 else FOREIGN_6).splitlines()]:
        add(pod, version, rule)
    by_python, by_program = both(pod, reader, version)
    assert by_python == by_program


def test_the_default_plan_is_listed_as_it_was_recorded(pod, rules, reader, version):
    rules.put()
    assert pod.run(lambda: reader.read(version)) == (GOLDEN / f"default.listing.ip{version}").read_text()


def test_reading_makes_no_table(pod, reader):
    """python-iptables opens all that it knows, and whoever opens a table makes it."""
    add(pod, 4, f"nat OUTPUT {REDIRECT}")
    assert "REDIRECT --to-ports 9999" in pod.run(lambda: reader.read(4))
    assert inspected(pod, reader) != []
    assert named(pod) == [["nat"], []]


def test_the_capabilities_of_the_agents_unit_are_enough(pod, rules):
    rules.put()
    held = ",".join(["-all", *(f"+{each}" for each in capabilities("nodeagent"))])
    confined = ("setpriv", "--bounding-set", held, "--inh-caps", held, "--no-new-privs")
    read = "from nodeagent.redirect.legacy import reader; print(reader.read(4), end=''); reader.close()"
    assert pod.command(*confined, sys.executable, "-c", read) == (GOLDEN / "default.listing.ip4").read_text()


def test_a_foreign_holder_of_the_xtables_lock_delays_no_reading(pod, rules, reader):
    rules.put()
    with open("/run/xtables.lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert inspected(pod, reader) == []


def inspected(pod, reader, backend="iptables"):
    return pod.run(lambda: legacy.inspect(backend, make_plan(Options()), reader))


def test_what_takes_tcp_beside_our_legacy_rules_is_named_and_so_is_what_differs(pod, rules, reader):
    rules.put()
    assert inspected(pod, reader) == []
    add(pod, 4, "raw OUTPUT -p tcp -j NOTRACK")
    pod.command("ip6tables-legacy", "-t", "nat", "-I", "OUTPUT", "1", *REDIRECT.split())
    assert inspected(pod, reader) == [
        "IPv4 legacy table raw takes TCP out of connection tracking, without which nothing is captured: "
        "-A OUTPUT -p tcp -j NOTRACK",
        f"IPv6 legacy table nat sends TCP elsewhere: -A OUTPUT {REDIRECT}",
        "OUTPUT of IPv6 table nat does not begin with the jump to NODEMESH_OUTPUT",
    ]


def test_a_legacy_rule_does_take_tcp_from_capture_by_nft(pod, reader, version):
    """What is called a finding is one: the connection never comes to the tunnel's port."""
    capture = Capture("nft", pod)
    capture.put()
    add(pod, version, f"nat OUTPUT {REDIRECT}")
    with pod.listening(9999, version) as elsewhere, pod.connected(NEIGHBOUR[version], 80):
        elsewhere.accept()[0].close()
    assert capture.compare() == []
    rule = f"IPv{version} legacy table nat sends TCP elsewhere: -A OUTPUT {REDIRECT}"
    assert inspected(pod, reader, "nft") == [rule]


def children():
    return {each for each in psutil.Process().children() if CHILD in each.as_dict(["cmdline"], ad_value=[])["cmdline"]}


def test_a_child_that_is_killed_costs_one_reading_and_not_what_it_was_to_find(pod):
    add(pod, 4, f"nat OUTPUT {REDIRECT}")
    expected = [f"IPv4 legacy table nat sends TCP elsewhere: -A OUTPUT {REDIRECT}"]
    with closing(Reader(deadline_s=SOON_S)) as reader:
        earlier = children()
        assert (inspected(pod, reader), reader.trouble) == (expected, "")
        (victim,) = children() - earlier
        victim.kill()
        assert inspected(pod, reader) == expected
        assert reader.trouble.startswith("the child that reads legacy tables: ")
        assert "REDIRECT" in pod.run(lambda: reader.read(4))


BROKEN = {
    "sys.modules['iptc'] = None": "python-iptables does not load: ModuleNotFoundError: import of iptc halted",
    "ctypes.util.find_library = lambda name: None": "libip4tc is not installed",
    "import iptc; del iptc.Table": "python-iptables: AttributeError: module 'iptc' has no attribute 'Table'",
    "child.listing = lambda version: ctypes.string_at(1)": "the child that reads legacy tables: it died while it read",
}


@pytest.mark.parametrize("damage", BROKEN)
def test_where_python_iptables_cannot_the_program_reads_and_it_is_said_why(pod, damage):
    start = f"import ctypes, sys, ctypes.util; from nodeagent.redirect import legacy_child as child; {damage}"
    add(pod, 4, f"nat OUTPUT {REDIRECT}")
    with closing(Reader((sys.executable, "-c", f"{start}; child.main()"), SOON_S)) as reader:
        assert inspected(pod, reader) == [f"IPv4 legacy table nat sends TCP elsewhere: -A OUTPUT {REDIRECT}"]
        assert reader.trouble.startswith(BROKEN[damage])
        with pytest.raises(Unreadable):
            pod.run(lambda: reader.read(4))


def ours(mesh, command):
    result = CliRunner().invoke(cli, [command, "--lab", mesh.layout.name, "--node", "node1"])
    return result.exit_code, result.output


def test_check_and_status_name_a_legacy_rule_that_takes_a_pods_tcp_until_it_is_gone(mesh):
    web = mesh.pods["web-1"]
    phrase = "beside its capture, IPv4 legacy table nat sends TCP elsewhere: -A OUTPUT -d 198.51.100.7/32 "
    rule = ["nat", "OUTPUT", "-d", "198.51.100.7", *REDIRECT.split()]
    mesh.exec(web, ["iptables-legacy", "-t", rule[0], "-A", *rule[1:]])
    try:
        code, text = ours(mesh, "check")
        assert code == 1
        assert f"pod shop/web-1: {phrase}" in text
        code, text = ours(mesh, "status")
        assert code == 1
        assert f"{web.uid}: {phrase}" in text
    finally:
        mesh.exec(web, ["iptables-legacy", "-t", rule[0], "-D", *rule[1:]])
    wait_until("it is forgotten", lambda: phrase not in ours(mesh, "check")[1] + ours(mesh, "status")[1], SOON_S)
