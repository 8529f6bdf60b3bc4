"""Door 2, the tunnel's side: connects to the node agent, takes pods with their namespaces, answers each message.

One protobuf message per packet, at most 1,024 bytes, strictly one request outstanding. Source: Istio's ZDS,
`ztunnel: src/inpod/protocol.rs`. Owns the socket; what is done with a pod is `pods`'.
"""

from __future__ import annotations

import array
import asyncio
import os
import socket
from pathlib import Path
from typing import Final

from google.protobuf.message import DecodeError

from mesh import log
from mesh.backoff import Backoff
from mesh.errors import PeerError
from mesh.gen.zds_pb2 import V1, Ack, AddWorkload, WorkloadRequest, WorkloadResponse, ZdsHello
from ztunnel.pods import Handed, Pod, Pods

MAX_PACKET: Final = 1024
_MAX_ERROR_BYTES: Final = 900
_FDS_ROOM: Final = socket.CMSG_SPACE(16 * array.array("i").itemsize)
"""The namespace and the listening sockets that a tunnel has; what is too much must be closed as well."""

_DIRECT_FDS: Final = 3

HELLO: Final = ZdsHello(version=V1, shares_listeners=True, takes_direct=True)

_log = log.get("zds")


class ZdsClient:
    """`snapshot` is true while connected and told of every pod there is."""

    def __init__(self, path: Path, pods: Pods) -> None:
        self._path = path
        self._pods = pods
        self.connected = False
        self.snapshot = False
        self.told = asyncio.Event()
        """Set with the first whole snapshot."""

    async def run(self) -> None:
        """For ever. The pods are served on while the agent is away."""
        backoff = Backoff()
        while True:
            try:
                await self._converse(backoff)
            except (OSError, PeerError) as error:
                wait_s = backoff.failed()
                why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
                _log.warning(log.PEER_LOST, path=str(self._path), why=why, retry_s=round(wait_s, 3))
                await asyncio.sleep(wait_s)
            finally:
                self.connected = self.snapshot = False

    async def _converse(self, backoff: Backoff) -> None:
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC) as connection:
            connection.setblocking(False)
            await loop.sock_connect(connection, str(self._path))
            await loop.sock_sendall(connection, HELLO.SerializeToString())
            self.connected = True
            _log.info(log.PEER_CONNECTED, path=str(self._path))
            session = Session(self._pods)
            while True:
                request, fds = await receive(connection)
                backoff.worked()
                try:
                    error, listeners = await session.handle(request, fds)
                except PeerError as refusal:
                    await loop.sock_sendall(connection, answer(str(refusal)))
                    raise
                self.snapshot = session.complete
                if session.complete:
                    self.told.set()
                try:
                    socket.send_fds(connection, [answer(error)], listeners)  # never fills an idle socket
                finally:
                    close_all(listeners)


class Session:
    """One connection's conversation: first the snapshot, then changes."""

    def __init__(self, pods: Pods) -> None:
        self._pods = pods
        self._named: set[str] = set()
        self._direct = False
        self.complete = False

    async def handle(self, request: WorkloadRequest, fds: list[int]) -> tuple[str, list[int]]:
        """Returns the acknowledgement's error text and its descriptors, the caller's to close. Takes `fds` over.
        Raises PeerError: the protocol is broken."""
        try:
            match request.WhichOneof("payload"):
                case "add":
                    return await self._add(request.add, fds)
                case "keep":
                    self._keep(request.keep.uid)
                case "del":
                    await self._pods.withdraw(getattr(request, "del").uid)
                case "direct":
                    return self._use_direct(fds), []
                case "snapshot_sent":
                    await self._snapshot_sent()
                case _:
                    raise PeerError("a request without a payload")
            return "", []
        finally:
            close_all(fds)

    async def _add(self, add: AddWorkload, fds: list[int]) -> tuple[str, list[int]]:
        if not add.uid or not add.HasField("workload_info"):
            raise PeerError("AddWorkload without uid or workload_info")
        if not fds or (len(fds) != 1 and not add.keep_listeners):
            raise PeerError(f"AddWorkload with {len(fds)} descriptors instead of one")
        if not self.complete:
            self._named.add(add.uid)
        info = add.workload_info
        pod = Pod(add.uid, info.name, info.namespace, info.service_account, tuple(info.search), tuple(info.addresses))
        netns_fd, *listeners = fds
        fds.clear()
        error = await self._pods.add(pod, Handed(netns_fd, listeners if add.keep_listeners else None))
        return error, self._pods.listeners(pod.uid) if add.keep_listeners and not error else []

    def _keep(self, uid: str) -> None:
        """The agent has lost the descriptor, not the pod. Acknowledged even if we never had it, as Istio's does."""
        if self.complete:
            raise PeerError("KeepWorkload after the snapshot")
        self._named.add(uid)
        if not self._pods.knows(uid):
            _log.warning("told to keep a pod that is not here", uid=uid)

    def _use_direct(self, fds: list[int]) -> str:
        """Why not, or ""."""
        if self.complete or self._direct or len(fds) != _DIRECT_FDS:
            raise PeerError("DirectPath after the snapshot, twice, or without its maps")
        why = self._pods.use_direct(fds)
        self._direct = not why
        return why

    async def _snapshot_sent(self) -> None:
        if self.complete:
            raise PeerError("SnapshotSent twice")
        if not self._direct:
            self._pods.use_direct([])
        await self._pods.keep_only(self._named)
        self.complete = True


async def receive(connection: socket.socket) -> tuple[WorkloadRequest, list[int]]:
    """The next request and the descriptors that came with it. Raises PeerError: end, truncation, not a request."""
    packet, fds, flags = await _receive_packet(connection)
    try:
        if not packet and not fds:
            raise PeerError("the agent closed the connection")
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            raise PeerError(f"a packet of more than {MAX_PACKET} bytes or too many descriptors")
        return WorkloadRequest.FromString(packet), fds
    except DecodeError:
        close_all(fds)
        raise PeerError("a packet that is not a WorkloadRequest") from None
    except PeerError:
        close_all(fds)
        raise


async def _receive_packet(connection: socket.socket) -> tuple[bytes, list[int], int]:
    while True:
        try:
            packet, ancillary, flags, _ = connection.recvmsg(MAX_PACKET, _FDS_ROOM, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            await _readable(connection)
        else:
            return packet, _descriptors(ancillary), flags


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    fds = array.array("i")
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    return list(fds)


async def _readable(connection: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        if not ready.done():
            ready.set_result(None)

    loop.add_reader(connection, wake)
    try:
        await ready
    finally:
        loop.remove_reader(connection)


def answer(error: str) -> bytes:
    """An acknowledgement; the text is cut to fit the packet."""
    text = error.encode()[:_MAX_ERROR_BYTES].decode(errors="ignore")
    return WorkloadResponse(ack=Ack(error=text)).SerializeToString()


def close_all(fds: list[int]) -> None:
    while fds:
        os.close(fds.pop())
