"""LoRAs on a resident pipeline: loaded beside its weights, made active for one generation, and taken off again without a trace.

Decides when an adapter fits a pipeline: every one of its layers must find its place. Nothing is fused: sets change from job to job,
and a base that was fused and unfused is no longer the same to the last bit. Must not know jobs, nor which adapters give way.
Torch, diffusers and peft are imported when an adapter is loaded, not before.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from agents.engine.errors import BadWeightsError, EngineError
from agents.engine.manifest import SAFETENSORS_HEADER_BYTES_MAX, check_safetensors, hash_file
from agents.engine.quiet import quiet_loading
from atoll.model.attempt import FailureKind
from atoll.model.errors import StateError
from atoll.model.ids import AdapterId

# The first matrix of a pair, as the trainers of the day name it: peft and diffusers, diffusers' former form, kohya.
_FIRST_OF_PAIR: Final = re.compile(r"(\.lora_A(\.[^.]+)?|\.lora\.down|\.lora_down|_lora\.down)\.weight\Z")


class AdapterSet:
    """The adapters of one pipeline. Not for several threads at a time; the pipeline's own lock sees to that."""

    def __init__(self, pipeline: Any, *, name: str) -> None:
        self._pipeline = pipeline
        self._name = name
        self._loaded: dict[AdapterId, tuple[str, str]] = {}  # its name in the layers, and the file's digest
        self._numbers = 0

    @property
    def digests(self) -> Mapping[AdapterId, str]:
        """What is loaded, active or not, in the order of loading."""
        return {adapter_id: digest for adapter_id, (_, digest) in self._loaded.items()}

    def load(self, adapter_id: AdapterId, path: Path, digest: str) -> None:
        """Put an adapter on the pipeline, inactive. The same again changes nothing; another version takes the place of the first.

        BadWeightsError for a file that is not safetensors or has another digest, EngineError(BAD_INPUT) for one that does not fit
        this pipeline; after either the pipeline is what it was before.
        """
        if self.digests.get(adapter_id) == digest:
            return
        _check_file(path, digest)
        pairs = _pairs(path)
        if not hasattr(self._pipeline, "load_lora_weights"):
            what = f"{type(self._pipeline).__name__} takes no adapters: {adapter_id} cannot be used on {self._name}"
            raise EngineError(FailureKind.BAD_INPUT, what)
        if not pairs:
            what = f"adapter {adapter_id} holds no LoRA layers: expected pairs of lora_A and lora_B, or of lora_down and lora_up"
            raise EngineError(FailureKind.BAD_INPUT, what)
        self.unload(adapter_id)
        self._numbers += 1
        # Layers know adapters by names without dots.
        layer_name = f"a{self._numbers}"
        try:
            with quiet_loading(), warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Already found a `peft_config`")  # several adapters are what is wanted
                self._pipeline.load_lora_weights(
                    str(path.parent), weight_name=path.name, adapter_name=layer_name, use_safetensors=True, local_files_only=True
                )
            layers = [layer for layer in self._layers() if _holds(layer, layer_name)]
            if len(layers) < pairs:
                raise _other_base(adapter_id, self._name, f"{len(layers)} of its {pairs} layers find a place")
        except Exception as error:
            self._remove(layer_name)
            if isinstance(error, (EngineError, MemoryError)) or "out of memory" in str(error).lower():
                raise
            # The first error tells; diffusers' own clean-up may fail on top of it.
            first: BaseException = error
            while first.__context__ is not None:
                first = first.__context__
            raise _other_base(adapter_id, self._name, f"{type(first).__name__}: {first}") from error
        for layer in layers:
            _as_the_base(layer, layer_name)
        self._loaded[adapter_id] = (layer_name, digest)
        self._deactivate()

    def unload(self, adapter_id: AdapterId) -> None:
        """Take an adapter off; nothing if it is not there. Without any left the pipeline has its own layers again."""
        found = self._loaded.pop(adapter_id, None)
        if found is not None:
            self._remove(found[0])

    @contextmanager
    def active(self, scales: Mapping[AdapterId, float]) -> Iterator[None]:
        """Exactly these take part in what the pipeline makes meanwhile; those of scale 0 do not. StateError for one not loaded."""
        absent = [adapter_id for adapter_id in scales if adapter_id not in self._loaded]
        if absent:
            raise StateError(f"adapter {absent[0]} is not loaded on {self._name}")
        wanted = {self._loaded[adapter_id][0]: scale for adapter_id, scale in scales.items() if scale}
        if not wanted:
            yield
            return
        # As diffusers' set_adapters does for each part, which raises for a part that has no adapters at all.
        for layer in self._layers():
            for layer_name, scale in wanted.items():
                layer.set_scale(layer_name, scale)
            layer.set_adapter(list(wanted), inference_mode=True)
            layer.enable_adapters(True)
        try:
            yield
        finally:
            self._deactivate()

    def _deactivate(self) -> None:
        for layer in self._layers():
            layer.set_adapter([], inference_mode=True)
            layer.enable_adapters(False)

    def _parts(self) -> list[Any]:
        names = getattr(self._pipeline, "_lora_loadable_modules", ())
        return [part for name in names if (part := getattr(self._pipeline, name, None)) is not None]

    def _layers(self) -> list[Any]:
        from peft.tuners.tuners_utils import BaseTunerLayer

        return [module for part in self._parts() for module in part.modules() if isinstance(module, BaseTunerLayer)]

    def _remove(self, layer_name: str) -> None:
        """No layer knows the name any more, however far its loading had come."""
        for layer in self._layers():
            layer.set_adapter([name for name in layer.active_adapters if name != layer_name], inference_mode=True)
            layer.delete_adapter(layer_name)
        for part in self._parts():
            getattr(part, "peft_config", {}).pop(layer_name, None)
        if not self._loaded:
            self._pipeline.unload_lora_weights()


def _check_file(path: Path, digest: str) -> None:
    if path.is_symlink() or not path.is_file():
        raise BadWeightsError(path.name, "no regular file", "a safetensors file")
    check_safetensors(path, path.name)
    found = "sha256:" + hash_file(path)[0]
    if found != digest:
        raise BadWeightsError(path.name, f"digest {found}", digest)


def _pairs(path: Path) -> int:
    """How many layers a file changes, by the names of its tensors."""
    with path.open("rb") as source:
        length = int.from_bytes(source.read(8), "little")
        try:
            header = json.loads(source.read(min(length, SAFETENSORS_HEADER_BYTES_MAX)).decode("utf-8"))
        except (ValueError, RecursionError) as error:
            raise BadWeightsError(path.name, f"its header is not JSON ({str(error)[:80]})", "a safetensors file") from None
    if not isinstance(header, dict):
        raise BadWeightsError(path.name, "its header is no JSON object", "a safetensors file")
    return sum(1 for name in header if _FIRST_OF_PAIR.search(name))


def _other_base(adapter_id: AdapterId, model: str, why: str) -> EngineError:
    # The same file on the same model fails everywhere alike: not worth another try at another place.
    return EngineError(FailureKind.BAD_INPUT, f"adapter {adapter_id} does not fit {model}, it was made for another base: {why}")


def _holds(layer: Any, layer_name: str) -> bool:
    return any(layer_name in getattr(layer, names) for names in layer.adapter_layer_names)


def _as_the_base(layer: Any, layer_name: str) -> None:
    """An adapter's matrices in the number format of the layer that they change: a file in fp32 costs no more than its rank."""
    weight = layer.get_base_layer().weight
    if not weight.dtype.is_floating_point:
        return
    for names in layer.adapter_layer_names:
        matrices = getattr(layer, names)
        if layer_name in matrices and hasattr(matrices[layer_name], "to"):
            matrices[layer_name].to(device=weight.device, dtype=weight.dtype)
