"""The policy where fleet time runs faster than real time."""

from __future__ import annotations

from dataclasses import replace

from orchestrator.core.placement.policy import Policy


def test_what_waits_for_real_processes_waits_as_long_in_real_time() -> None:
    fast = Policy().at_scale(60_000)
    assert fast.silent_after_ms == 60 * Policy().silent_after_ms
    assert fast.lost_after_min_ms == 60 * Policy().lost_after_min_ms
    assert fast.report_interval_ms == 60 * Policy().report_interval_ms
    assert fast.seconds_per_dollar == Policy().seconds_per_dollar
    assert fast.slot_depth == Policy().slot_depth


def test_real_time_and_slower_clocks_change_nothing() -> None:
    own = replace(Policy(), silent_after_ms=700)
    assert own.at_scale(1_000) == own
    assert own.at_scale(1) == own
