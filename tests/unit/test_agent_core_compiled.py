"""The agent's core names the code that an attempt needs, tells which code its nodes hold, and times compiling apart from running."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agents.core.events import AttemptAdvanced, AttemptFinished, CodeChanged, RecoveredSlot, RuntimeStarted
from agents.core.outputs import RunAttempt
from atoll.model import limits
from atoll.model.attempt import AttemptState, PhaseTimes
from atoll.model.compiled import form_of
from atoll.model.ids import FormId
from tests.unit.agent_core_site import POOL, SECOND, SHAPE, AgentSite, adapter, attempt, key, manifest, model

NODE, OTHER = POOL.node_id(0), POOL.node_id(1)
FORMS = tuple(FormId(f"{number:032x}") for number in range(3))


@pytest.fixture
def site() -> AgentSite:
    made = AgentSite()
    made.models["m"] = replace(model("m"), compiled=True)
    made.adapters = {"s1": adapter("s1")}
    made.start().connect()
    made.assign(full=True)
    return made.warm("m").warm("n")


def _ordered(site: AgentSite) -> RunAttempt:
    (order,) = site.said(RunAttempt)
    return order


def _told(site: AgentSite, node: int = 0) -> tuple[FormId, ...]:
    site.tick()
    report = site.report()
    assert report is not None
    return next(facts.compiled for facts in report.nodes if facts.node_id == POOL.node_id(node))


def test_an_attempt_is_run_by_the_code_of_its_shape_and_adapters(site: AgentSite) -> None:
    site.assign(attempt("a"))
    assert _ordered(site).form == form_of(site.models["m"], SHAPE)
    site.finishes("a")
    site.assign(attempt("b", adapters=("s1",)))
    site.adapter_fetched("s1")
    site.adapted("s1")
    assert _ordered(site).form == form_of(site.models["m"], SHAPE, [adapter("s1").rank])
    site.finishes("b")
    site.assign(attempt("c", "n"))
    assert _ordered(site).form is None, "n runs eager"


def test_compiling_is_a_phase_of_its_own(site: AgentSite) -> None:
    site.assign(attempt("a"))
    for state in (AttemptState.COMPILING, AttemptState.RUNNING, AttemptState.COMPILING):
        site.happen(AttemptAdvanced(key=key("a"), state=state, steps_done=0), after_us=SECOND)
    assert site.machine.state.works[key("a")].state is AttemptState.RUNNING, "phases only move forward"
    site.happen(AttemptFinished(key=key("a"), manifest=manifest(key("a")), times=PhaseTimes(compile_us=9, run_us=7, upload_us=3)))
    times = site.end_of("a").times
    assert (times.compile_us, times.run_us, times.upload_us) == (9, 7, 3)


def test_nodes_tell_what_code_they_hold(site: AgentSite) -> None:
    site.happen(CodeChanged(node_id=NODE, forms=(FORMS[2], FORMS[0])))
    assert _told(site) == (FORMS[0], FORMS[2])
    site.happen(CodeChanged(node_id=NODE, forms=(FORMS[1],)))
    assert _told(site) == (FORMS[1],)
    site.happen(CodeChanged(node_id=POOL.node_id(7), forms=FORMS))
    assert any("holds code" in notice for notice in site.step.notices)


def test_a_report_holds_the_forms_used_last_and_no_more_than_it_may(site: AgentSite) -> None:
    many = tuple(FormId(f"{number:032x}") for number in range(limits.FORMS_PER_NODE_MAX + 5))
    site.happen(CodeChanged(node_id=NODE, forms=tuple(reversed(many))))
    assert _told(site) == many[5:]


def test_what_a_runtime_finds_is_told_from_the_beginning() -> None:
    made = AgentSite()
    slots = tuple(RecoveredSlot(slot=ref) for ref in made.machine.state.slots)
    found = ((NODE, FORMS[0]), (OTHER, FORMS[1]), (POOL.node_id(7), FORMS[2]))
    made.happen(RuntimeStarted(slots=slots, compiled=found, shares_compiled=True))
    made.connect()
    report = made.report()
    assert report is not None
    assert [facts.compiled for facts in report.nodes] == [(FORMS[0],), (FORMS[1],)]
    assert all(facts.shares_compiled for facts in report.nodes)
