"""Every enumeration of the model beside that of the wire, matched by name.

Decides which number stands for which member. A member that the contract lacks is an error at import, not in flight.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Final, TypeVar

from atoll.model.attempt import AttemptState, FailureKind
from atoll.model.audit import Severity
from atoll.model.errors import FieldError
from atoll.model.job import JobState, Priority
from atoll.model.modelspec import DenoiserKind, Modality
from atoll.model.orchestrators import OrchestratorRole
from atoll.model.quote import Verdict
from atoll.model.replica import ReplicaState, Tier
from atoll.model.shape import Precision
from atoll.model.site import SiteAdmin, SiteConnection, SiteRuntime
from atoll.v1 import operator_service_pb2 as operator_pb
from atoll.v1 import types_pb2 as pb

E = TypeVar("E", bound=Enum)
V = TypeVar("V", bound=int)

JOB_STATE_TO: Final = {state: pb.JobState.Value(f"JOB_STATE_{state.name}") for state in JobState}
ATTEMPT_STATE_TO: Final = {state: pb.AttemptState.Value(f"ATTEMPT_STATE_{state.name}") for state in AttemptState}
FAILURE_KIND_TO: Final = {kind: pb.FailureKind.Value(f"FAILURE_KIND_{kind.name}") for kind in FailureKind}
PRIORITY_TO: Final = {priority: pb.Priority.Value(f"PRIORITY_{priority.name}") for priority in Priority}
PRECISION_TO: Final = {precision: pb.Precision.Value(f"PRECISION_{precision.name}") for precision in Precision}
MODALITY_TO: Final = {modality: pb.Modality.Value(f"MODALITY_{modality.name}") for modality in Modality}
DENOISER_KIND_TO: Final = {kind: pb.DenoiserKind.Value(f"DENOISER_KIND_{kind.name}") for kind in DenoiserKind}
SITE_RUNTIME_TO: Final = {runtime: pb.SiteRuntime.Value(f"SITE_RUNTIME_{runtime.name}") for runtime in SiteRuntime}
SITE_CONNECTION_TO: Final = {connection: pb.SiteConnection.Value(f"SITE_CONNECTION_{connection.name}") for connection in SiteConnection}
SITE_ADMIN_TO: Final = {admin: pb.SiteAdmin.Value(f"SITE_ADMIN_{admin.name}") for admin in SiteAdmin}
REPLICA_STATE_TO: Final = {state: pb.ReplicaState.Value(f"REPLICA_STATE_{state.name}") for state in ReplicaState}
# Tiers that a copy can be wanted on; peers and the origin are where copies come from.
TIER_TO: Final = {tier: pb.Tier.Value(f"TIER_{tier.name}") for tier in (Tier.GPU, Tier.HOST, Tier.DISK)}
VERDICT_TO: Final = {verdict: pb.Verdict.Value(f"VERDICT_{verdict.name}") for verdict in Verdict}
SEVERITY_TO: Final = {severity: pb.Severity.Value(f"SEVERITY_{severity.name}") for severity in Severity}

ORCHESTRATOR_ROLE_TO: Final = {role: operator_pb.OrchestratorRole.Value(f"ORCHESTRATOR_ROLE_{role.name}") for role in OrchestratorRole}


def _from(table: Mapping[E, V]) -> dict[int, E]:
    return {number: member for member, number in table.items()}


JOB_STATE_FROM: Final = _from(JOB_STATE_TO)
ATTEMPT_STATE_FROM: Final = _from(ATTEMPT_STATE_TO)
FAILURE_KIND_FROM: Final = _from(FAILURE_KIND_TO)
PRIORITY_FROM: Final = _from(PRIORITY_TO)
PRECISION_FROM: Final = _from(PRECISION_TO)
MODALITY_FROM: Final = _from(MODALITY_TO)
DENOISER_KIND_FROM: Final = _from(DENOISER_KIND_TO)
SITE_RUNTIME_FROM: Final = _from(SITE_RUNTIME_TO)
SITE_CONNECTION_FROM: Final = _from(SITE_CONNECTION_TO)
SITE_ADMIN_FROM: Final = _from(SITE_ADMIN_TO)
REPLICA_STATE_FROM: Final = _from(REPLICA_STATE_TO)
TIER_FROM: Final = _from(TIER_TO)
VERDICT_FROM: Final = _from(VERDICT_TO)
SEVERITY_FROM: Final = _from(SEVERITY_TO)
ORCHESTRATOR_ROLE_FROM: Final = _from(ORCHESTRATOR_ROLE_TO)


def member(field: str, table: Mapping[int, E], number: int) -> E:
    """The member that `number` stands for; FieldError for 0 (unspecified) and for numbers of another version."""
    found = table.get(number)
    if found is None:
        known = ", ".join(f"{value} ({item.name.lower()})" for value, item in table.items())
        raise FieldError(field, number, f"one of {known}")
    return found


def job_states_from_proto(numbers: list[pb.JobState.ValueType]) -> frozenset[JobState]:
    """A filter of job states; each at most once counts."""
    return frozenset(member("states", JOB_STATE_FROM, number) for number in numbers)
