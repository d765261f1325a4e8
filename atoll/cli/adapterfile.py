"""A LoRA's file as an AdapterSpec: its rank and size are read from it, what it fits is said by the operator or by the starters.

Decides under which name and at which place of the origin store it is known. The file is checked as an agent would check it: safetensors
only. Loads the part of `agents` that knows files of weights, and neither torch nor diffusers.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import uuid
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from atoll.cli.exits import CliError, Exit
from atoll.model.adapter import SUFFIX, AdapterSpec
from atoll.model.ids import AdapterId, ModelId, parse_name

# Where the files of adapters lie below an origin store.
_FOLDER: Final = "adapters"
# The first matrix of a pair: its rows are the rank.
_FIRST: Final = re.compile(r"(\.lora_A(\.[^.]+)?|\.lora\.down|\.lora_down|_lora\.down)\.weight\Z")


def read_spec(text: str, models: Sequence[str], family: str, title: str) -> AdapterSpec:
    """The adapter in a file. Raises CliError naming what is wrong with it."""
    from agents.engine.errors import BadWeightsError
    from agents.engine.manifest import check_safetensors, hash_file
    from agents.engine.starter_adapters import STARTER_ADAPTERS

    path = Path(text).expanduser()
    name = path.name.removesuffix(SUFFIX)
    if path.suffix != SUFFIX:
        raise CliError(f"{path}: expected a {SUFFIX} file", code=Exit.USAGE)
    try:
        check_safetensors(path, str(path))
        rank = _rank(path)
        digest, size = hash_file(path)
    except BadWeightsError as error:
        raise CliError(str(error), code=Exit.USAGE) from None
    except OSError as error:
        raise CliError(f"cannot read {path}: {error.strerror or error}", code=Exit.USAGE) from None
    starters = {starter.adapter_id: starter for starter in STARTER_ADAPTERS}
    known = starters.get(AdapterId(name)) if not models and not family else None
    if known is None and not models and not family:
        raise CliError(f"{path} says nothing of its base", code=Exit.USAGE, hint="name it with --model or --family")
    base = known or AdapterSpec(
        adapter_id=AdapterId(parse_name("adapter_id", name)),
        model_ids=tuple(ModelId(model) for model in models),
        family=family,
        rank=rank,
        weights_bytes=size,
    )
    found = replace(
        base, title=title or base.title, rank=rank, weights_bytes=size, weights_digest=f"sha256:{digest}",
        origin_path=f"{_FOLDER}/{name}{SUFFIX}",
    )  # fmt: skip
    return found.check()


def figures_only(name: str, models: Sequence[str], family: str, title: str, *, rank: int, weights_bytes: int) -> AdapterSpec:
    """An adapter without a file, for rehearsals."""
    return AdapterSpec(
        adapter_id=AdapterId(parse_name("adapter_id", name)),
        title=title,
        model_ids=tuple(ModelId(model) for model in models),
        family=family,
        rank=rank,
        weights_bytes=weights_bytes,
        source="figures only: for rehearsals",
    ).check()


def put_in_origin(text: str, spec: AdapterSpec, origin: str) -> str:
    """Copy a file below an origin store, unless it lies there; where it is then. Raises CliError."""
    path = Path(text).expanduser()
    if "://" in origin and not origin.startswith("file://"):
        import fsspec

        target = f"{origin.rstrip('/')}/{spec.origin_path}"
        try:
            files, place = fsspec.core.url_to_fs(target)
            files.put_file(str(path), place)
        except (OSError, ValueError, ImportError) as error:
            raise CliError(f"cannot copy to {target}: {error}") from None
        return target
    local = Path(origin.removeprefix("file://")).expanduser() / spec.origin_path
    if local.resolve() == path.resolve():
        return str(local)
    partial = local.with_name(f".{local.name}.{uuid.uuid4().hex[:12]}.partial")
    try:
        local.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, partial)
        os.replace(partial, local)
    except OSError as error:
        raise CliError(f"cannot copy to {local}: {error.strerror or error}") from None
    finally:
        partial.unlink(missing_ok=True)
    return str(local)


def _rank(path: Path) -> int:
    """The largest rank of its layers, from the header, whose form was checked."""
    with path.open("rb") as opened:
        header = json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
    shapes = [entry["shape"] for name, entry in header.items() if _FIRST.search(name)]
    ranks = [shape[0] for shape in shapes if len(shape) in (2, 4)]  # of a convolution: rank, channels, height, width
    if not ranks:
        raise CliError(f"{path} holds no LoRA layers: expected pairs of lora_A and lora_B, or of lora_down and lora_up", code=Exit.USAGE)
    return int(max(ranks))
