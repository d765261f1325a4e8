"""The steps of one call of a pipeline: timed, told, and each a place to stop.

Decides how steps are heard of and counted. Must not know what is generated, nor why it should stop.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from agents.engine.calling import parameters_of
from agents.engine.errors import GenerationStoppedError


def now_us() -> int:
    """This process's own clock, microseconds."""
    return time.perf_counter_ns() // 1000


class StepWatch:
    """Hears of each step of one call: times it, tells it, and raises when the call must stop.

    `partial`: the call takes fewer steps than its schedule has; what is told goes from 0 to `steps` all the same.
    """

    def __init__(
        self,
        pipeline: Any,
        steps: int,
        on_step: Callable[[int, int], None] | None,
        should_stop: Callable[[], bool] | None,
        synchronize: Callable[[], None],
        partial: bool = False,
    ) -> None:
        self._pipeline = pipeline
        self._steps = steps
        self._on_step = on_step
        self._should_stop = should_stop
        self._synchronize = synchronize
        self._partial = partial
        self._ends_us: list[int] = []
        self.begin_us = 0
        self.steps_done = 0

    def begin(self) -> None:
        """Start the clock, or raise at once if the caller wants no generation any more."""
        self.begin_us = now_us()
        self._stop_if_asked()

    def times_us(self, end_us: int) -> tuple[int, int]:
        """(from the call to the last step's end, median step after the first)."""
        if not self._ends_us:
            return end_us - self.begin_us, 0
        steps = sorted(later - earlier for earlier, later in zip(self._ends_us, self._ends_us[1:], strict=False))
        return self._ends_us[-1] - self.begin_us, steps[len(steps) // 2] if steps else 0

    @contextmanager
    def attached(self, arguments: dict[str, Any]) -> Iterator[None]:
        """Listen through the pipeline's callback, or where it has none, through its scheduler."""
        if "callback_on_step_end" in parameters_of(self._pipeline):
            arguments["callback_on_step_end"] = self._called_back
            yield
            return
        scheduler = self._pipeline.scheduler
        original = scheduler.step

        def step(*args: Any, **kwargs: Any) -> Any:
            result = original(*args, **kwargs)
            self._step_ended(len(self._ends_us) + 1)
            return result

        scheduler.step = step
        try:
            yield
        finally:
            del scheduler.step

    def _called_back(self, _pipeline: Any, index: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        self._step_ended(index + 1)
        return tensors

    def _step_ended(self, number: int) -> None:
        # Schedulers of higher order take more timesteps than the steps that were asked for.
        # A pipeline that begins with an image takes only the last of them, and knows how many.
        planned = getattr(self._pipeline, "_num_timesteps", None) if self._partial else None
        total = max(number, planned if isinstance(planned, int) else len(getattr(self._pipeline.scheduler, "timesteps", ())))
        if number == total:
            self._synchronize()
        self._ends_us.append(now_us())
        self.steps_done = max(self.steps_done, number * self._steps // total)
        if self._on_step is not None:
            self._on_step(self.steps_done, self._steps)
        self._stop_if_asked()

    def _stop_if_asked(self) -> None:
        if self._should_stop is not None and self._should_stop():
            raise GenerationStoppedError(self.steps_done)
