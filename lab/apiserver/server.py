"""The stand-in's HTTP: paths and verbs to the store, watches as streams, faults on request.

Over HTTPS as a cluster's API server; over a Unix socket, mode 0600, for whoever runs the lab: there every caller is
the administrator, and `/standin/` makes it misbehave.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from aiohttp import web

from lab.apiserver import patches
from lab.apiserver.access import ADMIN, Access, User, Wanted
from lab.apiserver.kinds import BY_PATH, Kind
from lab.apiserver.selectors import Matches, selector
from lab.apiserver.store import Item, Refused, Store

MAX_BODY_BYTES: Final = 3 * 2**20
TOKEN_S: Final = 3600
_VERBS: Final = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
_USER: Final = web.RequestKey("user", User)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class Place:
    """A path under /api or /apis."""

    group: str
    version: str
    plural: str
    namespace: str
    name: str
    subresource: str

    @classmethod
    def parse(cls, path: str) -> Place:
        """Raises Refused."""
        parts = path.strip("/").split("/")
        group = "" if parts[0] == "api" else parts[1] if len(parts) > 1 else ""
        version, *rest = parts[1 if parts[0] == "api" else 2 :] or [""]
        namespace = ""
        if rest[:1] == ["namespaces"] and len(rest) > 2 and rest[2] != "status":
            namespace, rest = rest[1], rest[2:]
        if not 1 <= len(rest) <= 3:
            raise Refused(404, "NotFound", "the server could not find the requested resource")
        plural, name, subresource = (*rest, "", "")[:3]
        return cls(group, version, plural, namespace, name, subresource)

    @property
    def kind(self) -> Kind:
        """Raises Refused."""
        try:
            return BY_PATH[self.group, self.version, self.plural]
        except KeyError:
            raise Refused(404, "NotFound", "the server could not find the requested resource") from None

    def wanted(self, method: str, watching: bool) -> Wanted:
        reading = "get" if self.name else "watch" if watching else "list"
        resource = f"{self.plural}/{self.subresource}" if self.subresource else self.plural
        return Wanted(_VERBS.get(method, reading), self.group, resource, self.namespace, self.name)


class Server:
    def __init__(self, store: Store, access: Access, *, bookmark_s: float = 60.0) -> None:
        self._store, self._access, self._bookmark_s = store, access, bookmark_s
        self._changed = asyncio.Event()
        self._continued: dict[str, tuple[int, list[Item]]] = {}
        self.watches: set[asyncio.Transport] = set()
        self._failures: list[web.Response] = []
        self._closed = False
        self.asked: list[str] = []
        """Method, path and caller of the last requests."""

    def application(self) -> web.Application:
        self._closed = False
        app = web.Application(middlewares=[self._errors, self._who], client_max_size=MAX_BODY_BYTES)
        for root in ("/api", "/apis"):
            app.router.add_route("*", root + "/{path:.+}", self._serve)
        app.add_routes([web.get("/readyz", self._ready), web.get("/status", self._status)])
        app.add_routes([web.post("/standin/{what}", self._misbehave)])
        return app

    # Who asks -------------------------------------------------------------------------------------------------------

    @web.middleware
    async def _errors(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except Refused as refused:
            return _status(refused.code, refused.reason, refused.message)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            return _status(400, "BadRequest", f"{type(error).__name__}: {error}")

    @web.middleware
    async def _who(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path == "/readyz":
            return await handler(request)
        transport = request.transport
        if self._closed and transport is not None:
            transport.abort()  # of a connection that outlived its last request
            raise Refused(503, "ServiceUnavailable", "the server is shutting down")
        peer = transport.get_extra_info("socket") if transport is not None else None
        local = peer is not None and peer.family == socket.AF_UNIX
        if not local and self._failures:
            return self._failures.pop()
        user = ADMIN if local else self._access.authenticate(request.headers.get("Authorization", ""))
        if not local and not request.path.startswith("/api"):
            raise Refused(403, "Forbidden", "forbidden")
        request[_USER] = user
        self.asked = [*self.asked[-999:], f"{user.name} {request.method} {request.path_qs}"]
        return await handler(request)

    async def _ready(self, _: web.Request) -> web.Response:
        return web.Response(text="ok")

    async def _status(self, _: web.Request) -> web.Response:
        found = {"version": self._store.version, "oldest": self._store.oldest, "watches": len(self.watches)}
        return web.json_response({**found, "asked": self.asked})

    async def _misbehave(self, request: web.Request) -> web.Response:
        what, query = request.match_info["what"], request.query
        if what == "compact":
            self.compact()
        elif what == "disconnect":
            self.disconnect()
        elif what == "fail":
            code = int(query.get("code", "503"))
            for _ in range(int(query.get("count", "1"))):
                answer = _status(code, "ServiceUnavailable", "the stand-in was told to fail")
                answer.headers.update({"Retry-After": query["retryAfter"]} if "retryAfter" in query else {})
                self._failures.append(answer)
        else:
            raise Refused(404, "NotFound", f"nothing is called {what}")
        self.wake()
        return web.json_response({})

    # Requests -------------------------------------------------------------------------------------------------------

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        place = Place.parse(request.path)
        watching = request.query.get("watch") in ("true", "1")
        self._access.authorize(request[_USER], place.wanted(request.method, watching))
        if place.plural == "tokenreviews":
            return await self._review(request)
        if place.subresource == "token":
            return await self._token(place, request)
        if request.method == "GET" and not place.name:
            return await (self._watch(place, request) if watching else self._list(place, request))
        return await self._one(place, request)

    async def _one(self, place: Place, request: web.Request) -> web.Response:
        kind, namespace, store = place.kind, place.namespace, self._store
        if kind.namespaced and not namespace:
            raise Refused(405, "MethodNotAllowed", "the server does not allow this method on the requested resource")
        if request.method == "GET":
            return web.json_response(store.get(kind, namespace, place.name))
        code = 200
        if request.method == "POST":
            item, code = store.create(kind, namespace, await request.json()), 201
        elif request.method == "PUT":
            item = store.replace(kind, namespace, await request.json(), place.subresource)
        elif request.method == "PATCH":
            item = self._patch(place, request, await request.json())
        else:
            item = store.delete(kind, namespace, place.name)
        self.wake()
        return web.json_response(item, status=code)

    def _patch(self, place: Place, request: web.Request, patch: Any) -> Item:
        media = request.content_type
        owner = request.query.get("fieldManager", "")
        try:
            before = self._store.get(place.kind, place.namespace, place.name)
        except Refused:
            if media == patches.APPLY and not place.subresource:
                return self._store.create(place.kind, place.namespace, _owned(patch, owner))
            raise
        if media == patches.APPLY and not owner:
            raise Refused(400, "BadRequest", "fieldManager is required for apply patch")
        try:
            if media == patches.STRATEGIC and place.kind.custom:
                raise KeyError(media)
            after = patches.patched(media, before, patch, place.kind.merge_keys)
        except KeyError:
            raise Refused(415, "UnsupportedMediaType", f"the body of the request was in an unknown format: {media}")  # noqa: B904
        except ValueError as error:
            raise Refused(422, "Invalid", f"the server rejected our request due to an error in our request: {error}")  # noqa: B904
        if after["metadata"].get("uid") != before["metadata"]["uid"]:
            why = f"{place.kind.name} {place.name!r} is invalid: metadata.uid: Invalid value: field is immutable"
            raise Refused(422, "Invalid", why)
        return self._store.replace(
            place.kind, place.namespace, _owned(after, owner) if owner else after, place.subresource
        )

    async def _review(self, request: web.Request) -> web.Response:
        body = await request.json()
        spec = body["spec"]
        try:
            user, audiences = self._access.review(spec["token"], spec.get("audiences") or [])
        except (ValueError, KeyError, IndexError, Refused) as error:
            return web.json_response({**body, "status": {"user": {}, "error": str(error)}}, status=201)
        extra = {name: [value] for name, value in user.extra}
        about = {"username": user.name, "groups": list(user.groups), "extra": extra}
        status = {"authenticated": True, "user": about, "audiences": audiences}
        return web.json_response({**body, "status": status}, status=201)

    async def _token(self, place: Place, request: web.Request) -> web.Response:
        body = await request.json()
        spec = body["spec"]
        bound = None
        if (ref := spec.get("boundObjectRef")) and ref["kind"] == "Pod":
            bound = self._store.get(BY_PATH["", "v1", "pods"], place.namespace, ref["name"])
        ttl_s = spec.get("expirationSeconds", TOKEN_S)
        token = self._access.issue(place.namespace, place.name, spec.get("audiences") or [], ttl_s, bound)
        return web.json_response({**body, "status": {"token": token}}, status=201)

    # Lists and watches ----------------------------------------------------------------------------------------------

    async def _list(self, place: Place, request: web.Request) -> web.Response:
        query = request.query
        wanted = query.get("resourceVersion") or "0"
        if int(wanted) > self._store.version:
            now = self._store.version
            raise Refused(504, "Timeout", f"Timeout: Too large resource version: {wanted}, current: {now}")
        if token := query.get("continue"):
            if token not in self._continued:
                raise Refused(410, "Expired", "The provided continue parameter is too old")
            version, rest = self._continued.pop(token)
        else:
            matches = _matches(request)
            version, rest = self._store.version, [*filter(matches, self._store.all(place.kind, place.namespace))]
        # The cache's answer is not cut into pages, as in the real one.
        limit = 0 if query.get("resourceVersion") == "0" else int(query.get("limit", "0"))
        page, rest = (rest[:limit], rest[limit:]) if limit else (rest, [])
        about: Item = {"resourceVersion": str(version)}
        if rest:
            about |= {"continue": f"{version}.{id(page)}", "remainingItemCount": len(rest)}
            self._continued[about["continue"]] = version, rest
        kind = place.kind
        return web.json_response(
            {"apiVersion": kind.api_version, "kind": f"{kind.name}List", "metadata": about, "items": page}
        )

    async def _watch(self, place: Place, request: web.Request) -> web.StreamResponse:
        matches, listing = _matches(request), _wants_initial(request.query)
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        response.enable_chunked_encoding()
        await response.prepare(request)
        transport = request.transport
        assert transport is not None
        self.watches.add(transport)
        try:
            async with asyncio.timeout(float(request.query.get("timeoutSeconds", "1800"))):
                async for kind, item in self._events(place, request.query, matches, listing):
                    await response.write(json.dumps({"type": kind, "object": item}).encode() + b"\n")
        except (TimeoutError, ConnectionError):
            pass
        except Refused as refused:
            status = _status_body(refused.code, refused.reason, refused.message)
            await response.write(json.dumps({"type": "ERROR", "object": status}).encode() + b"\n")
        finally:
            self.watches.discard(transport)
        with suppress(ConnectionError):
            await response.write_eof()
        return response

    async def _events(
        self, place: Place, query: Any, matches: Matches, listing: bool
    ) -> AsyncIterator[tuple[str, Item]]:
        kind, bookmarks = place.kind, query.get("allowWatchBookmarks") == "true"
        seen = int(query.get("resourceVersion") or "0")
        if not seen or listing:
            seen = self._store.version
            for item in filter(matches, self._store.all(kind, place.namespace)):
                yield "ADDED", item
        if listing:
            yield "BOOKMARK", _bookmark(kind, seen, {"k8s.io/initial-events-end": "true"})
        while True:
            changed = self._changed
            for event in self._written(kind, place.namespace, seen, matches):
                yield event
            if seen > self._store.version:  # of a later time than ours: the real one is silent, too
                await changed.wait()
                continue
            seen = self._store.version
            try:
                await asyncio.wait_for(changed.wait(), self._bookmark_s)
            except TimeoutError:
                if bookmarks:
                    yield "BOOKMARK", _bookmark(kind, seen)

    def _written(self, kind: Kind, namespace: str, seen: int, matches: Matches) -> Iterator[tuple[str, Item]]:
        for each in self._store.since(kind, seen):
            if (event := each.seen_through(matches)) and namespace in ("", event[1]["metadata"].get("namespace")):
                yield event

    def compact(self) -> None:
        self._store.compact()
        self._continued.clear()

    def disconnect(self) -> None:
        for transport in list(self.watches):
            transport.abort()

    async def close(self, runner: web.AppRunner) -> None:
        """As the kernel does when the process dies: no new connection, no watch."""
        self._closed = True
        for site in list(runner.sites):
            await site.stop()
        self.disconnect()
        await runner.cleanup()

    def wake(self) -> None:
        """The store has changed."""
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()


def _wants_initial(query: Any) -> bool:
    """Whether the watch is a list, too (KEP-3157), as client-go asks for since 1.35. Raises Refused: not so."""
    if query.get("sendInitialEvents") != "true":
        return False
    if query.get("resourceVersionMatch") != "NotOlderThan" or query.get("allowWatchBookmarks") != "true":
        why = "sendInitialEvents requires resourceVersionMatch NotOlderThan and allowWatchBookmarks"
        raise Refused(422, "Invalid", f"ListOptions.meta.k8s.io is invalid: {why}")
    return True


def _bookmark(kind: Kind, version: int, annotations: dict[str, str] | None = None) -> Item:
    about: Item = {"resourceVersion": str(version), "creationTimestamp": None}
    about |= {"annotations": annotations} if annotations else {}
    return {"kind": kind.name, "apiVersion": kind.api_version, "metadata": about}


def _matches(request: web.Request) -> Matches:
    return selector(request.query.get("labelSelector", ""), request.query.get("fieldSelector", ""))


def _owned(item: Item, owner: str) -> Item:
    """Enough of `managedFields` that a client has something to leave out."""
    about = item.get("metadata", {})
    others = [each for each in about.get("managedFields", []) if each["manager"] != owner]
    mine = {"manager": owner, "operation": "Apply", "fieldsType": "FieldsV1", "fieldsV1": {}}
    return {**item, "metadata": {**about, "managedFields": [*others, mine]}}


def _status_body(code: int, reason: str, message: str) -> Item:
    head = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure"}
    return {**head, "message": message, "reason": reason, "code": code}


def _status(code: int, reason: str, message: str) -> web.Response:
    return web.json_response(_status_body(code, reason, message), status=code)
