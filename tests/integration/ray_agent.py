"""`ray_site` as a process of its own: an agent that can be killed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

from agents.runtime.ray import RayConfig
from tests.integration.ray_site import WAIT_S, processes_of


class Agent:
    """One such process. Leaving the context without `end` kills it, and its cluster too."""

    def __init__(self, folder: Path, config: RayConfig) -> None:
        options = {
            "folder": str(folder),
            "temp_dir": str(config.temp_dir),
            "site": config.site_id,
            "host": int(config.node_ip.rpartition(".")[2]),
            "port_base": config.port_base,
        }
        path = folder / f"{config.site_id}.json"
        path.write_text(json.dumps(options))
        command = [sys.executable, "-m", "tests.integration.ray_site", str(path)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
        self.said: list[dict[str, Any]] = []
        self._config = config

    def __enter__(self) -> Agent:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.process.returncode is None:
            self.kill()
            processes_of(self._config).end(0)

    def tell(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")

    def hear(self, what: str) -> dict[str, Any]:
        """The next line that says `what`."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):
                self.said.append(json.loads(line))
                if self.said[-1]["what"] == what:
                    return self.said[-1]
        raise AssertionError(f"the agent ended before it said {what!r}")

    def kill(self) -> None:
        self.process.kill()
        self.end()

    def end(self) -> int:
        """Wait for its end; what it said until then is heard."""
        assert self.process.stdout is not None
        assert self.process.stdin is not None
        self.said.extend(json.loads(line) for line in self.process.stdout if line.startswith("{"))
        code = self.process.wait(WAIT_S)
        self.process.stdin.close()
        self.process.stdout.close()
        return code
