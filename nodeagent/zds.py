"""Door 2, agent side: tells tunnels which pods to serve and hands them the namespaces. proto/zds.proto, Istio's ZDS.

The agent listens, so that it can restart without the tunnel; several tunnels may be connected while one replaces
another: a new pod goes to the newest, a leaving pod to all. Owns the connections; knows nothing of enrolment.
"""

from __future__ import annotations

import array
import asyncio
import os
import socket
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Final

from google.protobuf.message import DecodeError

from mesh import log
from mesh.errors import MeshError, PeerError
from mesh.gen import zds_pb2
from nodeagent.heirlooms import Descriptor, Heirlooms
from nodeagent.sockets import listen_on, may_speak, peer_pid

_log: Final = log.get("zds")

MAX_PACKET_BYTES: Final = 1024
_FRAME_BYTES: Final = 24
"""More than the tags and lengths around a field or a message."""
_MOST_DESCRIPTORS: Final = 16
_MOST_ADDRESSES: Final = 3
"""Of a workload whose sockets are passed on: there are five at each, and one packet takes a namespace and those."""
DEADLINE_S: Final = 5.0
ACCEPT_PAUSE_S: Final = 1.0
MAX_CONNECTIONS: Final = 8
"""An upgrade needs two; the rest bounds what a looping tunnel can take."""


@dataclass(frozen=True, slots=True)
class Workload:
    uid: str
    namespace: str
    name: str
    service_account: str
    netns: Descriptor
    search: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()
    """Its own ones in a namespace that it shares with others; none: the namespace is its own."""


Snapshot = Callable[[], Sequence[Workload]]
Heard = Callable[[str, str | None], None]
Meet = Callable[[int], Awaitable[None]]
Direct = Callable[[], Awaitable[list[int]]]
"""The maps of the direct path, the caller's no further than the call; none: there is none."""
Packet = tuple[bytes, list[int]]
"""With the descriptors that came along; whoever takes it closes them."""


class Refused(MeshError):
    """The tunnel said no; its words are the text."""


class NotConnected(MeshError):
    """No tunnel within DEADLINE_S."""


class Connection:
    """One tunnel. At most one request is outstanding, so the order of answers is their only address."""

    def __init__(self, sock: socket.socket, heirlooms: Heirlooms) -> None:
        sock.setblocking(False)
        self._sock, self._heirlooms = sock, heirlooms
        self._shares = False
        self.direct_trouble = ""
        """Why it does not grant the direct path although it was asked to."""
        self._loop = asyncio.get_running_loop()
        self._turn = asyncio.Lock()
        self._reply: asyncio.Future[Packet] | None = None
        self.ended = asyncio.Event()
        self._loop.add_reader(sock, self._readable)

    async def greet(
        self,
        workloads: Callable[[], Sequence[Workload]],
        heard: Callable[[str, str | None], None],
        direct: Direct | None = None,
    ) -> None:
        """Hello, what the direct path takes, the snapshot. Nothing else is sent before its end: a Del in between is a
        protocol error for Istio's ztunnel. `heard(uid, why)`: None when the tunnel serves it. Raises PeerError."""
        async with self._turn:
            hello = await self._hello()
            maps = await direct() if direct is not None else []
            if maps and not hello.takes_direct:
                self.direct_trouble = "the tunnel does not know of it"
            elif maps:
                why, _ = await self._exchange(zds_pb2.WorkloadRequest(direct=zds_pb2.DirectPath()), maps)
                self.direct_trouble = why or ""
            for workload in workloads():
                with suppress(ValueError):  # left meanwhile
                    heard(workload.uid, await self._enrol(workload))
            await self._exchange(zds_pb2.WorkloadRequest(snapshot_sent=zds_pb2.SnapshotSent()), [])

    async def add(self, workload: Workload) -> str | None:
        """Why it refuses, or None. Raises PeerError: the connection ended. ValueError: the namespace is closed."""
        async with self._turn:
            return await self._enrol(workload)

    async def remove(self, uid: str) -> str | None:
        """As `add`."""
        async with self._turn:
            why, _ = await self._exchange(_del(uid), [])
            return why

    def close(self, why: str) -> None:
        """Idempotent. Wakes whoever waits for an answer."""
        if self.ended.is_set():
            return
        self.ended.set()
        self._loop.remove_reader(self._sock)
        self._sock.close()
        _log.info(log.PEER_LOST, why=why)
        if self._reply is not None and not self._reply.done():
            self._reply.set_exception(PeerError(f"the tunnel's connection ended: {why}"))

    async def _hello(self) -> zds_pb2.ZdsHello:
        hello = zds_pb2.ZdsHello()
        await self._read_into(hello, self._expect())
        if hello.version != zds_pb2.V1:
            self._break(f"it speaks ZDS version {hello.version}")
        self._shares = hello.shares_listeners and self._heirlooms.wanted
        if not self._shares:
            self._heirlooms.drop_all()  # it binds its own; a port that we hold would be taken
        return hello

    async def _enrol(self, workload: Workload) -> str | None:
        request = _add(workload)
        if not self._shares or len(workload.addresses) > _MOST_ADDRESSES:
            why, _ = await self._exchange(request, [workload.netns.fileno()])
            return why
        request.add.keep_listeners = True
        kept = await self._heirlooms.of(workload.uid, workload.netns, workload.addresses)
        why, given = await self._exchange(request, [workload.netns.fileno(), *kept])
        if given:
            self._heirlooms.keep(workload.uid, workload.netns, workload.addresses, given)
        return why

    async def _exchange(self, request: zds_pb2.WorkloadRequest, descriptors: list[int]) -> tuple[str | None, list[int]]:
        """The tunnel's refusal, and the descriptors that came with its word."""
        if self.ended.is_set():
            raise PeerError("the tunnel's connection ended")
        reply = self._expect()
        self._send(request.SerializeToString(), descriptors)
        response = zds_pb2.WorkloadResponse()
        given = await self._read_into(response, reply)
        if not response.HasField("ack") or (given and not self._shares):
            close_all(given)
            self._break("its answer is no acknowledgement")
        return response.ack.error or None, given

    def _expect(self) -> asyncio.Future[Packet]:
        self._reply = self._loop.create_future()
        return self._reply

    def _send(self, packet: bytes, descriptors: list[int]) -> None:
        """One packet never fills an idle socket, so there is no waiting to send."""
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        try:
            self._sock.sendmsg([packet], rights)
        except OSError as error:
            self._break(f"sending failed: {error.strerror}")

    async def _read_into(self, message: Any, reply: asyncio.Future[Packet]) -> list[int]:
        given: list[int] = []
        try:
            async with asyncio.timeout(DEADLINE_S):
                packet, given = await reply
            message.ParseFromString(packet)
        except TimeoutError:
            self._break(f"it did not answer within {DEADLINE_S:.0f} s")
        except DecodeError:
            close_all(given)
            self._break("its packet is no ZDS message")
        return given

    def _break(self, why: str) -> None:
        """Raises PeerError, always."""
        self.close(why)
        raise PeerError(f"the tunnel's connection ended: {why}")

    def _readable(self) -> None:
        try:
            packet, given, flags, _ = socket.recv_fds(self._sock, MAX_PACKET_BYTES, _MOST_DESCRIPTORS)
        except BlockingIOError:
            return
        except OSError as error:
            self.close(f"receiving failed: {error.strerror}")
            return
        if packet and not flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC) and self._reply and not self._reply.done():
            self._reply.set_result((packet, given))
            return
        close_all(given)
        if not packet:
            self.close("it hung up")
        elif flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            self.close(f"it sent more than {MAX_PACKET_BYTES} bytes or {_MOST_DESCRIPTORS} descriptors")
        else:
            self.close("it spoke out of turn")


class ZdsServer:
    """`workloads`: what a new tunnel has to serve. `heard(uid, why)`: its word on each. `lost`: no tunnel is left.
    `meet(pid)`: before a tunnel is told anything. `heirlooms`: what connections wait in between two tunnels."""

    def __init__(
        self,
        workloads: Snapshot,
        heard: Heard,
        lost: Callable[[], None],
        meet: Meet | None = None,
        heirlooms: Heirlooms | None = None,
        direct: Direct | None = None,
    ) -> None:
        self._meet, self._heirlooms, self._direct = meet, heirlooms or Heirlooms(), direct
        self._workloads, self._heard, self._lost = workloads, heard, lost
        self._connections: list[Connection] = []
        self._arrived = asyncio.Condition()
        self._tasks: set[asyncio.Task[None]] = set()
        self._listener: socket.socket | None = None
        self._user = -1

    @property
    def connected(self) -> int:
        return len(self._alive)

    @property
    def direct_trouble(self) -> str:
        """Why the newest tunnel does not grant the direct path; "": it does, or nobody wants it to."""
        return self._alive[-1].direct_trouble if self._alive else ""

    @property
    def _alive(self) -> list[Connection]:
        """Oldest first. One that ended may still be listed until its task noticed."""
        return [connection for connection in self._connections if not connection.ended.is_set()]

    def start(self, path: Path, user: int = -1) -> None:
        """`user`: the tunnel's uid when it is not root's. Raises OperatorError."""
        self._user = user
        self._listener = listen_on(path, socket.SOCK_SEQPACKET, user)
        self._spawn(self._accept(self._listener))

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        for connection in self._connections:
            connection.close("the agent stops")
        self._heirlooms.drop_all()
        if self._listener is not None:
            self._listener.close()

    async def add(self, workload: Workload) -> None:
        """To the newest tunnel; when that goes away, to the next, for DEADLINE_S in all until it was sent to one.
        Raises Refused, NotConnected. ValueError: its namespace is closed."""
        until = asyncio.get_running_loop().time() + DEADLINE_S
        while True:
            connection = await self._newest(until)
            try:
                why = await connection.add(workload)
            except PeerError:
                continue
            if why is not None:
                raise Refused(f"the tunnel refused it: {why}")
            return

    async def renew(self, workload: Workload, ports: Collection[int]) -> None:
        """Somebody shall listen again at these ports. Where the sockets are the tunnel's alone it has to begin anew,
        and the workload's connections end. Raises as `add`."""
        if not self._heirlooms.listen_again(workload.uid, ports):
            await self.remove(workload.uid)
        await self.add(workload)

    async def remove(self, uid: str) -> None:
        """From every tunnel. Never fails: a tunnel that is gone serves nobody."""
        await asyncio.gather(*(self._remove_from(connection, uid) for connection in self._alive))
        self._heirlooms.drop(uid)

    async def _remove_from(self, connection: Connection, uid: str) -> None:
        with suppress(PeerError):
            why = await connection.remove(uid)
            if why is not None:
                _log.warning("tunnel refused to stop serving", uid=uid, why=why)

    async def _newest(self, until: float) -> Connection:
        try:
            async with asyncio.timeout_at(until), self._arrived:
                await self._arrived.wait_for(lambda: bool(self._alive))
                return self._alive[-1]
        except TimeoutError:
            raise NotConnected("no tunnel is connected") from None

    async def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                sock, _ = await asyncio.get_running_loop().sock_accept(listener)
            except OSError as error:  # out of descriptors: a pause instead of a spin
                _log.error("tunnel's connection not accepted", why=error.strerror)
                await asyncio.sleep(ACCEPT_PAUSE_S)
                continue
            if len(self._tasks) <= MAX_CONNECTIONS and may_speak(sock, self._user):
                self._spawn(self._meet_and_serve(sock))
            else:
                _log.error("tunnel's connection refused", connected=self.connected)
                sock.close()

    async def _meet_and_serve(self, sock: socket.socket) -> None:
        try:
            if self._meet is not None:
                await self._meet(peer_pid(sock))
        except BaseException:
            sock.close()
            raise
        await self._serve(Connection(sock, self._heirlooms))

    async def _serve(self, connection: Connection) -> None:
        """A connection counts from its hello on, so that a pod starting now is not lost between two tunnels."""
        try:
            await connection.greet(lambda: self._welcome(connection), self._heard, self._direct)
            await connection.ended.wait()
        except PeerError as error:
            _log.debug("tunnel not greeted", why=str(error))
        finally:
            connection.close("the agent stops")
            await self._part_from(connection)

    def _welcome(self, connection: Connection) -> Sequence[Workload]:
        self._connections.append(connection)
        self._heirlooms.stay()
        self._spawn(self._announce())
        workloads = self._workloads()
        _log.info(log.PEER_CONNECTED, pods=len(workloads), connected=self.connected)
        return workloads

    async def _announce(self) -> None:
        async with self._arrived:
            self._arrived.notify_all()

    async def _part_from(self, connection: Connection) -> None:
        if connection in self._connections:
            self._connections.remove(connection)
            if not self._connections:
                self._heirlooms.run_out()
                self._lost()

    def _spawn(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            asyncio.get_running_loop().call_exception_handler({"message": "ZDS", "exception": error})


def close_all(descriptors: Sequence[int]) -> None:
    for fd in descriptors:
        os.close(fd)


def _add(workload: Workload) -> zds_pb2.WorkloadRequest:
    info = zds_pb2.WorkloadInfo(
        name=workload.name, namespace=workload.namespace, service_account=workload.service_account
    )
    info.addresses.extend(workload.addresses)
    info.search.extend(_fitting(workload.search, MAX_PACKET_BYTES - info.ByteSize() - len(workload.uid) - _FRAME_BYTES))
    return zds_pb2.WorkloadRequest(add=zds_pb2.AddWorkload(uid=workload.uid, workload_info=info))


def _fitting(search: Sequence[str], room: int) -> list[str]:
    """The first of them, as many as fit `room` bytes; the others only cost a question upstream."""
    sizes = accumulate(len(domain.encode()) + _FRAME_BYTES for domain in search)
    return [domain for domain, size in zip(search, sizes, strict=True) if size <= room]


def _del(uid: str) -> zds_pb2.WorkloadRequest:
    request = zds_pb2.WorkloadRequest()
    getattr(request, "del").uid = uid
    return request
