"""What operators say of adapters: the methods as values, and the verbs of both clients.

Decides which of them may be repeated. Must not know channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

from atoll.client.answers import AdapterView
from atoll.client.calls import OPERATOR, Call, argument
from atoll.model import limits
from atoll.model.adapter import AdapterSpec
from atoll.model.ids import AdapterId, parse_name
from atoll.v1 import operator_service_pb2 as pb
from atoll.wire import bounds
from atoll.wire.adapters import adapter_spec_to_proto, adapter_view_from_proto
from atoll.wire.jobs import checked_reason

T = TypeVar("T")


def add(adapters: Sequence[AdapterSpec]) -> Call[tuple[AdapterId, ...]]:
    """Declare adapters; answers those that changed. Declaring the same twice changes nothing, so it may be repeated."""
    request = pb.AddAdaptersRequest(adapters=[adapter_spec_to_proto(adapter) for adapter in adapters])

    def read(response: pb.AddAdaptersResponse) -> tuple[AdapterId, ...]:
        return tuple(AdapterId(name) for name in bounds.names("changed", response.changed, limits.ADAPTERS_IN_FLEET_MAX))

    return Call(service=OPERATOR, method="AddAdapters", request=request, read=read, repeatable=True)


def list_all() -> Call[tuple[AdapterView, ...]]:
    """All adapters."""

    def read(response: pb.ListAdaptersResponse) -> tuple[AdapterView, ...]:
        return bounds.each("adapters", response.adapters, limits.ADAPTERS_IN_FLEET_MAX, _view)

    return Call(service=OPERATOR, method="ListAdapters", request=pb.ListAdaptersRequest(), read=read, repeatable=True)


def get(adapter_id: str) -> Call[AdapterView]:
    """One adapter."""
    request = pb.GetAdapterRequest(adapter_id=argument(parse_name, "adapter_id", adapter_id))
    return Call(service=OPERATOR, method="GetAdapter", request=request, read=_view, repeatable=True)


def remove(adapter_id: str, reason: str) -> Call[AdapterId]:
    """Forget an adapter."""
    request = pb.RemoveAdapterRequest(
        adapter_id=argument(parse_name, "adapter_id", adapter_id), reason=argument(checked_reason, "reason", reason)
    )

    def read(response: pb.RemoveAdapterResponse) -> AdapterId:
        return AdapterId(parse_name("adapter_id", response.adapter_id))

    return Call(service=OPERATOR, method="RemoveAdapter", request=request, read=read, repeatable=False)


def _view(message: pb.AdapterView) -> AdapterView:
    spec, usage = adapter_view_from_proto(message)
    return AdapterView(spec=spec, loaded_sites=usage.loaded_sites, loaded_replicas=usage.loaded_replicas, disk_sites=usage.disk_sites)


class _Runs(Protocol):
    def run(self, call: Call[T]) -> T: ...


class _RunsAsync(Protocol):
    async def run(self, call: Call[T]) -> T: ...


class AdapterVerbs:
    """Of the blocking client."""

    def adapters_add(self: _Runs, adapters: Sequence[AdapterSpec]) -> tuple[AdapterId, ...]:
        """Declare adapters; answers those that are new or changed."""
        return self.run(add(adapters))

    def adapters_list(self: _Runs) -> tuple[AdapterView, ...]:
        """All adapters, and where they are."""
        return self.run(list_all())

    def adapters_get(self: _Runs, adapter_id: str) -> AdapterView:
        """One adapter, and where it is."""
        return self.run(get(adapter_id))

    def adapters_remove(self: _Runs, adapter_id: str, *, reason: str) -> AdapterId:
        """Forget an adapter; jobs that wait for it fail."""
        return self.run(remove(adapter_id, reason))


class AsyncAdapterVerbs:
    """Of the asynchronous client."""

    async def adapters_add(self: _RunsAsync, adapters: Sequence[AdapterSpec]) -> tuple[AdapterId, ...]:
        """Declare adapters; answers those that are new or changed."""
        return await self.run(add(adapters))

    async def adapters_list(self: _RunsAsync) -> tuple[AdapterView, ...]:
        """All adapters, and where they are."""
        return await self.run(list_all())

    async def adapters_get(self: _RunsAsync, adapter_id: str) -> AdapterView:
        """One adapter, and where it is."""
        return await self.run(get(adapter_id))

    async def adapters_remove(self: _RunsAsync, adapter_id: str, *, reason: str) -> AdapterId:
        """Forget an adapter; jobs that wait for it fail."""
        return await self.run(remove(adapter_id, reason))
