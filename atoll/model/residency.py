"""Residency: what operators pin and push, what came and left where and why, and what readers see of a model's copies.

Decides the form, and which words a tier may be named by. Must not know how targets are computed.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from atoll.model.errors import FieldError
from atoll.model.ids import JobId, ModelId, NodeId, PoolId, SiteId
from atoll.model.replica import Tier

# Tiers that a copy can be wanted on, by the words that people use.
TIERS: Final[dict[str, Tier]] = {"gpu": Tier.GPU, "host": Tier.HOST, "disk": Tier.DISK}
TIER_NAMES: Final[dict[Tier, str]] = {tier: name for name, tier in TIERS.items()}


def parse_tier(field: str, value: object) -> Tier:
    """The tier of this word; else FieldError."""
    tier = TIERS.get(value) if isinstance(value, str) else None
    if tier is None:
        raise FieldError(field, value, f"one of {', '.join(TIERS)}")
    return tier


class Cause(StrEnum):
    """Why a copy came or left, or is wanted."""

    JOB = "job"  # an attempt needed it, or its room
    PIN = "pin"
    PUSH = "push"
    TARGET = "target"  # the residency loop: demand is worth it
    CACHE = "cache"  # a site's cache made room
    OPERATOR = "operator"  # the model was removed
    SITE = "site"  # the site's own doing: a process that died, a restart


class Movement(StrEnum):
    """What happened to a copy."""

    CAME = "came"
    LEFT = "left"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pin:
    """An operator's word that a model stays on a tier of a site. One per model and site; durable."""

    model_id: ModelId
    site_id: SiteId
    tier: Tier
    actor: str
    reason: str = ""
    created_us: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Push:
    """An operator's word that a model's weights should be on `sites`, warm on `warm` of them, until `until_us`. One per model; durable."""

    model_id: ModelId
    sites: tuple[SiteId, ...]
    warm: tuple[SiteId, ...] = ()
    actor: str
    reason: str = ""
    created_us: int = 0
    until_us: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ResidencyEvent:
    """A copy came or left. `job_id` None: no job was the cause. `price_us`: what its leaving was reckoned to cost others; 0: not priced."""

    at_us: int
    model_id: ModelId
    site_id: SiteId
    node_id: NodeId
    tier: Tier
    movement: Movement
    cause: Cause
    job_id: JobId | None = None
    price_us: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyView:
    """Copies of one model on one tier of one node. `bytes_left` -1: not on its way. `wanted` None: nobody asked for it ahead of demand.

    `age_us`: since the youngest of them is there, -1 where that is not known.
    """

    site_id: SiteId
    node_id: NodeId
    tier: Tier
    copies: int
    busy: int = 0
    pinned: bool = False
    wanted: Cause | None = None
    bytes_left: int = -1
    age_us: int = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetView:
    """How many copies the residency loop wants and what that rests on. Rates per hour in thousandths: mixed, 10 min, 6 h, 7 d.

    `arrivals`: jobs that the averages rest on; while there are none, rates are what is assumed of a model that nobody knows.
    `value_us_per_hour`: delay that the last copy on the GPU saves others in an hour, per GB.
    """

    gpu: int = 0
    host: int = 0
    disk: int = 0
    sites_min: int = 0
    rate_per_hour_milli: int = 0
    average_per_hour_milli: tuple[int, ...] = ()
    value_us_per_hour: int = 0
    arrivals: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelPlaces:
    """Where a model is, where it should be, and why."""

    model_id: ModelId
    now_us: int
    weights_bytes: int
    copies: tuple[CopyView, ...]
    target: TargetView
    pins: tuple[Pin, ...] = ()
    push: Push | None = None
    events: tuple[ResidencyEvent, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PushStep:
    """What a push does at one site: bytes to fetch, times to fetch and load them, and which models make room. `held`: it is there."""

    site_id: SiteId
    region: str
    pool_id: PoolId
    node_id: NodeId
    warm: bool
    held: bool
    bytes: int
    fetch_us: int
    load_us: int
    execution_us: int
    evicts: tuple[ModelId, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PushPlan:
    """What a push does, site by site, the fastest first."""

    model_id: ModelId
    steps: tuple[PushStep, ...]
    until_us: int
    now_us: int
