"""A tunnel of one thread: speaks ZDS, listens in the pods' namespaces, relays nothing. For what only the agent does."""

import array
import asyncio
import os
import socket
import threading

from mesh.gen import zds_pb2
from nodeagent.redirect.netns import Namespace

PORTS = (15001, 15006, 15008)


class StandIn:
    """`served`: uid -> its listeners. With `listens` False it acknowledges without listening: a tunnel that lies."""

    def __init__(self, path, listens=True):
        self.listens, self.served, self.heard = listens, {}, []
        self.complete = threading.Event()
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.sock.connect(str(path))
        self.sock.sendall(zds_pb2.ZdsHello(version=zds_pb2.V1).SerializeToString())
        self.thread = threading.Thread(target=self._live)
        self.thread.start()

    def _live(self):
        while True:
            packet, ancillary, _, _ = self.sock.recvmsg(1024, socket.CMSG_SPACE(4))
            if not packet:
                return
            descriptors = array.array("i")
            for _, _, content in ancillary:
                descriptors.frombytes(content)
            error = self._obey(zds_pb2.WorkloadRequest.FromString(packet), list(descriptors))
            ack = zds_pb2.WorkloadResponse(ack=zds_pb2.Ack(error=error))
            self.sock.sendall(ack.SerializeToString())

    def _obey(self, request, descriptors):
        kind = request.WhichOneof("payload")
        self.heard.append(kind)
        if kind == "snapshot_sent":
            self.complete.set()
        elif kind == "del":
            self._drop(getattr(request, "del").uid)
        elif kind == "add":
            return self._serve(request.add.uid, Namespace(descriptors[0]))
        return ""

    def _serve(self, uid, namespace):
        self._drop(uid)
        try:
            self.served[uid] = asyncio.run(namespace.run(listeners)) if self.listens else []
        except OSError as error:
            return f"listening failed: {os.strerror(error.errno)}"
        finally:
            namespace.close()
        return ""

    def _drop(self, uid):
        for listener in self.served.pop(uid, []):
            listener.close()

    def close(self):
        """Disconnects; the listeners end as well, as with a tunnel that died."""
        self.hang_up()
        for uid in list(self.served):
            self._drop(uid)

    def hang_up(self):
        """The connection only. Idempotent."""
        if self.sock.fileno() < 0:
            return
        self.sock.shutdown(socket.SHUT_RDWR)
        self.thread.join()
        self.sock.close()


def listeners():
    made = []
    try:
        for port in PORTS:
            made.append(socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True))
    except OSError:
        for listener in made:
            listener.close()
        raise
    return made
