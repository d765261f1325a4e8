"""Compiled code on the disk of a node: a folder per key, as the compiler keeps it, and as one file that another node can take over.

Decides where code lies, which of it this node can run, what gives way, and what a packed file may hold. What lies here is executed, so it
is only ever made here or unpacked from a file that the caller trusts; a packed file is held to its bounds all the same: plain files with
plain names below two folders, so many, so large, and nothing else. Must not know how code is made, nor where packed files come from.

    <cache>/.compiled/<key>/inductor, triton      the compiler's files
    <cache>/.compiled/<key>/atoll-form.json       whose code it is; written once it is complete, its time says when it was used last
    <cache>/.compiled/.partial/                   what is being unpacked
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Final

from agents.origins import sync_folder
from agents.weights import CODE_FOLDER
from atoll.model.compiled import Environment, artifact_key, parse_artifact_key, parse_form
from atoll.model.errors import AtollError, FieldError, quoted
from atoll.model.ids import ArtifactKey, FormId
from atoll.model.limits import FORMS_PER_NODE_MAX

# Code of a tiny pipeline is 3 MB, headers included; kernels of a large one, tuned in a hundred variants, some 100 MB.
PACKED_BYTES_MAX: Final = 512 * 1024 * 1024
FILES_MAX: Final = 20_000
# Code takes this part of a node's cache at most.
_SHARE: Final = 16
_SIGN: Final = "atoll-form.json"
_SIGN_BYTES_MAX: Final = 4_096
_FORMAT_VERSION: Final = 1
_ROOTS: Final = frozenset({"inductor", "triton"})
_PART: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._@+=,-]{0,199}\Z")
_DEPTH_MAX: Final = 12
_CHUNK_BYTES: Final = 1024 * 1024
# Locks and what was being written when a process died.
_PASSING: Final = re.compile(r".*(\.lock|\.tmp)\Z|tmp.*\Z|locks\Z")


class BadCodeError(AtollError):
    """A packed file is not what it should be; names the entry and what would be right."""


class CodeFiles:
    """Code below the folder of a weights cache. Calls block. Safe for threads and processes."""

    def __init__(self, cache_root: Path, *, cache_bytes: int) -> None:
        self._root = cache_root / CODE_FOLDER
        self._quota_bytes = max(cache_bytes // _SHARE, 1)
        for folder in (self._root, self._root / ".partial"):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def folder(self, key: ArtifactKey) -> Path:
        """Where the code of a key lies or will. FieldError for what is no key."""
        return self._root / parse_artifact_key("key", key)

    def use(self, key: ArtifactKey) -> bool:
        """Whether the code of a key is here, complete; then it counts as used now."""
        sign = self.folder(key) / _SIGN
        try:
            os.utime(sign)
        except OSError:
            return False
        return True

    def complete(self, key: ArtifactKey, form: FormId) -> None:
        """The code of a key is all there."""
        _sign(self.folder(key), form)

    def held(self, environment: Environment) -> tuple[FormId, ...]:
        """Forms whose code is here and was compiled in this environment, the ones used last first."""
        forms = ((folder.name, _form_of(folder)) for folder in reversed(self._folders()))
        found = [form for name, form in forms if form is not None and name == artifact_key(form, environment)]
        return tuple(found[:FORMS_PER_NODE_MAX])

    def make_room(self, keep: ArtifactKey) -> None:
        """Drop what was not used for longest until the rest keeps the bounds of a node: bytes, and forms to tell of. `keep` stays."""
        folders = [folder for folder in self._folders() if folder.name != keep]
        used = sum(_tree_bytes(folder) for folder in (*folders, self.folder(keep)))
        for place, folder in enumerate(folders):
            if used <= self._quota_bytes and len(folders) - place < FORMS_PER_NODE_MAX:
                return
            used -= _tree_bytes(folder)
            self._remove(folder)

    # --- as one file ------------------------------------------------------------------------------------------------------------

    def pack(self, key: ArtifactKey, target: Path) -> None:
        """Write the code of a key to one file. BadCodeError if it is more than such a file may hold."""
        folder = self.folder(key)
        size = count = 0
        with target.open("xb") as out, tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
            for path in _files(folder):
                entry = tarfile.TarInfo(path.relative_to(folder).as_posix())
                entry.size = path.stat().st_size
                entry.mode = 0o600
                size, count = size + entry.size, count + 1
                if size > PACKED_BYTES_MAX or count > FILES_MAX:
                    raise BadCodeError(f"code {key} is more than {PACKED_BYTES_MAX} bytes in {FILES_MAX} files: it stays on its node")
                with path.open("rb") as source:
                    tar.addfile(entry, source)

    def unpack(self, key: ArtifactKey, form: FormId, packed: Path) -> None:
        """Take over the code of a key from a trusted file; complete, or BadCodeError and nothing of it. What is here already stays."""
        folder = self.folder(key)
        partial = self._root / ".partial" / f"{key}.{os.getpid()}.{time.monotonic_ns()}"
        try:
            partial.mkdir(mode=0o700)
            with packed.open("rb") as source:
                _extract(source, partial)
            _sign(partial, form)
            try:
                partial.rename(folder)
            except OSError:
                if not (folder / _SIGN).exists():  # begun here and never completed: the compiler finds what it lacks
                    self._remove(folder)
                    partial.rename(folder)
            sync_folder(self._root)
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def _folders(self) -> list[Path]:
        """Complete ones, and begun ones before them; least recently used first."""
        found = []
        for folder in self._root.iterdir():
            if folder.name.startswith(".") or folder.is_symlink() or not folder.is_dir():
                continue
            try:
                used_ns = (folder / _SIGN).stat().st_mtime_ns
            except OSError:
                used_ns = 0
            found.append((used_ns, folder.name, folder))
        return [folder for _, _, folder in sorted(found)]

    def _remove(self, folder: Path) -> None:
        """Gone at once for all who look, then freed."""
        trash = self._root / ".partial" / f"trash.{os.getpid()}.{time.monotonic_ns()}"
        try:
            folder.rename(trash)
        except OSError:
            return  # another process was quicker
        shutil.rmtree(trash, ignore_errors=True)


def _sign(folder: Path, form: FormId) -> None:
    folder.mkdir(exist_ok=True, mode=0o700)
    unfinished = folder / f".{_SIGN}.{os.getpid()}"
    unfinished.write_text(json.dumps({"format_version": _FORMAT_VERSION, "form": parse_form("form", form)}) + "\n")
    unfinished.replace(folder / _SIGN)


def _form_of(folder: Path) -> FormId | None:
    try:
        with (folder / _SIGN).open("rb") as source:
            value = json.loads(source.read(_SIGN_BYTES_MAX))
        return parse_form("form", value["form"]) if value["format_version"] == _FORMAT_VERSION else None
    except (OSError, ValueError, TypeError, KeyError, RecursionError, FieldError):
        return None


def _files(folder: Path) -> Iterator[Path]:
    """What is worth packing, in the order of names."""
    for root in sorted(_ROOTS):
        for path in sorted((folder / root).rglob("*")):
            passing = any(_PASSING.match(part) for part in path.relative_to(folder).parts)
            if path.is_file() and not path.is_symlink() and not passing:
                yield path


def _extract(source: IO[bytes], folder: Path) -> None:
    size = count = 0
    try:
        with tarfile.open(fileobj=source, mode="r:") as tar:
            for entry in tar:
                count += 1
                size += max(entry.size, 0)
                if count > FILES_MAX or size > PACKED_BYTES_MAX:
                    raise BadCodeError(f"packed code has more than {PACKED_BYTES_MAX} bytes in {FILES_MAX} files")
                _extract_file(tar, entry, folder)
    except (tarfile.TarError, OSError, EOFError, UnicodeError) as error:
        raise BadCodeError(f"packed code cannot be read: {type(error).__name__}: {error}") from error


def _extract_file(tar: tarfile.TarFile, entry: tarfile.TarInfo, folder: Path) -> None:
    parts = entry.name.split("/")
    if not entry.isreg() or entry.issparse():
        raise BadCodeError(f"packed code holds {quoted(entry.name)}, which is no plain file")
    if parts[0] not in _ROOTS or not 2 <= len(parts) <= _DEPTH_MAX or not all(_PART.match(part) for part in parts):
        raise BadCodeError(f"packed code holds {quoted(entry.name)}: expected plain names below {' or '.join(sorted(_ROOTS))}")
    target = folder.joinpath(*parts)
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    content = tar.extractfile(entry)
    assert content is not None, "a plain file has content"
    written = 0
    with target.open("xb") as out:
        while chunk := content.read(_CHUNK_BYTES):
            out.write(chunk)
            written += len(chunk)
    if written != entry.size:
        raise BadCodeError(f"packed code ends within {quoted(entry.name)}")


def _tree_bytes(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat(follow_symlinks=False).st_size if path.is_file() else 0
        except FileNotFoundError:
            continue
    return total
