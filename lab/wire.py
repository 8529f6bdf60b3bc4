"""What really is on the wire: a capture on the fabric's bridge, read back without anybody's dissector."""

from __future__ import annotations

import re
import signal
import struct
import subprocess
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Final

from lab import netns, processes
from lab.cluster import Cluster
from lab.layout import PODS, underlay_address
from lab.processes import Process, wait_until
from mesh.model import IPAddress

_RECORD: Final = struct.Struct("<IIII")
_FILE_HEADER: Final = 24
_TCP: Final = 6
_RING_KIB: Final = "65536"
_SYN, _ACK = 0x02, 0x10
_LAST_PORT: Final = 9  # discard: nobody else in a lab asks for it


@dataclass(frozen=True, slots=True)
class Packet:
    """A TCP packet; `payload` as captured."""

    src: IPAddress
    sport: int
    dst: IPAddress
    dport: int
    flags: int
    payload: bytes

    @property
    def opens(self) -> bool:
        return self.flags & (_SYN | _ACK) == _SYN

    @property
    def between_pods(self) -> bool:
        pods = PODS[self.src.version]
        return self.src in pods and self.dst in pods


class Capture:
    """All TCP that crosses the fabric while the block runs, or `everything`; `packets` afterwards. `only`: the headers
    of what tcpdump's filter takes, however many come at once.

    One that missed a packet proves nothing: leaving the block fails then (RuntimeError)."""

    def __init__(self, cluster: Cluster, name: str, *, everything: bool = False, only: str = "") -> None:
        self._filter = [] if everything else [f"({only or 'tcp'}) or tcp port {_LAST_PORT}"]
        # The kernel's ring has a place as large as the longest packet for each, 64 KiB and its headers.
        self._snap = "128" if only else "65664"
        self._cluster, self._name = cluster, f"capture-{name}"
        self._file = cluster.layout.dir / f"{self._name}.pcap"
        self._process: Process | None = None

    def __enter__(self) -> Capture:
        # -Z root: else tcpdump drops to a user who may not write into the lab's directory.
        ring = ["-s", self._snap, "-B", _RING_KIB, "-U", "--immediate-mode"]
        command = ["tcpdump", "-i", netns.BRIDGE, *ring, "-Z", "root"]
        layout = self._cluster.layout
        log = layout.log(self._name)
        before = log.stat().st_size if log.exists() else 0  # one of this name may have been before
        self._process = processes.start(
            layout, self._name, layout.fabric, [*command, "-w", str(self._file), *self._filter]
        )
        wait_until("tcpdump listens", lambda: b"listening on" in log.read_bytes()[before:], 60.0)
        return self

    def __exit__(self, failed: object, *_: object) -> None:
        assert self._process
        if not failed:
            self._settle()
        self._process.signal(signal.SIGTERM)
        if not self._process.wait(60.0):
            self._process.kill()
        elif not failed and self.lost:
            raise RuntimeError(f"{self._name}: tcpdump missed {self.lost} packets: what it saw proves nothing")

    def _settle(self) -> None:
        """Until the file has a packet that is sent now: tcpdump writes them in the order in which they came."""
        address = underlay_address(1)
        knock = ["timeout", "5", "bash", "-c", f"exec 3<>/dev/tcp/{address}/{_LAST_PORT}"]
        subprocess.run([*netns.inside(self._cluster.layout.control), *knock], capture_output=True, check=False)
        wait_until(
            "tcpdump has written the last packet", lambda: any(map(_is_last, read(self._file))), 60.0, step_s=0.05
        )

    @property
    def packets(self) -> list[Packet]:
        return [packet for packet in read(self._file) if not _is_last(packet)]

    @property
    def lost(self) -> int:
        """What tcpdump was too slow for, in its own words afterwards."""
        said = re.findall(r"(\d+) packets? dropped by kernel", self._cluster.layout.log(self._name).read_text())
        assert said, "tcpdump has not ended"
        return int(said[-1])

    @property
    def content(self) -> bytes:
        """As captured."""
        return self._file.read_bytes()

    def count(self, marker: bytes) -> int:
        return self.content.count(marker)


def _is_last(packet: Packet) -> bool:
    return _LAST_PORT in (packet.sport, packet.dport)


def read(path: Path) -> list[Packet]:
    """TCP in a pcap file (little endian, Ethernet), in order; other packets are left out."""
    data, offset, packets = path.read_bytes(), _FILE_HEADER, []
    while offset + _RECORD.size <= len(data):
        _, _, length, _ = _RECORD.unpack_from(data, offset)
        offset += _RECORD.size
        packet = parse(data[offset : offset + length])
        packets += [packet] if packet else []
        offset += length
    return packets


def parse(frame: bytes) -> Packet | None:
    """None: not TCP over IPv4 or IPv6 (without extension headers, which no TCP of ours has)."""
    kind, ip = frame[12:14], frame[14:]
    src: IPAddress
    dst: IPAddress
    if kind == b"\x08\x00" and len(ip) >= 40 and ip[9] == _TCP:
        src, dst, tcp = IPv4Address(ip[12:16]), IPv4Address(ip[16:20]), ip[(ip[0] & 0x0F) * 4 :]
    elif kind == b"\x86\xdd" and len(ip) >= 60 and ip[6] == _TCP:
        src, dst, tcp = IPv6Address(ip[8:24]), IPv6Address(ip[24:40]), ip[40:]
    else:
        return None
    sport, dport = struct.unpack_from(">HH", tcp)
    return Packet(src, sport, dst, dport, tcp[13], tcp[(tcp[12] >> 4) * 4 :])
