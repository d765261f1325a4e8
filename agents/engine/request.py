"""What is asked of a pipeline, and what comes back.

Decides which requests make sense for any pipeline; what one pipeline can do is `calling`'s matter. Imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atoll.model.errors import FieldError
from atoll.model.ids import AdapterId
from atoll.model.job import JobSpec
from atoll.model.limits import GUIDANCE_MILLI_MAX, PROMPT_BYTES
from atoll.model.shape import Shape, parse_int
from atoll.model.words import count


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterFile:
    """An adapter on a disk, and the digest that the file must have."""

    adapter_id: AdapterId
    path: Path
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """One generation. `guidance` is None for the pipeline's default. Item k of a batch has seed `seed + k`."""

    prompt: str
    negative_prompt: str = ""
    shape: Shape
    guidance: float | None = None
    seed: int = 0
    adapters: tuple[tuple[AdapterId, float], ...] = ()  # with their scales; loaded before
    image: Any = None  # a PIL image to begin with, of any size
    strength: float = 0.0  # how much of it is made anew, up to 1; 0 without one
    fps: int = 16  # frames a second of a video (16: what Wan was trained on); pipelines that take a rate are told it

    @classmethod
    def of_job(cls, spec: JobSpec, *, image: Any = None) -> GenerationRequest:
        """The generation that a job asks for; `image` is its input image, decoded."""
        return cls(
            prompt=spec.prompt,
            negative_prompt=spec.negative_prompt,
            shape=spec.shape,
            guidance=spec.guidance_milli / 1000 if spec.guidance_milli else None,
            seed=spec.seed,
            adapters=tuple((use.adapter_id, use.scale_milli / 1000) for use in spec.adapters),
            image=image,
            strength=spec.strength_milli / 1000,
        )

    def check(self) -> GenerationRequest:
        """Self, if any pipeline could make it; else FieldError for the first field that is wrong."""
        for field, text in (("prompt", self.prompt), ("negative_prompt", self.negative_prompt)):
            if not isinstance(text, str) or "\x00" in text or len(text.encode("utf-8", "surrogatepass")) > PROMPT_BYTES:
                raise FieldError(field, text, f"text of at most {PROMPT_BYTES} bytes without NUL characters")
            if any("\ud800" <= character <= "\udfff" for character in text):
                raise FieldError(field, text, "text that is valid UTF-8 (a lone surrogate is not)")
        self.shape.check()
        if self.guidance is not None and not 0 <= self.guidance <= GUIDANCE_MILLI_MAX / 1000:  # NaN fails as well
            raise FieldError("guidance", self.guidance, f"a number from 0 to {GUIDANCE_MILLI_MAX // 1000}")
        # torch takes seeds of 64 bits; the last item of the batch must have one too.
        parse_int("seed", self.seed, 0, 2**63 - self.shape.batch)
        parse_int("fps", self.fps, 1, 120)
        if (self.image is not None) is not (0 < self.strength <= 1):
            raise FieldError("strength", self.strength, "a number above 0 up to 1 with an image, and 0 without one")
        if self.image is not None and int(self.shape.steps * self.strength) < 1:
            raise FieldError("strength", self.strength, f"at least {1 / self.shape.steps:.3f}: one of {count(self.shape.steps, 'step')}")
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratedItem:
    """One image or video: its frames as PIL images, RGB, all of one size (one frame: an image), and the seed that
    makes it again."""

    frames: tuple[Any, ...]
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """What a request gave. `guidance` is the value that applied (None: the pipeline has none). Times are the
    process's own clock.

    `denoise_us` from the call to the end of the last step (prompt encoding included, `compile_us` not), `decode_us` from there to pixels.
    """

    items: tuple[GeneratedItem, ...]
    guidance: float | None
    steps_done: int
    denoise_us: int
    decode_us: int
    step_us: int  # median of the steps after the first, which carries warm-up; 0 with one step
    compile_us: int = 0  # making the denoiser's code, or reading it from its folder; 0: it was at hand, or the denoiser runs eager
    peak_device_bytes: int = 0  # CUDA's peak during the call; 0 on a CPU


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadReport:
    """How a load went. `disk_bytes` of the `read_bytes` came from the disk, the rest from the page cache.

    A rate is worth reporting when `disk_bytes` is most of `read_bytes`, and `moved_bytes` is not 0.
    """

    read_bytes: int
    disk_bytes: int
    read_us: int  # reading all files once
    init_us: int  # building the pipeline from what was read
    moved_bytes: int  # host to device; 0 on a CPU
    move_us: int
    resident_bytes: int  # parameters and buffers on the device

    @property
    def total_us(self) -> int:
        """The whole load."""
        return self.read_us + self.init_us + self.move_us

    @property
    def disk_bytes_per_s(self) -> int | None:
        """Rate of the disk; None if this load did not measure it (too little came from the disk itself)."""
        if self.read_us <= 0 or self.disk_bytes * 2 < self.read_bytes or self.read_bytes == 0:
            return None
        return self.disk_bytes * 1_000_000 // self.read_us

    @property
    def h2d_bytes_per_s(self) -> int | None:
        """Rate from host to device; None if nothing was moved."""
        return self.moved_bytes * 1_000_000 // self.move_us if self.moved_bytes and self.move_us > 0 else None
