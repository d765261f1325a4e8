"""The SDK against an orchestrator that fails: nothing is doubled, nothing is lost, errors say what happened."""

from __future__ import annotations

import asyncio
import contextlib
import io
import socket
import struct
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import TypeVar

import grpc
import pytest
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2

from atoll.client import (
    AsyncClient,
    AuthError,
    Client,
    ConflictError,
    CorruptError,
    DeadlineError,
    ForbiddenError,
    InputError,
    InternalError,
    JobRequest,
    LimitError,
    NotFoundError,
    StateError,
    UnavailableError,
)
from atoll.client.errors import SAYS_NOTHING, ClientError, SettingsError
from atoll.model.job import JobState
from tests.unit.broken_orchestrator import CONTENT, Service, Troubles, serving

T = TypeVar("T")


@pytest.fixture
def troubles() -> Troubles:
    return Troubles()


@pytest.fixture
def service(troubles: Troubles, free_port: int) -> Iterator[Service]:
    with serving(troubles, free_port) as service:
        service.address = f"127.0.0.1:{free_port}"  # type: ignore[attr-defined]
        yield service


@pytest.fixture
def client(service: Service) -> Iterator[Client]:
    with Client(address_of(service)) as client:
        yield client


def address_of(service: Service) -> str:
    return str(service.address)  # type: ignore[attr-defined]


def in_loop(service: Service, body: Callable[[AsyncClient], Awaitable[T]]) -> T:
    """Run `body` with an asyncio client of its own loop."""

    async def run() -> T:
        async with AsyncClient(address_of(service)) as client:
            return await body(client)

    return asyncio.run(run())


def test_a_lost_answer_to_submit_is_the_same_job(client: Client, service: Service, troubles: Troubles) -> None:
    troubles.lose_answers = 2
    assert client.submit("tiny-image", "a lighthouse", seed=7) == "job-0"
    assert troubles.calls == ["Submit"] * 3
    assert len(service.jobs) == 1


def test_a_lost_answer_to_submit_is_the_same_job_async(service: Service, troubles: Troubles) -> None:
    troubles.lose_answers = 2
    assert in_loop(service, lambda client: client.submit("tiny-image", "a lighthouse", seed=7)) == "job-0"
    assert len(service.jobs) == 1


def test_two_submits_are_two_jobs_with_seeds_of_their_own(client: Client, service: Service) -> None:
    client.submit("tiny-image")
    client.submit("tiny-image")
    assert len({spec.seed for spec in service.jobs.values()}) == 2


def test_the_same_request_again_asks_for_the_same_picture(client: Client, service: Service) -> None:
    first = JobRequest(model="tiny-image", idempotency_key="k-1")
    assert client.submit_request(first) == client.submit_request(JobRequest(model="tiny-image", idempotency_key="k-1"))
    assert len(service.jobs) == 1
    assert first.to_proto() == JobRequest(model="tiny-image", idempotency_key="k-1").to_proto()


def test_the_nearest_site_is_the_requests_then_the_environments_then_the_files(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("origin: from-file\n")
    monkeypatch.setenv("ATOLL_CONFIG", str(config))

    def asked() -> list[str]:
        with Client(address_of(service)) as client:
            client.submit("m")
            client.submit_many([JobRequest(model="m")])
            client.submit("m", origin_site="from-request")
        return [spec.origin_site for spec in list(service.jobs.values())[-3:]]

    assert asked() == ["from-file", "from-file", "from-request"]
    monkeypatch.setenv("ATOLL_ORIGIN", "from-environment")
    assert asked() == ["from-environment", "from-environment", "from-request"]

    async def asked_async() -> None:
        async with AsyncClient(address_of(service)) as client:
            await client.submit("m")

    asyncio.run(asked_async())
    assert list(service.jobs.values())[-1].origin_site == "from-environment"
    monkeypatch.setenv("ATOLL_ORIGIN", "not a site")
    with pytest.raises(SettingsError, match="ATOLL_ORIGIN is 'not a site'"):
        asked()


def test_many_jobs_go_in_batches_and_each_is_answered(client: Client, service: Service, troubles: Troubles) -> None:
    troubles.lose_answers = 1
    requests = [JobRequest(model="unknown" if index == 1_200 else "tiny-image", seed=index) for index in range(2_100)]
    outcomes = client.submit_many(requests)
    assert troubles.batches == [1_000, 1_000, 1_000, 100]  # the first one twice: its answer was lost
    assert len(service.jobs) == 2_099
    assert [outcome.job_id for outcome in outcomes[:2]] == ["job-0", "job-1"]
    assert isinstance(outcomes[1_200].error, InputError)
    assert outcomes[1_200].error.field == "model_id"


def test_long_prompts_make_smaller_batches(client: Client, troubles: Troubles) -> None:
    client.submit_many([JobRequest(model="tiny-image", prompt="x" * 16_000) for _ in range(400)])
    assert len(troubles.batches) > 1
    assert sum(troubles.batches) == 400


def test_a_broken_stream_is_taken_up_where_it_broke(client: Client, troubles: Troubles) -> None:
    troubles.break_streams = 2
    states = [job.state for job in client.stream("job-0")]
    assert states[0] is JobState.QUEUED
    assert states[-1] is JobState.SUCCEEDED
    assert states.count(JobState.SUCCEEDED) == 1
    # Number 11 was the last that came, and what has that number may have come in part only.
    assert troubles.watched_after == [0, 10, 10]


def test_a_broken_stream_is_taken_up_where_it_broke_async(service: Service, troubles: Troubles) -> None:
    troubles.break_streams = 2
    job = in_loop(service, lambda client: client.result("job-0", timeout_s=30))
    assert job.state is JobState.SUCCEEDED
    assert troubles.watched_after == [0, 10, 10]


def test_waiting_ends_at_its_deadline_and_says_where_the_job_stands(client: Client, troubles: Troubles) -> None:
    troubles.never_ends = True
    with pytest.raises(DeadlineError, match=r"job-0 has not ended within 0\.3 s and is placed"):
        client.wait("job-0", timeout_s=0.3)


def test_events_resume_after_the_last_that_came(client: Client, troubles: Troubles) -> None:
    troubles.break_streams = 1
    assert [event.seq for event in client.events()] == [1, 2, 3, 4, 5]
    assert troubles.calls == ["Events", "Events"]


def test_what_could_double_an_effect_is_not_repeated(client: Client, troubles: Troubles) -> None:
    troubles.lose_answers = 1
    with pytest.raises(UnavailableError, match="the connection broke"):
        client.sites_cordon("tokyo-1", reason="smoke")
    assert troubles.calls == ["CordonSite"]


def test_a_download_continues_and_appears_at_once(client: Client, troubles: Troubles, tmp_path: Path) -> None:
    troubles.break_streams = 2
    target = tmp_path / "out.png"
    target.write_bytes(b"old")
    artifact = client.download("job-0", target)
    assert target.read_bytes() == CONTENT
    assert artifact.name == "0.png"
    assert troubles.offsets == [0, len(CONTENT) // 2, len(CONTENT) * 3 // 4]
    assert [path.name for path in tmp_path.iterdir()] == ["out.png"]


def test_a_download_continues_async(service: Service, troubles: Troubles, tmp_path: Path) -> None:
    troubles.break_streams = 1
    in_loop(service, lambda client: client.download("job-0", tmp_path / "out.png"))
    assert (tmp_path / "out.png").read_bytes() == CONTENT


def test_a_download_goes_to_an_open_file_too(client: Client, troubles: Troubles) -> None:
    troubles.break_streams = 1
    taken = io.BytesIO()
    client.download("job-0", taken)
    assert taken.getvalue() == CONTENT


def test_wrong_bytes_are_never_seen(client: Client, troubles: Troubles, tmp_path: Path) -> None:
    troubles.digest = "sha256:" + "0" * 64
    target = tmp_path / "out.png"
    target.write_bytes(b"old")
    with pytest.raises(CorruptError, match=r"0\.png has digest"):
        client.download("job-0", target)
    assert target.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["out.png"]


def test_a_download_to_where_nothing_can_be_written(client: Client, tmp_path: Path) -> None:
    with pytest.raises(ClientError, match="cannot write"):
        client.download("job-0", tmp_path / "nowhere" / "out.png")
    with pytest.raises(InputError, match="is a folder"):
        client.download("job-0", tmp_path)


def test_an_upload_is_made_again(client: Client, troubles: Troubles, tmp_path: Path) -> None:
    troubles.lose_answers = 1
    source = tmp_path / "first frame.png"
    source.write_bytes(CONTENT * 8)
    ref = client.upload(source, name="first.png")
    assert (ref.name, ref.bytes) == ("first.png", len(CONTENT) * 8)
    assert troubles.calls == ["Upload", "Upload"]
    with pytest.raises(InputError, match=r"name is 'first frame\.png'"):
        client.upload(source)


def test_pages_are_followed(client: Client, troubles: Troubles) -> None:
    assert [job.job_id for job in client.list()] == [f"job-{index}" for index in range(6)]
    assert troubles.calls == ["List"] * 3


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, InputError),
        (grpc.StatusCode.NOT_FOUND, NotFoundError),
        (grpc.StatusCode.ALREADY_EXISTS, ConflictError),
        (grpc.StatusCode.FAILED_PRECONDITION, StateError),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, LimitError),
        (grpc.StatusCode.UNAUTHENTICATED, AuthError),
        (grpc.StatusCode.PERMISSION_DENIED, ForbiddenError),
        (grpc.StatusCode.DATA_LOSS, CorruptError),
        (grpc.StatusCode.INTERNAL, InternalError),
        (grpc.StatusCode.UNKNOWN, InternalError),
    ],
)
def test_every_status_is_a_type(client: Client, troubles: Troubles, code: grpc.StatusCode, kind: type[ClientError]) -> None:
    trailers = (("atoll-field", "shape.width"), ("atoll-retry-after-ms", "1500"), ("atoll-reference", "ref-9"))
    troubles.refuse = (code, "width is 0: expected more", trailers)
    with pytest.raises(kind) as caught:
        client.get("job-0")
    error = caught.value
    assert (str(error), error.field, error.retry_after_ms, error.reference) == ("width is 0: expected more", "shape.width", 1500, "ref-9")
    assert troubles.calls == ["Get"]


def test_google_rpc_details_stand_in_for_atolls_own_keys(client: Client, troubles: Troubles) -> None:
    packed = []
    violation = error_details_pb2.BadRequest.FieldViolation(field="prompt", description="too long")
    for detail in (error_details_pb2.BadRequest(field_violations=[violation]), error_details_pb2.RequestInfo(request_id="ref-1")):
        one = any_pb2.Any()
        one.Pack(detail)
        packed.append(one)
    details = status_pb2.Status(code=3, message="no", details=packed).SerializeToString()
    troubles.refuse = (grpc.StatusCode.INVALID_ARGUMENT, "no", (("grpc-status-details-bin", details),))
    with pytest.raises(InputError) as caught:
        client.get("job-0")
    assert (caught.value.field, caught.value.reference) == ("prompt", "ref-1")


def test_metadata_that_makes_no_sense_is_no_trouble(client: Client, troubles: Troubles) -> None:
    troubles.refuse = (grpc.StatusCode.NOT_FOUND, "no", (("atoll-retry-after-ms", "-1e9"), ("grpc-status-details-bin", b"\xff\xff")))
    with pytest.raises(NotFoundError) as caught:
        client.get("job-0")
    assert caught.value.retry_after_ms == 0


def test_overload_that_lasts_ends_with_the_callers_patience(service: Service, troubles: Troubles) -> None:
    troubles.refuse = (grpc.StatusCode.UNAVAILABLE, "shutting down", (("atoll-retry-after-ms", "100"),))
    with Client(address_of(service), timeout_s=0.5) as client, pytest.raises(UnavailableError, match="shutting down") as caught:
        client.get("job-0")
    assert caught.value.retry_after_ms == 100
    assert 2 <= len(troubles.calls) <= 5  # paused for as long as it was asked to


def test_the_token_goes_with_every_call(service: Service, troubles: Troubles) -> None:
    with Client(address_of(service), token="s3cret-s3cret-s3") as client:
        client.get("job-0")
        list(client.stream("job-0"))
        assert "s3cret" not in repr(client.settings)
    assert troubles.tokens == ["Bearer s3cret-s3cret-s3"] * 2


def test_no_orchestrator_is_said_with_its_address(free_port: int) -> None:
    said = rf"no orchestrator answers at 127\.0\.0\.1:{free_port} \(connection refused\)"
    with Client(f"127.0.0.1:{free_port}", connect_timeout_s=0.3) as client, pytest.raises(UnavailableError, match=said):
        client.get("job-0")

    async def ask() -> None:
        async with AsyncClient(f"127.0.0.1:{free_port}", connect_timeout_s=0.3) as client:
            await client.get("job-0")

    with pytest.raises(UnavailableError, match="connection refused"):
        asyncio.run(ask())


def reset(taken: socket.socket) -> None:
    """Closed so that the other side hears of it as an error."""
    taken.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    taken.close()


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (None, SAYS_NOTHING),
        (lambda taken: taken.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n"), "what answers there is no orchestrator"),
        (socket.socket.close, "it takes no connection without TLS, or is no orchestrator"),
        (reset, "the connection broke"),
    ],
)
def test_what_listens_there_and_is_no_orchestrator_is_told_in_plain_words(
    answer: Callable[[socket.socket], object] | None, said: str
) -> None:
    taken: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def listen() -> None:
            with contextlib.suppress(OSError):
                while answer is not None:
                    taken.append(listener.accept()[0])
                    answer(taken[-1])

        threading.Thread(target=listen, daemon=True).start()
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        with Client(address, connect_timeout_s=0.5) as client, pytest.raises(UnavailableError) as caught:
            client.fleet()
        listener.shutdown(socket.SHUT_RDWR)
    for one in taken:
        one.close()
    assert str(caught.value) == f"no orchestrator answers at {address} ({said})"
    assert any("gRPC: " in note for note in caught.value.__notes__), "whoever looks at a traceback sees what it was"


def test_one_of_several_addresses_is_enough(service: Service, free_ports: Callable[[], int]) -> None:
    with Client(f"127.0.0.1:{free_ports()},{address_of(service)}") as client:
        assert client.get("job-0").job_id == "job-0"


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"model": "a/b"}, "model is 'a/b'"),
        ({"model": "m", "width": -1}, "shape.width is -1"),
        ({"model": "m", "steps": 10**9}, "shape.steps is 1000000000"),
        ({"model": "m", "steps": float("nan")}, "shape.steps is nan"),
        ({"model": "m", "guidance": float("nan")}, "guidance is nan"),
        ({"model": "m", "max_price_usd": -0.5}, "max_price_usd is -0.5"),
        ({"model": "m", "max_price_usd": 0.0}, "max_price_usd is 0.0: expected a price from 0.000001 to 1000000, or None for no limit"),
        ({"model": "m", "max_price_usd": 4e-7}, "max_price_usd is 4e-07: expected a price from 0.000001"),
        ({"model": "m", "prompt": "x" * 1_000_000}, "prompt is"),
        ({"model": "m", "prompt": "\ud800"}, "prompt is"),
        ({"model": "m", "sites": "tokyo-1"}, "constraints.sites is 'tokyo-1': expected a list"),
        ({"model": "m", "sites": ["../x"]}, "constraints.sites is '../x'"),
        ({"model": "m", "idempotency_key": "a b"}, "idempotency_key is 'a b'"),
        ({"model": "m", "seed": True}, "seed is True"),
    ],
)
def test_bad_input_is_refused_before_anything_is_sent(fields: dict[str, object], named: str) -> None:
    with pytest.raises(InputError) as caught:
        JobRequest(**fields).to_proto()  # type: ignore[arg-type]
    assert named in str(caught.value)
    assert len(str(caught.value)) < 300
