"""An adapter: a LoRA that changes what a model makes. One safetensors file, loaded on top of a resident base.

Decides which models an adapter fits. Must not know where it is loaded, nor how. `weights_digest` is empty for adapters known by
their figures only: those run at twins, never at a real site.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from atoll.model import limits
from atoll.model.errors import FieldError
from atoll.model.ids import AdapterId, ModelId, SiteId, parse_name
from atoll.model.modelspec import ModelSpec
from atoll.model.shape import parse_int

# The only format that is loaded: a pickle can run code.
SUFFIX: Final = ".safetensors"


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterSpec:
    """One adapter. It fits the models it names, and every model of its family: an adapter of a published base is used on its
    fine-tunes too, while one that was trained for one model names that one."""

    adapter_id: AdapterId
    title: str = ""
    model_ids: tuple[ModelId, ...] = ()
    family: str = ""
    rank: int
    weights_bytes: int
    weights_digest: str = ""  # "sha256:<hex>" of the file
    origin_path: str = ""  # the file, below the origin store
    source: str = ""

    @property
    def servable(self) -> bool:
        """Whether there are weights that a real site can load."""
        return bool(self.weights_digest)

    @property
    def fits_text(self) -> str:
        """What it fits, in words."""
        family = f"family {self.family}" if self.family else ""
        return ", ".join((*self.model_ids, *([family] if family else ())))

    def fits(self, model: ModelSpec) -> bool:
        """Whether it can be used on this model."""
        return model.model_id in self.model_ids or (bool(self.family) and self.family == model.family)

    def check(self) -> AdapterSpec:
        """Self if well formed; else FieldError for the first field that is not."""
        parse_name("adapter_id", self.adapter_id)
        if not self.model_ids and not self.family:
            raise FieldError("model_ids", self.model_ids, "a model that the adapter fits, or a family of models")
        if len(self.model_ids) > limits.ADAPTER_MODELS_MAX:
            raise FieldError("model_ids", f"{len(self.model_ids)} models", f"at most {limits.ADAPTER_MODELS_MAX}; name a family instead")
        for model_id in self.model_ids:
            parse_name("model_ids", model_id)
        if len(set(self.model_ids)) != len(self.model_ids):
            raise FieldError("model_ids", self.model_ids, "each model once")
        parse_int("rank", self.rank, 1, limits.ADAPTER_RANK_MAX)
        parse_int("weights_bytes", self.weights_bytes, 1, limits.BYTES_MAX)
        if self.weights_digest and not self.origin_path.endswith(SUFFIX):
            raise FieldError("origin_path", self.origin_path, f"the {SUFFIX} file below the origin store that has the digest")
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterUsage:
    """Where an adapter is now: sites with a replica that holds it, how many such replicas, and sites that have it on a disk."""

    loaded_sites: tuple[SiteId, ...] = ()
    loaded_replicas: int = 0
    disk_sites: tuple[SiteId, ...] = ()
