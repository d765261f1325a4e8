"""How the models of a trace are named: `BASE--NAME` is a fine-tune of the catalogue's BASE, of its size and speed with weights of its own.

Decides names only. Traces have hundreds of models where the catalogue has tens: what tells them apart is which weights must be moved, not
how large these are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from atoll.model.errors import NotFoundError
from atoll.model.ids import ModelId
from atoll.model.modelspec import ModelSpec

# No id of the catalogue holds two dashes in a row.
MARK: Final = "--"


def variant(base: str, name: str) -> ModelId:
    """The id of a fine-tune."""
    return ModelId(f"{base}{MARK}{name}")


def base_of(model_id: str) -> str:
    """Of which model of the catalogue it is one; itself, if it is none."""
    return model_id.partition(MARK)[0]


def spec_of(model_id: str, catalogue: Mapping[ModelId, ModelSpec]) -> ModelSpec:
    """The model of a trace, with the figures of its base. NotFoundError where the catalogue has neither."""
    found = catalogue.get(ModelId(model_id)) or catalogue.get(ModelId(base_of(model_id)))
    if found is None:
        raise NotFoundError("model", model_id, "a trace's models are the catalogue's, or BASE--NAME for a fine-tune of one")
    return found if found.model_id == model_id else replace(found, model_id=ModelId(model_id), title=f"{found.title}, fine-tune")
