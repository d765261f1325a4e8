"""Compiled code on a disk and on the fleet's shelf: what is taken over is what was made, and nothing leaves its folder."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from agents import compiled_files, compiled_shelf
from agents.compiled_files import BadCodeError, CodeFiles
from agents.compiled_shelf import CodeShelf
from agents.objects import StoreError
from agents.runtime.slot_code import SlotCode
from agents.weights import WeightsCache
from atoll.model.compiled import Environment, artifact_key
from atoll.model.errors import FieldError
from atoll.model.ids import ArtifactKey, FormId

HERE = Environment(torch="2.13.0", triton="", cuda="", processor="x86_64-1")
FORMS = [FormId(f"{number:032x}") for number in range(4)]
KEYS = [artifact_key(form, HERE) for form in FORMS]


@pytest.fixture
def files(tmp_path: Path) -> CodeFiles:
    return CodeFiles(tmp_path / "cache", cache_bytes=16_000_000)


def _make(files: CodeFiles, number: int = 0, *, size: int = 10, environment: Environment = HERE) -> ArtifactKey:
    """What a compiler leaves, complete."""
    key = artifact_key(FORMS[number], environment)
    folder = files.folder(key)
    for name in ("inductor/ab/cab.so", "inductor/fxgraph/x/y/graph", "triton/0/kernel.cubin", "inductor/locks/z.lock"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode() * size)
    files.complete(key, FORMS[number])
    return key


def _names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())


# --- on a disk ----------------------------------------------------------------------------------------------------------------------


def test_code_is_held_once_it_is_complete_and_where_it_was_compiled_by_what_compiles_here(files: CodeFiles) -> None:
    (files.folder(KEYS[0]) / "inductor").mkdir(parents=True)
    assert files.held(HERE) == () and not files.use(KEYS[0])
    _make(files, 0)
    _make(files, 1, environment=replace(HERE, torch="2.12.0"))
    assert files.held(HERE) == (FORMS[0],) and files.use(KEYS[0])
    assert files.held(replace(HERE, torch="2.12.0")) == (FORMS[1],)
    (files.folder(KEYS[0]) / "atoll-form.json").write_text(json.dumps({"format_version": 1, "form": FORMS[2]}))
    assert files.held(HERE) == (), "a folder is what its name says, or nothing"


def test_what_was_used_last_is_told_first_and_goes_last(files: CodeFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in (0, 1, 2):
        _make(files, number, size=3_000)
        os.utime(files.folder(KEYS[number]) / "atoll-form.json", ns=(number, number))
    files.use(KEYS[0])
    assert files.held(HERE) == (FORMS[0], FORMS[2], FORMS[1])
    files.make_room(KEYS[1])
    assert files.held(HERE) == (FORMS[0], FORMS[2], FORMS[1]), "they fit"
    monkeypatch.setattr(compiled_files, "FORMS_PER_NODE_MAX", 2)
    files.make_room(KEYS[1])
    assert files.held(HERE) == (FORMS[0], FORMS[1]), "the one at hand stays, though it was used before"
    small = CodeFiles(files.folder(KEYS[0]).parent.parent, cache_bytes=16)
    small.make_room(KEYS[1])
    assert files.held(HERE) == (FORMS[1],)


def test_code_counts_in_the_quota_of_the_cache(tmp_path: Path) -> None:
    cache = WeightsCache(tmp_path / "cache", quota_bytes=10**9)
    _make(CodeFiles(tmp_path / "cache", cache_bytes=10**9), size=1_000)
    assert cache.used_bytes() > 50_000 and cache.entries() == ()


@pytest.mark.parametrize("name", ["../x", "0" * 31, "0" * 33, "G" * 32, "", "/" + "0" * 31])
def test_a_name_that_is_no_key_leads_nowhere(files: CodeFiles, tmp_path: Path, name: str) -> None:
    for use in (files.folder, files.use, lambda key: CodeShelf(str(tmp_path / "store")).get(key, tmp_path / "x")):
        with pytest.raises(FieldError):
            use(ArtifactKey(name))


# --- as one file --------------------------------------------------------------------------------------------------------------------


def test_packed_code_is_the_same_on_another_node(files: CodeFiles, tmp_path: Path) -> None:
    key, packed = _make(files), tmp_path / "code.tar"
    files.pack(key, packed)
    again = tmp_path / "again.tar"
    files.pack(key, again)
    assert packed.read_bytes() == again.read_bytes()
    other = CodeFiles(tmp_path / "other", cache_bytes=10**9)
    other.unpack(key, FORMS[0], packed)
    assert other.held(HERE) == (FORMS[0],)
    ours, theirs = files.folder(key), other.folder(key)
    assert [name for name in _names(ours) if not name.endswith(".lock")] == _names(theirs)
    assert all((ours / name).read_bytes() == (theirs / name).read_bytes() for name in _names(theirs) if "/" in name)
    assert not any(os.access(theirs / name, os.X_OK) for name in _names(theirs))
    before = (theirs / "inductor/ab/cab.so").stat().st_ino
    other.unpack(key, FORMS[0], packed)
    assert (theirs / "inductor/ab/cab.so").stat().st_ino == before, "what is complete stays"
    assert _names(theirs.parent / ".partial") == []


def test_code_that_was_begun_gives_way_to_code_that_is_complete(files: CodeFiles, tmp_path: Path) -> None:
    key, packed = _make(files), tmp_path / "code.tar"
    files.pack(key, packed)
    other = CodeFiles(tmp_path / "other", cache_bytes=10**9)
    (other.folder(key) / "inductor/half").mkdir(parents=True)
    other.unpack(key, FORMS[0], packed)
    assert other.held(HERE) == (FORMS[0],)


def _entry(name: str, **changes: object) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    for field, value in changes.items():
        setattr(entry, field, value)
    return entry


@pytest.mark.parametrize(
    "entry",
    [
        _entry("../escaped.so"),
        _entry("inductor/../../escaped.so"),
        _entry("/tmp/escaped.so"),
        _entry("inductor//escaped.so"),
        _entry("inductor/./escaped.so"),
        _entry("inductor/.hidden"),
        _entry("escaped.so"),
        _entry("atoll-form.json"),
        _entry("elsewhere/escaped.so"),
        _entry("inductor"),
        _entry("inductor/a\\b"),
        _entry("inductor/a\nb"),
        _entry("inductor/" + "/".join("a" * 12)),
        _entry("inductor/" + "a" * 201),
        _entry("inductor/link", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
        _entry("inductor/link", type=tarfile.LNKTYPE, linkname="../../x"),
        _entry("inductor/folder", type=tarfile.DIRTYPE),
        _entry("inductor/fifo", type=tarfile.FIFOTYPE),
        _entry("inductor/device", type=tarfile.CHRTYPE, devmajor=1, devminor=3),
        _entry("inductor/device", type=tarfile.BLKTYPE),
        _entry("inductor/sparse", type=tarfile.GNUTYPE_SPARSE),
        _entry("inductor/odd", type=b"Z"),
    ],
    ids=lambda entry: f"{entry.type!r}-{entry.name[:30]}",
)
def test_a_hostile_entry_is_refused_and_nothing_of_the_file_stays(files: CodeFiles, tmp_path: Path, entry: tarfile.TarInfo) -> None:
    packed = tmp_path / "in" / "code.tar"
    packed.parent.mkdir()
    with tarfile.open(packed, "w") as tar:
        good = _entry("inductor/good.so", size=3)
        tar.addfile(good, io.BytesIO(b"abc"))
        tar.addfile(entry)
    before = _names(tmp_path)
    with pytest.raises(BadCodeError):
        files.unpack(KEYS[0], FORMS[0], packed)
    assert _names(tmp_path) == before and files.held(HERE) == ()
    assert not Path("/tmp/escaped.so").exists()


def _truncated(data: bytes) -> bytes:
    return data[:700]


def _doubled(data: bytes) -> bytes:
    """Each entry twice, one content after the other."""
    source, packed = io.BytesIO(data), io.BytesIO()
    with tarfile.open(fileobj=source) as tar, tarfile.open(fileobj=packed, mode="w") as out:
        for entry in [*tar.getmembers(), *tar.getmembers()]:
            out.addfile(entry, tar.extractfile(entry))
    return packed.getvalue()


def _compressed(data: bytes) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        tar.addfile(_entry("inductor/bomb"))
    return packed.getvalue() + data[:0]


def _noise(data: bytes) -> bytes:
    return b"PK" + data


@pytest.mark.parametrize("damage", [_truncated, _doubled, _compressed, _noise])
def test_a_file_that_is_no_tar_ends_early_or_says_things_twice_is_refused(
    files: CodeFiles, tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    key, packed = _make(files, size=2_000), tmp_path / "code.tar"
    files.pack(key, packed)
    packed.write_bytes(damage(packed.read_bytes()))
    other = CodeFiles(tmp_path / "other", cache_bytes=10**9)
    with pytest.raises(BadCodeError):
        other.unpack(key, FORMS[0], packed)
    assert other.held(HERE) == () and _names(tmp_path / "other") == []


def test_bounds_hold_when_packing_and_when_unpacking(files: CodeFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key, packed = _make(files, size=100), tmp_path / "code.tar"
    files.pack(key, packed)
    other = CodeFiles(tmp_path / "other", cache_bytes=10**9)
    for name, bound in (("FILES_MAX", 2), ("PACKED_BYTES_MAX", 5_000)):
        with monkeypatch.context() as patch:
            patch.setattr(compiled_files, name, bound)
            with pytest.raises(BadCodeError, match=str(bound)):
                other.unpack(key, FORMS[0], packed)
            with pytest.raises(BadCodeError, match=str(bound)):
                files.pack(key, tmp_path / f"{name}.tar")
    assert other.held(HERE) == ()


# --- on the shelf -------------------------------------------------------------------------------------------------------------------


def _shelved(tmp_path: Path) -> tuple[CodeShelf, Path]:
    """A shelf with a file under the first key, and where it lies."""
    packed = tmp_path / "packed"
    packed.write_bytes(b"code")
    shelf = CodeShelf(str(tmp_path / "store"))
    assert shelf.put(KEYS[0], packed, 5)
    return shelf, tmp_path / "store" / "compiled" / KEYS[0]


def test_the_first_file_of_a_key_stays_and_comes_back_as_it_was(tmp_path: Path) -> None:
    shelf, _ = _shelved(tmp_path)
    other = tmp_path / "other"
    other.write_bytes(b"other code")
    assert not shelf.put(KEYS[0], other, 6)
    assert shelf.get(KEYS[0], tmp_path / "got") and (tmp_path / "got").read_bytes() == b"code"
    assert not shelf.get(KEYS[1], tmp_path / "none")


@pytest.mark.parametrize(
    "change",
    [
        {"digest": "sha256:" + "0" * 64},
        {"digest": "../x"},
        {"bytes": 3},
        {"bytes": -1},
        {"bytes": 2**40},
        {"format_version": 2},
        {"stored_us": "x"},
    ],
)
def test_an_entry_that_lies_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    shelf, folder = _shelved(tmp_path)
    entry = json.loads((folder / "entry.json").read_text())
    (folder / "entry.json").write_text(json.dumps({**entry, **change}))
    with pytest.raises(StoreError):
        shelf.get(KEYS[0], tmp_path / "got")
    assert not (tmp_path / "got").exists()


def test_a_file_that_was_changed_is_refused(tmp_path: Path) -> None:
    shelf, folder = _shelved(tmp_path)
    (found,) = folder.glob("*.tar")
    for content in (b"kode", b"code and more", b""):
        found.write_bytes(content)
        with pytest.raises(StoreError, match="is not the file of 4 bytes"):
            shelf.get(KEYS[0], tmp_path / "got")
        assert not (tmp_path / "got").exists()


def test_a_full_shelf_drops_what_is_oldest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled_shelf, "KEYS_MAX", 3)
    shelf, _ = _shelved(tmp_path)
    packed = tmp_path / "packed"
    for number, stored_us in ((1, 9), (2, 1), (3, 7)):
        assert shelf.put(KEYS[number], packed, stored_us)
    left = {folder.name for folder in (tmp_path / "store/compiled").iterdir() if _names(folder)}
    assert left == {KEYS[0], KEYS[1], KEYS[3]}


# --- as a slot uses it --------------------------------------------------------------------------------------------------------------


class _Node:
    """A slot's code on a node of its own."""

    def __init__(self, folder: Path, *, shared: bool, environment: Environment = HERE) -> None:
        self.files = CodeFiles(folder, cache_bytes=10**9)
        self.code = SlotCode(self.files, environment, shared=shared)
        self.said: list[str] = []

    def run(self, url: str, *, size: int = 10) -> str:
        """An attempt whose code is made if it is not there; what went wrong with sharing it."""
        folder = self.code.prepare(FORMS[0], url, self.said.append)
        if not (folder / "inductor/ab/cab.so").exists():
            _make(self.files, size=size)
            (folder / "atoll-form.json").unlink()
        self.code.made(FORMS[0])
        assert self.code.forms == (FORMS[0],)
        return self.code.share(url)


def test_sites_that_share_compile_once(tmp_path: Path) -> None:
    url = str(tmp_path / "store")
    first, second = _Node(tmp_path / "a", shared=True), _Node(tmp_path / "b", shared=True)
    assert first.run(url) == first.run(url) == ""
    assert second.code.forms == ()
    assert second.run(url) == ""
    assert any("comes from the artifact store" in line for line in second.said)
    assert "is on this disk" in first.said[-1]


def test_a_site_that_does_not_share_gives_nothing_and_takes_nothing(tmp_path: Path) -> None:
    url = str(tmp_path / "store")
    alone, sharing = _Node(tmp_path / "a", shared=False), _Node(tmp_path / "b", shared=True)
    assert alone.run(url) == ""
    assert not (tmp_path / "store").exists()
    sharing.run(url)
    other = _Node(tmp_path / "c", shared=False)
    other.code.prepare(FORMS[0], url, other.said.append)
    assert other.code.forms == () and other.said == []


def test_other_software_or_another_processor_does_not_get_it(tmp_path: Path) -> None:
    url = str(tmp_path / "store")
    _Node(tmp_path / "a", shared=True).run(url)
    other = _Node(tmp_path / "b", shared=True, environment=replace(HERE, processor="x86_64-2"))
    other.code.prepare(FORMS[0], url, other.said.append)
    assert other.code.forms == () and other.said == []


def test_trouble_with_sharing_never_fails_an_attempt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = str(tmp_path / "store")
    _Node(tmp_path / "a", shared=True).run(url)
    (entry,) = (tmp_path / "store").rglob("entry.json")
    entry.write_text("{")
    second = _Node(tmp_path / "b", shared=True)
    assert second.run(url) == ""
    assert "is made here" in second.said[0]
    monkeypatch.setattr(compiled_files, "FILES_MAX", 1)
    third = _Node(tmp_path / "c", shared=True)
    assert "stays on this node" in third.run(str(tmp_path / "elsewhere"))
