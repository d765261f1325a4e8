"""What the terms of a class are computed from where it does not change from one decision to the next: arrays over its rows.

Decides the form only. Rows are as `rows` says; all arrays are int64 of one figure per row, or bool.
"""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.core.placement.rows import Bools, Ints


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """Figures per row. `weight_milli`, `seconds_per_dollar`, `hazard_per_million_hours` and `fail_ppm` are rates of the policy."""

    cold: Bools  # the model has to be loaded
    input_us: Ints
    stage_us: Ints  # from disk to GPU
    init_us: Ints
    adapt_us: Ints  # fetching and patching the adapters that the row's replica lacks
    compile_us: Ints  # making or taking over the denoiser's code for the shape
    execution_us: Ints
    output_us: Ints
    usd_micros_per_hour: Ints
    egress_usd_micros: Ints  # for the result to leave the site
    preemptions_per_million_hours: Ints  # of the site's GPUs, by their owner
    gang_size: int
    weight_milli: int
    seconds_per_dollar: int
    hazard_per_million_hours: int
    fail_ppm: int

    @property
    def occupancy_us(self) -> Ints:
        """For how long the slot is taken, beside the fetch that it is held for: that moves with the fleet."""
        return self.loading_us + self.adapt_us + self.compile_us + self.execution_us

    @property
    def loading_us(self) -> Ints:
        """Of it, what only a cold row needs."""
        return (self.stage_us + self.init_us) * self.cold
