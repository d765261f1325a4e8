"""One generation by several processes of a node: who takes which part, and how they agree to stop.

Decides whether and how a pipeline's work can be split, joins the members' processes for the run, and undoes both. There are two ways,
and each member holds the whole pipeline for either:

    sequence   transformers, by the context parallelism of diffusers: each member computes its share of the tokens, and of the heads
               within attention (Ulysses). Needs heads and tokens that divide by the number of members.
    rows       UNets, which take one row per result and guidance pass: each member computes its share of the rows.

Both only move numbers between members and never add them up in another order than one slot would: the picture of a gang is that of a
single slot up to the rounding of products of other sizes, and the same each time for gangs of one size. What a pipeline cannot do in
a gang is refused before the members meet. Schedulers and noise are computed by all members alike; only the lead decodes.

Members meet through a file in a folder that only this site's user may read (`torch.distributed.FileStore`), and talk over the
loopback interface (gloo) or between their GPUs (NCCL). No port has to be chosen, and a stranger on the host has none to write to before the
members are connected. A member that dies or fails closes its connections, which ends the others at once; one that hangs ends them
after `timeout_s` (with NCCL by its watchdog, which ends the process). Must not know Ray, jobs or slots.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

from agents.engine.calling import ShapeRule
from agents.engine.errors import EngineError, GenerationStoppedError
from agents.engine.request import GenerationRequest
from atoll.model.attempt import FailureKind
from atoll.model.errors import FieldError
from atoll.model.splits import check_rows, check_sequence

# Members do the same work at the same pace: one that lets the others wait for longer than this hangs.
TIMEOUT_S: Final = 300.0
# How long members that were all told to begin may take to meet.
_MEET_S: Final = 60.0
_MEET_POLL_S: Final = 0.02
_DENOISERS: Final = ("transformer", "transformer_2", "unet")
# Denoisers by how they are split. Only those that a test splits and compares: diffusers has more plans of context parallelism, but the
# one of LTX fails in 0.42, and the one of Qwen-Image needs prompts whose tokens happen to divide.
BY_SEQUENCE: Final = frozenset({"FluxTransformer2DModel", "WanTransformer3DModel"})
BY_ROWS: Final = frozenset({"UNet2DConditionModel"})  # every tensor argument has one row per result and guidance pass
# What the errors of the collective libraries have in common: torch gives most of them no type of their own.
_BREAKS: Final = ("gloo", "ProcessGroup", "NCCL", "Connection closed by peer", "Connection reset by peer", "Broken pipe")


@dataclass(frozen=True, slots=True, kw_only=True)
class GangPlace:
    """A member's place: the file where the members meet, new for each run, and its number of `size`; 0 is the lead."""

    meeting: Path
    rank: int
    size: int
    timeout_s: float = TIMEOUT_S


@contextmanager
def together(
    place: GangPlace | None,
    pipeline: Any,
    rule: ShapeRule,
    request: GenerationRequest,
    guidance: float | None,
    device: str,
    should_stop: Callable[[], bool] | None,
) -> Iterator[Callable[[], bool] | None]:
    """While open, calls of the pipeline are split among the members. Gives what to ask for whether to stop: all members get one answer.

    FieldError for what cannot be split; EngineError(RUNTIME_LOST) when the members do not meet; GenerationStoppedError when this one was
    told to stop before they did. Without a place everything stays as it is.
    """
    if place is None:
        yield should_stop
        return
    check_split(pipeline, rule, request, guidance, place.size)
    with _joined(place, device, should_stop), ExitStack() as undo:
        for name in _DENOISERS:
            denoiser = getattr(pipeline, name, None)
            if denoiser is not None:
                undo.enter_context(_rows_split(denoiser, place) if _by_rows(denoiser) else _sequence_split(denoiser, place, device))
        yield lambda: _any_asks(should_stop is not None and should_stop())


def breaks_gang(error: Exception) -> bool:
    """Whether an error of a pipeline means that another member is gone, and not that the pipeline failed here."""
    import torch.distributed as dist

    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and any(mark in str(error) for mark in _BREAKS))


# --- what can be split ----------------------------------------------------------------------------------------------------------


def check_split(pipeline: Any, rule: ShapeRule, request: GenerationRequest, guidance: float | None, size: int) -> None:
    """FieldError unless `size` members can share this generation equally; says what would be right."""
    denoisers = [found for name in _DENOISERS if (found := getattr(pipeline, name, None)) is not None]
    if not denoisers:
        raise FieldError("gang_size", size, f"1: {type(pipeline).__name__} has no denoiser that could be split")
    for denoiser in denoisers:
        kind = type(denoiser).__name__
        if _by_rows(denoiser):
            _check_rows(denoiser, request, guidance, size)
        elif kind in BY_SEQUENCE:
            _check_sequence(denoiser, rule, request, size)
        else:
            known = ", ".join(sorted(BY_SEQUENCE | BY_ROWS))
            raise FieldError("gang_size", size, f"1: {kind} cannot be split, only {known} can")


def _by_rows(denoiser: Any) -> bool:
    return type(denoiser).__name__ in BY_ROWS


def _check_rows(denoiser: Any, request: GenerationRequest, guidance: float | None, size: int) -> None:
    distilled = getattr(denoiser.config, "time_cond_proj_dim", None) is not None
    passes = 2 if guidance is not None and guidance > 1 and not distilled else 1
    check_rows(passes, request.shape.batch, size, guidable=not distilled)


def _check_sequence(denoiser: Any, rule: ShapeRule, request: GenerationRequest, size: int) -> None:
    shape = request.shape
    heads = denoiser.config.num_attention_heads
    tokens = (shape.width // rule.side_px) * (shape.height // rule.side_px) * ((shape.frames - 1) // rule.frame_step + 1)
    check_sequence(heads, tokens, shape, size)


# --- how members meet -----------------------------------------------------------------------------------------------------------


@contextmanager
def _joined(place: GangPlace, device: str, should_stop: Callable[[], bool] | None) -> Iterator[None]:
    """This process in a group with the other members, from their meeting to the end of this run."""
    import torch
    import torch.distributed as dist

    # Gloo and NCCL choose an interface by the host's name else, which may lead out of the host.
    os.environ["GLOO_SOCKET_IFNAME"] = os.environ["NCCL_SOCKET_IFNAME"] = "lo"
    store = dist.FileStore(str(place.meeting), place.size)
    _meet(store, place, should_stop)
    backend = "gloo"
    if device != "cpu":
        torch.cuda.set_device(device)
        backend = "cpu:gloo,cuda:nccl"
    try:
        dist.init_process_group(backend, store=store, rank=place.rank, world_size=place.size, timeout=timedelta(seconds=place.timeout_s))
    except RuntimeError as error:
        raise EngineError(FailureKind.RUNTIME_LOST, f"the members of the gang cannot connect: {error}") from error
    try:
        yield
    finally:
        with suppress(RuntimeError):  # of a group that is broken
            dist.destroy_process_group()
        place.meeting.unlink(missing_ok=True)


def _meet(store: Any, place: GangPlace, should_stop: Callable[[], bool] | None) -> None:
    """Wait for the other members, ready to be stopped: within the libraries' own waits nothing can be."""
    store.set(f"here-{place.rank}", "1")
    deadline_s = time.monotonic() + _MEET_S
    missing = list(range(place.size))
    while missing := [rank for rank in missing if not store.check([f"here-{rank}"])]:
        if should_stop is not None and should_stop():
            raise GenerationStoppedError(0)
        if time.monotonic() > deadline_s:
            ranks = ", ".join(map(str, missing))
            raise EngineError(FailureKind.RUNTIME_LOST, f"member {ranks} of the gang of {place.size} did not come within {_MEET_S:g} s")
        time.sleep(_MEET_POLL_S)


def _any_asks(asked: bool) -> bool:
    """Whether any member wants to stop. All members ask at the same points of the run, and stop at the same one."""
    import torch
    import torch.distributed as dist

    flag = torch.tensor([asked], dtype=torch.int32)
    try:
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
    except RuntimeError as error:
        raise EngineError(FailureKind.RUNTIME_LOST, f"the gang broke: {error}") from error
    return bool(flag.item())


# --- how work is split ----------------------------------------------------------------------------------------------------------


@contextmanager
def _sequence_split(denoiser: Any, place: GangPlace, device: str) -> Iterator[None]:
    """Context parallelism as diffusers does it. Its `enable_parallelism` asks for an accelerator and cannot be undone; its parts can."""
    import torch
    from diffusers import ContextParallelConfig, ParallelConfig
    from diffusers.hooks.context_parallel import apply_context_parallel, remove_context_parallel
    from torch.distributed.device_mesh import init_device_mesh

    mesh = init_device_mesh(device.partition(":")[0], (1, place.size), mesh_dim_names=("ring", "ulysses"))
    config = ParallelConfig(context_parallel_config=ContextParallelConfig(ulysses_degree=place.size, mesh=mesh))
    config.setup(place.rank, place.size, torch.device(device), mesh=mesh)
    found: list[Any] = [getattr(module, "processor", None) for module in denoiser.modules()]
    processors = [processor for processor in found if hasattr(processor, "_parallel_config")]
    plan = denoiser._cp_plan
    try:
        for processor in processors:
            processor._parallel_config = config
        apply_context_parallel(denoiser, config.context_parallel_config, plan)
        with warnings.catch_warnings():
            # diffusers gathers with a function that torch is about to rename.
            warnings.filterwarnings("ignore", message=".*all_gather_tensor.*", category=FutureWarning)
            yield
    finally:
        remove_context_parallel(denoiser, plan)
        for processor in processors:
            processor._parallel_config = None


@contextmanager
def _rows_split(denoiser: Any, place: GangPlace) -> Iterator[None]:
    """Each forward pass computes this member's rows and returns those of all."""
    whole = denoiser.forward

    def forward(sample: Any, *args: Any, **kwargs: Any) -> Any:
        rows = sample.shape[0]
        if rows % place.size:
            raise EngineError(FailureKind.BAD_INPUT, f"{rows} rows cannot be shared equally by {place.size} members")
        mine = _share_of([sample, args, kwargs], rows, place)
        output = whole(mine[0], *mine[1], **mine[2])
        if isinstance(output, tuple):
            return tuple(_gathered(tensor, place) for tensor in output)
        return type(output)(sample=_gathered(output.sample, place))

    denoiser.forward = forward
    try:
        yield
    finally:
        del denoiser.forward


def _share_of(value: Any, rows: int, place: GangPlace) -> Any:
    """`value` with this member's part of every tensor in it that has `rows` rows; a single timestep, say, has none."""
    import torch

    if isinstance(value, torch.Tensor):
        return value.chunk(place.size)[place.rank] if value.ndim and value.shape[0] == rows else value
    if isinstance(value, (list, tuple)):
        return type(value)(_share_of(item, rows, place) for item in value)
    if isinstance(value, dict):
        return {name: _share_of(item, rows, place) for name, item in value.items()}
    return value


def _gathered(part: Any, place: GangPlace) -> Any:
    import torch
    import torch.distributed as dist

    part = part.contiguous()
    parts = [torch.empty_like(part) for _ in range(place.size)]
    dist.all_gather(parts, part)
    return torch.cat(parts)
