"""Each program, imported in a fresh interpreter, loads what it needs and nothing it must not know."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys

import pytest

from tests.architecture.sources import REPOSITORY

WIRE = ("grpc", "google.protobuf", "atoll.v1", "atoll.wire")
WORKER = ("ray", "torch", "diffusers", "transformers", "PIL", "av")
SERVERS = ("orchestrator", "agents", "sims")
# asyncio may come with the standard library's own modules, which is why the cores' own imports are checked as text too.
OUTSIDE = (*WIRE, *WORKER, "asyncio", "sqlite3", "structlog", "prometheus_client", "psutil", "typer", "rich")

PROGRAMS = {
    "atoll.model": (*OUTSIDE, *SERVERS, "numpy", "yaml", "atoll.catalog", "atoll.physics"),
    "atoll.physics": (*OUTSIDE, *SERVERS),
    "atoll.catalog": (*OUTSIDE, *SERVERS),
    "atoll.wire": (*WORKER, *SERVERS, "sqlite3", "typer", "rich"),
    "atoll.client": (*WORKER, *SERVERS, "sqlite3", "typer", "rich", "numba"),
    "atoll.cli.app": (*WORKER, *SERVERS, "sqlite3", "numba"),
    "orchestrator.core.machine": (*OUTSIDE, "agents", "sims"),
    "orchestrator.app": (*WORKER, "agents", "sims", "atoll.cli"),
    "agents.core.machine": (*OUTSIDE, "orchestrator", "sims", "numpy"),
    # torch and Ray belong to the process of a slot; an agent of a twin lives without them.
    "agents.app": (*WORKER, "orchestrator", "sims", "atoll.cli"),
    "sims": (*WORKER, "grpc", "sqlite3"),
}

PROBE = """
import importlib, json, sys
importlib.import_module(sys.argv[1])
print(json.dumps(sorted(sys.modules)))
"""


def _loaded_by(program: str) -> set[str]:
    """The names in sys.modules after importing the program alone."""
    done = subprocess.run([sys.executable, "-c", PROBE, program], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"import {program} failed:\n{done.stderr}"
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("program", sorted(PROGRAMS))
def test_program_loads_nothing_it_must_not_know(program: str) -> None:
    forbidden = set(PROGRAMS[program]) & _loaded_by(program)
    assert not forbidden, f"import {program} loads {sorted(forbidden)}"


@pytest.mark.parametrize("name", sorted({name.split(".")[0] for names in PROGRAMS.values() for name in names}))
def test_what_is_forbidden_exists(name: str) -> None:
    """A misspelt name in the table above would forbid nothing."""
    assert importlib.util.find_spec(name) is not None


def test_probe_sees_what_a_module_loads() -> None:
    assert "sqlite3" in _loaded_by("sqlite3")
