"""The parts of an execution time, each with the names of the effects that scale it.

Decides the formula, which fitting and predicting share. Must not know how large an effect is (`atoll.physics.coefficients`), nor sites.

A part has a base: its time if every effect were nothing, from FLOPs, bytes, a GPU's rates and the nominal constants below. A part takes
`base x exp(sum of effects)`. Kernels of a forward run one after the other, so matrix products, attention and element-wise traffic add up
rather than hide each other. Meanwhile the host issues the next ones: where it needs longer than the GPU (`Stage.HOST`), the GPU waits for
it. On n GPUs the forwards are split along the tokens; text, decoding, launches and the host's work are not, and each layer pays for its
exchange.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Final

from atoll.model.gpu import CPU, GpuType
from atoll.model.modelspec import DenoiserKind, Modality, ModelSpec
from atoll.model.shape import Precision, Shape
from atoll.physics import flops
from atoll.physics.peaks import peak_flops, used_precision, weight_bits
from atoll.physics.stack import TRAITS, Stack

_NS: Final = 10**9
_MILLI: Final = 1_000

# Nominal shares of the dense peak, for a GPU of H100's peak per watt. Matrix products and attention of eager pipelines: 16 measured
# settings of 8 models on one H100 are met within 6 % with 0.47 and 0.32; published times of attention ask for more.
MATMUL_MILLI: Final = 470
ATTENTION_MILLI: Final = 370
# Convolutions over full-size pixels wait for memory: 0.05 of the peak in the same settings.
DECODE_MILLI: Final = 55
# How often a layer's element-wise kernels (norms, rotations, modulations, activations, casts to fp32 and back) read or write the stream of
# tokens: 94 from published times alone, 155 from the settings above, more where narrow models are set beside wide ones.
STREAM_PASSES: Final = 190
# Layers that neither normalise nor rotate queries and keys in fp32 have less than half of those kernels left: modulation, residual,
# activation. By family, or by the begin of a model's name where a family has both.
PLAIN_MILLI: Final = 400
_PLAIN_FAMILIES: Final = frozenset({"PixArt"})
_PLAIN_MODELS: Final = ("sd3-",)
# What gets no more from cuDNN's attention than from FlashAttention 2: heads of 64 or 72 numbers instead of 128, and a mask over the text.
_SLOW_ATTENTION_FAMILIES: Final = frozenset({"CogVideoX", "HunyuanVideo", "LTX", "PixArt", "SD3"})
# Gaps per layer and forward in which the GPU has nothing to do, however much it has to do in between.
LAUNCH_US: Final = 250
# What the host needs to issue one layer of a forward, some 50 kernels and their Python: a GPU that needs less for it waits. 8 GPUs that
# share one image take 1.6 to 1.8 ms per layer, whatever they compute in it, with 0.5 of it for the exchange; layers of linear attention,
# which mix with convolutions, 2.2 without it.
HOST_US: Final = {DenoiserKind.TRANSFORMER: 1_000, DenoiserKind.UNET: 300, DenoiserKind.LINEAR: 1_300}
# UNets have about as many blocks that launch kernels as a transformer has layers; the table does not count them.
UNET_LAYERS: Final = 60
# Gangs, per attention: how long its kernels wait for each other on the GPUs.
GANG_WAIT_US: Final = 150
# And what the host has to do on top of a layer: four all-to-all and what surrounds them, where heads are split; one more turn of a ring,
# where tokens pass by. Between 4 ways to split the same image over 8 GPUs: 1.8, 2.1, 2.5 and 2.8 ms per layer at rings of 1, 2, 4 and 8.
ALL_TO_ALL_US: Final = 500
RING_TURN_US: Final = 220
# Share of a link between GPUs that the exchange reaches; without such links it goes through host memory.
LINK_MILLI: Final = 400
# Queries, keys, values and the result change hands where heads are split; in a ring keys and values do, once per turn.
_SPLIT_TENSORS: Final = 4
_RING_TENSORS: Final = 2
# Each turn of a ring merges its result into the former ones in fp32, with a dozen element-wise reads and writes of 4 bytes.
_MERGE_PASSES: Final = 24

# One core: a matrix product in fp32 reaches some half of its vector units in the sizes of small pipelines, convolutions less.
CPU_MILLI: Final = {DenoiserKind.TRANSFORMER: 500, DenoiserKind.UNET: 325, DenoiserKind.LINEAR: 250}
# Some thousand small operators a step and pass, 10-20 us each on one core: 4 steps of tiny pipelines take 0.1-0.25 s.
CPU_LAUNCH_US: Final = 30_000


# What an effect of being a gang is called by.
GANG: Final = "gang:"


class Stage(StrEnum):
    """What a part belongs to."""

    TEXT = "text"
    DENOISE = "denoise"
    DECODE = "decode"
    OVERHEAD = "overhead"  # launches and other host work
    GANG = "gang"  # exchange between the GPUs of a gang
    HOST = "host"  # issuing kernels, while the GPU works on earlier ones


class Extent(StrEnum):
    """How much of a generation a time covers."""

    WHOLE = "whole"
    DENOISING = "denoising"  # neither text nor decoding
    THROUGHPUT = "throughput"  # per result under a full load: launches hide behind other results
    DECODING = "decoding"  # from the latent to pixels on the GPU


_COVERED: Final = {
    Extent.WHOLE: frozenset(Stage),
    Extent.DENOISING: frozenset(Stage) - {Stage.TEXT, Stage.DECODE},
    Extent.THROUGHPUT: frozenset(Stage) - {Stage.OVERHEAD, Stage.HOST},
    Extent.DECODING: frozenset({Stage.DECODE}),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What is executed, and where. `guidance_split`: half of a gang computes the pass without the prompt. `ring`: among how many GPUs of a
    gang keys and values go round; the others split heads, which is what Atoll's own gangs do."""

    model: ModelSpec
    shape: Shape
    gpu: GpuType
    precision: Precision
    stack: Stack = Stack.EAGER
    gang_size: int = 1
    guidance_split: bool = False
    ring: int = 1
    offloaded: bool = False
    extent: Extent = Extent.WHOLE


@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    """One part: `base_ns` is its time without effects."""

    stage: Stage
    base_ns: int
    effects: tuple[str, ...]


def terms(run: Run) -> tuple[Term, ...]:
    """The parts of a run, without those of no size."""
    found = _cpu_terms(run) if run.gpu.gpu_type == CPU else _gpu_terms(run)
    if run.extent is not Extent.WHOLE:
        found = [term for term in found if term.stage in _COVERED[run.extent]]
    return tuple(term for term in found if term.base_ns)


def device_key(gpu: GpuType) -> str:
    """The effect of a GPU type; it names the architecture too, for types that no table lists."""
    return f"device:{gpu.gpu_type}:{gpu.arch}"


def class_of(model: ModelSpec) -> str:
    """The class of a model: how its work grows, and for transformers what they make."""
    if model.physics.kind is DenoiserKind.TRANSFORMER:
        return f"{model.physics.kind}-{'image' if model.modality is Modality.IMAGE else 'video'}"
    return str(model.physics.kind)


@lru_cache(maxsize=4_096)
def denoise_keys(device: str, model_class: str, family: str, stack: Stack, precision: Precision, offloaded: bool) -> tuple[str, ...]:
    """The effects on every part of denoising, from the broadest to the narrowest."""
    gpu_type = device.split(":")[1]
    keys = [device, f"class:{model_class}", f"device-class:{gpu_type}:{model_class}"]
    if stack is not Stack.EAGER:
        keys += [f"stack:{stack}", f"device-stack:{gpu_type}:{stack}"]
    if weight_bits(precision) != 16:
        keys.append(f"precision:{precision}")
    keys.append(f"family:{family}")
    if offloaded:
        keys.append("offloaded")
    return tuple(keys)


def part_keys(part: str, stack: Stack) -> tuple[str, ...]:
    """The effects on one kind of kernels: of everybody's, and of this stack's where those were told apart."""
    kernels = TRAITS[stack].kernels
    return (part, f"{part}:{kernels}") if kernels else (part,)


def layers_of(model: ModelSpec) -> int:
    """Blocks that launch kernels of their own in a forward."""
    return UNET_LAYERS if model.physics.kind is DenoiserKind.UNET else max(model.physics.layers, 1)


def gang_key(run: Run) -> str:
    """The effect of being one of so many."""
    return f"{GANG}{run.gpu.gpu_type}:{class_of(run.model)}:{run.gang_size}"


def _gpu_terms(run: Run) -> list[Term]:
    physics, shape, gpu, gang = run.model.physics, run.shape, run.gpu, run.gang_size
    precision = used_precision(gpu, run.precision)
    # Text encoders and decoders run in 16 bits beside a narrower denoiser.
    wide = precision if weight_bits(precision) >= 16 else used_precision(gpu, Precision.BF16)
    traits = TRAITS[run.stack]
    device = device_key(gpu)
    keys = denoise_keys(device, class_of(run.model), run.model.family, run.stack, precision, run.offloaded and gang == 1)
    if gang > 1:
        keys = (*keys, gang_key(run))
    forwards = shape.steps * shape.cfg_passes * shape.batch
    attention = flops.attention_flops(physics, shape) * forwards
    product = flops.forward_flops(physics, shape) * forwards - attention
    stream_bytes = flops.stream_elements(physics, shape) * forwards * max(weight_bits(precision), 16) // 8
    peak, wide_peak = peak_flops(gpu, precision), peak_flops(gpu, wide)
    traffic = stream_bytes * STREAM_PASSES * traits.traffic_milli * plain_milli(run.model) // _MILLI**2
    found = [
        Term(stage=Stage.TEXT, base_ns=_ns(flops.text_flops(physics) * shape.batch, wide_peak, MATMUL_MILLI), effects=("matmul", device)),
        Term(stage=Stage.DENOISE, base_ns=_ns(product, peak, MATMUL_MILLI) // gang, effects=(*part_keys("matmul", run.stack), *keys)),
        Term(
            stage=Stage.DENOISE,
            base_ns=_ns(attention, peak, ATTENTION_MILLI) * _attention_milli(run) // _MILLI // gang,
            effects=(*part_keys("attention", run.stack), *keys),
        ),
        Term(
            stage=Stage.DENOISE,
            base_ns=_ns(traffic, gpu.memory_bytes_per_s, _MILLI) // gang,
            effects=(*part_keys("stream", run.stack), *keys),
        ),
        Term(
            stage=Stage.DECODE,
            base_ns=_ns(_decode(run), wide_peak, DECODE_MILLI),
            effects=(*part_keys("decode", run.stack), device),
        ),
    ]
    # Layers that are issued one after the other, in us of a layer that takes the host one.
    issued = _sequential_passes(run) * layers_of(run.model) * traits.host_milli
    attends = issued * flops.attentions_milli(physics) // _MILLI
    return [
        *found,
        Term(stage=Stage.OVERHEAD, base_ns=issued * LAUNCH_US, effects=part_keys("launch", run.stack)),
        Term(stage=Stage.HOST, base_ns=attends * HOST_US[physics.kind], effects=part_keys("host", run.stack)),
        *_exchange(run, attends, stream_bytes * flops.attentions_milli(physics) // _MILLI),
    ]


def _exchange(run: Run, attends: int, stream_bytes: int) -> list[Term]:
    """What the GPUs of a gang spend on each other. `attends`: attentions that follow each other, in ns of one that takes a us."""
    halves = _halves(run)
    members = run.gang_size // halves
    if members < 2:
        return []
    ring = min(run.ring, members)
    splits = members // ring
    # What a member holds of each tensor.
    held_bytes = stream_bytes // (halves * members)
    gpu, key = run.gpu, gang_key(run)
    rate, share, link = gpu.gpu_link_bytes_per_s, LINK_MILLI, "link"
    if not rate:
        rate, share, link = gpu.h2d_bytes_per_s, _MILLI, "host-link"
    found = [Term(stage=Stage.GANG, base_ns=attends * GANG_WAIT_US, effects=("exchange",))]
    if splits > 1:
        sent = _SPLIT_TENSORS * held_bytes * (splits - 1) // splits
        found += [
            Term(stage=Stage.HOST, base_ns=attends * ALL_TO_ALL_US, effects=("all-to-all",)),
            Term(stage=Stage.GANG, base_ns=_ns(sent, rate, share), effects=(link, key)),
        ]
    if ring > 1:
        turned_bytes = held_bytes * (ring - 1)
        found += [
            Term(stage=Stage.HOST, base_ns=attends * RING_TURN_US * (ring - 1), effects=("ring",)),
            Term(stage=Stage.GANG, base_ns=_ns(_RING_TENSORS * turned_bytes, rate, share), effects=(link, "ring-link")),
            Term(stage=Stage.GANG, base_ns=_ns(_MERGE_PASSES * turned_bytes, gpu.memory_bytes_per_s, _MILLI), effects=("merge",)),
        ]
    return found


def _attention_milli(run: Run) -> int:
    slow = TRAITS[run.stack].kernels and run.model.family in _SLOW_ATTENTION_FAMILIES
    return _MILLI if slow else TRAITS[run.stack].attention_milli


def plain_milli(model: ModelSpec) -> int:
    """How many of a layer's element-wise kernels a model has, in thousandths."""
    return PLAIN_MILLI if model.family in _PLAIN_FAMILIES or model.model_id.startswith(_PLAIN_MODELS) else _MILLI


def _halves(run: Run) -> int:
    return 2 if run.guidance_split and run.shape.cfg_passes == 2 and run.gang_size % 2 == 0 else 1


def _sequential_passes(run: Run) -> int:
    """Forwards that are launched one after the other. Pipelines of images compute both passes of guidance as one batch, most of those of
    video one after the other."""
    if run.model.modality is Modality.IMAGE:
        return run.shape.steps
    return run.shape.steps * run.shape.cfg_passes // _halves(run)


def _cpu_terms(run: Run) -> list[Term]:
    """One core, or several as a gang: a figure of its own, argued above and fitted to nothing."""
    physics, shape = run.model.physics, run.shape
    peak, share = peak_flops(run.gpu, run.precision), CPU_MILLI[physics.kind]
    work = flops.forward_flops(physics, shape) * shape.steps * shape.cfg_passes * shape.batch
    stream_bytes = flops.stream_elements(physics, shape) * shape.steps * shape.cfg_passes * shape.batch * 4
    return [
        Term(stage=Stage.TEXT, base_ns=_ns(flops.text_flops(physics) * shape.batch, peak, share), effects=()),
        Term(stage=Stage.DENOISE, base_ns=_ns(work, peak, share) // run.gang_size, effects=()),
        Term(stage=Stage.DECODE, base_ns=_ns(_decode(run), peak, CPU_MILLI[DenoiserKind.UNET]), effects=()),
        Term(stage=Stage.OVERHEAD, base_ns=shape.steps * CPU_LAUNCH_US * 1_000, effects=()),
        *_exchange(run, _sequential_passes(run) * layers_of(run.model) * _MILLI, stream_bytes),
    ]


def _decode(run: Run) -> int:
    return flops.decode_flops(run.model.physics, run.shape) * run.shape.batch


def _ns(work: int, rate: int, share_milli: int) -> int:
    return work * _NS * _MILLI // max(rate * share_milli, 1)
