"""Compiled code: what a denoiser is compiled for, and the key under which the result is kept.

Decides when two compilations give the same code. Must not know how one compiles, nor where the code lies.

A *form* is what is computed: which model, in which precision, for which shape, beside which adapters. It can be named from a job alone,
so an orchestrator knows which form a job needs. A *key* is a form in an environment: the compiler's versions and the processor. Code is
kept under its key, and a node tells the forms of the keys that its own environment makes: code of last week's torch is not told.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final

from atoll.model.errors import FieldError
from atoll.model.ids import ArtifactKey, FormId
from atoll.model.modelspec import ModelSpec
from atoll.model.shape import Shape

# 128 bits: no two forms of any fleet meet by chance, and a list of hundreds is a few KB of a report.
_DIGEST_BYTES: Final = 16
_HEX = re.compile(r"[0-9a-f]{32}\Z")
_HEX_RULE: Final = "32 hexadecimal digits"


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """What compiles, and for what. `triton` and `cuda` are "" where there is none. `processor`: the GPU type, or what code for a CPU
    hangs on: it is made for the very instructions that one has."""

    torch: str
    triton: str
    cuda: str
    processor: str


def runs_compiled(model: ModelSpec, gang_size: int = 1) -> bool:
    """Whether workers run it compiled. Gangs run eager: what shares a denoiser among processes hooks into its Python code."""
    return model.compiled and gang_size == 1


def needed_form(model: ModelSpec, shape: Shape, gang_size: int, adapter_ranks: Iterable[int] = ()) -> FormId | None:
    """The form that an attempt needs; None where it runs eager."""
    return form_of(model, shape, adapter_ranks) if runs_compiled(model, gang_size) else None


def form_of(model: ModelSpec, shape: Shape, adapter_ranks: Iterable[int] = ()) -> FormId:
    """The form that an attempt of this shape needs of this model, beside adapters of these ranks.

    Figures that enter as they are make a bucket of one: compiled code is for exact sizes of tensors, and a size that was guessed to be
    near enough costs a whole compilation. So do width, height, frames, results at a time and passes of guidance. Steps do not: each runs
    the same code. Of adapters their number counts, and the highest rank rounded up to a power of two: what lies under a key is a cache,
    and ranks that share a bucket lie there side by side; with exact ranks most keys would hold the code of one job. Weights count by
    their digest, so that no fine-tune is taken for its base: it may differ in more than numbers.
    """
    ranks = list(adapter_ranks)
    return FormId(
        _digest(
            "form",
            model.weights_digest or f"{model.model_id}/{model.pipeline_class}",
            model.precision.value,
            *map(str, (shape.width, shape.height, shape.frames, shape.batch, shape.cfg_passes)),
            *map(str, (len(ranks), rank_bucket(max(ranks, default=0)))),
        )
    )


def rank_bucket(rank: int) -> int:
    """The next power of two; 0 for no adapter."""
    return 1 << (rank - 1).bit_length() if rank > 0 else 0


def artifact_key(form: FormId, environment: Environment) -> ArtifactKey:
    """Under which the code of a form is kept where this environment compiled it."""
    return ArtifactKey(_digest("artifact", form, environment.torch, environment.triton, environment.cuda, environment.processor))


def parse_form(field: str, value: object) -> FormId:
    """`value` if it can be a form; else FieldError."""
    if not isinstance(value, str) or not _HEX.match(value):
        raise FieldError(field, value, _HEX_RULE)
    return FormId(value)


def parse_artifact_key(field: str, value: object) -> ArtifactKey:
    """`value` if it can be a key; else FieldError. Keys become names of folders and objects."""
    if not isinstance(value, str) or not _HEX.match(value):
        raise FieldError(field, value, _HEX_RULE)
    return ArtifactKey(value)


def _digest(*parts: str) -> str:
    """Of the parts, each with its length, so that none runs into the next."""
    return blake2b("".join(f"{len(part)}:{part}" for part in parts).encode(), digest_size=_DIGEST_BYTES).hexdigest()
