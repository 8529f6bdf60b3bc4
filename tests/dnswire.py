"""DNS as a client and a name server of tests speak it: just enough of RFC 1035 to ask, to read and to answer."""

import struct
from ipaddress import ip_address

TYPES = {"A": 1, "NS": 2, "CNAME": 5, "SOA": 6, "PTR": 12, "TXT": 16, "AAAA": 28, "SRV": 33, "OPT": 41, "HTTPS": 65}
_NAMES = {number: name for name, number in TYPES.items()}
RCODES = {0: "NOERROR", 1: "FORMERR", 2: "SERVFAIL", 3: "NXDOMAIN", 4: "NOTIMP", 5: "REFUSED"}
TRUNCATED = 0x0200
RESPONSE = 0x8000


def pack_name(name):
    labels = [label.encode() for label in name.rstrip(".").split(".") if label]
    return b"".join(bytes([len(label)]) + label for label in labels) + b"\0"


def question(name, rtype="A", ident=0x4242):
    return struct.pack("!6H", ident, 0x0100, 1, 0, 0, 0) + pack_name(name) + struct.pack("!HH", TYPES[rtype], 1)


class Message:
    """A parsed message: `rcode`, `flags`, `name` and `rtype` asked for, `answers` as (name, type, text)."""

    def __init__(self, data):
        self.data = data
        self.ident, self.flags, questions, answers, self.authority, _ = struct.unpack("!6H", data[:12])
        self.rcode = RCODES.get(self.flags & 15, str(self.flags & 15))
        self.truncated = bool(self.flags & TRUNCATED)
        self.name, at = self._name(12)
        (number,) = struct.unpack_from("!H", data, at)
        self.rtype = _NAMES.get(number, str(number))
        assert questions == 1
        at += 4
        self.answers = []
        for _ in range(answers):
            record, at = self._record(at)
            self.answers.append(record)

    @property
    def texts(self):
        """What the answers say, in order of the alphabet."""
        return sorted(text for _, _, text in self.answers)

    def _record(self, at):
        name, at = self._name(at)
        number, _, _, length = struct.unpack_from("!HHIH", self.data, at)
        at += 10
        rtype = _NAMES.get(number, str(number))
        return (name, rtype, self._text(rtype, at, length)), at + length

    def _text(self, rtype, at, length):
        if rtype in ("A", "AAAA"):
            return str(ip_address(self.data[at : at + length]))
        if rtype in ("CNAME", "PTR", "NS"):
            return self._name(at)[0]
        if rtype == "SRV":
            (port,) = struct.unpack_from("!H", self.data, at + 4)
            return f"{self._name(at + 6)[0]}:{port}"
        return self.data[at : at + length].hex()

    def _name(self, at):
        labels, end = [], None
        while length := self.data[at]:
            if length >= 0xC0:
                end = end or at + 2
                at = struct.unpack_from("!H", self.data, at)[0] & 0x3FFF
                continue
            labels.append(self.data[at + 1 : at + 1 + length].decode())
            at += 1 + length
        return ".".join(labels), end or at + 1


def reply(data, addresses=(), rcode=0, flags=0):
    """A name server's answer to the question `data`, with these addresses of the family that was asked for."""
    asked = Message(data)
    version = {"A": 4, "AAAA": 6}.get(asked.rtype)
    packed = [ip_address(a).packed for a in addresses if ip_address(a).version == version]
    end = 12 + len(pack_name(asked.name)) + 4
    head = struct.pack("!6H", asked.ident, RESPONSE | 0x0180 | rcode | flags, 1, len(packed), 0, 0)
    records = [struct.pack("!HHHIH", 0xC00C, TYPES[asked.rtype], 1, 60, len(each)) + each for each in packed]
    return head + data[12:end] + b"".join(records)


def ask_datagram(sock, server, name, rtype="A", port=53):
    """`sock` lives where the question is to be asked."""
    sock.sendto(question(name, rtype), (server, port))
    return Message(sock.recv(65535))


def ask_stream(sock, name, rtype="A"):
    data = question(name, rtype)
    sock.sendall(struct.pack("!H", len(data)) + data)
    return Message(read_framed(sock))


def read_framed(sock):
    (length,) = struct.unpack("!H", read_exactly(sock, 2))
    return read_exactly(sock, length)


def read_exactly(sock, count):
    data = b""
    while len(data) < count:
        piece = sock.recv(count - len(data))
        if not piece:
            raise ConnectionError("the other side ended in the middle")
        data += piece
    return data
