"""The committed packages are what the protos say: generated again, every byte is equal."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from types import ModuleType

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


def _generator(script: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate_protos", script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in {".py", ".pyi"}}


def test_committed_code_is_current(tmp_path: Path) -> None:
    generator = _generator(REPOSITORY / "protos/generate.py")
    generator.generate(tmp_path)
    for package in generator.PACKAGES:
        fresh = _contents(tmp_path / package)
        committed = _contents(REPOSITORY / package)
        assert sorted(fresh) == sorted(committed), f"run `make protos` and commit {package}"
        assert [name for name in sorted(fresh) if fresh[name] != committed[name]] == [], "run `make protos`"
        assert len(fresh) >= 3


@pytest.fixture
def small_tree(tmp_path: Path) -> Path:
    """A tree of its own with the generator and one message in it."""
    protos = tmp_path / "protos"
    (protos / "atoll/v1").mkdir(parents=True)
    shutil.copy(REPOSITORY / "protos/generate.py", protos)
    (protos / "atoll/v1/thing.proto").write_text('syntax = "proto3";\npackage atoll.v1;\nmessage Thing { int32 a = 1; }\n')
    shutil.copytree(REPOSITORY / "protos/orchestrator", protos / "orchestrator")
    return tmp_path


def test_a_changed_proto_changes_the_code_and_a_removed_one_takes_it_along(small_tree: Path) -> None:
    generator = _generator(small_tree / "protos/generate.py")
    package = small_tree / "atoll/v1"
    generator.generate(small_tree)
    before = _contents(package)
    assert sorted(before) == ["__init__.py", "thing_pb2.py", "thing_pb2.pyi"]

    thing = small_tree / "protos/atoll/v1/thing.proto"
    thing.write_text(thing.read_text().replace("int32 a = 1", "int64 a = 1"))
    generator.generate(small_tree)
    assert _contents(package)["thing_pb2.py"] != before["thing_pb2.py"]

    thing.rename(thing.with_name("other.proto"))
    generator.generate(small_tree)
    assert sorted(_contents(package)) == ["__init__.py", "other_pb2.py", "other_pb2.pyi"]


def test_a_broken_proto_is_refused_by_file_and_line_and_changes_nothing(small_tree: Path) -> None:
    generator = _generator(small_tree / "protos/generate.py")
    generator.generate(small_tree)
    before = _contents(small_tree / "atoll/v1")
    (small_tree / "protos/atoll/v1/thing.proto").write_text('syntax = "proto3";\nmessage Thing { int32 a }\n')
    with pytest.raises(generator.GenerationError, match=r"thing\.proto:2"):
        generator.generate(small_tree)
    assert _contents(small_tree / "atoll/v1") == before
