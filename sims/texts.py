"""Events and steps in few words, for the history that a failure prints and the digest covers.

Decides how they read, nothing else.
"""

from __future__ import annotations

from agents.core import outputs as agent_outputs
from agents.core.events import (
    AgentEvent,
    AssignmentReceived,
    AttemptAdvanced,
    AttemptErrored,
    AttemptFinished,
    AttemptHalted,
    FetchFailed,
    ReplicaLoaded,
    ReplicaLoadFailed,
    RuntimeStarted,
    SlotLost,
    WeightsFetched,
)
from agents.core.outputs import AgentStep
from atoll.model.ids import SlotRef
from orchestrator.core import outputs
from orchestrator.core.events import (
    AttemptsEnded,
    Event,
    JobCancelRequested,
    JobsSubmitted,
    SiteConnected,
    SiteReported,
)
from orchestrator.core.outputs import Step
from sims import links, store


def brief_event(event: Event) -> str:
    """An event of the orchestrator."""
    name = type(event).__name__
    match event:
        case JobsSubmitted():
            return f"{name} {[f'{item.job_id}={item.spec.model_id}' for item in event.submissions]}"
        case JobCancelRequested():
            return f"{name} {event.job_id}"
        case SiteConnected():
            return f"{name} {event.site_id} session={event.session} {links.brief(event.hello)}"
        case SiteReported():
            return f"{name} {event.site_id} {links.brief(event.report)}"
        case AttemptsEnded():
            return f"{name} {event.site_id} {links.brief(links.Events(events=event.events))}"
        case _:
            site_id = getattr(event, "site_id", "")
            return f"{name} {site_id}" if site_id else name


def brief_step(step: Step | AgentStep) -> str:
    """A step of either machine."""
    if isinstance(step, Step):
        parts = [store.brief(record) for record in step.records]
        parts += [_command(command) for command in step.commands if not isinstance(command, outputs.PublishJob)]
    else:
        parts = [_agent_part(part) for part in (*step.records, *step.commands)]
    return "; ".join(parts)


def _command(command: outputs.Command) -> str:
    match command:
        case outputs.SendAssignment():
            return f"to {command.site_id}: {links.brief(command.assignment)}"
        case outputs.Answer():
            return f"answer {command.request}: {command.reply}"
        case outputs.CloseSession():
            return f"close {command.site_id}: {command.refusal.message}"
        case _:
            return type(command).__name__


def _slot(slot: SlotRef) -> str:
    return f"{slot.node_id}.{slot.index}"


def _agent_part(part: agent_outputs.AgentRecord | agent_outputs.AgentCommand) -> str:
    name = type(part).__name__
    match part:
        case agent_outputs.OutboxAppended():
            return f"{name} {links.brief(links.Events(events=(part.event,)))} {part.event.failure or ''}"
        case agent_outputs.OutboxTrimmed():
            return f"{name} {part.acked_event_seq}"
        case agent_outputs.SendEvents():
            return f"{name} {links.brief(links.Events(events=part.events))}"
        case agent_outputs.SendReport():
            return f"{name} {links.brief(part.report)}"
        case agent_outputs.FetchWeights():
            return f"{name} {part.node_id} {part.model.model_id}"
        case agent_outputs.LoadReplica():
            return f"{name} {_slot(part.slot)} {part.model.model_id}"
        case agent_outputs.EvictReplica():
            return f"{name} {_slot(part.slot)} {part.model_id}"
        case agent_outputs.RunAttempt() | agent_outputs.StopAttempt():
            return f"{name} {_slot(part.slot)} {part.key}"
        case agent_outputs.RefuseOrchestrator():
            return f"{name} {part.message}"
        case _:
            return name


def brief_agent_event(event: AgentEvent) -> str:
    """An event of an agent."""
    name = type(event).__name__
    match event:
        case AssignmentReceived():
            return f"{name} {links.brief(event.assignment)}"
        case AttemptAdvanced():
            return f"{name} {event.key}:{event.state}:{event.steps_done}"
        case AttemptFinished() | AttemptHalted():
            return f"{name} {event.key}"
        case AttemptErrored():
            return f"{name} {event.key} {event.failure.kind}"
        case ReplicaLoaded():
            return f"{name} {_slot(event.slot)} {event.model_id}"
        case ReplicaLoadFailed():
            return f"{name} {_slot(event.slot)} {event.model_id} {event.failure.kind}"
        case WeightsFetched() | FetchFailed():
            return f"{name} {event.node_id} {event.model_id}"
        case SlotLost():
            return f"{name} {_slot(event.slot)}"
        case RuntimeStarted():
            running = [f"{_slot(item.slot)}={item.running}" for item in event.slots if item.running is not None]
            return f"{name} running={running} finished={[str(item.key) for item in event.finished]}"
        case _:
            return name
