"""`atoll demo --verify`: every picture of the demo made again with plain diffusers, and its pixels compared.

Decides what counts as equal: the digest of the decoded pixels. Nothing of Atoll takes part in making a picture: metadata are read from
the file, the pipeline is diffusers' own, from the model's folder. Films are compared after the same encoding, as H.264 loses pixels.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from atoll.cli.demo.places import Places
from atoll.cli.exits import CliError, Exit
from atoll.cli.figures import count
from atoll.cli.output import note, say, table
from atoll.model.errors import FieldError

if TYPE_CHECKING:
    from agents.engine.encode import PictureFacts

# As the demo's slots compute: on one thread, as sums in another order change pixels. Read when torch is imported.
_ENVIRONMENT: Final = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "DIFFUSERS_VERBOSITY": "error",
    "TRANSFORMERS_VERBOSITY": "error",
}
_DIGEST_CHARS: Final = 12


def verify(places: Places) -> int:
    """Make every picture of the demo again and compare; the exit code: 1 when one differs. CliError when there is nothing to compare."""
    from agents.engine.encode import PictureFacts, pixel_digest, read_metadata

    found = places.pictures()
    if not found:
        raise CliError(f"no pictures in {places.shown(places.out)}", code=Exit.NOT_FOUND, hint="'make demo' makes some")
    began_s = time.monotonic()
    plain = _Plain(places.models)
    rows = []
    different = 0
    for path in found:
        try:
            facts = PictureFacts.from_text(read_metadata(path))
            expected, made = pixel_digest(path), plain.digest(facts, path.suffix)
        except (FieldError, OSError, ValueError) as error:
            raise CliError(f"{places.shown(path)} cannot be made again: {error}") from None
        equal = expected == made
        different += not equal
        verdict = "equal" if equal else "DIFFERENT"
        rows.append([path.name, facts.model, str(facts.seed), _shape(facts), _short(expected), _short(made), verdict])
        note(f"{path.name}: {verdict}")
    say(f"{count(len(rows), 'picture')} made again by diffusers alone, in {time.monotonic() - began_s:.1f} s:")
    table(["FILE", "MODEL", "SEED", "SHAPE", "PIXELS", "MADE AGAIN", ""], rows, frozenset({2}), indent="  ")
    if different:
        say(f"{different} of {len(rows)} differ. The pictures are not what their metadata say, or diffusers and torch have changed.")
        return Exit.FAILED
    say(f"All {len(rows)} have equal pixels.")
    return Exit.OK


class _Plain:
    """diffusers as its documentation uses it."""

    def __init__(self, models: Path) -> None:
        os.environ.update(_ENVIRONMENT)
        note("loading torch and diffusers")
        try:
            import diffusers
            import torch
            import transformers
        except ImportError as error:
            raise CliError(f"torch and diffusers are needed (install atoll[worker]): {error}") from None
        torch.set_num_threads(1)
        for package in (diffusers, transformers):
            package.utils.logging.disable_progress_bar()
        self._torch: Any = torch
        self._diffusers: Any = diffusers
        self._models = models
        self._pipelines: dict[tuple[str, str], Any] = {}

    def digest(self, facts: PictureFacts, suffix: str) -> str:
        """The pixels' digest of what these facts describe, made now."""
        from agents.engine.encode import pixel_digest, pixel_digest_of_mp4

        frames = self._frames(facts)
        return pixel_digest_of_mp4(frames, fps=facts.fps) if suffix == ".mp4" else pixel_digest(frames)

    def _frames(self, facts: PictureFacts) -> list[Any]:
        pipeline = self._pipeline(facts.model, facts.precision)
        # Item k of a batch has the first item's seed plus k; a batch is made whole, as its sums are.
        seeds = [facts.seed - facts.index + item for item in range(facts.batch)]
        generators = [self._torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        arguments: dict[str, Any] = {
            "prompt": facts.prompt,
            "width": facts.width,
            "height": facts.height,
            "num_inference_steps": facts.steps,
            "generator": generators if facts.batch > 1 else generators[0],
        }
        if facts.negative_prompt:
            arguments["negative_prompt"] = facts.negative_prompt
        if facts.guidance is not None:
            arguments["guidance_scale"] = facts.guidance
        if facts.frames == 1:
            made = pipeline(**arguments, num_images_per_prompt=facts.batch, output_type="pil")
            return [made.images[facts.index]]
        made = pipeline(**arguments, num_videos_per_prompt=facts.batch, num_frames=facts.frames, output_type="pil")
        return list(made.frames[facts.index])

    def _pipeline(self, model: str, precision: str) -> Any:
        known = self._pipelines.get((model, precision))
        if known is not None:
            return known
        folder = (self._models / model).resolve()
        if folder.parent != self._models.resolve() or not folder.is_dir():
            raise FieldError("model", model, f"a model folder in {self._models}")
        dtype = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}.get(precision)
        if dtype is None:
            raise FieldError("precision", precision, "fp32, fp16 or bf16")
        pipeline = self._diffusers.DiffusionPipeline.from_pretrained(
            str(folder), dtype=getattr(self._torch, dtype), use_safetensors=True, local_files_only=True
        )
        pipeline.set_progress_bar_config(disable=True)
        self._pipelines[model, precision] = pipeline
        return pipeline


def _shape(facts: PictureFacts) -> str:
    frames = f"x{facts.frames}" if facts.frames > 1 else ""
    return f"{facts.width}x{facts.height}{frames}/{facts.steps}"


def _short(digest: str) -> str:
    return digest.removeprefix("sha256:")[:_DIGEST_CHARS]
