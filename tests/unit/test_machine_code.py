"""Compiled loops are those of the sources: nothing is used again that was compiled of others, wherever it is kept."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import FunctionType
from typing import cast

import pytest

from orchestrator.core.placement import kernel, listing, sets
from orchestrator.core.placement.machine_code import COMPILED, KEPT, digest

pytestmark = pytest.mark.skipif(not COMPILED, reason="numba is not installed: there is nothing to compile")

# Like the package of placing: constants in one module, what is called in another, the loop in a third.
_JIT = "from orchestrator.core.placement.machine_code import jit\n"
_SOURCES: Mapping[str, str] = {
    "rows.py": "PRICE = 3\n",
    "leaf.py": f"import rows\n{_JIT}FEE = rows.PRICE\n@jit\ndef fee(x):\n    return x * FEE\n",
    "loop.py": f"from leaf import fee\n{_JIT}@jit\ndef total(x):\n    return fee(x) + 1\n",
}
_PROGRAM = """
from orchestrator.stale_code import forget_stale, is_kept
from loop import total
kept = is_kept()
gone = forget_stale()
print(total(100), sum(total.stats.cache_hits.values()), gone, int(kept))
"""


class Install:
    """A package with such loops, which may be changed in place."""

    def __init__(self, folder: Path, *, writable: bool = True) -> None:
        self.folder, self.cache = folder / "installed", folder / "cache"
        self.kept = False  # whether the last run said that it has nothing to compile, before it began
        self.folder.mkdir()
        for name, text in _SOURCES.items():
            (self.folder / name).write_text(text)
        if not writable:  # a file in the place of the folder: not even root can write there
            (self.folder / "__pycache__").write_text("")

    def change(self, name: str, old: str, new: str) -> None:
        path = self.folder / name
        path.write_text(path.read_text().replace(old, new))

    def run(self) -> tuple[int, int, int]:
        """(result, loops that were not compiled again, files of other versions that went) of a new process."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("NUMBA")}
        environment |= {"PYTHONPATH": f"{self.folder}:{Path(__file__).parents[2]}", "XDG_CACHE_HOME": str(self.cache)}
        program = [sys.executable, "-B", "-c", _PROGRAM]
        ended = subprocess.run(program, capture_output=True, text=True, cwd=self.folder, timeout=100, env=environment)
        assert ended.returncode == 0, ended.stderr
        result, hits, gone, kept = map(int, ended.stdout.split())
        self.kept = bool(kept)
        assert not self.kept or hits, "who says so compiles nothing"
        return result, hits, gone


def test_a_constant_of_another_module_that_changes_is_compiled_anew(tmp_path: Path) -> None:
    install = Install(tmp_path)
    assert install.run() == (301, 0, 0)
    install.change("rows.py", "PRICE = 3", "PRICE = 4")
    result, hits, gone = install.run()
    assert (result, hits) == (401, 0), "machine code of the old price"
    assert gone == 4, "an index and the code of each of the two loops"
    assert not install.kept
    assert install.run() == (401, 1, 0), "only the first start pays"
    assert install.kept, "and the second knows that it will not"
    install.change("leaf.py", "x * FEE", "x - FEE")
    assert install.run()[:2] == (97, 0)


def test_where_sources_are_read_only_the_users_folder_holds_it(tmp_path: Path) -> None:
    install = Install(tmp_path, writable=False)
    assert install.run() == (301, 0, 0)
    assert install.run() == (301, 1, 0) and install.kept
    install.change("rows.py", "PRICE = 3", "PRICE = 4")
    assert install.run()[:2] == (401, 0)


def test_where_nothing_can_be_written_each_start_compiles(tmp_path: Path) -> None:
    install = Install(tmp_path, writable=False)
    install.cache.write_text("")
    assert install.run() == install.run() == (301, 0, 0)


def test_every_loop_goes_by_all_that_it_reads() -> None:
    """What a module defines below a loop would not be in its digest when the module is loaded."""
    assert {kernel.decide_rows, listing.tell_rows, sets.cheapest_rows} <= set(KEPT.values())
    for name, compiled in KEPT.items():
        options = {option: value for option, value in compiled.targetoptions.items() if option in {"_nrt", "error_model"}}
        assert name == f"{compiled.py_func.__name__}_{digest(compiled.py_func, options)}"


def test_what_cannot_be_told_apart_is_refused() -> None:
    with pytest.raises(TypeError, match="reads _SOURCES"):
        digest(cast(FunctionType, _reads), {})


def _reads() -> object:
    return _SOURCES
