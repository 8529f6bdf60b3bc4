"""Stand-ins for the kernel and the tunnel that write down what they were asked, in one common list."""

from mesh.errors import MeshError
from nodeagent.enrol.executor import NoTunnel


class FakeNamespace:
    def __init__(self, identity):
        self.identity, self.closed = identity, False

    def fileno(self):
        if self.closed:
            raise ValueError("the namespace is closed")
        return 0

    def close(self):
        self.closed = True


class FakeKernel:
    """`broken`: the names of what fails. `different`: what `compare` finds. `namespaces`: path -> identity. `unheard`:
    ports that nobody listens at. `foreign`: what `inspect` finds."""

    def __init__(self, said):
        self.said, self.broken, self.different, self.namespaces = said, set(), [], {}
        self.opened, self.backend, self.unheard, self.foreign = [], "nft", [], []

    def open(self, path):
        if path not in self.namespaces:
            raise MeshError(f"{path} cannot be opened")
        self.opened.append(FakeNamespace(self.namespaces[path]))
        return self.opened[-1]

    def _do(self, what):
        self.said.append(what)
        if what in self.broken:
            raise MeshError(f"{what} failed")

    def choose(self, member, namespace):
        if "choose" in self.broken:
            raise MeshError("not nft: it is Tuesday")
        return self.backend, "first that can"

    async def put(self, member, namespace):
        self._do("put rules" + " for ingress" * member.ingress_mode + " without DNS" * (not member.dns_capture))

    async def compare(self, member, namespace):
        namespace.fileno()
        self._do("compare")
        return self.different

    async def inspect(self, member, namespace):
        namespace.fileno()
        if "inspect" in self.broken:
            raise MeshError("inspect failed")
        return self.foreign

    async def release(self, member, namespace):
        self._do("release")

    def deaf(self, member, namespace):
        return self.unheard

    def forget(self, namespace):
        pass

    async def take_out(self, member, namespace):
        self._do("take rules out")

    async def prove(self, member, namespace):
        self._do("prove")


class FakeTunnel:
    def __init__(self, said):
        self.said, self.broken, self.is_there = said, False, True

    async def add(self, member, namespace):
        self.said.append(f"serve {member.uid} as {member.service_account}")
        if not self.is_there:
            raise NoTunnel("no tunnel is connected")
        if self.broken:
            raise MeshError("the tunnel refused it: port 15001 is taken")

    async def renew(self, member, namespace, ports):
        self.said.append(f"listen again at {ports}")
        if not self.is_there:
            raise NoTunnel("no tunnel is connected")

    async def remove(self, uid):
        self.said.append(f"stop serving {uid}")
