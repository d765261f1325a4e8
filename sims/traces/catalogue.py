"""What the models of a made-up trace are fine-tunes of, and what is asked of each: sizes, frames, results at once.

Decides the mix of kinds; knows neither tenants nor arrivals. Bases were chosen so that what a job costs is as 100 (a picture) to 10,000 (a
film), and ten times as much in 4K.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import gcd
from random import Random
from typing import Final, TypeVar

from atoll.model.errors import FieldError
from atoll.model.ids import ModelId
from atoll.model.modelspec import Modality, ModelSpec
from atoll.model.shape import Shape
from sims.traces.job import PIXELS_4K

Choice = TypeVar("Choice")

# Of a hundred fine-tunes so many are of each: what is published most is tuned most.
IMAGE_BASES: Final = {
    "sdxl-base-1.0": 28, "flux.1-dev": 24, "sd-1.5": 10, "flux.1-schnell": 8, "sd3.5-large": 6, "z-image-turbo": 6, "qwen-image": 5,
    "flux.1-kontext-dev": 4, "flux.2-klein-9b": 4, "hidream-i1-fast": 3, "kolors": 2,
}  # fmt: skip
VIDEO_BASES: Final = {
    "wan2.1-t2v-14b-480p": 25, "wan2.2-t2v-a14b-480p": 20, "wan2.2-ti2v-5b-720p": 15, "hunyuanvideo-1.5-t2v-480p": 15,
    "cogvideox1.5-5b": 10, "hunyuanvideo-t2v-540p": 10, "wan2.1-t2v-1.3b-480p": 5,
}  # fmt: skip
# Width to height, and how often: half of all pictures are square.
_ASPECTS: Final = {(1, 1): 50, (3, 4): 20, (4, 3): 12, (9, 16): 10, (16, 9): 8}
# Results of one request, as of 15,630 production requests.
_BATCHES: Final = {1: 59, 2: 8, 4: 19, 8: 14}
# A short film has half of the model's frames.
_SHORT_SHARE: Final = 0.3
# Sides are multiples of this besides what the model wants: what people ask for.
_SIDE_PX: Final = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a job asks of a model, and for how many results at once."""

    width: int
    height: int
    frames: int
    batch: int


def kinds_of_ranks(weights: Sequence[float], video_share: float) -> list[Modality]:
    """What each model makes, so that films have this share of all requests however much the first models are asked for."""
    found, video, total = [], 0.0, 0.0
    for weight in weights:
        total += weight
        # By the least error: what brings the sum nearer to the share that it should have.
        is_video = abs(video + weight - video_share * total) < abs(video - video_share * total)
        video += weight if is_video else 0.0
        found.append(Modality.VIDEO if is_video else Modality.IMAGE)
    return found


def base_for(kind: Modality, random: Random, catalogue: Mapping[ModelId, ModelSpec]) -> ModelSpec:
    """What one model is a fine-tune of. FieldError where the catalogue lacks it."""
    bases = VIDEO_BASES if kind is Modality.VIDEO else IMAGE_BASES
    model_id = ModelId(weighted(bases, random))
    if model_id not in catalogue:
        raise FieldError("catalogue", model_id, "a catalogue with all models that a made-up trace is built on")
    return catalogue[model_id]


def asked_of(base: ModelSpec, random: Random, share_4k: float) -> Asked:
    """What a session asks of a model: its sizes stay as long as it works on one thing."""
    shape = base.default_shape
    if base.modality is Modality.VIDEO:
        frames = shape.frames
        if base.frame_step and random.random() < _SHORT_SHARE:
            frames = 1 + (frames - 1) // 2 // base.frame_step * base.frame_step
        return Asked(width=shape.width, height=shape.height, frames=frames, batch=1)
    if random.random() < share_4k:
        width, height = sized((16, 9), PIXELS_4K, base.side_px)
        return Asked(width=width, height=height, frames=1, batch=1)
    width, height = sized(weighted(_ASPECTS, random), shape.width * shape.height, base.side_px)
    return Asked(width=width, height=height, frames=1, batch=weighted(_BATCHES, random))


def sized(aspect: tuple[int, int], pixels: int, side_px: int) -> tuple[int, int]:
    """Sides of about this aspect and at least nearly so many pixels that a model makes."""
    step = _SIDE_PX * side_px // gcd(_SIDE_PX, side_px) if side_px else _SIDE_PX
    across, down = aspect
    width = (pixels * across / down) ** 0.5
    rounded = max(round(width / step), 1) * step
    # Up where 4K is asked for: a line less would be none.
    height = max(-(-round(pixels / rounded) // step), 1) * step if pixels >= PIXELS_4K else max(round(pixels / rounded / step), 1) * step
    return rounded, height


def default_shape(asked: Asked, base: ModelSpec) -> Shape:
    """The whole shape of what is asked for."""
    own = base.default_shape
    return Shape(width=asked.width, height=asked.height, frames=asked.frames, steps=own.steps, cfg_passes=own.cfg_passes, batch=asked.batch)


def weighted(choices: Mapping[Choice, int], random: Random) -> Choice:
    """One of them, by its weight."""
    at = random.random() * sum(choices.values())
    for choice, weight in choices.items():
        at -= weight
        if at < 0:
            return choice
    return next(iter(choices))
