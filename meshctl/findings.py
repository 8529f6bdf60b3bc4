"""What `meshctl check` judges: documents of the daemons in, findings out. Pure; `now` is Unix seconds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

OUR_PORTS: Final = (15001, 15006, 15008, 15053)
SILENT_S: Final = 3600.0
"""A control plane that renews its stream every half hour was heard more recently."""
_SERVED: Final = ("IN_MESH",)

Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Finding:
    """`level` ok | note | warn | fail. `do`: what helps; "" when it is ok."""

    level: str
    what: str
    do: str = ""


def of_tunnel(status: Json, now: float) -> Iterator[Finding]:
    """From the tunnel's `/status`."""
    pending = status.get("pending") or []
    if pending:
        yield Finding("fail", f"the tunnel is not ready, waits for: {', '.join(pending)}", _WAITS.get(pending[0], ""))
    else:
        yield Finding("ok", f"the tunnel of {status.get('node') or 'this node'} is ready")
    yield from _configuration(status.get("xds") or {}, now)
    zds = status.get("zds") or {}
    if not zds.get("connected"):
        yield Finding("fail", f"no node agent at {zds.get('socket')}", "start the node agent, same path in ZDS_SOCKET")
    for uid, why in (zds.get("waiting") or {}).items():
        yield Finding("fail", f"pod {uid} is not served: {why}", "free the port that is named, or see the tunnel's log")
    yield from _policies(status.get("policies") or {})
    yield from _certificates(status.get("certificates") or {}, now)


_WAITS: Final = {
    "xds": "see what is said of the control plane below",
    "zds": "start the node agent",
    "pods": "see the pods below",
    "draining": "it is about to end; start it again",
}


def _configuration(xds: Json, now: float) -> Iterator[Finding]:
    where = xds.get("address")
    if not xds.get("connected"):
        why = f" ({xds['error']})" if xds.get("error") else ""
        do = "start the control plane; check XDS_ADDRESS, XDS_ROOT_CA and AUTH_TOKEN"
        yield Finding("fail", f"no configuration comes from {where}{why}; what was received last is in force", do)
    else:
        count = sum((xds.get("resources") or {}).values())
        yield Finding("ok", f"configuration comes from {where}: {count} resources in force")
    heard = xds.get("last_message") or 0
    if xds.get("connected") and heard and now - heard > SILENT_S:
        minutes = round((now - heard) / 60)
        yield Finding("warn", f"the control plane was silent for {minutes} minutes", "nothing, if nothing changed")
    for name, why in (xds.get("refused") or {}).items():
        yield Finding("fail", f"{name} is refused: {why}; its last good version is in force", "correct its document")


def _policies(policies: Json) -> Iterator[Finding]:
    for each in policies.get("missing") or ():
        said = f"was refused ({each['refused']})" if each.get("refused") else "has not come from the control plane"
        why = f"{each['pod']} names the policy {each['policy']}, which {said}: what it would judge is denied"
        yield Finding("fail", why, "see the control plane's log and `meshctl status`; correct the policy's document")


def _certificates(certificates: Json, now: float) -> Iterator[Finding]:
    expiries, troubles = certificates.get("expiries") or {}, certificates.get("troubles") or {}
    for identity, why in troubles.items():
        left = expiries.get(identity, 0) - now
        state = f"its certificate lasts {_span(left)} more" if left > 0 else "it has no valid certificate"
        do = "see the control plane's log; check CA_ADDRESS, CA_ROOT_CA and AUTH_TOKEN"
        yield Finding("warn" if left > 0 else "fail", f"{identity}: {why}; {state}", do)
    for identity, expiry in expiries.items():
        if expiry <= now and identity not in troubles:
            do = "compare this node's clock with the control plane's"
            yield Finding("fail", f"{identity}: its certificate has expired", do)
    if expiries and not troubles and min(expiries.values()) > now:
        yield Finding("ok", f"{len(expiries)} certificates, the first ends in {_span(min(expiries.values()) - now)}")


def of_pods(pods: Sequence[Json], served: Sequence[str]) -> Iterator[Finding]:
    """From the agent's `/verify` and the list of pods that the tunnel serves."""
    wrong = 0
    for pod in pods:
        found = list(_of_pod(pod, served))
        wrong += bool(found)
        yield from found
    if not wrong:
        yield Finding("ok", f"{len(pods)} pods: rules in place and in order, our ports listening, all served")
    for uid in sorted(set(served) - {pod["uid"] for pod in pods}):
        yield Finding("warn", f"the tunnel serves {uid}, which the agent does not know", "restart the node agent")


RESIDUAL: Final = (
    "with NET_ADMIN, SYS_ADMIN or a writable /sys/fs/cgroup a pod can take its own capture out",
    "gVisor and Kata send by a kernel of their own: only what enters their namespace's stack is captured",
    "pods on the host's network are not captured",
    "on a host, what listens on loopback, or was opened by systemd for a service, is reached unjudged",
    "UDP (but DNS), ICMP and SCTP are nobody's: only TCP is meshed",
)


def of_kubernetes(status: Json) -> Iterator[Finding]:
    """Of an agent or a control plane: whether it is in step with the API server; nothing where it needs none."""
    cluster = status.get("kubernetes")
    trouble = (cluster or {}).get("trouble")
    if cluster is None:
        return
    if not trouble:
        yield Finding("ok", "in step with the Kubernetes API")
        return
    why = trouble if isinstance(trouble, str) else "; ".join(f"{kind}: {each}" for kind, each in trouble.items())
    do = "what was known last stays in force; look at the API server, and at the rights of docs/kubernetes.md"
    yield Finding("warn", f"the Kubernetes API cannot be followed: {why}", do)


def of_guard(status: Json) -> Iterator[Finding]:
    """From the agent's `/status`: can a pod get past, and what no agent can prevent."""
    why = (status.get("capture") or {}).get("guard", "this agent has none")
    if why == "in force":
        yield Finding("ok", "no TCP leaves a pod but the tunnel's: marks, raw packets and frames are no way past")
    else:
        do = "run the tunnel in a control group of its own (cgroup v2, a systemd unit or a container), Linux 5.16, nft"
        yield Finding("warn", f"with CAP_NET_RAW a pod can pretend to be the tunnel: {why}", do)
    yield from (Finding("note", f"not prevented: {residue}") for residue in RESIDUAL)


def of_legacy(status: Json) -> Iterator[Finding]:
    """From the agent's `/status`: by which program the legacy tables of pods are read, when it is not the usual one."""
    if why := (status.get("capture") or {}).get("legacy"):
        what = f"python-iptables cannot read legacy tables, iptables-legacy-save does: {why}"
        yield Finding("note", what, "nothing, if iptables-legacy-save is installed; else install iptables")


def _of_pod(pod: Json, served: Sequence[str]) -> Iterator[Finding]:
    name = f"{pod['namespace']}/{pod['name']}"
    if pod["state"] not in _SERVED:
        yield Finding("fail", f"pod {name} is {pod['state']}", "see last_error of GET /pods of the agent")
    if pod.get("error"):
        yield Finding("fail", f"pod {name}: its namespace cannot be looked at: {pod['error']}", "delete the pod")
        return
    for difference in pod["differences"]:
        yield Finding("fail", f"pod {name}: {difference}", "restart the node agent: it puts its rules in again")
    for foreign in pod.get("foreign") or ():
        do = "take the rule out of the pod's namespace (`iptables-legacy -D`), or keep what puts it there out"
        yield Finding("fail", f"pod {name}: beside its capture, {foreign}", do)
    if missing := [port for port in OUR_PORTS if port not in pod["listening"]]:
        ports = ", ".join(map(str, missing))
        yield Finding("fail", f"pod {name}: nobody listens on {ports}; its traffic is refused", "restart the tunnel")
    if pod["uid"] not in served:
        yield Finding("fail", f"pod {name} is not served by the tunnel", "restart the tunnel")


def place(finding: Json) -> str:
    """FILE:LINE; an object of the Kubernetes API has no line."""
    return f"{finding.get('file')}:{finding['line']}" if finding.get("line") else str(finding.get("file"))


def of_controlplane(status: Json) -> Iterator[Finding]:
    errors = [each for each in status.get("findings") or [] if each.get("level") == "error"]
    for each in errors:
        what = f"{place(each)}: {each.get('why')}"
        yield Finding("fail", what, "correct the document; its last good state is in force")
    if not errors:
        yield Finding("ok", "the control plane runs and refuses no document")


def of_metrics(gauges: Mapping[str, float]) -> Iterator[Finding]:
    fds, limit = gauges.get("process_open_fds", 0), gauges.get("process_max_fds", 0)
    if limit and fds > 0.8 * limit:
        yield Finding("warn", f"the tunnel has {fds:.0f} of {limit:.0f} file descriptors", "raise LimitNOFILE")
    if pauses := gauges.get("nodemesh_accept_failures_total", 0):
        yield Finding("warn", f"accepting had to pause {pauses:.0f} times", "more descriptors or memory for the tunnel")
    if dropped := gauges.get("nodemesh_log_lines_dropped_total", 0):
        do = "a faster disk, or NODEMESH_ACCESS_LOG=off"
        yield Finding("warn", f"{dropped:.0f} log lines were dropped since the start", do)


def of_dump(dump: Json, now: float, expiry: Any) -> Iterator[Finding]:
    """All that can be said from a saved dump. `expiry(text)`: Unix seconds."""
    policies = {f"{p.get('namespace')}/{p.get('name')}" for p in _entries(dump, "policies")}
    for workload in _entries(dump, "workloads"):
        for name in workload.get("authorizationPolicies") or []:
            if name not in policies:
                what = f"workload {workload.get('uid')} names policy {name}, which is not known: it denies everybody"
                yield Finding("fail", what, "correct that policy; `meshctl status` names its file and line")
    certificates = _entries(dump, "certificates")
    for entry in certificates:
        leaf = next(iter(entry.get("certChain") or []), None)
        if entry.get("state") != "Available" or leaf is None:
            yield Finding("fail", f"{entry.get('identity')}: {entry.get('state')}", "see the tunnel's log")
        elif expiry(leaf["expirationTime"]) <= now:
            yield Finding(
                "warn", f"{entry.get('identity')}: its certificate has expired by now", "an old dump, or no CA"
            )
    yield Finding("ok", f"{len(policies)} policies, {len(certificates)} certificates in the dump")


def _entries(dump: Json, key: str) -> list[Any]:
    found = dump.get(key) or []
    return list(found.values()) if isinstance(found, Mapping) else list(found)


def _span(seconds: float) -> str:
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
