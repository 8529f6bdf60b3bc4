"""Short spellings for tests of the layer-7 model: documents to the model, and the model as plain values."""

from dataclasses import MISSING, fields, is_dataclass

from tests.controlplane.documents import store_of

SHOP = """
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient, istio.io/use-waypoint: way}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: way, namespace: shop}
spec:
  gatewayClassName: istio-waypoint
  listeners: [{name: mesh, port: 15008, protocol: HBONE}]
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.1.0.1, ports: [{name: http, port: 80}], selector: {app: web}}
---
apiVersion: v1
kind: Service
metadata: {name: db, namespace: shop}
spec: {clusterIP: 10.1.0.2, ports: [{name: http, port: 80}, {name: tcp, port: 5432}], selector: {app: db}}
---
"""
WEB = "shop/web.shop.svc.cluster.local"
DB = "shop/db.shop.svc.cluster.local"


def l7_of(text, before=SHOP, **mesh):
    """The model of documents that are all valid."""
    store = store_of(before + text, **mesh)
    errors = [str(finding) for finding in store.findings if finding.level == "error"]
    assert not errors, errors
    return store.l7


def served(text, service=WEB, before=SHOP):
    """What the waypoint does for a service."""
    [found] = [each for each in l7_of(text, before).proxies["shop/way"].services if each.service == service]
    return found


def routes(text, service=WEB):
    return served(text, service).http


def plain(value):
    """Without what is as by default, so that a golden file says only what was said."""
    if is_dataclass(value):
        found = {}
        for each in fields(value):
            inner = getattr(value, each.name)
            default = each.default if each.default is not MISSING else None
            if each.default_factory is not MISSING:
                default = each.default_factory()
            if inner != default or (default is None and inner is not None):
                found[each.name] = plain(inner)
        return {"is": type(value).__name__, **found} if type(value).__name__ in _ACTIONS else found
    if hasattr(value, "items"):
        return {str(name): plain(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    return value if isinstance(value, (bool, int, float, str, type(None))) else str(value)


_ACTIONS = ("Forward", "Redirect", "DirectResponse")
