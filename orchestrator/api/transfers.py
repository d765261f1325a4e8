"""Upload of inputs and Download of artifacts, in chunks.

Decides sizes and whose results may be read. Where bytes lie is `orchestrator.artifacts`' matter; no path ever comes from outside.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Final

from atoll.model import limits
from atoll.model.attempt import Artifact
from atoll.model.errors import FieldError, NotFoundError, StateError
from atoll.model.job import Job
from atoll.model.words import size
from atoll.v1 import job_service_pb2 as pb
from atoll.v1 import types_pb2
from atoll.wire.bounds import file_name
from orchestrator.api.status import CorruptError, TooLargeError
from orchestrator.artifacts import ArtifactStore, CorruptArtifactError, Upload
from orchestrator.refusals import RefusedError, unavailable

# Transfers at a time. Each holds a chunk or two and, while it works, a thread.
TRANSFERS_MAX: Final = 64


class Transfers:
    """Bytes in and out."""

    def __init__(self, artifacts: ArtifactStore) -> None:
        self._artifacts = artifacts
        self._open = 0

    async def upload(self, requests: AsyncIterator[pb.UploadRequest]) -> pb.UploadResponse:
        """Take in one file. Raises FieldError, TooLargeError, RefusedError; nothing is left behind then."""
        self._enter()
        try:
            first = await anext(requests, None)
            if first is None:
                raise FieldError("name", "", "a first message with the file's name")
            name = file_name("name", first.name)
            incoming = await asyncio.to_thread(self._artifacts.upload)
            try:
                await self._append(incoming, first.chunk)
                async for request in requests:
                    await self._append(incoming, request.chunk)
                digest = await asyncio.to_thread(incoming.finish)
            except BaseException:
                await asyncio.to_thread(incoming.abandon)
                raise
        except OSError as error:
            raise RefusedError(unavailable(f"the artifact store takes nothing: {error.strerror}", 5_000)) from error
        finally:
            self._open -= 1
        return pb.UploadResponse(input=types_pb2.InputRef(name=name, digest=digest, bytes=incoming.bytes))

    async def _append(self, incoming: Upload, chunk: bytes) -> None:
        if incoming.bytes + len(chunk) > limits.INPUT_BYTES_MAX:
            raise TooLargeError(f"the file is larger than the {size(limits.INPUT_BYTES_MAX)} that an input may have")
        await asyncio.to_thread(incoming.write, chunk)

    async def download(self, job: Job, name: str, offset: int) -> AsyncIterator[pb.DownloadResponse]:
        """An artifact of a result from `offset` on. Raises FieldError, NotFoundError, StateError, CorruptError."""
        artifact = _artifact(job, name)
        if not 0 <= offset <= artifact.bytes:
            raise FieldError("offset", offset, f"0 to {artifact.bytes}, the size of {artifact.name}")
        self._enter()
        chunks: Iterator[bytes] = self._artifacts.read(artifact, offset)
        try:
            yield pb.DownloadResponse(total_bytes=artifact.bytes)
            while (chunk := await asyncio.to_thread(next, chunks, None)) is not None:
                yield pb.DownloadResponse(chunk=chunk)
        except CorruptArtifactError as error:
            raise CorruptError(str(error)) from None
        finally:
            self._open -= 1

    def _enter(self) -> None:
        if self._open >= TRANSFERS_MAX:
            raise RefusedError(unavailable("too many transfers are going on", 1_000))
        self._open += 1


def _artifact(job: Job, name: str) -> Artifact:
    if job.result is None:
        raise StateError(f"job {job.job_id} is {job.state}: it has no result")
    if job.result.simulated:
        raise StateError(f"job {job.job_id} was simulated: its result has no files")
    for artifact in job.result.artifacts:
        if artifact.name == name:
            return artifact
    raise NotFoundError("artifact", name)
