"""Recordings: unions keep their class, the text is the same on every run, and what does not fit is refused where it is."""

from __future__ import annotations

import subprocess
import sys
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import IntEnum, StrEnum
from typing import NewType, get_args

import pytest

from agents.core import events as agent_events
from agents.core import outputs as agent_outputs
from atoll.model.ids import AttemptKey, JobId, NodeId, Ordinal, PoolId, SlotRef
from atoll.wire.recording import RecordingError, TaggedCodec
from orchestrator.core import events as orchestrator_events
from orchestrator.core import outputs as orchestrator_outputs
from orchestrator.core.snapshot import Snapshot

Name = NewType("Name", str)


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


class Rank(IntEnum):
    LOW = 0
    HIGH = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    name: Name
    existing: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    name: Name
    existing: bool = False


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Key:
    name: Name
    ordinal: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    outcomes: tuple[Accepted | Refused, ...] = ()
    last: Accepted | Refused | None = None
    only: Accepted | None = None
    mixed: Accepted | str | int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    colours: frozenset[Colour] = frozenset()
    ranks: dict[Rank, tuple[int, str]] = field(default_factory=dict)
    by_key: Mapping[Key, Reply] = field(default_factory=dict)
    names: set[Name] = field(default_factory=set)
    order: list[int] = field(default_factory=list)
    recent: deque[Key] = field(default_factory=deque)
    share: float = 0.0
    digest: bytes = b""
    inner: State | None = None


A = Accepted(name=Name("a"))
R = Refused(name=Name("a"))
CODEC = TaggedCodec([Reply, State, Accepted])


@pytest.mark.parametrize(
    "value",
    [
        A,
        Reply(),
        Reply(outcomes=(A, R, A), last=R, only=A, mixed=A),
        Reply(mixed="text\n\udc80"),
        Reply(mixed=2**80),
        State(
            colours=frozenset(Colour),
            ranks={Rank.HIGH: (1, "x"), Rank.LOW: (0, "")},
            by_key={Key(name=Name("b"), ordinal=1): Reply(last=A), Key(name=Name("a"), ordinal=10): Reply()},
            names={Name("x"), Name("y")},
            order=[3, 1, 2],
            recent=deque([Key(name=Name("k"), ordinal=1)]),
            share=0.1,
            digest=b"\x00\xff",
            inner=State(inner=State(share=1e300)),
        ),
    ],
)
def test_values_come_back_as_they_were(value: object) -> None:
    line = CODEC.encode(value)
    decoded = CODEC.decode(line)
    assert decoded == value
    assert type(decoded) is type(value)
    assert CODEC.encode(decoded) == line


def test_members_of_a_union_keep_their_class() -> None:
    decoded = CODEC.decode(CODEC.encode(Reply(outcomes=(A, R))))
    assert isinstance(decoded, Reply)
    assert [type(outcome) for outcome in decoded.outcomes] == [Accepted, Refused]


def test_the_order_in_which_a_set_or_mapping_was_filled_does_not_show() -> None:
    one = State(names={Name("a"), Name("b")}, ranks={Rank.LOW: (0, ""), Rank.HIGH: (1, "")})
    other = replace(one, names={Name("b"), Name("a")}, ranks={Rank.HIGH: (1, ""), Rank.LOW: (0, "")})
    assert CODEC.encode(one) == CODEC.encode(other)


PROGRAM = """
from tests.unit.test_wire_recording import CODEC, Colour, Name, State
print(CODEC.encode(State(colours=frozenset(Colour), names={Name(str(n)) for n in range(50)})).decode())
"""


def test_the_text_is_the_same_under_every_hash_seed() -> None:
    runs = [
        subprocess.run([sys.executable, "-c", PROGRAM], env={"PYTHONHASHSEED": seed, "PYTHONPATH": "."}, capture_output=True, check=True)
        for seed in ("1", "2")
    ]
    assert runs[0].stdout == runs[1].stdout
    assert runs[0].stdout


def test_missing_fields_take_their_defaults_and_unknown_ones_are_ignored() -> None:
    assert CODEC.decode(b'{"$":"Accepted","name":"a","colour":"blue"}') == A


@pytest.mark.parametrize(
    ("line", "path"),
    [
        (b"", ""),
        (b"[]", ""),
        (b"[" * 100_000, ""),
        (b'{"$":"Key","name":"a","ordinal":1}', ""),
        (b'{"$":"Accepted"}', "Accepted.name"),
        (b'{"$":"Accepted","name":7}', "Accepted.name"),
        (b'{"$":"Accepted","name":"a","existing":0}', "Accepted.existing"),
        (b'{"$":"Reply","outcomes":[{"$":"Accepted","name":"a"},{"$":"Key","name":"a"}]}', "Reply.outcomes[1]"),
        (b'{"$":"Reply","mixed":1.5}', "Reply.mixed"),
        (b'{"$":"State","colours":["green"]}', "State.colours[0]"),
        (b'{"$":"State","ranks":[[1,[1]]]}', "State.ranks[0]"),
        (b'{"$":"State","digest":"xyz"}', "State.digest"),
        (b'{"$":"State","inner":{"inner":{"share":"much"}}}', "State.inner.inner.share"),
    ],
)
def test_a_line_that_does_not_fit_is_refused_where_it_is(line: bytes, path: str) -> None:
    with pytest.raises(RecordingError) as raised:
        CODEC.decode(line)
    assert raised.value.path == path


def test_only_named_classes_are_lines() -> None:
    with pytest.raises(TypeError, match="Key is not among the classes"):
        CODEC.encode(Key(name=Name("a"), ordinal=1))


@dataclass(frozen=True)
class Vague:
    anything: object


@dataclass(frozen=True)
class Ambiguous:
    either: Colour | str


@pytest.mark.parametrize("cls", [Vague, Ambiguous, str])
def test_a_class_without_a_canonical_text_is_refused_at_the_start(cls: type) -> None:
    with pytest.raises(TypeError):
        TaggedCodec([cls])


def test_a_value_that_lies_about_its_type_is_refused() -> None:
    with pytest.raises(RecordingError):
        CODEC.encode(Reply(only=R))  # type: ignore[arg-type]
    with pytest.raises(RecordingError):
        CODEC.encode(State(order=[object()]))  # type: ignore[list-item]


def test_both_cores_speak_in_recordable_classes() -> None:
    """Every event, step and snapshot there is has a canonical text: compiled here, or `--record` would fail on a live fleet."""
    orchestrator = TaggedCodec([*get_args(orchestrator_events.Event), orchestrator_outputs.Step, Snapshot])
    agent = TaggedCodec([*get_args(agent_events.AgentEvent), agent_outputs.AgentStep])
    fired = orchestrator_events.TimerFired()
    assert orchestrator.decode(orchestrator.encode(fired)) == fired
    answer = orchestrator_outputs.Answer(
        request=orchestrator_events.RequestRef(1),
        reply=orchestrator_outputs.SubmitReply(
            outcomes=(
                orchestrator_outputs.Accepted(job_id=JobId("j1")),
                orchestrator_outputs.Refusal(code=orchestrator_outputs.RefusalCode.QUOTA, message="later", retry_after_ms=5),
            )
        ),
    )
    step = orchestrator_outputs.Step(commands=(answer,))
    assert orchestrator.decode(orchestrator.encode(step)) == step
    stop = agent_outputs.StopAttempt(
        slot=SlotRef(pool_id=PoolId("p"), node_id=NodeId("p-0"), index=0), key=AttemptKey(job_id=JobId("j1"), ordinal=Ordinal(1))
    )
    assert agent.decode(agent.encode(agent_outputs.AgentStep(commands=(stop,)))) == agent_outputs.AgentStep(commands=(stop,))
