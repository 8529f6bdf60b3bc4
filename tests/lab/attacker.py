"""A pod's process that tries to send TCP past the mesh: `attacker.py ME IP PORT OWN_IP PATIENCE_S` runs all of TABLE.

Plain sockets and the standard library. Each attempt carries its own marker, so that whoever looks at the wire can tell
which one came through; what became of it here is printed, one JSON object per line.
"""

import ctypes
import json
import os
import socket
import struct
import sys
from typing import Any

SO_MARK, SO_BINDTODEVICE, IP_TRANSPARENT, IPV6_TRANSPARENT = 36, 25, 19, 75
SOL_PACKET, PACKET_QDISC_BYPASS = 263, 20
IPPROTO_MPTCP = 262
TUNNEL_MARK, CONNECTION_MARK, DIRECT_MARK = 0x539, 0x111, 0x222
SYN, PUSH_ACK = 0x02, 0x18
DESTINATION_OPTIONS = bytes([6, 0, 1, 4, 0, 0, 0, 0])
"""With TCP behind it."""
MORE_OPTIONS = bytes([60]) + DESTINATION_OPTIONS[1:]
BROADCAST = b"\xff" * 6


def marker(case: str, who: str) -> bytes:
    return f"<past-the-mesh:{case}:{who}>".encode()


class Attacker:
    """`me`: who it is in the markers. `own`: the pod's address of the target's family. `patience_s`: of one attempt."""

    def __init__(self, me: str, ip: str, port: int, own: str, patience_s: float) -> None:
        self.patience_s = patience_s
        self.me, self.ip, self.port, self.own = me, ip, port, own
        self.family = socket.AF_INET6 if ":" in ip else socket.AF_INET
        self.case = ""

    @property
    def secret(self) -> bytes:
        return marker(self.case, self.me)

    def stream(self, protocol: int = 0, mark: int = 0, device: bytes = b"") -> socket.socket:
        made = socket.socket(self.family, socket.SOCK_STREAM, protocol)
        made.settimeout(self.patience_s)
        if mark:
            made.setsockopt(socket.SOL_SOCKET, SO_MARK, mark)
        if device:
            made.setsockopt(socket.SOL_SOCKET, SO_BINDTODEVICE, device)
        return made

    def say(self, made: socket.socket, ip: str = "", port: int = 0) -> str:
        """Connects and says it; what the other side answers."""
        with made:
            made.connect((ip or self.ip, port or self.port))
            made.sendall(b"GET /" + self.secret + b" HTTP/1.0\r\n\r\n")
            return made.recv(100).decode(errors="replace")

    # Ordinary sockets ------------------------------------------------------------------------------------------------

    def plain(self) -> str:
        return self.say(self.stream())

    def as_tunnel(self) -> str:
        return self.say(self.stream(mark=TUNNEL_MARK))

    def as_tunnel_on_device(self) -> str:
        return self.say(self.stream(mark=TUNNEL_MARK, device=b"eth0"))

    def as_judged(self) -> str:
        return self.say(self.stream(mark=CONNECTION_MARK))

    def as_judged_on_device(self) -> str:
        """The mark's route leads to lo, the device elsewhere."""
        return self.say(self.stream(mark=CONNECTION_MARK, device=b"eth0"))

    def as_direct(self) -> str:
        return self.say(self.stream(mark=DIRECT_MARK))

    def as_direct_on_device(self) -> str:
        return self.say(self.stream(mark=DIRECT_MARK, device=b"eth0"))

    def marked_after_connect(self) -> str:
        with self.stream() as made:
            made.connect((self.ip, self.port))
            made.setsockopt(socket.SOL_SOCKET, SO_MARK, TUNNEL_MARK)
            made.sendall(self.secret)
            return made.recv(100).decode(errors="replace")

    def on_device(self) -> str:
        return self.say(self.stream(device=b"eth0"))

    def as_uid(self, uid: int) -> str:
        """In a child: nobody comes back from another uid."""
        if (child := os.fork()) == 0:
            try:
                os.setuid(uid)
                self.say(self.stream())
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        return f"as uid {uid}"

    def as_proxy_uid(self) -> str:
        return self.as_uid(1337)

    def as_daemon_uid(self) -> str:
        return self.as_uid(65532)

    def from_foreign_source(self) -> str:
        """The address of another: no answer comes back here, but the first packet is out."""
        made = self.stream()
        with made:
            level, option = (socket.SOL_IP, IP_TRANSPARENT) if self.family == socket.AF_INET else (41, IPV6_TRANSPARENT)
            made.setsockopt(level, option, 1)
            made.bind(("169.254.7.127" if self.family == socket.AF_INET else "fd16:9254:7127:1337::1", 0))
            made.sendto(self.secret, socket.MSG_FASTOPEN, (self.ip, self.port))
            return made.recv(100).decode(errors="replace")

    def fast_open(self) -> str:
        with self.stream() as made:
            made.settimeout(None)  # else it is not sent with the first packet
            made.sendto(self.secret, socket.MSG_FASTOPEN, (self.ip, self.port))
            made.settimeout(self.patience_s)
            return made.recv(100).decode(errors="replace")

    def multipath(self) -> str:
        return self.say(self.stream(IPPROTO_MPTCP))

    def tiny_segments(self) -> str:
        made = self.stream()
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 88)
        return self.say(made)

    def urgent(self) -> str:
        with self.stream() as made:
            made.connect((self.ip, self.port))
            made.send(self.secret, socket.MSG_OOB)
            return made.recv(100).decode(errors="replace")

    def mapped(self) -> str:
        """IPv4 by a socket of IPv6."""
        made = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
        made.settimeout(self.patience_s)
        return self.say(made, self.ip if ":" in self.ip else f"::ffff:{self.ip}")

    def port_zero(self) -> str:
        with self.stream() as made:
            made.connect((self.ip, 0))
            made.sendall(self.secret)
            return made.recv(100).decode(errors="replace")

    def to_itself_at_once(self) -> str:
        """A simultaneous open: both ends call, nobody listens."""
        with self.stream() as one:
            one.bind((self.own, 0))
            one.connect(one.getsockname())
            one.sendall(self.secret)
            return one.recv(100).decode(errors="replace")

    def to_outbound(self) -> str:
        return self.say(self.stream(), port=15001)

    def to_plaintext(self) -> str:
        return self.say(self.stream(), port=15006)

    def to_tunnel(self) -> str:
        return self.say(self.stream(), port=15008)

    def to_tunnel_as_tunnel(self) -> str:
        return self.say(self.stream(mark=TUNNEL_MARK), port=15008)

    def to_dns(self) -> str:
        return self.say(self.stream(), port=53)

    # Own packets -----------------------------------------------------------------------------------------------------

    def segment(self, flags: int, source: int = 4444, destination: int = 0) -> bytes:
        """A TCP segment that carries the marker."""
        ports = (source, destination or self.port)
        head = struct.pack("!HHIIBBHHH", *ports, 1000, 1000, 5 << 4, flags, 65535, 0, 0)
        whole = head + self.secret
        pseudo = packed(self.own) + packed(self.ip)
        if self.family == socket.AF_INET:
            pseudo += struct.pack("!BBH", 0, 6, len(whole))
        else:
            pseudo += struct.pack("!II", len(whole), 6)
        return whole[:16] + struct.pack("!H", checksum(pseudo + whole)) + whole[18:]

    def raw(self, flags: int, mark: int = 0, source: int = 4444) -> str:
        with socket.socket(self.family, socket.SOCK_RAW, socket.IPPROTO_TCP) as made:
            if mark:
                made.setsockopt(socket.SOL_SOCKET, SO_MARK, mark)
            made.sendto(self.segment(flags, source), (self.ip, 0))
        return "sent"

    def raw_syn(self) -> str:
        return self.raw(SYN)

    def raw_data(self) -> str:
        return self.raw(PUSH_ACK)

    def raw_nonsense(self) -> str:
        """Flags that belong to no connection: conntrack calls it invalid, and translates nothing of that."""
        return self.raw(0)

    def raw_as_direct(self) -> str:
        """The mark goes with the packet: no option of the socket is set."""
        mark = [(socket.SOL_SOCKET, SO_MARK, struct.pack("I", DIRECT_MARK))]
        with socket.socket(self.family, socket.SOCK_RAW, socket.IPPROTO_TCP) as made:
            made.sendmsg([self.segment(PUSH_ACK)], mark, 0, (self.ip, 0))
        return "sent"

    def raw_as_tunnel(self) -> str:
        return self.raw(PUSH_ACK, TUNNEL_MARK)

    def raw_as_judged(self) -> str:
        return self.raw(PUSH_ACK, CONNECTION_MARK)

    def raw_as_reply(self) -> str:
        """As if it were of a connection that the tunnel accepted."""
        return self.raw(PUSH_ACK, source=15008)

    def raw_fragments(self) -> str:
        segment = self.segment(PUSH_ACK)
        if self.family == socket.AF_INET6:
            return self.behind_options(DESTINATION_OPTIONS + segment, 24)
        with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as made:
            made.sendto(self.header(segment[:16], 0x2000) + segment[:16], (self.ip, 0))
            made.sendto(self.header(segment[16:], 2) + segment[16:], (self.ip, 0))
        return "sent"

    def raw_hidden(self) -> str:
        """No fragment both says that it is TCP and has a port."""
        segment = self.segment(PUSH_ACK)
        if self.family == socket.AF_INET6:
            return self.behind_options(MORE_OPTIONS + DESTINATION_OPTIONS + segment, 8)
        with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as made:
            made.sendto(self.header(segment[16:], 2) + segment[16:], (self.ip, 0))
        return "sent"

    def behind_options(self, whole: bytes, cut: int) -> str:
        """In two, whose headers name options and not TCP (RFC 8200 §4.5, §4.6)."""
        with socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_RAW) as made:
            for at, part, more in ((0, whole[:cut], 1), (cut, whole[cut:], 0)):
                body = struct.pack("!BBHI", 60, 0, at | more, 77) + part
                made.sendto(self.header(body, kind=44) + body, (self.ip, 0))
        return "sent"

    def header(self, body: bytes, fragment: int = 0, kind: int = 6) -> bytes:
        if self.family == socket.AF_INET6:
            return struct.pack("!IHBB", 6 << 28, len(body), kind, 64) + packed(self.own) + packed(self.ip)
        head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 77, fragment, 64, 6, 0) + packed(self.own)
        head += packed(self.ip)
        return head[:10] + struct.pack("!H", checksum(head)) + head[12:]

    def frame(self, mark: int = 0, bypass: bool = False, kind: int = 0, prefix: bytes = b"") -> str:
        """Past the IP stack, to the next hop's link address."""
        ethertype = kind or (0x86DD if self.family == socket.AF_INET6 else 0x0800)
        segment = self.segment(PUSH_ACK)
        with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0) as made:
            if mark:
                made.setsockopt(socket.SOL_SOCKET, SO_MARK, mark)
            if bypass:
                made.setsockopt(SOL_PACKET, PACKET_QDISC_BYPASS, 1)
            hop = next_hop()
            made.sendto(prefix + self.header(segment) + segment, ("eth0", ethertype, 0, 0, hop))
        return "sent"

    def frame_plain(self) -> str:
        return self.frame()

    def frame_as_tunnel(self) -> str:
        return self.frame(mark=TUNNEL_MARK)

    def frame_past_queues(self) -> str:
        return self.frame(mark=TUNNEL_MARK, bypass=True)

    # What no mesh of TCP captures ------------------------------------------------------------------------------------

    def datagram(self) -> str:
        with socket.socket(self.family, socket.SOCK_DGRAM) as made:
            made.sendto(self.secret, (self.ip, self.port))
        return "sent"

    def echo_request(self) -> str:
        six = self.family == socket.AF_INET6
        with socket.socket(self.family, socket.SOCK_RAW, 58 if six else 1) as made:
            head = struct.pack("!BBHHH", 128 if six else 8, 0, 0, 7, 1)
            body = head + self.secret
            body = body[:2] + struct.pack("!H", checksum(body)) + body[4:]
            made.sendto(body, (self.ip, 0))
        return "sent"


def packed(ip: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6 if ":" in ip else socket.AF_INET, ip)


def checksum(data: bytes) -> int:
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def next_hop() -> bytes:
    """The link address of the pod's gateway, which is the only neighbour it has."""
    with open("/proc/self/net/arp", encoding="ascii") as table:
        rows = [line.split() for line in table.read().splitlines()[1:]]
    known = [row[3] for row in rows if row[5] == "eth0" and row[3] != "00:00:00:00:00:00"]
    return bytes.fromhex(known[0].replace(":", "")) if known else BROADCAST


TCP = [
    "plain",
    "as_tunnel",
    "as_tunnel_on_device",
    "as_judged",
    "as_judged_on_device",
    "as_direct",
    "as_direct_on_device",
    "marked_after_connect",
    "on_device",
    "as_proxy_uid",
    "as_daemon_uid",
    "from_foreign_source",
    "fast_open",
    "multipath",
    "tiny_segments",
    "urgent",
    "mapped",
    "port_zero",
    "to_itself_at_once",
    "to_outbound",
    "to_plaintext",
    "to_tunnel",
    "to_tunnel_as_tunnel",
    "to_dns",
    "raw_syn",
    "raw_data",
    "raw_nonsense",
    "raw_as_tunnel",
    "raw_as_direct",
    "raw_as_judged",
    "raw_as_reply",
    "raw_fragments",
    "raw_hidden",
    "frame_plain",
    "frame_as_tunnel",
    "frame_past_queues",
]
OTHER = ["datagram", "echo_request"]


def capabilities() -> list[int]:
    """CapEff as bit numbers."""
    with open("/proc/self/status", encoding="ascii") as status:
        line = next(line for line in status if line.startswith("CapEff"))
    return [bit for bit in range(64) if int(line.split()[1], 16) >> bit & 1]


def main() -> None:
    me, ip, port, own, patience_s = sys.argv[1:6]
    ctypes.CDLL(None).prctl(4, 1)  # dumpable again after setpriv
    attacker = Attacker(me, ip, int(port), own, float(patience_s))
    said: list[dict[str, Any]] = [{"capabilities": capabilities()}]
    for attacker.case in [*TCP, *OTHER]:
        try:
            said.append({"case": attacker.case, "outcome": getattr(attacker, attacker.case)()})
        except OSError as error:
            said.append({"case": attacker.case, "error": str(error)})
    for each in said:
        print(json.dumps(each), flush=True)


if __name__ == "__main__":
    main()
