"""The control plane's side of a Kubernetes cluster, composed: configuration in, conditions and roots out, callers
judged by their tokens."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from controlplane import roots
from controlplane.attest import Tokens
from controlplane.ca import Authority
from controlplane.documents import Parsed
from controlplane.reviews import Reviews
from controlplane.settings import Kubernetes, Settings
from controlplane.sources.kinds import followed
from controlplane.sources.kubernetes import KubernetesSource
from controlplane.sources.saved import Saved
from controlplane.statuses import Judge, Statuses
from kube.client import Client


class Cluster:
    """`start` it, take `source.first()`, and tell `statuses` of each change. `stop` keeps a copy on disk."""

    def __init__(
        self,
        settings: Settings,
        api: Kubernetes,
        authority: Authority,
        seen: Callable[[Parsed], object],
        told: Callable[[], Iterable[Mapping[str, Any]]],
        judge: Callable[[], Judge],
    ) -> None:
        self._api, self._authority = api, authority
        self._client = Client(api.access, "nodemesh-controlplane")
        kinds = followed(api.secrets)
        saved = Saved(settings.state_dir, (version for versions in kinds for version in versions))
        self.source = KubernetesSource(self._client, kinds, saved, seen)
        self.statuses = Statuses(self._client, self.source, told, judge)
        tokens = Tokens(settings.state_dir)
        self.callers = Reviews(tokens, self._client, self.source, api.audience, api.tunnel_accounts)
        self._following: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._following = asyncio.create_task(self.source.run(), name="the Kubernetes API")

    async def stop(self) -> None:
        if self._following is not None:
            self._following.cancel()
            await asyncio.wait([self._following])
        await self._client.close()

    async def run(self) -> None:
        """Until cancelled; what follows the API ending by itself is a bug, which is raised."""
        assert self._following is not None
        work = [asyncio.shield(self._following), roots.publish(self._client, self._api.namespace, self._authority)]
        await asyncio.gather(*work, *([self.statuses.run()] if self._api.statuses else []))

    def describe(self) -> dict[str, Any]:
        return self.source.describe()
