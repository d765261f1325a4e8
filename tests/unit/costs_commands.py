"""What tests of `atoll costs` share: a table of published times, and what a command printed or refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from atoll.cli.app import main
from atoll.cli.exits import Exit

Shown = pytest.CaptureFixture[str]
HEADER = "model,resolution,frames,steps,cfg_forwards,batch,precision,optimisation,gpu,n_gpus,seconds"
ROW = "FLUX.1-dev,1024x1024,1,28,1,1,bf16,eager,H100-SXM,1,6.7"


def json_of(shown: Shown, *arguments: str) -> Any:
    assert main([*arguments, "-o", "json"]) == Exit.OK
    return json.loads(shown.readouterr().out)


def file_of(folder: Path, *lines: str) -> str:
    path = folder / "times.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def errors_of(shown: Shown, code: int) -> list[str]:
    captured = shown.readouterr()
    assert code == Exit.USAGE
    assert captured.out == ""
    assert "Traceback" not in captured.err and "bug" not in captured.err
    return [line.removeprefix("error: ") for line in captured.err.splitlines() if not line.startswith("hint: ")]
