"""How long a generation takes on GPUs of a type: T_exec of the cost model, the prior of every estimate.

Decides nothing of its own: the formula is in `terms`, its effects in `fitted`. Must not know sites, queues or what was measured there:
corrections are learned elsewhere.

`T_exec = text + denoise / gang + decode + launches + exchange`, each part `FLOPs / (peak x eta)` or `bytes / (bandwidth x beta)`, with eta
by (GPU type, model class, stack, precision) and drawn towards the level above where few published times speak for it.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final, NamedTuple

from atoll.model.compiled import runs_compiled
from atoll.model.gpu import CPU, GpuType
from atoll.model.modelspec import DenoiserKind, Modality, ModelPhysics, ModelSpec
from atoll.model.shape import Precision, Shape
from atoll.physics.coefficients import factor_milli
from atoll.physics.estimate import predict_us, stages_us
from atoll.physics.fitted import FITTED
from atoll.physics.peaks import used_precision
from atoll.physics.stack import ENGINE_COMPILED, ENGINE_STACK, Stack, used_stack
from atoll.physics.terms import CPU_MILLI, MATMUL_MILLI, Run, Stage, denoise_keys, device_key, part_keys, plain_milli

_MILLI: Final = 1_000
# Predictions that are kept: each class of jobs and each look at a model asks for all types of GPU again. 1,000 models on 23 types in two
# shapes each; some 20 MB.
_KEPT: Final = 1 << 16
_CLASS_OF: Final = {
    DenoiserKind.TRANSFORMER: "transformer-image",
    DenoiserKind.UNET: "unet",
    DenoiserKind.LINEAR: "linear",
}


def stack_of(model: ModelSpec, gpu: GpuType, gang_size: int = 1) -> Stack:
    """What Atoll's workers run a model on, on a GPU of this type."""
    return used_stack(ENGINE_COMPILED if runs_compiled(model, gang_size) else ENGINE_STACK, gpu.arch)


def execution_us(
    model: ModelSpec, shape: Shape, gpu: GpuType, precision: Precision, *, gang_size: int = 1, stack: Stack | None = None
) -> int:
    """Microseconds that `gang_size` GPUs of this type take for the job: prompt, steps, decoding; no loading, no transfer. At least 1, at
    most a year (`PREDICTED_US_MAX`). Without a `stack`: on the one that Atoll's workers run it on."""
    return _known_us(model, shape, gpu, precision, gang_size, stack)


@lru_cache(maxsize=_KEPT)
def _known_us(model: ModelSpec, shape: Shape, gpu: GpuType, precision: Precision, gang_size: int, stack: Stack | None) -> int:
    stack = stack_of(model, gpu, gang_size) if stack is None else stack
    run = Run(model=model, shape=shape, gpu=gpu, precision=precision, stack=stack, gang_size=gang_size)
    return predict_us(FITTED, run)


@lru_cache(maxsize=_KEPT)
def decoding_milli(model: ModelSpec, shape: Shape, gpu: GpuType, precision: Precision, gang_size: int = 1) -> int:
    """What of an execution comes behind its last step, in thousandths of all of it."""
    run = Run(model=model, shape=shape, gpu=gpu, precision=precision, stack=stack_of(model, gpu, gang_size), gang_size=gang_size)
    stages = stages_us(FITTED, run)
    return stages[Stage.DECODE] * _MILLI // max(sum(stages.values()), 1)


class Likeness(NamedTuple):
    """All that execution goes by of a model: fine-tunes of one model are alike."""

    physics: ModelPhysics
    modality: Modality
    family: str
    plain_milli: int
    compiled: bool


def likeness(model: ModelSpec) -> Likeness:
    """Models of equal likeness take equally long in the same shape, on any GPU."""
    return Likeness(model.physics, model.modality, model.family, plain_milli(model), model.compiled)


def gang_speedup_milli(
    model: ModelSpec, shape: Shape, gpu: GpuType, precision: Precision, gang_size: int, *, stack: Stack | None = None
) -> int:
    """How many times faster a gang is than one GPU, in thousandths. Under 1,000 where the exchange costs more than the split saves:
    small images on many GPUs. Text, decoding and launches are not split, so it stays below `gang_size`."""
    alone = execution_us(model, shape, gpu, precision, stack=stack)
    return alone * _MILLI // execution_us(model, shape, gpu, precision, gang_size=gang_size, stack=stack)


def eta_milli(gpu: GpuType, kind: DenoiserKind, precision: Precision, *, stack: Stack = Stack.EAGER) -> int:
    """Share of the dense peak that matrix products reach, in thousandths; transformers stand for those of images."""
    if gpu.gpu_type == CPU:
        return CPU_MILLI[kind]
    keys = denoise_keys(device_key(gpu), _CLASS_OF[kind], "", stack, used_precision(gpu, precision), False)
    return min(max(MATMUL_MILLI * _MILLI // factor_milli(FITTED, (*part_keys("matmul", stack), *keys)), 1), _MILLI)
