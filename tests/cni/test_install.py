"""The installer: binary and conflist, atomically, as often as one likes."""

import json
import os

import pytest

from cni.conflist import InstallError
from cni.install import Place, install, main
from cni.watch import watch
from tests.cni.hosts import ODD, Host

PRIMARY = {"cniVersion": "1.0.0", "name": "net", "plugins": [{"type": "ptp"}, {"type": "portmap", "snat": True}]}
ENTRY = {"type": "nodemesh-cni", "agentSocket": "/run/nodemesh/cni.sock"}


@pytest.fixture
def host(tmp_path):
    return Host(tmp_path)


def read(path):
    return json.loads(path.read_text())


def test_the_entry_is_appended_and_everything_else_stays(host):
    path = host.write("10-net.conflist", PRIMARY | {"disableCheck": True}, 0o640)
    assert host.install() == path
    assert read(path) == PRIMARY | {"disableCheck": True, "plugins": [*PRIMARY["plugins"], ENTRY]}
    assert path.stat().st_mode & 0o777 == 0o640
    assert (host.bin / "nodemesh-cni").stat().st_mode & 0o777 == 0o755
    assert host.files() == ["10-net.conflist", "nodemesh-cni"]


def test_installing_twice_changes_nothing(host):
    path = host.write("10-net.conflist", PRIMARY)
    host.install()
    before = path.stat()
    host.install()
    assert path.stat() == before or path.stat().st_ino == before.st_ino


def test_an_older_entry_of_ours_becomes_the_newest_and_last(host):
    older = ENTRY | {"agentSocket": "/elsewhere"}
    path = host.write("10-net.conflist", PRIMARY | {"plugins": [older, {"type": "ptp"}]})
    host.install(agent_socket="/run/a.sock")
    assert read(path)["plugins"] == [{"type": "ptp"}, ENTRY | {"agentSocket": "/run/a.sock"}]


def test_the_first_valid_file_is_the_runtimes_and_ours(host):
    host.write("00-broken.conflist", "{")
    host.write("01-empty.conflist", {"name": "a", "plugins": []})
    host.write("02-nameless.conflist", {"plugins": [{"type": "x"}]})
    host.write("03-typeless.conf", {"name": "a"})
    host.write("04-notes.txt", PRIMARY)
    path = host.write("10-net.conflist", PRIMARY)
    second = host.write("20-other.conflist", PRIMARY)
    assert host.install() == path
    assert read(second) == PRIMARY


def test_a_single_plugin_becomes_a_list(host):
    host.write("10-net.conf", {"cniVersion": "0.4.0", "name": "net", "type": "bridge", "ipam": {}}, 0o644)
    path = host.install()
    assert path.name == "10-net.conflist"
    assert read(path) == {"cniVersion": "0.4.0", "name": "net", "plugins": [{"type": "bridge", "ipam": {}}, ENTRY]}
    assert path.stat().st_mode & 0o777 == 0o644
    assert host.files() == ["10-net.conflist", "nodemesh-cni"]


def test_uninstalling_takes_away_exactly_what_was_ours(host):
    path = host.write("10-net.conflist", PRIMARY, 0o644)
    host.install()
    host.uninstall()
    host.uninstall()
    assert read(path) == PRIMARY
    assert path.stat().st_mode & 0o777 == 0o644
    assert host.files() == ["10-net.conflist"]


def test_without_a_primary_there_is_nothing_to_chain_to(host):
    with pytest.raises(InstallError, match="has no valid CNI configuration yet"):
        host.install()


def test_a_running_binary_is_replaced_not_written_to(host):
    host.write("10-net.conflist", PRIMARY)
    host.install()
    running = open(host.bin / "nodemesh-cni", "rb")  # noqa: SIM115
    host.binary.write_bytes(b"new")
    host.install()
    with running:
        assert running.read() == b"\x7fELF"
    assert (host.bin / "nodemesh-cni").read_bytes() == b"new"


def test_an_operators_mistake_is_one_sentence_and_exit_code_2(host, capsys):
    status = main(
        ["install", "--binary", str(host.binary) + "x", "--bin-dir", str(host.bin), "--net-dir", str(host.net)]
    )
    assert (status, capsys.readouterr().err) == (
        2,
        f"cni.install: {host.binary}x cannot be read: No such file or directory\n",
    )


def test_the_command_line_installs_and_uninstalls(host, capsys):
    path = host.write("10-net.conflist", PRIMARY)
    where = ["--bin-dir", str(host.bin), "--net-dir", str(host.net)]
    assert main(["install", "--binary", str(host.binary), *where]) == 0
    assert capsys.readouterr().out == f"{path}\n"
    assert main(["uninstall", *where]) == 0
    assert read(path) == PRIMARY


@pytest.mark.parametrize(
    ("name", "content"), [("10-net.conflist", ODD), ("10-net.conf", '{"type":"bridge",  "name":"net"}')]
)
def test_uninstalling_gives_the_other_cni_its_own_bytes_back(host, name, content):
    host.write(name, content, 0o640)
    before = host.everything()
    host.install()
    host.install(agent_socket="/run/another.sock")
    host.uninstall()
    assert host.everything() == before


def test_what_the_other_cni_wrote_meanwhile_is_what_it_gets_back(host):
    path = host.write("10-net.conflist", ODD)
    host.install()
    newer = json.loads(path.read_text())
    newer["plugins"].insert(1, {"type": "bandwidth"})
    path.write_text(json.dumps(newer))
    host.uninstall()
    assert read(path) == json.loads(ODD) | {"plugins": [{"type": "ptp"}, {"type": "bandwidth"}]}
    assert host.files() == ["10-net.conflist"]


def test_a_list_that_somebody_writes_meanwhile_is_not_lost(host, monkeypatch):
    path = host.write("10-net.conflist", PRIMARY)
    newer, fsync = PRIMARY | {"name": "newer"}, os.fsync

    def write(fd):
        fsync(fd)
        if newer["name"] not in path.read_text() and b"conflist" in os.fsencode(os.readlink(f"/proc/self/fd/{fd}")):
            host.write("10-net.conflist", newer)

    monkeypatch.setattr(os, "fsync", write)
    host.install()
    assert read(path) == newer | {"plugins": [*PRIMARY["plugins"], ENTRY]}


class Bell:
    """Rings when the next thing has been done to the directories."""

    def __init__(self, *deeds):
        self.deeds = list(deeds)

    def wait(self, _):
        if not self.deeds:
            raise EOFError
        self.deeds.pop(0)()


def watched(host, *deeds):
    """What is said."""
    said = []
    with pytest.raises(EOFError):
        watch(lambda: install(Place(host.binary, host.bin, host.net))[1], [], Bell(*deeds), said.append)
    return said


def test_what_others_do_to_it_is_mended_and_told(host):
    path, first = host.net / "10-net.conflist", host.net / "05-new.conflist"
    said = watched(
        host,
        lambda: host.write("10-net.conflist", PRIMARY),
        lambda: None,
        lambda: host.write("10-net.conflist", PRIMARY | {"name": "rewritten"}),
        lambda: (host.bin / "nodemesh-cni").write_bytes(b"broken"),
        lambda: host.write("05-new.conflist", PRIMARY),
        first.unlink,
        path.unlink,
    )
    nothing = f"{host.net} has no valid CNI configuration yet: the primary plugin has to be installed first"
    ours, binary = f"{path} ends in our entry now", f"{host.bin}/nodemesh-cni is put there"
    assert said == [nothing, ours, ours, binary, f"{first} ends in our entry now", nothing]


def test_nothing_is_written_while_nothing_changes(host):
    path = host.write("10-net.conflist", PRIMARY)
    seen = []
    watched(host, *[lambda: seen.append((path.stat(), host.everything()))] * 3)
    assert seen[0] == seen[1] == seen[2]
