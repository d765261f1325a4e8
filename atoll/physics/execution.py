"""How long a generation takes on a GPU of a type: T_exec of the cost model, the prior of every estimate.

Decides the achieved shares of a GPU's peaks. Must not know sites, queues or what was measured there: corrections are learned elsewhere.

`T_exec = sum over stages max(FLOPs / (peak x eta), bytes / (bandwidth x beta)) + steps x launch`; the stages are text
encoding, denoising and decoding. One GPU; gangs are not known here yet.
"""

from __future__ import annotations

from typing import Final, assert_never

from atoll.model.gpu import CPU, GpuType
from atoll.model.modelspec import DenoiserKind, ModelSpec
from atoll.model.shape import Precision, Shape
from atoll.physics import flops

_US: Final = 1_000_000

# eta, in thousandths of the dense fp16 peak: what transformer pipelines achieve end to end. Where a figure has a count, it is the
# median of that many published times (one GPU, batch 1, 16-bit, nothing cached or distilled); the others are argued from a neighbour.
_ETA_MILLI: Final[dict[str, int]] = {
    "B200": 220,  # 8 models of one benchmark: 0.21-0.23 for the large ones; eager kernels do not fill it
    "GB200": 300,  # 3
    "H200": 380,  # H100's arithmetic
    "H200-NVL": 400,
    "H100-SXM": 380,  # 15
    "H100-PCIe": 400,  # a lower clock under the same memory-bound parts
    "H100-NVL": 400,
    "H800": 380,
    "H20": 730,  # 4; little arithmetic under a full memory system: nearly always busy
    "A100-80-SXM": 440,  # 10
    "A100-80-PCIe": 420,
    "A100-40-SXM": 430,
    "A800": 400,  # 2
    "L40": 630,  # 3; its data sheet counts 32-bit accumulation, so the peak is low
    "L40S": 380,  # the same chip as L40, with twice the peak on paper and a sixth more power
    "L20": 800,  # 3: 0.84; cut arithmetic as with H20
    "RTX-6000-Ada": 360,  # as L40S, with 50 W less
    "RTX-4090": 600,  # 4
    "RTX-4090D": 600,
    "RTX-4080": 600,
    "L4": 350,  # 72 W for 121 TFLOP/s: power ends it
    "RTX-5090": 600,  # 4
    "RTX-PRO-6000": 300,  # the chip of RTX-5090 with a tenth more units and twice the peak on paper
    "RTX-A6000": 390,  # 0.87 of A100 in the one benchmark that has both
    "A40": 380,
    "A10": 360,  # 0.82 of A100 in the same benchmark
    "A10G": 600,  # the chip of A10, with 32-bit accumulation on the data sheet
    "RTX-3090": 600,  # the same
    "T4": 220,  # 70 W for 65 TFLOP/s, no fast attention
    "V100-16": 290,  # 1, of V100-32
    "V100-32": 290,  # 1
    "MI300X": 240,  # H100's 0.38 x the ratio of their measured shares in plain matrix products (0.51 / 0.80)
    "MI325X": 280,  # the same with 0.60
    # A core's matrix product in fp32 reaches some half of its vector units in the sizes of small pipelines.
    "cpu": 500,
}
# A type that is not listed: its generation's middle, else the middle of all.
_ETA_OF_ARCH_MILLI: Final[dict[str, int]] = {
    "Blackwell": 300, "Hopper": 380, "Ada": 450, "Ampere": 420, "Turing": 220, "Volta": 290, "CDNA3": 240,
}  # fmt: skip
_ETA_UNKNOWN_MILLI: Final = 400
# Convolutions against transformers on the same GPU: 0.286 / 0.444 on A100, 0.249 / 0.377 on H100.
_UNET_MILLI: Final = 650
# Many small kernels per FLOP: Sana at 1024 pixels takes 0.79 s on H100, 0.16 of the peak.
_LINEAR_MILLI: Final = 500
# Casts and scales around the narrow products: CogVideoX-5B on H100 gains a tenth from fp8, not a factor of two.
_FP8_MILLI: Final = 600
_FP4_MILLI: Final = 400
# fp32 peaks count plain units, which dense products fill better than tensor units.
_FP32_MILLI: Final = 1_300
_ETA_MAX_MILLI: Final = 900

# beta: achieved share of the memory bandwidth; streaming reads of weights reach it on every generation.
_BETA_MILLI: Final = 750

# Host work of a denoising step that the GPU waits for: scheduler, callback, the first kernels' launch. Stable Diffusion 1.4 at 512
# pixels needs 20 ms a step on H100 whose arithmetic would take 9.
_LAUNCH_US: Final = 8_000
# Some thousand small operators a step and pass, 10-20 us each on one core: 4 steps of tiny pipelines take 0.1-0.25 s.
_CPU_LAUNCH_US: Final = 30_000


def peak_flops(gpu: GpuType, precision: Precision) -> int:
    """Dense peak that arithmetic of this format can use on this type, FLOP/s; a format it has no units for falls back to a wider one."""
    match precision:
        case Precision.FP32:
            return gpu.fp32_flops or gpu.fp16_flops
        case Precision.FP16:
            return gpu.fp16_flops or gpu.fp32_flops
        case Precision.BF16:
            return (gpu.fp16_flops if gpu.has_bf16 else gpu.fp32_flops) or gpu.fp16_flops
        case Precision.FP8:
            return gpu.fp8_flops or peak_flops(gpu, Precision.BF16)
        case Precision.FP4:
            return gpu.fp4_flops or peak_flops(gpu, Precision.FP8)
    assert_never(precision)


def eta_milli(gpu: GpuType, kind: DenoiserKind, precision: Precision) -> int:
    """Achieved share of `peak_flops`, in thousandths."""
    eta = _ETA_MILLI.get(gpu.gpu_type) or _ETA_OF_ARCH_MILLI.get(gpu.arch) or _ETA_UNKNOWN_MILLI
    match kind:
        case DenoiserKind.UNET:
            eta = eta * _UNET_MILLI // 1_000
        case DenoiserKind.LINEAR:
            eta = eta * _LINEAR_MILLI // 1_000
        case DenoiserKind.TRANSFORMER:
            pass
    if gpu.gpu_type == CPU:
        return max(eta, 1)
    if precision is Precision.FP32:
        eta = eta * _FP32_MILLI // 1_000
    elif precision is Precision.FP8 and gpu.fp8_flops:
        eta = eta * _FP8_MILLI // 1_000
    elif precision is Precision.FP4 and gpu.fp4_flops:
        eta = eta * _FP4_MILLI // 1_000
    return min(max(eta, 1), _ETA_MAX_MILLI)


def weight_bits(precision: Precision) -> int:
    """Bits of one parameter in this format."""
    match precision:
        case Precision.FP32:
            return 32
        case Precision.FP16 | Precision.BF16:
            return 16
        case Precision.FP8:
            return 8
        case Precision.FP4:
            return 4
    assert_never(precision)


def execution_us(model: ModelSpec, shape: Shape, gpu: GpuType, precision: Precision) -> int:
    """Microseconds that one GPU of this type executes the job: prompt, steps and decoding, without loading or transfer. At least 1."""
    physics = model.physics
    forwards = shape.steps * shape.cfg_passes
    # Text encoders and decoders run in 16 bits beside a narrower denoiser.
    wide = precision if weight_bits(precision) >= 16 else Precision.BF16
    text = _stage_us(flops.text_flops(physics) * shape.batch, _read(physics.text_params, wide), gpu, physics.kind, wide)
    denoise = _stage_us(
        flops.forward_flops(physics, shape) * forwards * shape.batch,
        # Passes without guidance batching read the weights once each; results of a batch share a read.
        _read(physics.denoiser_params, precision) * forwards,
        gpu,
        physics.kind,
        precision,
    )
    decode = _stage_us(
        flops.decode_flops(physics, shape) * shape.batch,
        _read(physics.vae_params, wide) * shape.batch,
        gpu,
        DenoiserKind.UNET,  # every decoder of the catalogue is convolutional
        wide,
    )
    launch_us = _CPU_LAUNCH_US if gpu.gpu_type == CPU else _LAUNCH_US
    return max(text + denoise + decode + shape.steps * launch_us, 1)


def _read(params: int, precision: Precision) -> int:
    return params * weight_bits(precision) // 8


def _stage_us(work: int, read_bytes: int, gpu: GpuType, kind: DenoiserKind, precision: Precision) -> int:
    achieved = max(peak_flops(gpu, precision) * eta_milli(gpu, kind, precision) // 1_000, 1)
    streamed = max(gpu.memory_bytes_per_s * _BETA_MILLI // 1_000, 1)
    return max(work * _US // achieved, read_bytes * _US // streamed)
