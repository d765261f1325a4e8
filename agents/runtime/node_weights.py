"""Weights on the disk of this host, as the runtime's commands and events want them: fetched, deleted, given up, kept while needed.

Decides what is pinned and how the end of a fetch is told. All nodes of a site of one host share its disk. The cache itself is
`agents.weights`; must not know Ray.
"""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Final

from agents.core.events import FetchFailed, RatesMeasured, WeightsDeleted, WeightsFetched
from agents.core.outputs import DeleteWeights, FetchWeights
from agents.engine.errors import failure_of
from agents.fetching import WeightsFetcher
from agents.origins import FetchError, FetchStoppedError
from agents.runtime.base import Sink
from agents.weights import FetchResult, WeightsCache
from atoll.model.attempt import Failure, FailureKind
from atoll.model.errors import AtollError, FieldError
from atoll.model.ids import ModelId, NodeId, SlotRef
from atoll.model.modelspec import ModelSpec
from atoll.model.report import RateFacts

_PART: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\Z")
_PATH_RULE: Final = "a folder below the origin: names of letters, digits, '.', '_' and '-', joined by '/'"


def origin_of(origin_url: str, model: ModelSpec) -> str:
    """URL of a model's folder. FieldError for a path that could lead out of the origin, or none."""
    parts = model.origin_path.split("/")
    if len(model.origin_path) > 500 or not all(_PART.match(part) for part in parts):
        raise FieldError(f"origin_path of model {model.model_id}", model.origin_path, _PATH_RULE)
    return f"{origin_url.rstrip('/')}/{model.origin_path}"


class Rates:
    """What this site measured last, told whenever one of the rates is measured anew. Bytes per second; 0: not yet."""

    def __init__(self, tell: Sink) -> None:
        self._tell = tell
        self._facts = RateFacts()

    def measured(self, *, disk: int | None = None, h2d: int | None = None, origin: int | None = None) -> None:
        """None: this one was not measured now."""
        if disk is None and h2d is None and origin is None:
            return
        old = self._facts
        self._facts = RateFacts(
            disk_bytes_per_s=disk or old.disk_bytes_per_s,
            h2d_bytes_per_s=h2d or old.h2d_bytes_per_s,
            origin_bytes_per_s=origin or old.origin_bytes_per_s,
        )
        self._tell(RatesMeasured(rates=self._facts))


class NodeWeights:
    """The disk of this host. All methods on the agent's event loop."""

    def __init__(self, cache: WeightsCache, *, nodes: tuple[NodeId, ...], tell: Sink, rates: Rates) -> None:
        self._fetcher = WeightsFetcher(cache)
        self._nodes = nodes
        self._tell = tell
        self._rates = rates
        # Fetched and not loaded since: somebody waits for it, or it was fetched ahead. The only pins that may give way.
        self._awaited: dict[ModelId, str] = {}
        self._resident: dict[SlotRef, dict[ModelId, str]] = {}

    async def on_disk(self) -> tuple[tuple[NodeId, ModelId, str], ...]:
        """Node, model and digest of everything complete."""
        entries = await self._fetcher.entries()
        return tuple((node, model.model_id, model.digest) for node in self._nodes for model in entries)

    async def folder_of(self, model: ModelSpec) -> Path | None:
        """Where a model lies, None if it is not there (any more). FieldError for an id or digest that is none."""
        found = await asyncio.to_thread(self._fetcher.cache.get, model.model_id, model.weights_digest)
        return found.folder if found is not None else None

    async def fetch(self, command: FetchWeights, origin_url: str) -> None:
        """Told by WeightsFetched or FetchFailed, or not at all when this runtime closes meanwhile."""
        model = command.model
        try:
            url = origin_of(origin_url, model)
            result = await self._fetch(model, url)
        except FetchStoppedError:
            return
        except FetchError as error:
            self._tell(FetchFailed(node_id=command.node_id, model_id=model.model_id, failure=error.failure))
            return
        except (AtollError, OSError) as error:
            failure = failure_of(error, FailureKind.FETCH_FAILED)
            if isinstance(error, FieldError):
                # Not the job's input is wrong, as `failure_of` takes it, but what the fleet says of the model.
                failure = Failure(kind=FailureKind.BAD_WEIGHTS, message=failure.message)
            self._tell(FetchFailed(node_id=command.node_id, model_id=model.model_id, failure=failure))
            return
        for evicted in result.evicted:
            self._gone(evicted.model_id)
        self._awaited[model.model_id] = model.weights_digest
        self._pin()
        self._tell(
            WeightsFetched(
                node_id=command.node_id,
                model_id=model.model_id,
                weights_digest=model.weights_digest,
                bytes=result.manifest.total_bytes,
                elapsed_us=result.elapsed_us,
            )
        )
        self._rates.measured(origin=result.bytes_per_s)

    async def _fetch(self, model: ModelSpec, url: str) -> FetchResult:
        try:
            return await self._fetcher.fetch(model.model_id, model.weights_digest, url)
        except FetchError as error:
            if error.kind is not FailureKind.DISK_FULL or not self._awaited:
                raise
        # What was fetched ahead and never loaded gives way to what is wanted now.
        self._awaited.clear()
        self._pin()
        return await self._fetcher.fetch(model.model_id, model.weights_digest, url)

    async def delete(self, command: DeleteWeights) -> None:
        """Told by WeightsDeleted, for every node that shares the disk. A resident replica lives on without its files."""
        await self.drop(command.model_id)

    async def drop(self, model_id: ModelId) -> None:
        """Remove a model that nobody wants, or that proved to be damaged."""
        self._awaited.pop(model_id, None)
        self._pin(without=model_id)
        try:
            await self._fetcher.delete(model_id)
        finally:
            self._pin()
        self._gone(model_id)

    def loaded(self, slot: SlotRef, model_id: ModelId, digest: str) -> None:
        """A model is resident in a slot."""
        self._resident.setdefault(slot, {})[model_id] = digest
        self._awaited.pop(model_id, None)
        self._pin()

    def load_failed(self, model_id: ModelId) -> None:
        """Whoever waited for a model has his answer."""
        self._awaited.pop(model_id, None)
        self._pin()

    def unloaded(self, slot: SlotRef, model_id: ModelId | None = None) -> None:
        """A model (all without `model_id`) left a slot."""
        if model_id is None:
            self._resident.pop(slot, None)
        else:
            self._resident.get(slot, {}).pop(model_id, None)
        self._pin()

    async def close(self) -> None:
        """Stop what is being fetched; a later fetch continues it."""
        await self._fetcher.close()

    def _pin(self, *, without: ModelId | None = None) -> None:
        pins = {*self._awaited.items(), *(pin for models in self._resident.values() for pin in models.items())}
        self._fetcher.cache.pin(frozenset(pin for pin in pins if pin[0] != without))

    def _gone(self, model_id: ModelId) -> None:
        self._awaited.pop(model_id, None)
        for node_id in self._nodes:
            self._tell(WeightsDeleted(node_id=node_id, model_id=model_id))
