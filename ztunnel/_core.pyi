"""Door 4: every crossing of the border between Python and Rust. *Calls go in, a bell comes out.*

Rust never attaches to the interpreter. What it has to tell waits in a bounded mailbox; `fileno()` becomes readable
when there is something, `take()` empties it. Every call releases the GIL while it works and is safe from any thread.
"""

from typing import Self, final

@final
class NamespaceGone(Exception):
    """The network namespace behind the descriptor no longer exists: forget the pod."""

@final
class AddressTaken(Exception):
    """Something in the pod's namespace holds one of our ports: refuse the pod, try again later."""

@final
class Core:
    """The data path of one node: worker threads, listeners in pod namespaces, tunnels.

    `config`: JSON object. Keys (all optional): `network` str "", `cluster_id` str "Kubernetes", `trust_domain` str
    "cluster.local", `cluster_domain` str "cluster.local", `node_name` str "",
    `workers` int (0: one per core), `packet_mark` int 0x539, `orig_src` bool true, `ipv6` bool true,
    `same_node_tls` bool false (true: a tunnel also between two pods of this node),
    `outbound_policy` str "ALLOW_ANY" | "REGISTRY_ONLY" (for workloads that the control plane says nothing of),
    `key_dir` str "" (where keys and chains outlive a restart: a directory of ours on tmpfs, mode 0700),
    `connect_timeout_s`, `handshake_timeout_s` float 10 / 5, `pool_idle_s` float 300,
    `access_log` str "stderr" | "off" | a path, `log_level` str "info", `log_format` "json" | "console",
    `trace_ratio` float in [0, 1] | null (no tracing).
    Raises ValueError: a key is unknown or a value is out of range.
    """

    def __new__(cls, config: bytes) -> Self: ...
    def fileno(self) -> int:
        """An eventfd, readable while events wait. Owned by the core; closed by `close()`."""

    def take(self) -> list[tuple[str, str, str]]:
        """Every waiting event as (kind, subject, detail), oldest first.

        `("need_certificate", identity, "now"|"prefetch")`: a connection waits for it | a pod with it is served here.
        `("certificate_restored", identity, "NOT_BEFORE NOT_AFTER")`: its pod came back; Unix seconds.
        `("identity_unused", identity, "")`: the last pod with it left this node; its key is dropped.
        `("drained", "", "")`: `drain()` has ended.  `("fault", where, what)`: a panic was contained; log it as error.
        """

    def apply(
        self, type_url: str, upserts: list[tuple[str, bytes]], removed: list[str], more: bool = False
    ) -> list[tuple[str, str]]:
        """Builds and swaps the next snapshot; with `more` a later call swaps it, together with its own. `upserts`:
        (resource name, serialized istio.workload.Address or istio.security.Authorization). Returns (name, why) of each
        refused one, whose old version stays in force. Rests up to twice as long as it works while connections
        are open, which are then judged again. Raises ValueError: `type_url` is neither of the two."""

    def restore(
        self, bundles: list[tuple[str, bytes]]
    ) -> tuple[list[tuple[list[str], list[str]]], list[tuple[str, str, str]]]:
        """Everything that an earlier life kept, as one snapshot. `bundles`: (type URL, serialized
        DeltaDiscoveryResponse with that type's resources, packed by zlib); no resource is in two. Returns the names and
        versions of each bundle, and (type URL, name, why) of each refused resource. Raises ValueError: one is damaged
        or of another type; nothing has changed."""

    def enrol(
        self,
        uid: str,
        name: str,
        namespace: str,
        service_account: str,
        netns_fd: int,
        search: list[str] = ...,
        addresses: list[str] = ...,
        inherited: list[int] | None = None,
    ) -> None:
        """Binds 15001, 15006, 15008 and 15053 (loopback, UDP too) in the namespace and serves them. `search`: search
        domains of the pod's resolver besides the cluster's and the node's. `addresses`: in a shared namespace only
        these are bound, and spoken from; none: all of the namespace is its own. `inherited`: sockets of an earlier
        tunnel, used where they are what we would bind; even if empty, copies are held for `listeners`. Every descriptor
        is duplicated. Idempotent for the same uid and namespace; another namespace replaces the old pod.
        Raises NamespaceGone, AddressTaken, OSError."""

    def listeners(self, uid: str) -> list[int]:
        """Copies of the pod's listening sockets, the caller's to close. None for an unknown uid and for a pod that was
        enrolled without `inherited`. Raises OSError."""

    def use_direct(self, maps: list[int]) -> None:
        """Grants the direct path between pods of this node by the maps mesh_passes, mesh_issuers and mesh_direct of
        bpf/direct.h, which are duplicated; none: passes end and what is direct is cut. Raises OSError: the kernel does
        not let us."""

    def withdraw(self, uid: str) -> None:
        """Closes the pod's listeners and connections at once. Unknown uid: nothing happens."""

    def pods(self) -> list[str]:
        """The uids served now."""

    def missing_policies(self) -> list[tuple[str, str, str]]:
        """Policies that a pod served here names and that are not there, so that everything they would judge is denied:
        (uid, policy, why it was refused or ""). O(pods)."""

    def new_key(self, identity: str) -> bytes:
        """A fresh P-256 key for this SPIFFE ID, kept in Rust; returns its certificate request (PEM, empty subject, one
        critical URI SAN). Raises ValueError: not of the form spiffe://TD/ns/NS/sa/SA, or no pod here has it."""

    def install_chain(self, identity: str, chain: list[str]) -> tuple[float, float]:
        """Takes the CA's answer (PEM strings: leaf, intermediates, last the roots) into use for new handshakes.
        Returns (not_before, not_after), Unix seconds. Raises ValueError: not for the last key or identity, or bad."""

    def install_svid(self, identity: str, key: bytes, chain: list[str]) -> tuple[float, float]:
        """The same for a key (PKCS#8 DER) that came from outside, with its chain. Raises ValueError."""

    def set_trust(self, document: bytes) -> None:
        """Whom to believe from the next handshake on; open connections with those who would now be refused are cut.

        JSON, all keys optional: `bundles` {trust domain: PEM}, `aliases` [trust domain], `crls` PEM,
        `crls_unusable` str (there should be lists and are none: everybody is refused, with this sentence),
        `longest_life_s` float 259200. A domain without certificates is refused as a whole; without a bundle for our
        own domain the roots count that came with the chain. Raises ValueError: nothing has changed."""

    def keys(self) -> tuple[list[str], int]:
        """The identities whose private key is in memory, and how many keys have been dropped."""

    def in_use(self) -> bool:
        """Whether connections are open, which would notice that the processor is busy."""

    def forget_absent(self) -> None:
        """Wipes from `key_dir` what belongs to identities that no pod here has."""

    def certificate_failed(self, identity: str, why: str) -> None:
        """Connections that wait for this identity fail now with `why`, unless a valid chain is installed."""

    def forget_identity(self, identity: str) -> None:
        """Drops key and chain."""

    def drain(self, deadline_s: float) -> None:
        """Listeners close, tunnels say GOAWAY, what still runs after the deadline is cut. Ends with event "drained"."""

    def metrics(self) -> bytes:
        """Prometheus text format, Istio's names and labels."""

    def dump(self) -> bytes:
        """JSON object with Istio's /config_dump keys: workloads, services, policies, stagedServices, staticConfig,
        certificates, workloadState; without version and config."""

    def explain(self, source: str, destination: str) -> bytes:
        """JSON object: what would become of a connection from `source` (ADDRESS, NAMESPACE/NAME, uid or identity) to
        `destination` (ADDRESS, NAMESPACE/NAME or HOSTNAME, with :PORT), by the functions that decide over real ones.
        Raises ValueError: one of the two names nothing, or the port is missing."""

    def set_log_level(self, level: str, target: str = "") -> None:
        """error | warn | info | debug | trace; of "access", "core" or, without a target, both. Raises ValueError."""

    def take_spans(self) -> list[str]:
        """Every finished connection of a sampled trace since the last call, oldest first, at most 4096: a line of the
        access log as a JSON object, with `trace_id`, `span`, `parent_span` (hexadecimal) and `duration_ns`."""

    def close(self) -> None:
        """Cuts everything and joins all threads. Idempotent; afterwards every other call raises RuntimeError."""

def profile(seconds: float, hertz: int) -> list[tuple[str, list[tuple[str, str, int]], int]]:
    """Where this process's processor time goes, all threads, native frames: (thread, [(function, file, line)] from the
    outermost on, how often seen). Blocks. Raises ValueError: another is being taken, or a figure is out of range."""

def read_response(
    response: bytes,
) -> tuple[str, str, str, list[tuple[str, str, bytes]], list[tuple[str, str]], list[str]]:
    """A serialized DeltaDiscoveryResponse: its type URL, nonce, system_version_info, (name, version, data) of each
    resource of its type, (name, type URL) of each other one, and what it removes. Raises ValueError: it is damaged."""

def judge(
    policies: list[tuple[str, bytes]],
    workload: tuple[str, bytes],
    asked: list[tuple[str, str, str, int, bool, str]],
) -> list[tuple[tuple[bool, str, int], tuple[bool, str, int] | None, list[tuple[str, int]]]]:
    """What the core would say, without a data path. `policies`, `workload`: as for `apply`.

    `asked`: (source IP, the other end's identity or "", destination IP, port, whether the workload is the client, the
    addressed service's hostname or ""). Of each: the verdict (allowed, the deciding policy or "", its rule or -1), the
    verdict if dry runs were in force (None: there are none), and the policies that decide nothing but match.
    Raises ValueError: something is refused, or no address or identity.
    """
