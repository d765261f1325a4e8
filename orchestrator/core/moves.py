"""What got better where, until it has been looked at; and moves under way: the slot that is kept until the attempt has stopped elsewhere.

Decides nothing: `bettered` and `moving` do.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from atoll.model.ids import JobId, ModelId, SiteId, SlotRef

# Models told apart for one pool: what got better for more of them is looked at as if it had for all.
_MODELS_MAX: Final = 8


class Bettering(StrEnum):
    """How a pool became a better place for who is bound elsewhere. The value completes a sentence about it."""

    SLOT_FREE = "has a slot that came free"
    MODEL_WARM = "has the model in memory now"
    CONNECTED = "connected"
    UNCORDONED = "was uncordoned"
    BREAKER_CLOSED = "works again"
    WEIGHTS_THERE = "has the weights at its site now"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bettered:
    """A pool that is to be looked at. `of_all`: what got better for every model, the last such; `of_model`: for single ones. `after`: not
    before the move of this job is over, which may make it worse."""

    of_all: Bettering | None = None
    of_model: tuple[tuple[ModelId, Bettering], ...] = ()
    after: JobId | None = None

    def words(self, model_id: ModelId) -> Bettering | None:
        """What got better for a model."""
        return dict(self.of_model).get(model_id, self.of_all)

    def and_(self, through: Bettering, model_id: ModelId | None) -> Bettered:
        """The same pool got better once more: it is looked at once, for both."""
        if model_id is None:
            return replace(self, of_all=through, after=None)
        known = dict(self.of_model)
        if model_id not in known and len(known) >= _MODELS_MAX:
            return replace(self, of_all=self.of_all or through, after=None)
        return replace(self, of_model=tuple({**known, model_id: through}.items()), after=None)

    def put_off(self, through: Bettering, model_id: ModelId, job_id: JobId) -> Bettered:
        """It is looked at for a model once the move of this job is over."""
        return replace(self.and_(through, model_id), after=job_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """An attempt is being stopped so that its job goes to this slot, which is kept for it `until_us` at the longest. Others reckon with it
    from `free_from_us` on, when the job should be done there. `cold`: it will load its model."""

    site_id: SiteId
    slot: SlotRef
    model_id: ModelId
    cold: bool
    until_us: int
    free_from_us: int
