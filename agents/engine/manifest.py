"""The manifest of a model folder: which files a model consists of, and the check that a folder holds exactly those.

A folder is data, never code: safetensors and configuration, nothing that a loader would execute. Decides what is a
sound model folder. Must not import torch or diffusers at the top: agents read manifests in processes that never load
a model.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from agents.engine.errors import BadWeightsError
from atoll.model.errors import FieldError, quoted
from atoll.model.ids import ModelId, parse_name
from atoll.model.limits import BYTES_MAX
from atoll.model.modelspec import Modality

MANIFEST_NAME: Final = "atoll-manifest.json"
INDEX_NAME: Final = "model_index.json"
FORMAT_VERSION: Final = 1
# 10,000 files of 200 characters are 3 MiB; the largest pipelines published have some hundred files.
MANIFEST_BYTES_MAX: Final = 4 * 1024 * 1024
FILES_MAX: Final = 10_000
# The largest tokenizer.json in use (Gemma's 256k vocabulary) is 34 MB; configurations are a few KB, weight indexes
# up to 1 MB.
JSON_BYTES_MAX: Final = 64 * 1024 * 1024
CONFIG_BYTES_MAX: Final = 2 * 1024 * 1024
# The safetensors format itself bounds its header to 100 MB.
SAFETENSORS_HEADER_BYTES_MAX: Final = 100_000_000
READ_BYTES: Final = 4 * 1024 * 1024

# Weights, configuration, vocabularies, chat templates and the texts that come with them. Anything else is refused: a
# pickle (.bin, .pt, .pth, .ckpt, .pkl) or a .py file runs code when it is loaded.
SUFFIXES: Final = frozenset({".safetensors", ".json", ".txt", ".model", ".md", ".jinja"})
BARE_NAMES: Final = frozenset({"LICENSE", "NOTICE"})
SUFFIX_RULE: Final = "safetensors, json, txt, model, md and jinja files only: no pickles, no code"
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]{0,126}\Z")
_CLASS = re.compile(r"[A-Z][A-Za-z0-9_]{0,99}\Z")
_MODULE = re.compile(r"[a-z][a-z0-9_]{0,62}\Z")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}\Z")
_HEX = re.compile(r"[0-9a-f]{64}\Z")
PATH_RULE: Final = "a relative path of at most 6 parts of letters, digits, '.', '_', '+' and '-', without '..'"
DIGEST_RULE: Final = "'sha256:' and 64 hexadecimal digits"


@dataclass(frozen=True, slots=True, kw_only=True)
class ManifestFile:
    """One file of a model. `path` is relative to the folder, with '/'; `sha256` is plain hex."""

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelManifest:
    """What a model folder must hold. `files` are sorted by path; `digest` follows from them alone."""

    model_id: ModelId
    pipeline_class: str
    modality: Modality
    files: tuple[ManifestFile, ...]

    @property
    def digest(self) -> str:
        """'sha256:<hex>' over the sorted list of files: one line of hash, size and path each."""
        lines = "".join(f"{file.sha256} {file.bytes} {file.path}\n" for file in self.files)
        return "sha256:" + hashlib.sha256(lines.encode()).hexdigest()

    @property
    def total_bytes(self) -> int:
        """Bytes of all files, without the manifest itself."""
        return sum(file.bytes for file in self.files)

    def to_json(self) -> bytes:
        """The manifest as it is stored: the same bytes for the same model."""
        value = {
            "format_version": FORMAT_VERSION,
            "model_id": self.model_id,
            "pipeline_class": self.pipeline_class,
            "modality": self.modality.value,
            "files": [{"path": file.path, "bytes": file.bytes, "sha256": file.sha256} for file in self.files],
            "digest": self.digest,
        }
        return (json.dumps(value, indent=1) + "\n").encode()


def parse_digest(field: str, value: object) -> str:
    """`value` if it is a digest as Atoll writes it; else FieldError."""
    if not isinstance(value, str) or not _DIGEST.match(value):
        raise FieldError(field, value, DIGEST_RULE)
    return value


def check_path(file: str, path: object) -> str:
    """`path` if it stays below a folder and has an allowed kind; else BadWeightsError naming `file`."""
    parts = path.split("/") if isinstance(path, str) else []
    if not isinstance(path, str) or not 1 <= len(parts) <= 6 or not all(_PART.match(part) for part in parts):
        raise BadWeightsError(file, f"path {quoted(path)}", PATH_RULE)
    if path == MANIFEST_NAME or (Path(path).suffix not in SUFFIXES and path not in BARE_NAMES):
        raise BadWeightsError(path, "this kind of file is never loaded", SUFFIX_RULE)
    return path


def parse_manifest(data: bytes, where: str) -> ModelManifest:
    """The manifest in `data`; `where` names it in errors. BadWeightsError for anything that is not exactly a
    manifest."""
    value = _json_object(data, where, MANIFEST_BYTES_MAX)
    keys = {"format_version", "model_id", "pipeline_class", "modality", "files", "digest"}
    if set(value) != keys:
        raise BadWeightsError(where, f"fields {quoted(sorted(value))}", f"exactly {sorted(keys)}")
    if value["format_version"] != FORMAT_VERSION or isinstance(value["format_version"], bool):
        raise BadWeightsError(where, f"format_version {quoted(value['format_version'])}", str(FORMAT_VERSION))
    try:
        model_id = ModelId(parse_name("model_id", value["model_id"]))
    except FieldError as error:
        raise BadWeightsError(where, f"model_id {quoted(error.value)}", error.expected) from None
    pipeline_class = value["pipeline_class"]
    if not isinstance(pipeline_class, str) or not _CLASS.match(pipeline_class):
        raise BadWeightsError(where, f"pipeline_class {quoted(pipeline_class)}", "the name of a pipeline class")
    if value["modality"] not in {Modality.IMAGE.value, Modality.VIDEO.value}:
        raise BadWeightsError(where, f"modality {quoted(value['modality'])}", "'image' or 'video'")
    files = _parse_files(value["files"], where)
    manifest = ModelManifest(model_id=model_id, pipeline_class=pipeline_class, modality=Modality(value["modality"]), files=files)
    if value["digest"] != manifest.digest:
        raise BadWeightsError(where, f"digest {quoted(value['digest'])}", f"{manifest.digest}, which its files give")
    return manifest


def _parse_files(value: object, where: str) -> tuple[ManifestFile, ...]:
    if not isinstance(value, list) or not 1 <= len(value) <= FILES_MAX:
        raise BadWeightsError(where, "files", f"a list of 1 to {FILES_MAX} files")
    files = []
    for entry in value:
        if not isinstance(entry, dict) or set(entry) != {"path", "bytes", "sha256"}:
            raise BadWeightsError(where, f"file {quoted(entry)}", "path, bytes and sha256")
        path, size, sha256 = check_path(where, entry["path"]), entry["bytes"], entry["sha256"]
        if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= BYTES_MAX:
            raise BadWeightsError(path, f"bytes {quoted(size)}", f"a whole number from 0 to {BYTES_MAX}")
        if not isinstance(sha256, str) or not _HEX.match(sha256):
            raise BadWeightsError(path, f"sha256 {quoted(sha256)}", "64 hexadecimal digits")
        files.append(ManifestFile(path=path, bytes=size, sha256=sha256))
    paths = [file.path for file in files]
    if paths != sorted(set(paths)):
        raise BadWeightsError(where, "files", "each path once, in order")
    if INDEX_NAME not in paths:
        raise BadWeightsError(where, f"no {INDEX_NAME}", "a folder as diffusers' save_pretrained writes it")
    return tuple(files)


def read_manifest(folder: Path) -> ModelManifest:
    """The manifest of `folder`; BadWeightsError if there is none or it is not sound."""
    path = folder / MANIFEST_NAME
    return parse_manifest(_read_bounded(path, str(path), MANIFEST_BYTES_MAX), str(path))


def write_manifest(folder: Path, *, model_id: ModelId, modality: Modality) -> ModelManifest:
    """Hash every file of a folder that diffusers wrote, check it all, and store the manifest beside them (durably,
    at once)."""
    files = []
    for path in _walk(folder):
        sha256, size = hash_file(folder / path)
        files.append(ManifestFile(path=path, bytes=size, sha256=sha256))
    index = _read_object(folder / INDEX_NAME, INDEX_NAME)
    manifest = ModelManifest(
        model_id=ModelId(parse_name("model_id", model_id)),
        pipeline_class=str(index.get("_class_name")),
        modality=modality,
        files=_parse_files([_as_dict(file) for file in sorted(files, key=lambda file: file.path)], str(folder)),
    )
    parse_manifest(manifest.to_json(), str(folder / MANIFEST_NAME))
    _check_content(folder, manifest)
    partial = folder / f".{MANIFEST_NAME}.partial"
    with partial.open("wb") as out:
        out.write(manifest.to_json())
        out.flush()
        os.fsync(out.fileno())
    partial.replace(folder / MANIFEST_NAME)
    return manifest


def verify_folder(folder: Path, *, digests: bool = True, on_bytes: Callable[[int], None] | None = None) -> ModelManifest:
    """The manifest of a folder that holds exactly what it says; else BadWeightsError naming the file.

    Without `digests` names, sizes, kinds and headers are checked but contents are not hashed: for folders whose
    contents were verified when they were written. `on_bytes` hears how many bytes were hashed since its last call.
    """
    if folder.is_symlink() or not folder.is_dir():
        raise BadWeightsError(str(folder), "no folder", "a model folder")
    manifest = read_manifest(folder)
    listed = {file.path: file for file in manifest.files}
    found = set(_walk(folder))
    for path in sorted(found - set(listed)):
        raise BadWeightsError(path, "not in the manifest", "only the files that the manifest lists")
    for path in sorted(set(listed) - found):
        raise BadWeightsError(path, "missing", f"a file of {listed[path].bytes} bytes, as the manifest says")
    for file in manifest.files:
        size = (folder / file.path).stat().st_size
        if size != file.bytes:
            raise BadWeightsError(file.path, f"{size} bytes", f"{file.bytes} bytes, as the manifest says")
    _check_content(folder, manifest)
    if digests:
        for file in manifest.files:
            sha256, _ = hash_file(folder / file.path, on_bytes)
            if sha256 != file.sha256:
                raise BadWeightsError(file.path, f"sha256 {sha256}", f"{file.sha256}, as the manifest says")
    return manifest


def hash_file(path: Path, on_bytes: Callable[[int], None] | None = None) -> tuple[str, int]:
    """(sha256 in hex, bytes) of a file."""
    digest, size = hashlib.sha256(), 0
    buffer = memoryview(bytearray(READ_BYTES))
    with path.open("rb", buffering=0) as source:
        while count := source.readinto(buffer):
            digest.update(buffer[:count])
            size += count
            if on_bytes is not None:
                on_bytes(count)
    return digest.hexdigest(), size


def check_pipeline_class(manifest: ModelManifest) -> None:
    """BadWeightsError unless the installed diffusers has the manifest's class. Imports diffusers: seconds when cold."""
    import diffusers

    cls = getattr(diffusers, manifest.pipeline_class, None)
    if not isinstance(cls, type) or not issubclass(cls, diffusers.DiffusionPipeline):
        raise BadWeightsError(
            INDEX_NAME,
            f"pipeline class {quoted(manifest.pipeline_class)}",
            f"a pipeline class of diffusers {diffusers.__version__}",
        )


def _walk(folder: Path, below: str = "", depth: int = 1) -> Iterator[str]:
    """Relative paths of all files but the manifest; refuses links, special files and kinds that are never loaded."""
    with os.scandir(folder / below) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            path = f"{below}{entry.name}"
            mode = entry.stat(follow_symlinks=False).st_mode
            if stat.S_ISLNK(mode):
                raise BadWeightsError(path, "a symbolic link", "a regular file (copy a linked folder with cp -rL)")
            if stat.S_ISDIR(mode):
                if depth >= 6:
                    raise BadWeightsError(path, f"{depth} folders deep", PATH_RULE)
                yield from _walk(folder, f"{path}/", depth + 1)
            elif not stat.S_ISREG(mode):
                raise BadWeightsError(path, "a special file", "a regular file")
            elif path != MANIFEST_NAME:
                yield check_path(path, path)


def _check_content(folder: Path, manifest: ModelManifest) -> None:
    """What loaders will read: safetensors headers, and configurations that name only code of installed packages."""
    for file in manifest.files:
        name = file.path.rpartition("/")[2]
        if name.endswith(".safetensors"):
            check_safetensors(folder / file.path, file.path)
        elif name.endswith(".json") and file.bytes > JSON_BYTES_MAX:
            raise BadWeightsError(file.path, f"{file.bytes} bytes of JSON", f"at most {JSON_BYTES_MAX}")
        elif name.endswith("config.json") and "auto_map" in _read_object(folder / file.path, file.path):
            raise BadWeightsError(file.path, "auto_map names code outside of the installed packages", "no auto_map")
    index = _read_object(folder / INDEX_NAME, INDEX_NAME)
    found = index.get("_class_name")
    if found != manifest.pipeline_class:
        raise BadWeightsError(INDEX_NAME, f"_class_name {quoted(found)}", manifest.pipeline_class)
    for name, component in index.items():
        if name.startswith("_") or not isinstance(component, list):
            continue
        if component != [None, None] and not _component_is_installed_code(component):
            raise BadWeightsError(INDEX_NAME, f"component {name} is {quoted(component)}", "a class of diffusers or transformers")


def _component_is_installed_code(component: list[Any]) -> bool:
    if len(component) != 2 or not all(isinstance(part, str) for part in component):
        return False
    library, cls = component
    if not _CLASS.match(cls) or not _MODULE.match(library):
        return False
    return library in {"diffusers", "transformers"} or library in _diffusers_pipeline_modules()


def _diffusers_pipeline_modules() -> frozenset[str]:
    """Folders of diffusers/pipelines: classes such as a safety checker are named by them. Found without importing
    diffusers."""
    from importlib.util import find_spec

    spec = find_spec("diffusers")
    if spec is None or not spec.submodule_search_locations:
        return frozenset()
    folder = Path(next(iter(spec.submodule_search_locations))) / "pipelines"
    return frozenset(path.name for path in folder.iterdir() if (path / "__init__.py").is_file())


def check_safetensors(path: Path, name: str) -> None:
    """A pickle or an archive under this suffix shows in the first bytes: they must be the length of a JSON header."""
    expected = "a safetensors file: 8 bytes of header length, then a JSON header"
    with path.open("rb") as source:
        size = path.stat().st_size
        length = int.from_bytes(source.read(8), "little")
        if size < 10 or not 2 <= length <= min(size - 8, SAFETENSORS_HEADER_BYTES_MAX) or source.read(1) != b"{":
            raise BadWeightsError(name, "not a safetensors file", expected)


def _read_object(path: Path, name: str) -> dict[str, Any]:
    return _json_object(_read_bounded(path, name, CONFIG_BYTES_MAX), name, CONFIG_BYTES_MAX)


def _as_dict(file: ManifestFile) -> dict[str, object]:
    return {"path": file.path, "bytes": file.bytes, "sha256": file.sha256}


def _read_bounded(path: Path, name: str, limit: int) -> bytes:
    """At most `limit` bytes of a regular file; BadWeightsError if it is missing, a link, or larger."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise BadWeightsError(name, error.strerror or "unreadable", "a readable regular file") from None
    with os.fdopen(descriptor, "rb") as source:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise BadWeightsError(name, "not a regular file", "a readable regular file")
        data = source.read(limit + 1)
    if len(data) > limit:
        raise BadWeightsError(name, f"more than {limit} bytes", f"at most {limit} bytes of JSON")
    return data


def _json_object(data: bytes, name: str, limit: int) -> dict[str, Any]:
    if len(data) > limit:
        raise BadWeightsError(name, f"{len(data)} bytes", f"at most {limit} bytes of JSON")
    try:
        value = json.loads(data.decode("utf-8"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise BadWeightsError(name, f"not JSON ({str(error)[:80]})", "a JSON object") from None
    if not isinstance(value, dict):
        raise BadWeightsError(name, f"a JSON {type(value).__name__}", "a JSON object")
    return value


def _refuse_constant(text: str) -> object:
    raise ValueError(f"{text} is no JSON number")
