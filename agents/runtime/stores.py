"""Where a real site's weights come from and its results go, as the orchestrator told.

Decides which orchestrators a real site can work for. Must not know what is fetched or stored.
"""

from __future__ import annotations

from dataclasses import dataclass

from agents.results import ArtifactStore
from atoll.model.errors import StateError
from atoll.model.report import Welcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Stores:
    """The origin of weights and adapters, and the artifact store."""

    origin_url: str
    artifacts_url: str


def stores_of(welcome: Welcome) -> Stores:
    """StateError for a time scale other than 1 or a place that is not named; StoreError for one that cannot be written to."""
    if welcome.time_scale_milli != 1000:
        scale = welcome.time_scale_milli / 1000
        raise StateError(f"time_scale is {scale:g}: expected 1, since pictures take real time at a real site (rehearse with twins)")
    if not welcome.origin_url or not welcome.artifacts_url:
        raise StateError("the orchestrator names no origin of weights or no artifact store: a real site needs both")
    return Stores(origin_url=welcome.origin_url, artifacts_url=ArtifactStore(welcome.artifacts_url).url)
