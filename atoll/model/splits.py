"""How a generation is shared among the slots of a gang, and whether it can be shared equally.

Decides from what is known of a model without its weights: its pipeline's class, its figures, and the shape. What is not known is not
refused: the engine sees the pipeline itself and has the last word (`agents.engine.gang`). Must not know torch or where anything runs.
"""

from __future__ import annotations

import math
from enum import StrEnum
from typing import Final

from atoll.model import limits
from atoll.model.errors import FieldError
from atoll.model.modelspec import DenoiserKind, Modality, ModelSpec
from atoll.model.shape import Shape
from atoll.model.words import count


class Split(StrEnum):
    """What the members of a gang share."""

    ROWS = "rows"  # one for each result and guidance pass
    SEQUENCE = "sequence"  # tokens, and within attention heads
    NOTHING = "nothing"  # the denoiser works whole or not at all


# Pipeline classes of diffusers 0.42 by what a gang shares of them, as far as the catalogue or the list of those that begin with an image
# name them; a test compares them with the classes' own denoisers. Others are not known, and are not refused here.
SPLITS: Final = {
    **dict.fromkeys(
        (
            "IFPipeline",
            "KandinskyCombinedPipeline",
            "KandinskyV22CombinedPipeline",
            "KolorsPipeline",
            "LatentConsistencyModelPipeline",
            "StableDiffusionPipeline",
            "StableDiffusionXLPipeline",
        ),
        Split.ROWS,
    ),
    **dict.fromkeys(
        ("FluxFillPipeline", "FluxKontextPipeline", "FluxPipeline", "WanImageToVideoPipeline", "WanPipeline"),
        Split.SEQUENCE,
    ),
    **dict.fromkeys(
        (
            "AllegroPipeline",
            "AnimateDiffPipeline",
            "AuraFlowPipeline",
            "ChromaPipeline",
            "CogVideoXImageToVideoPipeline",
            "CogVideoXPipeline",
            "CogView4Pipeline",
            "CosmosTextToWorldPipeline",
            "Flux2KleinPipeline",
            "Flux2Pipeline",
            "HiDreamImagePipeline",
            "HunyuanDiTPipeline",
            "HunyuanImagePipeline",
            "HunyuanVideo15ImageToVideoPipeline",
            "HunyuanVideo15Pipeline",
            "HunyuanVideoImageToVideoPipeline",
            "HunyuanVideoPipeline",
            "Kandinsky3Pipeline",
            "Kandinsky5T2VPipeline",
            "LTX2Pipeline",
            "LTXConditionPipeline",
            "LTXPipeline",
            "Lumina2Pipeline",
            "MochiPipeline",
            "PixArtAlphaPipeline",
            "PixArtSigmaPipeline",
            "QwenImageEditPipeline",
            "QwenImagePipeline",
            "SanaPipeline",
            "SanaSprintPipeline",
            "SanaVideoPipeline",
            "SkyReelsV2Pipeline",
            "StableDiffusion3Pipeline",
            "StableVideoDiffusionPipeline",
            "WanVACEPipeline",
            "ZImagePipeline",
        ),
        Split.NOTHING,
    ),
}
# Guidance is distilled into its denoiser: one pass, whatever the scale.
_ONE_PASS: Final = frozenset({"LatentConsistencyModelPipeline"})
# With guidance and without: no denoiser of UNets is passed more often.
_PASSES_MAX: Final = 2
# Families whose transformers all have heads of this size, so that the width says how many there are.
_HEAD_FAMILIES: Final = frozenset({"FLUX.1", "Wan"})
HEAD_SIZE: Final = 128


def check_gang(model: ModelSpec, shape: Shape, gang_size: int, guidance_milli: int = 0) -> None:
    """FieldError unless so many slots can share this generation equally, as far as is known; says which numbers can."""
    if gang_size == 1:
        return
    split = SPLITS.get(model.pipeline_class)
    if split is Split.NOTHING and model.servable:
        # Without weights it is a rehearsal of what other engines do, who split more.
        raise FieldError("gang_size", gang_size, f"1: {model.pipeline_class} of {model.model_id} works whole, its denoiser cannot be split")
    if split is Split.ROWS or model.physics.kind is DenoiserKind.UNET:
        check_rows(_passes(model, shape, guidance_milli), shape.batch, gang_size, guidable=model.pipeline_class not in _ONE_PASS)
    elif split is Split.SEQUENCE:
        check_sequence(_heads(model), _tokens(model, shape), shape, gang_size)


def check_rows(passes: int, batch: int, gang_size: int, *, guidable: bool) -> None:
    """FieldError unless a gang can share the rows of so many passes of guidance over so many results. `guidable`: guidance is a pass of its
    own, which a job that has none may ask for."""
    rows = passes * batch
    if rows % gang_size:
        enough = gang_size // math.gcd(gang_size, passes)
        made = f"{count(rows, 'row')} ({count(passes, 'guidance pass', 'guidance passes')} x batch {batch})"
        more = f"; a batch of {enough} would make {enough * passes}" if enough <= limits.BATCH_MAX else ""
        if guidable and passes == 1 and batch * _PASSES_MAX % gang_size == 0:
            more += ", and so would a guidance above 1"
        raise FieldError("gang_size", gang_size, f"{_sizes(rows)}: a gang shares the {made} of a UNet{more}")


def check_sequence(heads: int, tokens: int, shape: Shape, gang_size: int) -> None:
    """FieldError unless a gang can share the heads and the tokens of a transformer; 0: not known."""
    for number, what in ((heads, "attention heads of the transformer"), (tokens, f"tokens of {str(shape).rpartition('/')[0]}")):
        if number % gang_size:
            raise FieldError("gang_size", gang_size, f"{_sizes(math.gcd(heads, tokens))}: a gang shares the {number} {what} equally")


def _passes(model: ModelSpec, shape: Shape, guidance_milli: int) -> int:
    if model.pipeline_class in _ONE_PASS:
        return 1
    if guidance_milli:
        return 2 if guidance_milli > 1_000 else 1
    return min(shape.cfg_passes, _PASSES_MAX)


def _heads(model: ModelSpec) -> int:
    hidden = model.physics.hidden
    return hidden // HEAD_SIZE if model.family in _HEAD_FAMILIES and hidden % HEAD_SIZE == 0 else 0


def _tokens(model: ModelSpec, shape: Shape) -> int:
    side, step = model.side_px, model.frame_step if model.modality is Modality.VIDEO else 1
    return (shape.width // side) * (shape.height // side) * ((shape.frames - 1) // step + 1) if side and step else 0


def _sizes(shared: int) -> str:
    """Sizes of gangs that divide what they share."""
    fit = [str(one) for one in limits.GANG_SIZES if shared % one == 0]
    return " or ".join([", ".join(fit[:-1]), fit[-1]] if len(fit) > 1 else fit)
