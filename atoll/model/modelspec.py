"""A model: what is served, how large it is, and the figures from which physics computes its times.

Decides nothing. `weights_digest` is empty for models known from the catalogue only: those run at twins, never at a real site.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from atoll.model import limits
from atoll.model.errors import FieldError
from atoll.model.ids import AdapterId, ModelId, parse_name
from atoll.model.shape import Precision, Shape, check_grid, check_volume, parse_int

# Pipeline classes of diffusers 0.42, and the form of each that begins with an image, by the strength of the change. (Those that edit
# with an image, Kontext and FLUX.2, know no strength; those with control images or perturbed attention want more than one picture.)
IMAGE_TO_IMAGE: Final[Mapping[str, str]] = {
    "FluxPipeline": "FluxImg2ImgPipeline",
    "IFPipeline": "IFImg2ImgPipeline",
    "Kandinsky3Pipeline": "Kandinsky3Img2ImgPipeline",
    "KandinskyCombinedPipeline": "KandinskyImg2ImgCombinedPipeline",
    "KandinskyV22CombinedPipeline": "KandinskyV22Img2ImgCombinedPipeline",
    "KolorsPipeline": "KolorsImg2ImgPipeline",
    "LatentConsistencyModelPipeline": "LatentConsistencyModelImg2ImgPipeline",
    "QwenImagePipeline": "QwenImageImg2ImgPipeline",
    "StableDiffusion3Pipeline": "StableDiffusion3Img2ImgPipeline",
    "StableDiffusionPipeline": "StableDiffusionImg2ImgPipeline",
    "StableDiffusionXLPipeline": "StableDiffusionXLImg2ImgPipeline",
    "ZImagePipeline": "ZImageImg2ImgPipeline",
}


class Modality(StrEnum):
    """What a model makes."""

    IMAGE = "image"
    VIDEO = "video"
    AUDIO = "audio"
    THREE_D = "3d"


class DenoiserKind(StrEnum):
    """How FLOPs grow with the shape: a transformer by tokens, the rest by the table's reference."""

    TRANSFORMER = "transformer"
    UNET = "unet"
    LINEAR = "linear"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelPhysics:
    """Figures of `models.csv`. FLOPs are of one denoiser forward at `reference`; parameters are counts.

    `tokenwise_params` are those that touch every token (0 where the table's FLOPs must be scaled instead).
    """

    kind: DenoiserKind
    denoiser_params: int
    tokenwise_params: int
    text_params: int
    vae_params: int
    layers: int
    hidden: int
    text_tokens: int
    reference: Shape
    reference_tokens: int
    reference_forward_flops: int
    reference_attention_flops: int
    reference_decode_flops: int
    temporal_factor: int = 1  # frames per latent frame beyond the first
    estimated: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """One model. `weights_bytes` in storage, `resident_bytes` in GPU memory when loaded, `activation_bytes` on top at its reference.

    Its pipeline makes sides that are multiples of `side_px`, and 1 + a multiple of `frame_step` frames; 0: not known.
    """

    model_id: ModelId
    title: str
    family: str
    modality: Modality
    pipeline_class: str
    weights_bytes: int
    resident_bytes: int
    activation_bytes: int
    default_shape: Shape
    precision: Precision = Precision.BF16
    weights_digest: str = ""  # "sha256:<hex>"
    origin_path: str = ""  # folder below the origin store
    physics: ModelPhysics
    source: str = ""
    compiled: bool = False  # its denoiser runs as compiled code
    side_px: int = 0
    frame_step: int = 0

    @property
    def servable(self) -> bool:
        """Whether there are weights that a real site can load."""
        return bool(self.weights_digest)

    @property
    def begins_with_image(self) -> bool:
        """Whether it can, as far as is known."""
        return not self.pipeline_class or self.pipeline_class in IMAGE_TO_IMAGE

    def check_shape(self, shape: Shape, field: str = "shape") -> None:
        """FieldError naming the first figure of a shape that this model does not make, and the nearest that it makes."""
        if self.modality is Modality.IMAGE and shape.frames != 1:
            raise FieldError(f"{field}.frames", shape.frames, f"1: {self.model_id} makes images")
        check_volume(shape, field)
        check_grid(shape, self.side_px, self.frame_step if self.modality is Modality.VIDEO else 0, field)


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterUse:
    """A LoRA on top of the model, with its scale in thousandths; 0 has no effect, less inverts it."""

    adapter_id: AdapterId
    scale_milli: int = 1000

    def check(self, field: str) -> AdapterUse:
        """Self if well formed; else FieldError naming what is not."""
        parse_name(f"{field}.adapter_id", self.adapter_id)
        parse_int(f"{field}.scale_milli", self.scale_milli, -limits.ADAPTER_SCALE_MILLI_MAX, limits.ADAPTER_SCALE_MILLI_MAX)
        return self
