"""The installer: binary and conflist, atomically, as often as one likes."""

import json
import os

import pytest

from cni.install import InstallError, install, main, uninstall

PRIMARY = {"cniVersion": "1.0.0", "name": "net", "plugins": [{"type": "ptp"}, {"type": "portmap", "snat": True}]}
ENTRY = {"type": "nodemesh-cni", "agentSocket": "/run/nodemesh/cni.sock"}


class Host:
    def __init__(self, root):
        self.bin, self.net, self.binary = root / "bin", root / "net.d", root / "nodemesh-cni"
        self.bin.mkdir()
        self.net.mkdir()
        self.binary.write_bytes(b"\x7fELF")

    def write(self, name, content, mode=0o600):
        path = self.net / name
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        path.chmod(mode)
        return path

    def install(self, **more):
        return install(self.binary, self.bin, self.net, **more)

    def uninstall(self):
        uninstall(self.bin, self.net)

    def files(self):
        return sorted(os.listdir(self.bin) + os.listdir(self.net))


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
