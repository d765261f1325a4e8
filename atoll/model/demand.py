"""How often models are asked for, as it is kept: in snapshots of the core and, now and then, in the store.

Decides the form only. Must not know how rates follow from sums, nor what they decide.
"""

from __future__ import annotations

from dataclasses import dataclass

from atoll.model.ids import ModelId


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelDemand:
    """What is known of one model: since when, the three sums and as of when each, how many arrivals, and the rate that was told last."""

    model_id: ModelId
    since_us: int
    as_of_us: tuple[int, int, int]
    sums: tuple[int, int, int]
    arrivals: int
    told_milli: int


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptDemand:
    """Of all models, the first `active` of which somebody asks for, and the half-lives that the sums were made with.

    `saved_us`: when it became durable last, in fleet time; `unsaved`: something came since.
    """

    models: tuple[ModelDemand, ...] = ()
    active: int = 0
    half_lives_us: tuple[int, int, int] = (0, 0, 0)
    saved_us: int = 0
    unsaved: bool = False
