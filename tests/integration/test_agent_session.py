"""The agent's stream: who is refused for good, what is dialled again, which credential is shown, what goes up and comes down."""

from __future__ import annotations

import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from structlog.testing import capture_logs

from agents.journal import DiskJournal
from agents.session import AgentEndedError, ExitCode
from atoll.model.address import Address
from atoll.model.assignment import AssignedAttempt
from atoll.model.attempt import AttemptState
from atoll.model.errors import StateError
from atoll.model.ids import FleetId, ModelId, SiteId, Term
from atoll.model.report import PROTOCOL_VERSION, Welcome
from atoll.v1 import site_service_pb2 as pb
from atoll.v1 import types_pb2
from tests.integration.running_agent import agent, double, machine_of, twin_of, until
from tests.unit.agent_core_site import attempt, key, slot
from tests.unit.fleet_of_machines import model, pool, site

SPEC = site("s", pool("p"))
WHERE = slot(0, 0)


def simulated(job: str, model_id: str = "m", **changes: Any) -> AssignedAttempt:
    """An attempt that a twin takes."""
    one = attempt(job, model_id, where=WHERE, **changes)
    return replace(one, spec=replace(one.spec, simulated=True))


async def test_an_agent_says_hello_and_reports_everything() -> None:
    async with double() as served, agent(served.address, "s", twin_of(SPEC)):
        stream = await served.stream(0)
        await until(lambda: len(stream.reports) >= 2)
        assert (stream.hello.site_id, stream.hello.protocol_version, stream.hello.next_event_seq) == ("s", PROTOCOL_VERSION, 1)
        assert [one.gpu_memory_bytes for one in stream.hello.pools] == [80 * 10**9]
        assert [report.full for report in stream.reports[:2]] == [True, False]


async def test_ends_are_told_again_on_the_next_stream_until_acknowledged() -> None:
    async with double() as served, agent(served.address, "s", twin_of(SPEC)):
        stream = await served.stream(0)
        stream.send(served.snapshot(simulated("a", model_id="unknown")))
        await until(lambda: bool(stream.events))
        stream.cut()
        again = await served.stream(1)
        await until(lambda: bool(again.events))
        assert [event.key for event in again.events] == [key("a")]
        assert again.hello.boot_id == stream.hello.boot_id
        again.send(served.snapshot(generation=2, acked=again.events[0].seq))
        await until(lambda: any(report.generation == 2 for report in again.reports))
        again.cut()
        third = await served.stream(2)
        await until(lambda: len(third.reports) >= 2)
        assert not third.events


async def test_work_goes_on_while_no_orchestrator_is_there() -> None:
    async with double() as served, agent(served.address, "s", twin_of(SPEC)) as running:
        stream = await served.stream(0)
        stream.send(served.snapshot(simulated("a"), models=(model("m", weights_gb=0),)))
        await until(lambda: any(one.state is AttemptState.RUNNING for report in stream.reports for one in report.progress))
        served.refuse = (grpc.StatusCode.UNAVAILABLE, "no leader", "")
        stream.cut()
        await until(lambda: bool(machine_of(running).state.outbox))
        served.refuse = None
        again = await served.stream(1)
        await until(lambda: bool(again.events))
        event = again.events[0]
        assert (event.key, event.state) == (key("a"), AttemptState.SUCCEEDED)
        assert event.manifest is not None
        assert event.manifest.simulated


@pytest.mark.parametrize(
    ("code", "field"),
    [
        (grpc.StatusCode.FAILED_PRECONDITION, "protocol_version"),
        (grpc.StatusCode.FAILED_PRECONDITION, "fleet_id"),
        (grpc.StatusCode.INVALID_ARGUMENT, "pools.gpu_type"),
        (grpc.StatusCode.UNAUTHENTICATED, ""),
        (grpc.StatusCode.PERMISSION_DENIED, ""),
        (grpc.StatusCode.NOT_FOUND, "site_id"),
    ],
)
async def test_a_refusal_that_waiting_cannot_cure_ends_the_agent_at_once(code: grpc.StatusCode, field: str) -> None:
    async with double() as served:
        served.refuse = (code, "because of the test", field)
        async with agent(served.address, "s", twin_of(SPEC)) as running:
            with pytest.raises(AgentEndedError, match="because of the test") as error:
                await running.ended()
        assert (error.value.code, served.tries) == (ExitCode.REFUSED, 1)


async def test_a_name_that_another_agent_holds_is_waited_for_and_then_given_up() -> None:
    async with double() as served:
        served.refuse = (grpc.StatusCode.ALREADY_EXISTS, "another agent speaks as site s", "site_id")
        async with agent(served.address, "s", twin_of(SPEC), name_patience_s=0.5) as running:
            with pytest.raises(AgentEndedError, match="another agent speaks as site s") as error:
                await running.ended()
        assert error.value.code is ExitCode.REFUSED
        assert served.tries >= 2


async def test_a_site_that_nobody_declared_is_asked_for_as_long_as_is_allowed() -> None:
    refusal = (grpc.StatusCode.NOT_FOUND, "no site 's': add it first", "site_id")
    async with double() as served:
        served.refuse = refusal
        with capture_logs() as logs:
            async with agent(served.address, "s", twin_of(SPEC), site_patience_s=60.0):
                await until(lambda: served.tries >= 3)
                served.refuse = None
                stream = await served.stream(0)
                await until(lambda: bool(stream.reports))
        told = [line for line in logs if line["log_level"] == "warning"]
        assert [line["event"] for line in told] == ["site_unknown"], "once, not with every try"
        assert "add it first" in told[0]["reason"]
    allowed: tuple[dict[str, Any], ...] = ({"site_patience_s": 0.4}, {"site_patience_s": 60.0, "give_up_after_s": 0.4})
    for patience in allowed:
        async with double() as served:
            served.refuse = refusal
            async with agent(served.address, "s", twin_of(SPEC), **patience) as running:
                with pytest.raises(AgentEndedError, match="add it first") as error:
                    await running.ended()
            assert error.value.code is ExitCode.REFUSED and error.value.unknown and not error.value.removed
            assert served.tries >= 2


async def test_a_site_that_is_removed_is_not_waited_for() -> None:
    async with double() as served, agent(served.address, "s", twin_of(SPEC), site_patience_s=60.0) as running:
        stream = await served.stream(0)
        await until(lambda: bool(stream.reports))
        stream.cut(grpc.StatusCode.NOT_FOUND)
        with pytest.raises(AgentEndedError, match="refuses site s") as error:
            await running.ended()
        assert error.value.removed and error.value.unknown and served.tries == 1


async def test_nobody_at_the_address_is_given_up_after_the_time_that_was_allowed(free_port: int) -> None:
    address = Address(host="127.0.0.1", port=free_port)
    async with agent(address, "s", twin_of(SPEC), give_up_after_s=0.5) as running:
        with pytest.raises(AgentEndedError, match=f"no orchestrator answered at 127.0.0.1:{free_port}") as error:
            await running.ended()
    assert error.value.code is ExitCode.UNREACHABLE


async def test_an_orchestrator_of_another_fleet_is_left_for_good(tmp_path: Path) -> None:
    async with double() as served:
        async with agent(served.address, "s", twin_of(SPEC), folder=tmp_path):
            stream = await served.stream(0)
            await until(lambda: bool(stream.reports))
        journal = DiskJournal(tmp_path, SiteId("s"))
        kept = journal.load()
        await journal.close()
        assert (kept.fleet_id, kept.term) == (FleetId("fleet"), Term(1))
        journal_of_another_fleet = tmp_path / "other"
        other = DiskJournal(journal_of_another_fleet, SiteId("s"))
        other._put({"fleet": "elsewhere"})
        other._db.commit()
        await other.close()
        async with agent(served.address, "s", twin_of(SPEC), folder=journal_of_another_fleet) as running:
            with pytest.raises(AgentEndedError, match="belongs to fleet elsewhere"):
                await running.ended()


async def test_a_deposed_orchestrator_is_left_and_dialled_again() -> None:
    async with double() as served, agent(served.address, "s", twin_of(SPEC)):
        served.term = 5
        (await served.stream(0)).cut()
        served.term = 4
        await served.stream(1)
        tries = served.tries
        await until(lambda: served.tries > tries)
        served.term = 6
        await until(lambda: bool(served.streams[-1].reports))


async def test_the_join_token_is_exchanged_once_for_a_credential_that_is_kept(tmp_path: Path) -> None:
    async with double() as served:
        served.credential = "the-credential"
        async with agent(served.address, "s", twin_of(SPEC), folder=tmp_path, token="the-join-token"):
            stream = await served.stream(0)
            assert stream.token == "the-join-token"
            await until(lambda: bool(stream.reports))
            served.credential = ""
            stream.cut()
            assert (await served.stream(1)).token == "the-credential"
        async with agent(served.address, "s", twin_of(SPEC), folder=tmp_path):
            assert (await served.stream(2)).token == "the-credential"
        file = tmp_path / "agent.sqlite"
        assert stat.S_IMODE(file.stat().st_mode) == 0o600


async def test_the_log_of_an_attempt_goes_up_when_asked_for() -> None:
    async with double() as served, agent(served.address, "s", twin_of(SPEC)):
        stream = await served.stream(0)
        stream.send(served.snapshot(simulated("a"), models=(model("m", weights_gb=0),)))
        await until(lambda: any(one.state is AttemptState.RUNNING for report in stream.reports for one in report.progress))
        for number, job in ((1, "a"), (2, "nobody")):
            request = pb.LogRequest(request=number, key=types_pb2.AttemptKey(job_id=job, ordinal=1), lines=5)
            stream.down.put_nowait(pb.OrchestratorMessage(log_request=request))
        await until(lambda: len(stream.logs) == 2)
        assert any("request r-a" in line for line in stream.logs[0])
        assert stream.logs[1] == ()


async def test_a_runtime_that_cannot_work_as_told_ends_the_agent_with_its_reason() -> None:
    class RealTimeOnly:
        """A twin that refuses like a real runtime."""

        def __init__(self) -> None:
            self._twin = twin_of(SPEC)

        def __getattr__(self, name: str) -> object:
            return getattr(self._twin, name)

        def welcome(self, welcome: Welcome) -> None:
            raise StateError(f"time_scale is {welcome.time_scale_milli}: a real site cannot")

    async with double() as served, agent(served.address, "s", RealTimeOnly()) as running:  # type: ignore[arg-type] # by __getattr__
        with pytest.raises(AgentEndedError, match="a real site cannot") as error:
            await running.ended()
    assert error.value.code is ExitCode.RUNTIME


async def test_a_message_that_cannot_be_ends_the_stream_and_the_agent_dials_again() -> None:
    async with double() as served, agent(served.address, "s", twin_of(SPEC)):
        stream = await served.stream(0)
        bad = served.snapshot(simulated("a", evict=(ModelId("../up"),)))
        stream.send(bad)
        again = await served.stream(1)
        await until(lambda: bool(again.reports))
        assert again.reports[-1].generation == 0
