"""Sizes that models make, for models that were stored before anybody asked what they make.

Decides which stored models take them from the catalogue. Without them a job of a size that its model does not make is accepted, and
fails where it runs. Must not know how models are stored.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from atoll.model.errors import FieldError
from atoll.model.modelspec import ModelSpec


def with_sizes(stored: Iterable[ModelSpec], catalogue: Iterable[ModelSpec]) -> tuple[ModelSpec, ...]:
    """Those of the stored models that lack sizes which the catalogue knows of the same pipeline, with them."""
    known = {(one.model_id, one.pipeline_class): one for one in catalogue if one.side_px}
    found = []
    for model in stored:
        like = known.get((model.model_id, model.pipeline_class))
        if model.side_px or like is None:
            continue
        sized = replace(model, side_px=like.side_px, frame_step=model.frame_step or like.frame_step)
        try:
            sized.check_shape(sized.default_shape)
        except FieldError:
            continue  # its operator's own shape is another: it may be another model of that name
        found.append(sized)
    return tuple(found)
