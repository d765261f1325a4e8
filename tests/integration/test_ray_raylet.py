"""Two real sites on one host, each an agent's process with a Ray cluster of its own: the death of one's raylet is its own affair."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

pytest.importorskip("ray", reason="needs the worker extra")
pytest.importorskip("diffusers", reason="needs the worker extra")

from agents.runtime.ray import RayConfig
from agents.runtime.ray_processes import ClusterProcesses
from tests.integration.ray_agent import Agent
from tests.integration.ray_site import EXIT_FATAL, build_origin, config_of, free_port_block, processes_of

pytestmark = pytest.mark.slow


@pytest.fixture
def configs(tmp_path: Path) -> Iterator[tuple[RayConfig, RayConfig]]:
    build_origin(tmp_path)
    temp_dirs = [Path(f"/tmp/at-{os.getpid()}-{host}") for host in (8, 9)]
    beta = config_of(tmp_path, temp_dirs[0], site="beta", host=8, port_base=free_port_block())
    gamma = config_of(tmp_path, temp_dirs[1], site="gamma", host=9, port_base=free_port_block())
    yield beta, gamma
    for temp_dir in temp_dirs:
        shutil.rmtree(temp_dir, ignore_errors=True)


def raylet_of(processes: ClusterProcesses) -> psutil.Process:
    (raylet,) = [process for process in processes.members() if process.name() == "raylet"]
    return raylet


def test_a_dead_raylet_silences_its_own_site_and_no_other(tmp_path: Path, configs: tuple[RayConfig, RayConfig]) -> None:
    beta, gamma = configs
    with Agent(tmp_path, beta) as struck, Agent(tmp_path, gamma) as other:
        for agent in (struck, other):
            agent.hear("started")
            agent.tell("load")
        for agent in (struck, other):
            agent.hear("loaded")
            agent.tell("run long 400 60000")
            agent.hear("AttemptAdvanced")
        ruin = processes_of(beta)
        raylet_of(ruin).kill()
        fatal = struck.hear("fatal")
        assert "Ray cluster of site beta died: start the agent again" in fatal["message"]
        assert struck.end() == EXIT_FATAL
        assert not [said for said in struck.said if said["what"] in {"SlotLost", "AttemptErrored", "AttemptFinished"}]
        # The other site has not noticed: its attempt ends well, and the next one too.
        assert other.hear("AttemptFinished")["key"] == "long/1"
        other.tell("run after 2 60000")
        assert other.hear("AttemptFinished")["key"] == "after/1"
        # A new agent finds the ruin, clears it away and works.
        with Agent(tmp_path, beta) as risen:
            risen.hear("started")
            assert processes_of(beta) != ruin
            assert ruin.members() == []
            risen.tell("load")
            risen.hear("loaded")
            risen.tell("run long 2 60000")
            assert risen.hear("AttemptFinished")["key"] == "long/1"
            risen.tell("leave")
            assert risen.end() == 0
        other.tell("leave")
        assert other.end() == 0
    for config in configs:
        assert not (config.work_dir / "ray-head.json").exists()
