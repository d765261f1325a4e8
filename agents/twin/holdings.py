"""What a plant has when it begins: weights on disks, in host memories and in slots.

Decides the form only.
"""

from __future__ import annotations

from dataclasses import dataclass

from atoll.model.modelspec import ModelSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    """Of one node: models on its disk and in its memory, and for each slot those that are loaded. What has no room is not held."""

    disk: tuple[ModelSpec, ...] = ()
    host: tuple[ModelSpec, ...] = ()
    slots: tuple[tuple[ModelSpec, ...], ...] = ()
