"""Stored bytes outlive the program that wrote them: earlier ones are read, later ones are refused clearly."""

from __future__ import annotations

import msgspec
import pytest

from atoll.model.ids import SiteId
from atoll.model.site import LinkSpec, SiteAdmin, SiteRecord, SiteSpec
from atoll.wire.stored import (
    FORMAT,
    StoredFormatError,
    decode_job,
    decode_job_progress,
    decode_links,
    decode_site,
    encode_job,
    encode_job_progress,
    encode_site,
)
from tests.unit.fleet_of_machines import Fleet, site, spec

SITE = SiteRecord(
    spec=SiteSpec(site_id=SiteId("aws-use1"), region="us-east", wan_bytes_per_s=1, origin_bytes_per_s=1),
    admin=SiteAdmin.CORDONED,
)


def _fields(blob: bytes) -> dict[str, object]:
    fields = msgspec.msgpack.decode(blob[1:])
    assert isinstance(fields, dict)
    return fields


def _blob(fields: object) -> bytes:
    return bytes([FORMAT]) + msgspec.msgpack.encode(fields)


def test_fields_that_an_earlier_version_lacked_take_their_defaults() -> None:
    fields = _fields(encode_site(SITE))
    del fields["reason"], fields["credential_sha256"]
    assert decode_site(_blob(fields)) == SITE


def test_fields_of_a_later_version_are_ignored() -> None:
    assert decode_site(_blob({**_fields(encode_site(SITE)), "colour": ["blue"]})) == SITE


def test_another_format_is_refused_with_both_numbers() -> None:
    later = bytes([FORMAT + 1]) + encode_site(SITE)[1:]
    with pytest.raises(StoredFormatError, match=rf"a stored site cannot be read: its format is {FORMAT + 1}, this version reads {FORMAT}"):
        decode_site(later)


@pytest.mark.parametrize(
    "blob",
    [b"", bytes([FORMAT]), encode_site(SITE)[:-3], _blob([]), _blob({}), bytes([FORMAT]) + b"\x91" * 100_000]
    + [_blob({**_fields(encode_site(SITE)), "admin": "melted"}), _blob({**_fields(encode_site(SITE)), "created_us": "now"})],
)
def test_damaged_bytes_are_refused(blob: bytes) -> None:
    with pytest.raises(StoredFormatError, match="a stored site cannot be read"):
        decode_site(blob)


def test_a_job_is_read_as_it_was_decided() -> None:
    fleet = Fleet(site("a"), site("b"))
    fleet.submit(spec())
    (placed,) = fleet.jobs.values()
    explanation = placed.attempts[0].explanation
    assert explanation is not None and len(explanation.others) == 1
    for read in (decode_job(encode_job(placed)), decode_job_progress(encode_job_progress(placed), placed.spec)):
        assert read == placed and hash(read.attempts) == hash(placed.attempts)


def test_no_links_are_links_too() -> None:
    link = LinkSpec(src=SiteId("a"), dst=SiteId("b"), rtt_us=1, bytes_per_s=1)
    assert decode_links(_blob([])) == ()
    assert decode_links(_blob([msgspec.to_builtins(link)])) == (link,)
