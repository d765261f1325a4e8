"""What the demo asks for: pictures and films that are really made on this machine, and rehearsals at the twins.

Decides models, prompts, seeds, sizes, tenants and priorities; the same list each time. Rehearsals are chosen by the time that the
catalogue predicts: most take seconds on a data-centre GPU, some longer, and together they end within a minute of real time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from atoll.client.requests import JobRequest
from atoll.model.job import Priority

IMAGE: Final = "tiny-image"
VIDEO: Final = "tiny-video"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """A picture or film that is to be made. `name` is that of its file in out/."""

    name: str
    request: JobRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class Rehearsed:
    """So many simulated jobs of a model, at its own shape. `regions` and `gpu_types`: only there; empty: anywhere."""

    model: str
    jobs: int
    tenant: str
    priority: Priority = Priority.NORMAL
    regions: tuple[str, ...] = ()
    gpu_types: tuple[str, ...] = ()


# (prompt, seed, width, height, steps). Sides in multiples of 8; a step of this pipeline takes some 40 ms on one core.
_PICTURES: Final = (
    ("a lighthouse on a cliff at dusk", 7, 128, 128, 8),
    ("a harbour full of fishing boats", 11, 192, 128, 8),
    ("a coral reef seen from above", 23, 160, 160, 8),
    ("storm clouds over an open sea", 42, 192, 192, 10),
    ("a gull on a wooden post", 101, 128, 192, 8),
    ("terraced fields after the rain", 256, 160, 128, 8),
    ("a paper map of an archipelago", 512, 192, 160, 10),
    ("ice floes drifting apart", 1024, 128, 128, 12),
    ("a quay with cranes in the fog", 2048, 176, 176, 8),
    ("lanterns along a canal", 4096, 192, 192, 8),
)
# (prompt, seed, width, height, frames, steps). Sides in multiples of 16, frames 1 + a multiple of 4, 16 a second.
_FILMS: Final = (
    ("waves rolling onto a beach", 5, 96, 96, 33, 6),
    ("a sail crossing the bay", 77, 128, 96, 25, 6),
    ("northern lights above a fjord", 314, 96, 128, 33, 5),
)
# Interactive and bulk work of several tenants, some of it bound to a continent or to cheap GPUs. On an H100 the first take well under
# a second, the last five to ten.
_EUROPE: Final = ("Frankfurt", "Paris", "Amsterdam", "London", "Warsaw", "Berlin")
_ASIA: Final = ("Tokyo", "Osaka", "Seoul", "Singapore", "Mumbai")
_CHEAP: Final = ("RTX-4090", "L4", "A10G")
REHEARSALS: Final = (
    Rehearsed(model="sdxl-turbo", jobs=10, tenant="preview", priority=Priority.URGENT),
    Rehearsed(model="sdxl-lightning-4-step", jobs=16, tenant="postcards"),
    Rehearsed(model="sdxl-lightning-4-step", jobs=8, tenant="gallery", regions=_EUROPE),
    Rehearsed(model="flux.2-klein-4b", jobs=8, tenant="studio", priority=Priority.URGENT),
    Rehearsed(model="flux.1-schnell", jobs=12, tenant="studio"),
    Rehearsed(model="flux.1-schnell", jobs=8, tenant="atelier", regions=_ASIA),
    Rehearsed(model="sd-1.5", jobs=10, tenant="archive", priority=Priority.BATCH, gpu_types=_CHEAP),
    Rehearsed(model="sdxl-base-1.0", jobs=8, tenant="archive", priority=Priority.BATCH, gpu_types=("A100-80-SXM", "L40S")),
    Rehearsed(model="flux.1-dev", jobs=6, tenant="posters"),
    Rehearsed(model="fastwan2.1-1.3b-3-step", jobs=6, tenant="films"),
    Rehearsed(model="ltx-video-2b-0.9.x", jobs=4, tenant="films", priority=Priority.BATCH, regions=_EUROPE),
)


def wishes() -> tuple[Wish, ...]:
    """What the real sites make: pictures first, then films, as they are submitted."""
    return (*_pictures(), *_films())


def _pictures() -> Iterator[Wish]:
    for number, (prompt, seed, width, height, steps) in enumerate(_PICTURES, start=1):
        request = JobRequest(model=IMAGE, prompt=prompt, seed=seed, width=width, height=height, steps=steps, tenant="artist")
        yield Wish(name=f"{number:02}-{_slug(prompt)}.png", request=request)


def _films() -> Iterator[Wish]:
    for number, (prompt, seed, width, height, frames, steps) in enumerate(_FILMS, start=len(_PICTURES) + 1):
        request = JobRequest(model=VIDEO, prompt=prompt, seed=seed, width=width, height=height, frames=frames, steps=steps, tenant="artist")
        yield Wish(name=f"{number:02}-{_slug(prompt)}.mp4", request=request)


def rehearsals() -> tuple[JobRequest, ...]:
    """What the twins do, dealt out so that models come in turns as tenants would send them."""
    left = {rehearsed: rehearsed.jobs for rehearsed in REHEARSALS}
    found: list[JobRequest] = []
    while left:
        for rehearsed in list(left):
            number = rehearsed.jobs - left[rehearsed] + 1
            found.append(
                JobRequest(
                    model=rehearsed.model,
                    prompt=f"rehearsal {number} of {rehearsed.model}",
                    seed=number,
                    tenant=rehearsed.tenant,
                    priority=rehearsed.priority,
                    regions=rehearsed.regions,
                    gpu_types=rehearsed.gpu_types,
                    simulated=True,
                )
            )
            left[rehearsed] -= 1
            if not left[rehearsed]:
                del left[rehearsed]
    return tuple(found)


def _slug(prompt: str) -> str:
    return "-".join(prompt.lower().split()[:4])
