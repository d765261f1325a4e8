"""The artifact store: files of results by the digest of their content, and one manifest per attempt, written last.

Decides when an attempt has succeeded: when its manifest exists, and never before its files do. The first manifest of
an attempt stays. Must not know who made the files or what becomes of them.

    blobs/<2 digits>/<64 digits>       the bytes with that sha256
    manifests/<job>/<ordinal>.json     what an attempt produced
    orphans/<64 digits>                a file that no manifest names, and since when a sweep has known that
    sha256/<2 digits>/<64 digits>      what clients uploaded, written by the orchestrator and only read here
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from agents.engine.manifest import parse_digest
from agents.objects import Objects, StoreError, file_chunks, open_objects
from atoll.model.attempt import Artifact, PhaseTimes, ResultManifest
from atoll.model.errors import FieldError, NotFoundError
from atoll.model.ids import AttemptKey, JobId, Ordinal, parse_name
from atoll.model.limits import ATTEMPTS_PER_JOB_MAX, BYTES_MAX, CHUNK_BYTES, RESULT_ARTIFACTS_MAX
from atoll.model.shape import parse_int

_FORMAT_VERSION: Final = 1
# 64 artifacts of a few hundred bytes each.
_MANIFEST_BYTES_MAX: Final = 256 * 1024
# A file without a manifest belongs to an attempt that is still uploading, or that died: uploads take minutes, not an
# hour.
ORPHAN_GRACE_US: Final = 3600 * 1_000_000
_TIMES: Final = ("waiting_us", "fetch_us", "load_us", "compile_us", "run_us", "upload_us")


@dataclass(frozen=True, slots=True, kw_only=True)
class CommittedResult:
    """A manifest as it is stored. `committed_us` is of the caller's clock, the one that `sweep` is given too."""

    manifest: ResultManifest
    committed_us: int
    times: PhaseTimes = PhaseTimes()


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """What a sweep may keep: results no older than `max_age_us`, and of those the newest that fit in `max_bytes`."""

    max_age_us: int
    max_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Swept:
    """What a sweep deleted, and what is left."""

    results: tuple[AttemptKey, ...]
    freed_bytes: int
    kept_bytes: int


class ArtifactStore:
    """Results below one fsspec URL. Calls block; safe for several threads and processes."""

    def __init__(self, url: str) -> None:
        """StoreError if the place cannot be used."""
        self._objects: Objects = open_objects(url)

    @property
    def url(self) -> str:
        """Where the store is, as artifacts' URIs begin."""
        return self._objects.url

    def put_bytes(self, data: bytes, *, name: str, media_type: str, pixel_digest: str = "") -> Artifact:
        """Store bytes under their digest, durably; nothing happens if they are there already."""
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        return self._put(Artifact(name=name, media_type=media_type, bytes=len(data), digest=digest), [data], pixel_digest)

    def put_file(self, path: Path, *, name: str, media_type: str, pixel_digest: str = "") -> Artifact:
        """As `put_bytes`, from a file that nobody changes meanwhile."""
        digest, size = hashlib.sha256(), 0
        for chunk in file_chunks(path):
            digest.update(chunk)
            size += len(chunk)
        artifact = Artifact(name=name, media_type=media_type, bytes=size, digest="sha256:" + digest.hexdigest())
        return self._put(artifact, path, pixel_digest)

    def _put(self, artifact: Artifact, source: list[bytes] | Path, pixel_digest: str) -> Artifact:
        path = _blob(artifact.digest)
        artifact = _check_artifact(replace(artifact, uri=f"{self.url}/{path}", pixel_digest=pixel_digest), "artifact")
        self._objects.create(path, lambda: file_chunks(source) if isinstance(source, Path) else iter(source))
        self._objects.remove(_orphan(artifact.digest))  # in use again: a sweep must not take it
        return artifact

    def size(self, digest: str) -> int | None:
        """Bytes of a stored file, None if there is none. FieldError for what is no digest."""
        return self._objects.size(_blob(digest))

    def get(self, digest: str, *, max_bytes: int) -> bytes:
        """A whole file, verified. NotFoundError if there is none; StoreError if it is larger than `max_bytes` or
        damaged."""
        return self._verified(_blob(digest), digest, max_bytes)

    def _verified(self, path: str, digest: str, max_bytes: int) -> bytes:
        size = self._objects.size(path)
        if size is None:
            raise NotFoundError("artifact", digest)
        if size > max_bytes:
            raise StoreError(f"artifact {digest} has {size} bytes: expected at most {max_bytes}")
        data = b"".join(self._objects.chunks(path, 0, CHUNK_BYTES))
        if "sha256:" + hashlib.sha256(data).hexdigest() != digest:
            raise StoreError(f"artifact {digest} is damaged in {self.url}")
        return data

    def get_input(self, digest: str, *, max_bytes: int) -> bytes:
        """A whole file that a client uploaded for a job, verified. Errors as of `get`."""
        return self._verified(_input(digest), digest, max_bytes)

    def chunks(self, digest: str, *, offset: int = 0, chunk_bytes: int = CHUNK_BYTES) -> Iterator[bytes]:
        """A file from `offset` (bytes) in pieces; unverified: whoever has all of it compares the digest.
        NotFoundError."""
        size = self.size(digest)
        if size is None:
            raise NotFoundError("artifact", digest)
        parse_int("offset", offset, 0, size)
        return self._objects.chunks(_blob(digest), offset, parse_int("chunk_bytes", chunk_bytes, 1, 64 * CHUNK_BYTES))

    def commit(self, result: CommittedResult) -> CommittedResult:
        """Make an attempt's outputs its result; what is stored afterwards, which is an earlier commit's if there was
        one.

        StoreError if a file that the manifest names is not there: put it again, then commit again.
        """
        for artifact in result.manifest.artifacts:
            size = self.size(artifact.digest)
            if size != artifact.bytes:
                raise StoreError(f"artifact {artifact.digest} ({artifact.name}) has {size} bytes in {self.url}")
        path = _manifest_path(result.manifest.key)
        data = _encode(result)
        if self._objects.create(path, lambda: iter([data])):
            return result
        stored = self.result(result.manifest.key)
        if stored is None:
            raise StoreError(f"{self.url}/{path} came and went while it was written")
        return stored

    def result(self, key: AttemptKey) -> CommittedResult | None:
        """What an attempt committed; None: it has not succeeded here, or was swept."""
        path = _manifest_path(key)
        size = self._objects.size(path)
        if size is None:
            return None
        where = f"{self.url}/{path}"
        if size > _MANIFEST_BYTES_MAX:
            raise StoreError(f"{where} has {size} bytes: expected at most {_MANIFEST_BYTES_MAX}")
        return _decode(b"".join(self._objects.chunks(path, 0, CHUNK_BYTES)), key, where)

    def results(self) -> Iterator[CommittedResult]:
        """All committed results, in order of job and ordinal. What is no manifest is passed over."""
        for path in self._objects.list("manifests"):
            parts = path.split("/")
            try:
                ordinal = int(parts[2].removesuffix(".json"))
                result = self.result(AttemptKey(job_id=JobId(parts[1]), ordinal=Ordinal(ordinal)))
            except (ValueError, IndexError, FieldError, StoreError):
                continue
            if result is not None:
                yield result

    def sweep(self, now_us: int, retention: Retention, *, keep: frozenset[AttemptKey] = frozenset()) -> Swept:
        """Delete results past retention, oldest first, then files that no manifest has named for an hour.

        `now_us` is of the clock that committed them. `keep` names results that nobody has been told of yet: they stay.
        """
        newest_first = sorted(self.results(), key=lambda result: (-result.committed_us, result.manifest.key))
        kept: dict[str, int] = {}
        deleted = []
        for result in newest_first:
            sizes = {artifact.digest: artifact.bytes for artifact in result.manifest.artifacts}
            total = sum((kept | sizes).values())
            is_old = now_us - result.committed_us > retention.max_age_us or total > retention.max_bytes
            if is_old and result.manifest.key not in keep:
                deleted.append(result.manifest.key)
                self._objects.remove(_manifest_path(result.manifest.key))
            else:
                kept |= sizes
        freed = self._sweep_blobs(now_us, frozenset(kept))
        return Swept(results=tuple(sorted(deleted)), freed_bytes=freed, kept_bytes=sum(kept.values()))

    def _sweep_blobs(self, now_us: int, named: frozenset[str]) -> int:
        """Bytes freed. A file is deleted when it was unnamed at two sweeps an hour apart: it may be of an upload in
        progress."""
        freed = 0
        for path in self._objects.list("blobs"):
            digest = f"sha256:{path.rpartition('/')[2]}"
            if digest in named:
                self._objects.remove(_orphan(digest))
                continue
            since_us = self._orphan_since_us(digest, now_us)
            if now_us - since_us >= ORPHAN_GRACE_US:
                freed += self._objects.size(path) or 0
                self._objects.remove(path)
                self._objects.remove(_orphan(digest))
        return freed

    def _orphan_since_us(self, digest: str, now_us: int) -> int:
        path = _orphan(digest)
        if self._objects.create(path, lambda: iter([str(now_us).encode()])):
            return now_us
        try:
            since_us = int(b"".join(self._objects.chunks(path, 0, 64))[:20])
        except (ValueError, StoreError):
            self._objects.remove(path)
            return now_us
        return min(since_us, now_us)


def _blob(digest: str) -> str:
    digits = parse_digest("digest", digest).partition(":")[2]
    return f"blobs/{digits[:2]}/{digits}"


def _input(digest: str) -> str:
    digits = parse_digest("digest", digest).partition(":")[2]
    return f"sha256/{digits[:2]}/{digits}"


def _orphan(digest: str) -> str:
    return f"orphans/{parse_digest('digest', digest).partition(':')[2]}"


def _manifest_path(key: AttemptKey) -> str:
    job = parse_name("job", key.job_id)
    return f"manifests/{job}/{parse_int('ordinal', key.ordinal, 1, ATTEMPTS_PER_JOB_MAX)}.json"


def _check_artifact(artifact: Artifact, field: str) -> Artifact:
    """Self if its fields may be shown and stored: they come back from files that anybody may have edited."""
    parse_digest(f"{field}.digest", artifact.digest)
    parse_name(f"{field}.name", artifact.name)
    parse_int(f"{field}.bytes", artifact.bytes, 0, BYTES_MAX)
    if artifact.pixel_digest:
        parse_digest(f"{field}.pixel_digest", artifact.pixel_digest)
    for name, text, limit in (("media_type", artifact.media_type, 100), ("uri", artifact.uri, 2000)):
        if not isinstance(text, str) or len(text) > limit or not text.isprintable():
            raise FieldError(f"{field}.{name}", text, f"at most {limit} printable characters")
    return artifact


def _encode(result: CommittedResult) -> bytes:
    manifest = result.manifest
    if len(manifest.artifacts) > RESULT_ARTIFACTS_MAX:
        raise FieldError("artifacts", len(manifest.artifacts), f"at most {RESULT_ARTIFACTS_MAX} artifacts")
    value = {
        "format_version": _FORMAT_VERSION,
        "job": manifest.key.job_id,
        "ordinal": manifest.key.ordinal,
        "seed": manifest.seed,
        "simulated": manifest.simulated,
        "committed_us": result.committed_us,
        "times": {name: getattr(result.times, name) for name in _TIMES},
        "artifacts": [
            {
                "name": artifact.name,
                "media_type": artifact.media_type,
                "bytes": artifact.bytes,
                "digest": artifact.digest,
                "pixel_digest": artifact.pixel_digest,
                "uri": artifact.uri,
            }
            for artifact in (_check_artifact(artifact, "artifact") for artifact in manifest.artifacts)
        ],
    }
    return (json.dumps(value, indent=1) + "\n").encode()


def _decode(data: bytes, key: AttemptKey, where: str) -> CommittedResult:
    """The result in a stored manifest; StoreError naming the file if it is not one, or another attempt's."""
    try:
        value: dict[str, Any] = json.loads(data)
        if value["format_version"] != _FORMAT_VERSION or (value["job"], value["ordinal"]) != (key.job_id, key.ordinal):
            raise FieldError("manifest", value["format_version"], f"version {_FORMAT_VERSION} of attempt {key}")
        if not isinstance(value["simulated"], bool):
            raise FieldError("simulated", value["simulated"], "true or false")
        if len(value["artifacts"]) > RESULT_ARTIFACTS_MAX:
            raise FieldError("artifacts", len(value["artifacts"]), f"at most {RESULT_ARTIFACTS_MAX} artifacts")
        manifest = ResultManifest(
            key=key,
            artifacts=tuple(_check_artifact(Artifact(**artifact), "artifact") for artifact in value["artifacts"]),
            seed=parse_int("seed", value["seed"], 0, 2**63 - 1),
            simulated=value["simulated"],
        )
        times = {name: parse_int(name, value["times"][name], -1, 2**62) for name in _TIMES}
        committed_us = parse_int("committed_us", value["committed_us"], 0, 2**62)
    except (ValueError, TypeError, KeyError, RecursionError, FieldError) as error:
        raise StoreError(f"{where} is no manifest of {key}: {error}") from error
    return CommittedResult(manifest=manifest, committed_us=committed_us, times=PhaseTimes(**times))
