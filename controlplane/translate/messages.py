"""Istio's analysis messages, by their codes: what users of `istioctl analyze` know. Pure.

Only those that mean something without sidecars and injection.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

ERROR, WARNING, INFO = "Error", "Warning", "Info"
LEVELS: Final = (INFO, WARNING, ERROR)
_DOCUMENTATION: Final = "https://istio.io/latest/docs/reference/config/analysis"
# Code -> level, text.
MESSAGES: Final = {
    "IST0002": (WARNING, "Deprecated: {}"),
    "IST0101": (ERROR, 'Referenced {} not found: "{}"'),
    "IST0106": (ERROR, "Schema validation error: {}"),
    "IST0109": (
        ERROR,
        "The VirtualServices {} associated with mesh gateway define the same host {} which can lead to undefined"
        " behavior. This can be fixed by merging the conflicting VirtualServices into a single resource.",
    ),
    "IST0112": (
        ERROR,
        'This VirtualService routes to a service "{}" that exposes multiple ports {}. Specifying a port in the'
        " destination is required to disambiguate.",
    ),
    "IST0118": (
        INFO,
        "Port name {} (port: {}, targetPort: {}) doesn't follow the naming convention of Istio port.",
    ),
    "IST0127": (WARNING, "No matching workloads for this resource with the following labels: {}"),
    "IST0128": (
        WARNING,
        "DestinationRule {} in namespace {} has TLS mode set to {} but no caCertificates are set to validate server"
        " identity for host: {}",
    ),
    "IST0129": (
        WARNING,
        "DestinationRule {} in namespace {} has TLS mode set to {} but no caCertificates are set to validate server"
        " identity for host: {} at port {}",
    ),
    "IST0130": (WARNING, "VirtualService rule {} not used ({})."),
    "IST0131": (INFO, "VirtualService rule {} match {} is not used (duplicate/overlapping match in rule {})."),
    "IST0132": (WARNING, "one or more host {} defined in VirtualService {} not found in Gateway {}."),
    "IST0133": (WARNING, "Schema validation warning: {}"),
    "IST0134": (WARNING, "ServiceEntry addresses are required for this protocol."),
    "IST0145": (ERROR, "Conflict with gateways {} (workload selector {}, port {}, hosts {})."),
    "IST0149": (
        ERROR,
        "The virtual service uses the JWT claim based routing (key: {}) but found no request authentication for the"
        " gateway ({}) pod ({}). The request authentication must first be applied for the gateway pods to validate the"
        " JWT token and make the claims available for routing.",
    ),
    "IST0157": (WARNING, 'The Telemetry {} in namespace "{}" with empty providers will be ignored.'),
    "IST0160": (
        ERROR,
        'The Telemetries {} in namespace "{}" have no workload selector, which can lead to undefined behavior.',
    ),
    "IST0161": (
        ERROR,
        "The credential referenced by the Gateway {} in namespace {} is invalid, which can cause the traffic not to"
        " work as expected.",
    ),
    "IST0166": (WARNING, "Ineffective selector on Kubernetes Gateway {}. Use the TargetRef field instead."),
    "IST0167": (WARNING, "The policy has no impact: {}."),
    "IST0171": (WARNING, "A condition with a negative status is present: type={}, reason={}, message={}."),
    "IST0173": (
        ERROR,
        "The Subset {} defined in the DestinationRule does not select any pods. Which may lead to 503 UH"
        " (NoHealthyUpstream).",
    ),
    "IST0174": (WARNING, "The host {} defined in the DestinationRule does not match any services in the mesh."),
    "IST0177": (
        WARNING,
        'Multiple ServiceEntries ({}) define the same host "{}" and port {} with conflicting protocols ({}).',
    ),
}
Step = str | int


@dataclass(frozen=True, slots=True)
class Message:
    """`kind`: as in the configuration. `path`: to the field within the document; () the document as a whole."""

    code: str
    kind: str
    namespace: str
    name: str
    text: str
    path: tuple[Step, ...] = ()

    @property
    def level(self) -> str:
        return MESSAGES[self.code][0]

    @property
    def origin(self) -> str:
        where = f"{self.namespace}/{self.name}" if self.namespace else self.name
        return f"{self.kind.partition('.')[0]} {where}"

    @property
    def documentation(self) -> str:
        return f"{_DOCUMENTATION}/{self.code.lower()}/"


def listed(values: Any) -> str:
    """As Go prints a list."""
    return f"[{' '.join(str(each) for each in values)}]"


def text_of(code: str, *arguments: Any) -> str:
    return MESSAGES[code][1].format(*arguments)
