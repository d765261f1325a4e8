"""The import contracts of pyproject.toml hold over the whole import graph: the table of docs/architecture.md."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from tests.architecture.sources import PROGRAMS, REPOSITORY

CONFIGURATION: dict[str, Any] = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]

# Contract -> an offence against it: a new module and what it imports.
OFFENCES = {
    "atoll-layers": ("atoll/wire/offence.py", "import atoll.client"),
    "model": ("atoll/model/offence.py", "import time"),
    "catalog-physics": ("atoll/physics/offence.py", "import logging"),
    "wire": ("atoll/wire/offence.py", "import orchestrator.core"),
    "generated": ("atoll/v1/offence.py", "import atoll.model"),
    "orchestrator-core": ("orchestrator/core/offence.py", "def late() -> None:\n    import asyncio"),
    "agents-core": ("agents/core/offence.py", "import orchestrator.core"),
    "agents-twin": ("agents/twin/offence.py", "import asyncio"),
    "orchestrator": ("orchestrator/offence.py", "import ray"),
    "agents": ("agents/offence.py", "import orchestrator.core"),
    "sims": ("sims/offence.py", "import grpc"),
    "client": ("atoll/offence.py", "import orchestrator.core"),
}


def _lint(root: Path, cache: Path) -> subprocess.CompletedProcess[str]:
    """The tool's own entry point in a tree's root, so that this test and `make check` cannot differ."""
    return subprocess.run(
        [Path(sys.executable).parent / "lint-imports", "--no-logo", "--cache-dir", cache],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_contracts_hold(tmp_path: Path) -> None:
    done = _lint(REPOSITORY, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"Contracts: {len(CONFIGURATION['contracts'])} kept, 0 broken." in done.stdout


@pytest.fixture(scope="module")
def broken_contracts(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the tool says of a copy of the tree into which every offence was planted."""
    root = tmp_path_factory.mktemp("offences")
    shutil.copy(REPOSITORY / "pyproject.toml", root)
    for program in PROGRAMS:
        shutil.copytree(REPOSITORY / program, root / program, ignore=shutil.ignore_patterns("__pycache__"))
    planted: dict[str, list[str]] = {}
    for path, text in OFFENCES.values():
        planted.setdefault(path, []).append(text)
    for path, texts in planted.items():
        (root / path).write_text("\n".join(texts) + "\n", encoding="utf-8")
    # The client is one module: its offence lies in a module it imports.
    with (root / "atoll/client.py").open("a", encoding="utf-8") as client:
        client.write("\nimport atoll.offence\n")
    done = _lint(root, root / "cache")
    assert done.returncode == 1, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("contract", CONFIGURATION["contracts"], ids=lambda contract: contract["id"])
def test_each_contract_notices_an_offence(contract: dict[str, Any], broken_contracts: str) -> None:
    assert contract["id"] in OFFENCES, "plant an offence against the new contract above"
    assert re.search(rf"^{re.escape(contract['name'])} BROKEN\b", broken_contracts, re.MULTILINE), broken_contracts


def test_contracts_cover_every_program() -> None:
    sources = {module.split(".")[0] for contract in CONFIGURATION["contracts"] for module in contract.get("source_modules", [])}
    assert sources == set(PROGRAMS)
    assert set(CONFIGURATION["root_packages"]) == set(PROGRAMS)
