"""Compiled code that sites of one fleet share: packed files in the fleet's artifact store, by key.

Decides what of the store is believed: a file is taken over only if it has the digest and the size that its entry names. That keeps damage
out, not malice: an entry and its file are written by whoever may write to the store, and what they hold is executed by whoever takes them.
So a site uses the shelf only where its operator says so. Must not know what the code is for.

    compiled/<key>/entry.json           digest, bytes, and when it was stored; the first stays
    compiled/<key>/<64 digits>.tar      the packed file
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Final

from agents.compiled_files import PACKED_BYTES_MAX
from agents.engine.manifest import parse_digest
from agents.objects import StoreError, file_chunks, open_objects
from atoll.model.compiled import parse_artifact_key
from atoll.model.errors import FieldError
from atoll.model.ids import ArtifactKey
from atoll.model.limits import CHUNK_BYTES
from atoll.model.shape import parse_int

_FORMAT_VERSION: Final = 1
_ENTRY_BYTES_MAX: Final = 4_096
# Each new torch makes all keys anew: of so many the oldest go. At some 10 MB each that is 10 GB of a store of results.
KEYS_MAX: Final = 1_024


class CodeShelf:
    """The shelf of one artifact store. Calls block; safe for several threads and processes."""

    def __init__(self, artifacts_url: str) -> None:
        """StoreError if the place cannot be used."""
        self._objects = open_objects(artifacts_url)

    def put(self, key: ArtifactKey, packed: Path, now_us: int) -> bool:
        """Store a packed file. False, changing nothing, if the key has one. `now_us` is of a wall clock: it orders entries by age."""
        if self._objects.size(_entry(key)) is not None:
            return False
        digest, size = hashlib.sha256(), 0
        for chunk in file_chunks(packed):
            digest.update(chunk)
            size += len(chunk)
        self._make_room()
        self._objects.create(_file(key, digest.hexdigest()), lambda: file_chunks(packed))
        value = {"format_version": _FORMAT_VERSION, "digest": f"sha256:{digest.hexdigest()}", "bytes": size, "stored_us": now_us}
        return self._objects.create(_entry(key), lambda: iter([json.dumps(value).encode()]))

    def get(self, key: ArtifactKey, target: Path) -> bool:
        """Bring a packed file to `target`, verified. False if there is none; StoreError for one that is not what its entry says."""
        entry = self._read(key)
        if entry is None:
            return False
        digest, size = parse_digest("digest", entry["digest"]), entry["bytes"]
        path = _file(key, digest.partition(":")[2])
        found, came = hashlib.sha256(), 0
        try:
            with target.open("xb") as out:
                for chunk in self._objects.chunks(path, 0, CHUNK_BYTES):
                    came += len(chunk)
                    if came > size:
                        break
                    found.update(chunk)
                    out.write(chunk)
            if came != size or f"sha256:{found.hexdigest()}" != digest:
                raise StoreError(f"{self._objects.url}/{path} is not the file of {size} bytes with {digest} that its entry names")
        except StoreError:
            target.unlink()
            raise
        return True

    def _read(self, key: ArtifactKey) -> dict[str, Any] | None:
        path = _entry(key)
        size = self._objects.size(path)
        if size is None:
            return None
        where = f"{self._objects.url}/{path}"
        if size > _ENTRY_BYTES_MAX:
            raise StoreError(f"{where} has {size} bytes: expected at most {_ENTRY_BYTES_MAX}")
        try:
            value: dict[str, Any] = json.loads(b"".join(self._objects.chunks(path, 0, CHUNK_BYTES)))
            if value["format_version"] != _FORMAT_VERSION:
                raise FieldError("format_version", value["format_version"], str(_FORMAT_VERSION))
            parse_digest("digest", value["digest"])
            parse_int("bytes", value["bytes"], 0, PACKED_BYTES_MAX)
            parse_int("stored_us", value["stored_us"], 0, 2**62)
        except (ValueError, TypeError, KeyError, RecursionError, FieldError) as error:
            raise StoreError(f"{where} is no entry of compiled code: {error}") from error
        return value

    def _make_room(self) -> None:
        """Drop the oldest keys, and those whose entry cannot be read before them, until there is room for one more."""
        by_key: dict[str, list[str]] = {}
        for path in self._objects.list("compiled"):
            by_key.setdefault(path.split("/")[1], []).append(path)
        surplus = len(by_key) - KEYS_MAX + 1
        if surplus <= 0:
            return
        for key in sorted(by_key, key=lambda key: (self._stored_us(key), key))[:surplus]:
            # The entry first: nobody is sent for a file that is gone.
            for path in sorted(by_key[key], key=lambda path: not path.endswith(".json")):
                self._objects.remove(path)

    def _stored_us(self, key: str) -> int:
        try:
            entry = self._read(ArtifactKey(key))
        except (StoreError, FieldError):
            return -1
        return entry["stored_us"] if entry is not None else -1


def _entry(key: ArtifactKey) -> str:
    return f"compiled/{parse_artifact_key('key', key)}/entry.json"


def _file(key: ArtifactKey, digits: str) -> str:
    return f"compiled/{parse_artifact_key('key', key)}/{digits}.tar"
