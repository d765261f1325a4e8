"""Every noun survives the wire, the store and a recording; whatever else arrives is refused by name or taken as a legal noun."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from google.protobuf.message import DecodeError, Message
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from atoll.model.adapter import AdapterSpec
from atoll.model.assignment import Assignment
from atoll.model.attempt import Attempt, ResultManifest
from atoll.model.audit import AuditEvent
from atoll.model.errors import FieldError
from atoll.model.job import Job, JobSpec
from atoll.model.modelspec import ModelSpec
from atoll.model.orchestrators import OrchestratorView
from atoll.model.quote import PlaceView, Quote
from atoll.model.report import AttemptEvent, SiteHello, SiteReport, SlotFacts, Welcome
from atoll.model.residency import ModelPlaces, Pin, Push, PushPlan
from atoll.model.site import LinkSpec, SiteRecord, SiteSpec
from atoll.model.views import DrainPlan, FleetView, SiteView
from atoll.wire import adapters, assignments, attempts, audit, jobs, models, orchestrators, quotes, reports, residency, sites, stored, views
from atoll.wire.recording import RecordingError, TaggedCodec
from tests.property.wire_strategies import messages, nouns

ToProto = Callable[[Any], Message]
FromProto = Callable[[Any], Any]

WIRE: list[tuple[type, ToProto, FromProto]] = [
    (JobSpec, jobs.job_spec_to_proto, jobs.job_spec_from_proto),
    (Job, jobs.job_to_proto, jobs.job_from_proto),
    (Attempt, attempts.attempt_to_proto, attempts.attempt_from_proto),
    (ResultManifest, attempts.manifest_to_proto, attempts.manifest_from_proto),
    (ModelSpec, models.model_spec_to_proto, models.model_spec_from_proto),
    (AdapterSpec, adapters.adapter_spec_to_proto, adapters.adapter_spec_from_proto),
    (SiteSpec, sites.site_spec_to_proto, sites.site_spec_from_proto),
    (LinkSpec, sites.link_spec_to_proto, sites.link_spec_from_proto),
    (SiteHello, reports.hello_to_proto, reports.hello_from_proto),
    (SiteReport, reports.report_to_proto, reports.report_from_proto),
    (Welcome, reports.welcome_to_proto, reports.welcome_from_proto),
    (AttemptEvent, reports.attempt_event_to_proto, reports.attempt_event_from_proto),
    (Assignment, assignments.assignment_to_proto, assignments.assignment_from_proto),
    (AuditEvent, audit.audit_event_to_proto, audit.audit_event_from_proto),
    (SiteView, views.site_view_to_proto, views.site_view_from_proto),
    (DrainPlan, views.drain_plan_to_proto, views.drain_plan_from_proto),
    (PushPlan, residency.push_plan_to_proto, residency.push_plan_from_proto),
    (ModelPlaces, residency.places_to_proto, residency.places_from_proto),
    (OrchestratorView, orchestrators.orchestrator_view_to_proto, orchestrators.orchestrator_view_from_proto),
    (FleetView, views.fleet_view_to_proto, views.fleet_view_from_proto),
    (Quote, quotes.quote_to_proto, quotes.quote_from_proto),
    (PlaceView, quotes.place_to_proto, quotes.place_from_proto),
]
WIRE_IDS = [cls.__name__ for cls, _, _ in WIRE]

STORED: list[tuple[Any, Callable[[Any], bytes], Callable[[bytes], Any]]] = [
    (nouns(Job), stored.encode_job, stored.decode_job),
    (nouns(JobSpec), stored.encode_job_spec, stored.decode_job_spec),
    (nouns(SiteRecord), stored.encode_site, stored.decode_site),
    (nouns(ModelSpec), stored.encode_model, stored.decode_model),
    (nouns(AdapterSpec), stored.encode_adapter, stored.decode_adapter),
    (nouns(AuditEvent), stored.encode_audit, stored.decode_audit),
    (nouns(Pin), stored.encode_pin, stored.decode_pin),
    (nouns(Push), stored.encode_push, stored.decode_push),
    (nouns(AttemptEvent), stored.encode_attempt_event, stored.decode_attempt_event),
    (st.lists(nouns(LinkSpec), max_size=3).map(tuple), stored.encode_links, stored.decode_links),
]
STORED_IDS = ["job", "spec", "site", "model", "adapter", "audit", "pin", "push", "event", "links"]

# Two shared cores: fewer examples of big nouns, and no complaint that building them takes its time.
thrifty = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
)


def damaged(whole: bytes) -> st.SearchStrategy[bytes]:
    """Anything at all, the beginning only, or a few bytes changed."""
    spots = st.lists(st.tuples(st.integers(0, max(0, len(whole) - 1)), st.integers(0, 255)), max_size=4)
    return st.one_of(
        st.binary(max_size=64),
        st.integers(0, len(whole)).map(lambda end: whole[:end]),
        spots.map(lambda chosen: _patched(whole, chosen)),
    )


def _patched(whole: bytes, spots: list[tuple[int, int]]) -> bytes:
    changed = bytearray(whole)
    for place, byte in spots:
        if place < len(changed):
            changed[place] = byte
    return bytes(changed)


@pytest.mark.parametrize(("cls", "to_proto", "from_proto"), WIRE, ids=WIRE_IDS)
@thrifty
@given(data=st.data())
def test_a_noun_survives_the_wire(cls: type, to_proto: ToProto, from_proto: FromProto, data: st.DataObject) -> None:
    noun = data.draw(nouns(cls))
    sent = to_proto(noun)
    received = type(sent).FromString(sent.SerializeToString())
    assert from_proto(received) == noun


@pytest.mark.parametrize(("cls", "to_proto", "from_proto"), WIRE, ids=WIRE_IDS)
@thrifty
@given(data=st.data())
def test_any_message_is_refused_by_field_or_becomes_a_legal_noun(
    cls: type, to_proto: ToProto, from_proto: FromProto, data: st.DataObject
) -> None:
    message = data.draw(messages(type(to_proto(data.draw(nouns(cls))))))
    try:
        noun = from_proto(message)
    except FieldError:
        return
    assert from_proto(to_proto(noun)) == noun


@pytest.mark.parametrize(("cls", "to_proto", "from_proto"), WIRE, ids=WIRE_IDS)
@thrifty
@given(data=st.data())
def test_damaged_bytes_raise_nothing_but_the_typed_errors(cls: type, to_proto: ToProto, from_proto: FromProto, data: st.DataObject) -> None:
    sent = to_proto(data.draw(nouns(cls)))
    try:
        from_proto(type(sent).FromString(data.draw(damaged(sent.SerializeToString()))))
    except (DecodeError, FieldError):
        pass


@pytest.mark.parametrize(("noun", "encode", "decode"), STORED, ids=STORED_IDS)
@thrifty
@given(data=st.data())
def test_a_noun_survives_the_store(
    noun: st.SearchStrategy[Any], encode: Callable[[Any], bytes], decode: Callable[[bytes], Any], data: st.DataObject
) -> None:
    value = data.draw(noun)
    assert decode(encode(value)) == value


@pytest.mark.parametrize(("noun", "encode", "decode"), STORED, ids=STORED_IDS)
@thrifty
@given(data=st.data())
def test_damaged_stored_bytes_raise_nothing_but_the_typed_error(
    noun: st.SearchStrategy[Any], encode: Callable[[Any], bytes], decode: Callable[[bytes], Any], data: st.DataObject
) -> None:
    try:
        decode(data.draw(damaged(encode(data.draw(noun)))))
    except stored.StoredFormatError:
        pass


@thrifty
@given(job=nouns(Job))
def test_a_job_survives_in_two_parts(job: Job) -> None:
    spec = stored.decode_job_spec(stored.encode_job_spec(job.spec))
    assert stored.decode_job_progress(stored.encode_job_progress(job), spec) == job


RECORDED = [cls for cls, _, _ in WIRE] + [SiteRecord]
codec = TaggedCodec(RECORDED)


@pytest.mark.parametrize("cls", RECORDED, ids=lambda cls: str(cls.__name__))
@thrifty
@given(data=st.data())
def test_a_noun_survives_a_recording(cls: type, data: st.DataObject) -> None:
    noun = data.draw(nouns(cls))
    line = codec.encode(noun)
    assert b"\n" not in line
    decoded = codec.decode(line)
    assert decoded == noun
    assert codec.encode(decoded) == line


@thrifty
@given(data=st.data(), job=nouns(Job))
def test_damaged_lines_raise_nothing_but_the_typed_error(data: st.DataObject, job: Job) -> None:
    try:
        codec.decode(data.draw(damaged(codec.encode(job))))
    except RecordingError:
        pass


def test_a_slot_of_an_agent_that_does_not_know_of_fresh_processes_is_none() -> None:
    slot = SlotFacts(index=0, memory_free_bytes=1, fresh=True)
    told = reports.slot_facts_to_proto(slot)
    assert reports.slot_facts_from_proto(told) == slot
    told.ClearField("fresh")
    assert reports.slot_facts_from_proto(told) == replace(slot, fresh=False)
