"""Files in and out: which artifact is meant, where its bytes go, and whether they are the right ones.

Decides when a download is complete and that nobody sees half of one. Must not know channels.
"""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Final

from atoll.client.calls import argument
from atoll.client.errors import ClientError, CorruptError, InputError, NotFoundError, StateError
from atoll.model import limits, words
from atoll.model.attempt import Artifact
from atoll.model.errors import quoted
from atoll.model.job import IMAGE_INPUT, InputRef, Job
from atoll.v1 import job_service_pb2 as pb
from atoll.wire import bounds
from atoll.wire.jobs import input_ref_from_proto

Target = str | os.PathLike[str] | BinaryIO
Source = str | os.PathLike[str] | bytes
# How a PNG and a JPEG begin.
_MAGIC: Final = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")
_MAGIC_BYTES: Final = 8


def choose(job: Job, name: str | None) -> Artifact:
    """The artifact that is meant: the named one, or the only one."""
    if job.result is None:
        raise StateError(f"job {job.job_id} is {job.state}: it has no result")
    if job.result.simulated:
        raise StateError(f"job {job.job_id} was simulated: its result has no files")
    found = [artifact for artifact in job.result.artifacts if name is None or artifact.name == name]
    names = ", ".join(artifact.name for artifact in job.result.artifacts)
    if not found:
        raise NotFoundError(f"job {job.job_id} has no artifact {quoted(name)}: it has {names or 'none'}")
    if len(found) > 1:
        raise InputError(f"job {job.job_id} has {len(found)} artifacts: expected the name of one of {names}", field="artifact")
    return found[0]


class Sink:
    """Takes an artifact's bytes in order, from as many streams as it needs, and lets them be seen only when they are right.

    With a path the bytes go to a temporary file beside it, which takes its place at the end; a file object gets them as they come.
    """

    def __init__(self, artifact: Artifact, target: Target) -> None:
        self._artifact = artifact
        self._digest = hashlib.sha256()
        self.received = 0
        self._path: Path | None = None
        self._partial: Path | None = None
        if isinstance(target, str | os.PathLike):
            self._path = Path(target)
            self._file, self._partial = _beside(self._path)
        else:
            self._file = target

    def __enter__(self) -> Sink:
        return self

    def write(self, chunk: bytes) -> None:
        """The next bytes. CorruptError when there are more than the artifact has."""
        if self.received + len(chunk) > self._artifact.bytes:
            raise CorruptError(f"{self._artifact.name} is longer than the {self._artifact.bytes} bytes its result promises")
        try:
            self._file.write(chunk)
        except OSError as error:
            raise ClientError(f"cannot write {self._path or 'the file'}: {error.strerror or error}") from error
        self._digest.update(chunk)
        self.received += len(chunk)

    @property
    def complete(self) -> bool:
        """Whether all bytes have come."""
        return self.received == self._artifact.bytes

    def finish(self) -> None:
        """Check what came and put it in its place. CorruptError when it is not what the result promises."""
        found = f"sha256:{self._digest.hexdigest()}"
        if found != self._artifact.digest:
            raise CorruptError(f"{self._artifact.name} has digest {found}: its result promises {self._artifact.digest}")
        if self._path is None or self._partial is None:
            return
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self._partial.replace(self._path)
        except OSError as error:
            raise ClientError(f"cannot write {self._path}: {error.strerror or error}") from error
        self._partial = None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._partial is not None:
            self._file.close()
            self._partial.unlink(missing_ok=True)


def _beside(path: Path) -> tuple[BinaryIO, Path]:
    if path.is_dir():
        raise InputError(f"{path} is a folder: expected the path of a file", field="path")
    partial = path.with_name(f".{path.name[:100]}.{uuid.uuid4().hex[:12]}.partial")
    try:
        return partial.open("xb"), partial
    except OSError as error:
        raise ClientError(f"cannot write {path}: {error.strerror or error}") from None


def file_messages(source: Source, name: str) -> Iterator[pb.UploadRequest]:
    """The messages of one upload, made anew for each try."""
    yield pb.UploadRequest(name=name)
    if isinstance(source, bytes):
        for start in range(0, len(source), limits.CHUNK_BYTES):
            yield pb.UploadRequest(chunk=source[start : start + limits.CHUNK_BYTES])
        return
    with Path(source).open("rb") as opened:
        while chunk := opened.read(limits.CHUNK_BYTES):
            yield pb.UploadRequest(chunk=chunk)


def upload_name(source: Source, name: str | None) -> str:
    """The name under which a file is uploaded: the given one, or its own. InputError when it cannot be one."""
    if name is None:
        if isinstance(source, bytes):
            raise InputError("name is None: expected a file name, as bytes have none", field="name")
        name = Path(source).name
    return argument(bounds.file_name, "name", name)


def digest_of(source: Source) -> str:
    """ "sha256:..." of what is uploaded. InputError when it cannot be read or is too large."""
    if isinstance(source, bytes):
        _check_size(len(source))
        return f"sha256:{hashlib.sha256(source).hexdigest()}"
    try:
        if not Path(source).is_file():
            # A device or a pipe has no size, and may have no end.
            what = "a folder" if Path(source).is_dir() else "no plain file"
            if Path(source).exists():
                raise InputError(f"{source} is {what}: expected a file", field="source")
        with Path(source).open("rb") as opened:
            _check_size(os.fstat(opened.fileno()).st_size)
            return f"sha256:{hashlib.file_digest(opened, 'sha256').hexdigest()}"
    except OSError as error:
        raise InputError(f"cannot read {source}: {error.strerror or error}", field="source") from None


def image_ref(source: Source) -> InputRef:
    """An image to begin with as it will be once it is uploaded. InputError for a file that cannot be one."""
    digest = digest_of(source)
    try:
        if isinstance(source, bytes):
            head, size = source[:_MAGIC_BYTES], len(source)
        else:
            with Path(source).open("rb") as opened:
                head, size = opened.read(_MAGIC_BYTES), os.fstat(opened.fileno()).st_size
    except OSError as error:
        raise InputError(f"cannot read {source!r}: {error.strerror or error}", field="image") from None
    what = "the image" if isinstance(source, bytes) else os.fspath(source)
    if size > limits.IMAGE_BYTES_MAX:
        raise InputError(f"{what} has {words.size(size)}: expected at most {words.size(limits.IMAGE_BYTES_MAX)}", field="image")
    if not head.startswith(_MAGIC):
        raise InputError(f"{what} is no picture that a generation can begin with: expected a PNG or a JPEG", field="image")
    return InputRef(name=IMAGE_INPUT, digest=digest, bytes=size)


def _check_size(size: int) -> None:
    if size > limits.INPUT_BYTES_MAX:
        raise InputError(f"the file has {words.size(size)}: expected at most {words.size(limits.INPUT_BYTES_MAX)}", field="source")


def uploaded(response: pb.UploadResponse, digest: str) -> InputRef:
    """The answer to an upload; FieldError or CorruptError when it is not of what was sent."""
    ref = input_ref_from_proto(response.input)
    if ref.digest != digest:
        raise CorruptError(f"the orchestrator stored {ref.digest}: {digest} was sent")
    return ref
