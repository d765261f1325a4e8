"""Sites, operators and credentials through a real orchestrator."""

from __future__ import annotations

import asyncio
from hashlib import sha256
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status

from atoll.model.attempt import Artifact, AttemptState
from atoll.v1 import job_service_pb2 as jobs_pb
from atoll.v1 import operator_service_pb2 as pb
from atoll.v1 import site_service_pb2 as sites_pb
from atoll.v1 import types_pb2
from atoll.wire.sites import site_spec_to_proto
from orchestrator.api.auth import operator_token, parse_tokens
from orchestrator.core.placement.policy import Policy
from tests.integration.running_orchestrator import Running, ScriptedAgent, job, orchestrator, trailers, until
from tests.unit.fleet_of_machines import model, pool, site

TOKEN = "an-operators-token"
PATIENT = Policy(silent_after_ms=60_000, report_interval_ms=100)


def refused_with(error: pytest.ExceptionInfo[grpc.aio.AioRpcError]) -> tuple[grpc.StatusCode, str]:
    """Status and message."""
    return error.value.code(), error.value.details() or ""


async def test_hellos_that_cannot_be_are_refused_with_what_would_be_right(tmp_path: Path) -> None:
    async with orchestrator(tmp_path) as running:
        await running.apply(site("a"))
        cases: list[tuple[dict[str, Any], grpc.StatusCode, tuple[str, ...]]] = [
            ({"protocol_version": 9}, grpc.StatusCode.FAILED_PRECONDITION, ("protocol 9", "orchestrator 1")),
            ({"fleet_id": "another"}, grpc.StatusCode.FAILED_PRECONDITION, ("another",)),
            ({"pools": (pool("p", gpu="H1000"),)}, grpc.StatusCode.INVALID_ARGUMENT, ("H1000",)),
            ({"boot_id": "a/b"}, grpc.StatusCode.INVALID_ARGUMENT, ("hello.boot_id",)),
        ]
        for hello, code, words in cases:
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await ScriptedAgent(running, "a", **hello).connect()
            found, message = refused_with(error)
            assert found is code
            assert all(word in message for word in words), message
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await ScriptedAgent(running, "b").connect()
        assert refused_with(error)[0] is grpc.StatusCode.NOT_FOUND
        call = running.sites.Connect()
        await call.write(sites_pb.AgentMessage(report=sites_pb.SiteReport(seq=1)))
        assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_report_that_cannot_be_ends_the_stream_naming_the_field(tmp_path: Path) -> None:
    async with orchestrator(tmp_path) as running:
        await running.apply(site("a"))
        agent = ScriptedAgent(running, "a")
        # A message that is being sent when the status arrives would hide it: gRPC then reports its own failure to send.
        agent.talks = False
        await agent.connect()
        await agent.say(sites_pb.AgentMessage(report=sites_pb.SiteReport(seq=-1)))
        await until(lambda: agent.error is not None)
        assert agent.error is not None
        assert agent.error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "report.seq" in (agent.error.details() or "")
        await agent.leave()


async def test_a_second_agent_of_the_name_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    async with orchestrator(tmp_path, policy=PATIENT) as running:
        await running.apply(site("a"))
        async with ScriptedAgent(running, "a", boot_id="one") as first:
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await ScriptedAgent(running, "a", boot_id="two").connect()
            assert "another agent" in refused_with(error)[1]
            # The same agent, back after a broken connection that nobody noticed, takes its own place.
            async with ScriptedAgent(running, "a", boot_id="one"):
                await until(lambda: first.error is not None)
        await asyncio.sleep(0)
        await _connects(ScriptedAgent(running, "a", boot_id="two"))


async def _connects(agent: ScriptedAgent) -> None:
    """It may have to wait until the stream before it was seen to end."""
    async with asyncio.timeout(20):
        while True:
            try:
                await agent.connect()
            except grpc.aio.AioRpcError:
                await asyncio.sleep(0.05)
            else:
                await agent.leave()
                return


async def test_a_silent_agent_gets_nothing_new_and_its_work_goes_on_when_it_is_back(tmp_path: Path) -> None:
    async with orchestrator(tmp_path) as running:
        await running.add_models(model("m"))
        await running.apply(site("a"))
        async with ScriptedAgent(running, "a", hold=True) as agent:
            job_id = await running.submit()
            await until(lambda: bool(agent.attempts))
            held = dict(agent.attempts)
        async with ScriptedAgent(running, "a", hold=True) as agent:
            await until(lambda: agent.attempts.keys() == held.keys())
            await agent.release()
            ended = (await running.ended(job_id))[job_id]
        assert len(ended.attempts) == 1


async def test_cordon_drain_and_remove_want_reasons_and_say_what_they_would_do(tmp_path: Path) -> None:
    async with orchestrator(tmp_path) as running:
        await running.add_models(model("m"))
        await running.apply(site("a"), site("b"))
        async with ScriptedAgent(running, "a", hold=True) as a:
            job_id = await running.submit()
            await until(lambda: bool(a.attempts))
            async with ScriptedAgent(running, "b", hold=True) as b:
                for reason in ("", "  ", "x" * 501, "line\nbreak"):
                    with pytest.raises(grpc.aio.AioRpcError) as error:
                        await running.operators.CordonSite(pb.CordonSiteRequest(site_id="a", reason=reason))
                    assert trailers(error)["atoll-field"] == "reason"
                plan = (
                    await running.operators.DrainSite(
                        pb.DrainSiteRequest(site_id="a", reason="new disks", deadline_ms=600_000, dry_run=True)
                    )
                ).plan
                assert [move.job_id for move in plan.moves] == [job_id]
                before = await running.operators.GetSite(pb.GetSiteRequest(site_id="a"))
                assert before.admin == types_pb2.SITE_ADMIN_OPEN
                drained = await running.operators.DrainSite(pb.DrainSiteRequest(site_id="a", reason="new disks", deadline_ms=300))
                assert (drained.site.admin, drained.site.reason) == (types_pb2.SITE_ADMIN_DRAINING, "new disks")
                await until(lambda: bool(b.attempts))
                await b.release()
                ended = (await running.ended(job_id))[job_id]
                assert [attempt.site_id for attempt in ended.attempts] == ["a", "b"]
        removed = await running.operators.RemoveSite(pb.RemoveSiteRequest(site_id="a", reason="sold", force=True))
        assert removed.site_id == "a"
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await running.operators.GetSite(pb.GetSiteRequest(site_id="a"))
        assert refused_with(error)[0] is grpc.StatusCode.NOT_FOUND
        verbs = [(event.verb, event.reason) async for event in running.operators.Events(pb.EventsRequest())]
        assert ("site_removed", "sold") in verbs


async def test_events_are_read_from_the_store_and_then_live(tmp_path: Path) -> None:
    async with orchestrator(tmp_path) as running:
        await running.apply(site("a"))
        await running.operators.CordonSite(pb.CordonSiteRequest(site_id="a", reason="one"))
        events = running.operators.Events(pb.EventsRequest(follow=True))
        seen = [await events.read() for _ in range(2)]
        while seen[-1].verb != "site_cordoned":
            seen.append(await events.read())
        await running.operators.UncordonSite(pb.UncordonSiteRequest(site_id="a", reason="two"))
        live = await events.read()
        assert (live.seq, live.reason) == (seen[-1].seq + 1, "two")
        events.cancel()
    async with orchestrator(tmp_path) as running:
        resumed = [event async for event in running.operators.Events(pb.EventsRequest(after_seq=seen[-1].seq))]
        assert resumed[0] == live
        every = [event async for event in running.operators.Events(pb.EventsRequest())]
        for most, after_seq in ((1, 0), (3, 0), (len(every), 0), (10_000, 0), (2, every[0].seq), (10_000, every[-3].seq)):
            told = [event async for event in running.operators.Events(pb.EventsRequest(limit=most, after_seq=after_seq))]
            assert told == [event for event in every if event.seq > after_seq][-most:]
        following = running.operators.Events(pb.EventsRequest(limit=1, follow=True))
        assert (await following.read()) == every[-1]
        await running.operators.CordonSite(pb.CordonSiteRequest(site_id="a", reason="three"))
        assert (await following.read()).reason == "three", "what comes is told besides"
        following.cancel()


async def test_applying_sites_says_what_changes_and_refuses_unknown_gpus_and_doubles(tmp_path: Path) -> None:
    async with orchestrator(tmp_path) as running:
        dry = pb.ApplySitesRequest(sites=[site_spec_to_proto(site("a"))], dry_run=True)
        assert list((await running.operators.ApplySites(dry)).added) == ["a"]
        assert not (await running.operators.ListSites(pb.ListSitesRequest())).sites
        await running.apply(site("a"), site("b"))
        changed = await running.apply(site("a", origin_gbs=2), site("c"))
        assert (list(changed.added), list(changed.updated), list(changed.not_declared)) == (["c"], ["a"], ["b"])
        caught: Any = None
        for sites, field in (
            ([site("d"), site("d")], "sites[1].site_id"),
            ([site("d", pool("p", gpu="bigg"))], "sites[0].pools[0].gpu_type"),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await running.apply(*sites)
            assert trailers(error)["atoll-field"] == field
            caught = error.value
        assert "did you mean 'big'" in caught.details()
        rich = rpc_status.from_call(caught)
        violation = error_details_pb2.BadRequest()
        assert rich is not None
        assert rich.details[0].Unpack(violation)
        assert violation.field_violations[0].field == "sites[0].pools[0].gpu_type"


async def test_joining_with_a_token_once_and_with_the_credential_after(tmp_path: Path) -> None:
    tokens = (operator_token(TOKEN),)
    async with orchestrator(tmp_path, tokens=tokens, token=TOKEN) as running:
        request = pb.AddSiteRequest(spec=site_spec_to_proto(site("a")), reason="new")
        join = (await running.operators.AddSite(request, metadata=running.metadata)).join_token
        assert join.startswith("atoll-join_")
        stranger = Running(running.address, running.channel)
        for token in ("", "wrong-token-of-nobody"):
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await ScriptedAgent(stranger, "a", token=token).connect()
            assert refused_with(error)[0] is grpc.StatusCode.UNAUTHENTICATED
        async with ScriptedAgent(stranger, "a", token=join) as agent:
            assert agent.welcome is not None
            credential = agent.welcome.credential
            assert credential.startswith("atoll-site_")
            await until(lambda: agent.generation > 0)
        # The token is used up; the credential is good, also for the next orchestrator.
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await ScriptedAgent(stranger, "a", token=join).connect()
        assert refused_with(error)[0] is grpc.StatusCode.UNAUTHENTICATED
    async with orchestrator(tmp_path, tokens=tokens, token=TOKEN) as running:
        stranger = Running(running.address, running.channel)
        async with ScriptedAgent(stranger, "a", token=credential) as agent:
            assert agent.welcome is not None
            assert agent.welcome.credential == ""
        stored = b"".join(path.read_bytes() for path in tmp_path.glob("atoll.sqlite*"))  # noqa: ASYNC240 - nobody else runs on this loop
        for secret in (join, credential, TOKEN):
            assert secret.encode() not in stored


async def test_roles_and_tenants_keep_apart(tmp_path: Path) -> None:
    digest = {name: sha256(f"token-of-{name}-1234".encode()).hexdigest() for name in ("ann", "bob")}
    text = f"""
tokens:
  - {{name: ann, tenant: red, roles: [client], sha256: {digest["ann"]}}}
  - {{name: bob, tenant: blue, roles: [client], sha256: {digest["bob"]}}}
"""
    tokens = (*parse_tokens("tokens.yaml", text), operator_token(TOKEN))
    async with orchestrator(tmp_path, tokens=tokens, token=TOKEN) as running:
        await running.add_models(model("m"))
        ann = (("authorization", "Bearer token-of-ann-1234"),)
        bob = (("authorization", "Bearer token-of-bob-1234"),)
        job_id = (await running.jobs.Submit(job(), metadata=ann)).job_id
        assert (await running.get(job_id)).spec.tenant == "red"
        codes = []
        for call, request, metadata in (
            (running.jobs.Get, jobs_pb.GetJobRequest(job_id=job_id), bob),
            (running.jobs.Cancel, jobs_pb.CancelJobRequest(job_id=job_id), bob),
            (running.jobs.Submit, job(tenant="red"), bob),
            (running.jobs.List, jobs_pb.ListJobsRequest(tenant="red"), bob),
            (running.operators.ListSites, pb.ListSitesRequest(), ann),
            (running.jobs.Get, jobs_pb.GetJobRequest(job_id=job_id), ()),
            (running.jobs.Get, jobs_pb.GetJobRequest(job_id=job_id), (("authorization", "Bearer nonsense"),)),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await call(request, metadata=metadata)
            codes.append(error.value.code().name)
        assert codes == ["NOT_FOUND"] * 2 + ["PERMISSION_DENIED"] * 3 + ["UNAUTHENTICATED"] * 2
        assert not (await running.jobs.List(jobs_pb.ListJobsRequest(), metadata=bob)).jobs
        health = health_pb2_grpc.HealthStub(running.channel)
        assert (await health.Check(health_pb2.HealthCheckRequest())).status == health_pb2.HealthCheckResponse.SERVING


async def test_reflection_lists_the_services(tmp_path: Path) -> None:
    async with orchestrator(tmp_path) as running:
        stub = reflection_pb2_grpc.ServerReflectionStub(running.channel)
        call = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
        answer = await call.read()
        names = {service.name for service in answer.list_services_response.service}
        assert {"atoll.v1.JobService", "atoll.v1.OperatorService", "atoll.v1.SiteService"} <= names


async def test_logs_come_from_the_site_of_the_attempt(tmp_path: Path) -> None:
    async with orchestrator(tmp_path) as running:
        await running.add_models(model("m"))
        await running.apply(site("a"))
        async with ScriptedAgent(running, "a", hold=True) as agent:
            agent.log = ("step 1", "step 2")
            job_id = await running.submit()
            await until(lambda: bool(agent.attempts))
            logs = await running.jobs.Logs(jobs_pb.JobLogsRequest(job_id=job_id))
            assert (logs.site_id, logs.ordinal, list(logs.lines)) == ("a", 1, ["step 1", "step 2"])
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await running.jobs.Logs(jobs_pb.JobLogsRequest(job_id=job_id, ordinal=2))
            assert refused_with(error)[0] is grpc.StatusCode.INVALID_ARGUMENT
            agent.log = ()
            asking = asyncio.ensure_future(running.jobs.Logs(jobs_pb.JobLogsRequest(job_id=job_id)))
            await asyncio.sleep(0.1)
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await asking
        assert refused_with(error)[0] is grpc.StatusCode.UNAVAILABLE


async def test_artifacts_are_downloaded_verified_and_only_from_below_the_root(tmp_path: Path) -> None:
    content = bytes(range(256)) * 8_192  # two chunks
    digest = sha256(content).hexdigest()
    outside = tmp_path / "secret"
    outside.write_bytes(content)
    async with orchestrator(tmp_path / "data") as running:
        root = tmp_path / "data" / "artifacts"
        blob = root / "blobs" / digest[:2] / digest
        blob.parent.mkdir(parents=True)
        blob.write_bytes(content)
        (root / "bad").write_bytes(b"x" * len(content))
        (root / "link").symlink_to(outside)
        await running.add_models(model("m"))
        await running.apply(site("a"))

        def artifact(name: str, uri: str) -> Artifact:
            return Artifact(
                name=name, media_type="image/png", bytes=len(content), digest=f"sha256:{digest}", uri=uri
            )  # fmt: skip

        listed = (
            artifact("named.png", blob.as_uri()),
            artifact("plain.png", ""),
            artifact("elsewhere.png", outside.as_uri()),
            artifact("linked.png", (root / "link").as_uri()),
            artifact("bad.png", (root / "bad").as_uri()),
        )
        async with ScriptedAgent(running, "a", hold=True) as agent:
            job_id = await running.submit()
            await until(lambda: bool(agent.attempts))
            await agent.end(next(iter(agent.attempts)), AttemptState.SUCCEEDED, listed)
            await running.ended(job_id)

        async def fetched(name: str, offset: int = 0) -> bytes:
            request = jobs_pb.DownloadRequest(job_id=job_id, artifact=name, offset=offset)
            return b"".join([message.chunk async for message in running.jobs.Download(request)])

        assert await fetched("named.png") == content
        assert await fetched("plain.png", len(content) - 5) == content[-5:]
        # What lies outside is never read: these come from their digest's place.
        outside.write_bytes(b"y" * len(content))
        assert await fetched("elsewhere.png") == content
        assert await fetched("linked.png") == content
        codes = []
        for name, offset in (("bad.png", 0), ("nothing.png", 0), ("named.png", len(content) + 1), ("../named.png", 0)):
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await fetched(name, offset)
            codes.append(error.value.code().name)
        assert codes == ["DATA_LOSS", "NOT_FOUND", "INVALID_ARGUMENT", "NOT_FOUND"]


async def test_uploads_are_kept_by_their_digest(tmp_path: Path) -> None:
    async with orchestrator(tmp_path) as running:
        chunks = [b"a" * 100_000, b"b" * 100_000]
        requests = [jobs_pb.UploadRequest(name="in.png", chunk=chunks[0]), jobs_pb.UploadRequest(chunk=chunks[1])]
        found = (await running.jobs.Upload(iter(requests))).input
        digest = sha256(b"".join(chunks)).hexdigest()
        assert (found.name, found.digest, found.bytes) == ("in.png", f"sha256:{digest}", 200_000)
        kept = tmp_path / "artifacts" / "sha256" / digest[:2] / digest
        assert kept.read_bytes() == b"".join(chunks)
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await running.jobs.Upload(iter([jobs_pb.UploadRequest(name="../x", chunk=b"1")]))
        assert refused_with(error)[0] is grpc.StatusCode.INVALID_ARGUMENT
        assert [path.name for path in (tmp_path / "artifacts").iterdir()] == ["sha256"]


async def test_a_backup_is_written_once_and_can_be_started_from(tmp_path: Path) -> None:
    (tmp_path / "copy").mkdir()
    copy = tmp_path / "copy" / "atoll.sqlite"
    async with orchestrator(tmp_path / "data") as running:
        await running.add_models(model("m"))
        job_id = await running.submit()
        response = await running.operators.Backup(pb.BackupRequest(path=str(copy)))
        assert response.bytes == copy.stat().st_size
        for path in (str(copy), "relative", "/nowhere/at/all"):
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await running.operators.Backup(pb.BackupRequest(path=path))
            assert refused_with(error)[0] is grpc.StatusCode.INVALID_ARGUMENT
    async with orchestrator(tmp_path / "copy") as running:
        assert (await running.get(job_id)).state == types_pb2.JOB_STATE_QUEUED
