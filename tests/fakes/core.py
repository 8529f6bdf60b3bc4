"""A core without a data path that keeps the promises of `ztunnel/_core.pyi`; `test_core_contract.py` checks it."""

from __future__ import annotations

import json
import os
import zlib
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from google.protobuf.message import DecodeError, Message

from mesh.delta import ADDRESS_TYPE, AUTHORIZATION_TYPE
from mesh.gen.authorization_pb2 import Authorization
from mesh.gen.workload_pb2 import Address
from mesh.gen.xds_pb2 import DeltaDiscoveryResponse
from mesh.ids import SpiffeId

MESSAGES: dict[str, type[Message]] = {ADDRESS_TYPE: Address, AUTHORIZATION_TYPE: Authorization}
KEYS = {
    "network",
    "cluster_id",
    "trust_domain",
    "cluster_domain",
    "node_name",
    "workers",
    "packet_mark",
    "orig_src",
    "ipv6",
    "same_node_tls",
    "outbound_policy",
    "key_dir",
} | {
    "connect_timeout_s",
    "handshake_timeout_s",
    "pool_idle_s",
    "access_log",
    "log_level",
    "log_format",
    "trace_ratio",
}
LEVELS = ("error", "warn", "info", "debug", "trace")


class NamespaceGone(Exception):
    pass


class AddressTaken(Exception):
    pass


class FakeCore:
    """`refuses_pods[uid]`: what enrolling that pod raises. `tell` puts an event into the mailbox."""

    def __init__(self, config: bytes = b"{}"):
        unknown = json.loads(config).keys() - KEYS
        if unknown:
            raise ValueError(f"unknown keys: {', '.join(sorted(unknown))}")
        self.refuses_pods: dict[str, Exception] = {}
        self.refuses_direct: OSError | None = None
        self.direct_maps: list[int] | None = None
        """Their inodes; None: nothing has been said."""
        self.tables: dict[str, dict[str, bytes]] = {ADDRESS_TYPE: {}, AUTHORIZATION_TYPE: {}}
        self._coming: dict[str, dict[str, bytes]] | None = None
        self.enrolled: dict[str, tuple[int, int]] = {}
        self.keys_held: dict[str, ec.EllipticCurvePrivateKey] = {}
        self.searches: dict[str, list[str]] = {}
        self.sockets: dict[str, list[int]] = {}
        self.chains: dict[str, list[str]] = {}
        self.trust: list[dict[str, Any]] = []
        self.dropped = 0
        self.absent_forgotten = 0
        self.busy = False
        self.failures: list[tuple[str, str]] = []
        self.levels = {"access": "info", "core": "info"}
        self.spans: list[str] = []
        self._events: list[tuple[str, str, str]] = []
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._open = True

    def tell(self, kind: str, subject: str = "", detail: str = "") -> None:
        self._events.append((kind, subject, detail))
        os.eventfd_write(self._bell, 1)

    def fileno(self) -> int:
        self._alive()
        return self._bell

    def take(self) -> list[tuple[str, str, str]]:
        self._alive()
        if self._events:
            os.eventfd_read(self._bell)
        events, self._events = self._events, []
        return events

    def apply(
        self, type_url: str, upserts: list[tuple[str, bytes]], removed: list[str], more: bool = False
    ) -> list[tuple[str, str]]:
        self._alive()
        if type_url not in MESSAGES:
            raise ValueError(f"unknown type {type_url}")
        coming = self._coming or {url: dict(table) for url, table in self.tables.items()}
        table, refused = coming[type_url], []
        for name in removed:
            table.pop(name, None)
        for name, data in upserts:
            try:
                MESSAGES[type_url].FromString(data)
            except DecodeError:
                refused.append((name, "cannot be decoded"))
            else:
                table[name] = data
        self._coming = coming if more else None
        if not more:
            self.tables = coming
        return refused

    def restore(
        self, bundles: list[tuple[str, bytes]]
    ) -> tuple[list[tuple[list[str], list[str]]], list[tuple[str, str, str]]]:
        found = []
        for url, packed in bundles:
            try:
                found.append((url, DeltaDiscoveryResponse.FromString(zlib.decompress(packed)).resources))
            except (zlib.error, DecodeError) as error:
                raise ValueError(str(error)) from None
        if any(url not in MESSAGES for url, _ in bundles):
            raise ValueError("unknown type")
        names, refused = [], []
        for url, resources in found:
            names.append(([each.name for each in resources], [each.version for each in resources]))
            said = self.apply(url, [(each.name, each.resource.value) for each in resources], [])
            refused += [(url, name, why) for name, why in said]
        return names, refused

    def enrol(
        self,
        uid: str,
        name: str,
        namespace: str,
        service_account: str,
        netns_fd: int,
        search: list[str] | None = None,
        addresses: list[str] | None = None,
        inherited: list[int] | None = None,
    ) -> None:
        self._alive()
        if uid in self.refuses_pods:
            raise self.refuses_pods[uid]
        status = os.fstat(netns_fd)
        self.enrolled[uid] = (status.st_dev, status.st_ino)
        self.searches[uid] = search or []
        if inherited is not None and uid not in self.sockets:
            self.sockets[uid] = [os.dup(fd) for fd in inherited] or [os.eventfd(0)]

    def listeners(self, uid: str) -> list[int]:
        self._alive()
        return [os.dup(fd) for fd in self.sockets.get(uid, [])]

    def use_direct(self, maps: list[int]) -> None:
        self._alive()
        if self.refuses_direct is not None and maps:
            raise self.refuses_direct
        self.direct_maps = [os.fstat(fd).st_ino for fd in maps]

    def _forget_sockets(self, *uids: str) -> None:
        for uid in uids:
            for fd in self.sockets.pop(uid, []):
                os.close(fd)

    def withdraw(self, uid: str) -> None:
        self._alive()
        self.enrolled.pop(uid, None)
        self._forget_sockets(uid)

    def pods(self) -> list[str]:
        self._alive()
        return list(self.enrolled)

    def new_key(self, identity: str) -> bytes:
        self._alive()
        SpiffeId.parse(identity)
        self.keys_held[identity] = key = ec.generate_private_key(ec.SECP256R1())
        names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(identity)])
        request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).add_extension(names, True)
        return request.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    def install_chain(self, identity: str, chain: list[str]) -> tuple[float, float]:
        self._alive()
        if len(chain) < 2 or "-----BEGIN" not in chain[0]:
            raise ValueError("the chain is not PEM of a leaf and, last, the roots")
        leaf = x509.load_pem_x509_certificate(chain[0].encode())
        names = [each.value for each in leaf.extensions if isinstance(each.value, x509.SubjectAlternativeName)]
        found = [uri for each in names for uri in each.get_values_for_type(x509.UniformResourceIdentifier)]
        if found != [identity]:
            raise ValueError(f"the certificate is for {', '.join(found) or 'nobody'}, expected {identity}")
        if identity not in self.keys_held or leaf.public_key() != self.keys_held[identity].public_key():
            raise ValueError("the certificate is not for the last key")
        self.chains[identity] = chain
        return leaf.not_valid_before_utc.timestamp(), leaf.not_valid_after_utc.timestamp()

    def install_svid(self, identity: str, key: bytes, chain: list[str]) -> tuple[float, float]:
        self._alive()
        loaded = serialization.load_der_private_key(key, None)
        assert isinstance(loaded, ec.EllipticCurvePrivateKey)
        self.keys_held[identity] = loaded
        return self.install_chain(identity, chain)

    def set_trust(self, document: bytes) -> None:
        self._alive()
        parsed = json.loads(document)
        unknown = parsed.keys() - {"bundles", "aliases", "crls", "crls_unusable", "longest_life_s"}
        if unknown:
            raise ValueError(f"unknown field {', '.join(sorted(unknown))}")
        for pem in parsed.get("bundles", {}).values():
            if pem.strip():
                x509.load_pem_x509_certificates(pem.encode())
        self.trust.append(parsed)

    def keys(self) -> tuple[list[str], int]:
        self._alive()
        return sorted(self.keys_held), self.dropped

    def in_use(self) -> bool:
        self._alive()
        return self.busy

    def forget_absent(self) -> None:
        self._alive()
        self.absent_forgotten += 1

    def certificate_failed(self, identity: str, why: str) -> None:
        self._alive()
        self.failures.append((identity, why))

    def forget_identity(self, identity: str) -> None:
        self._alive()
        self.dropped += self.keys_held.pop(identity, None) is not None
        self.chains.pop(identity, None)

    def drain(self, deadline_s: float) -> None:
        self._alive()
        self.enrolled.clear()
        self._forget_sockets(*self.sockets)
        self.tell("drained")

    def missing_policies(self) -> list[tuple[str, str, str]]:
        self._alive()
        return []

    def metrics(self) -> bytes:
        self._alive()
        names = ("workload_manager_active_proxy_count", "process_open_fds", "process_max_fds")
        more = "".join(f"# TYPE {name} gauge\n{name} 0\n" for name in names)
        return b'istio_build{component="ztunnel",tag="fake"} 1\n' + more.encode()

    def dump(self) -> bytes:
        self._alive()
        workloads = [{"uid": name} for name in self.tables[ADDRESS_TYPE]]
        shown: dict[str, Any] = {"workloads": workloads, "services": [], "policies": [], "certificates": []}
        return json.dumps({**shown, "workloadState": {}}).encode()

    def explain(self, source: str, destination: str) -> bytes:
        self._alive()
        if "nobody" in source:
            raise ValueError(f"{source!r} is no workload")
        return json.dumps({"ways": [], "verdict": "denied"}).encode()

    def set_log_level(self, level: str, target: str = "") -> None:
        self._alive()
        if level not in LEVELS:
            raise ValueError(f"{level!r} is not a level")
        if target not in ("", "access", "core"):
            raise ValueError(f"{target!r} logs nothing")
        self.levels |= {each: level for each in ([target] if target else ["access", "core"])}

    def take_spans(self) -> list[str]:
        self._alive()
        spans, self.spans = self.spans, []
        return spans

    def close(self) -> None:
        if self._open:
            self._open = False
            os.close(self._bell)
            self._forget_sockets(*self.sockets)

    def _alive(self) -> None:
        if not self._open:
            raise RuntimeError("the core is closed")
