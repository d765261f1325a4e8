"""The commands of the site's machine that are for what executes: all but those that are for the orchestrator.

Decides the two sets only.
"""

from __future__ import annotations

from agents.core.outputs import (
    AdaptReplica,
    DeleteWeights,
    EvictReplica,
    FetchAdapter,
    FetchWeights,
    LoadReplica,
    PinWeights,
    RenewAttempts,
    RunAttempt,
    StageWeights,
    StopAttempt,
    YieldFetch,
)

WeightsCommand = FetchWeights | YieldFetch | PinWeights | StageWeights | DeleteWeights | FetchAdapter
RuntimeCommand = WeightsCommand | LoadReplica | AdaptReplica | EvictReplica | RunAttempt | StopAttempt | RenewAttempts
