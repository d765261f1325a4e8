"""Refusals of jobs in terms of the command line: the option that was given, not the field of the message.

Decides what each field of a job is called here. Must not know what is refused and why.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from atoll.cli.exits import CliError, Exit

# Fields of a job, by the options that say them.
_OPTIONS: Final = {
    "model": "MODEL",
    "model_id": "MODEL",
    "prompt": "--prompt",
    "negative_prompt": "--negative",
    "seed": "--seed",
    "shape": "--size",
    "shape.width": "the width of --size",
    "shape.height": "the height of --size",
    "shape.frames": "--frames",
    "shape.steps": "--steps",
    "shape.cfg_passes": "--cfg",
    "shape.batch": "--batch",
    "guidance": "--guidance",
    "guidance_milli": "--guidance",
    "precision": "--precision",
    "priority": "--priority",
    "deadline_ms": "--deadline",
    "start_timeout_ms": "--start-timeout",
    "adapters": "--adapter",
    "adapters.adapter_id": "--adapter",
    "adapters.scale_milli": "the scale of --adapter",
    "constraints.sites": "--site",
    "constraints.regions": "--region",
    "constraints.gpu_types": "--gpu",
    "constraints.max_price_usd_micros": "--max-price",
    "max_price_usd": "--max-price",
    "gang_size": "--gpus",
    "origin_site": "--origin",
    "strength": "--strength",
    "strength_milli": "--strength",
    "image": "--image",
    "source": "--image",
    "inputs": "--image",
    "inputs.name": "--image",
    "inputs.bytes": "--image",
    "inputs.digest": "--image",
    "tenant": "--tenant",
    "idempotency_key": "--key",
    # Of what is learned, beside jobs.
    "component": "--component",
    "site_id": "--site",
}
_NONE_OF_ITS_OWN: Final[Mapping[str, str]] = {}
# Of one job of many, and which of several of its adapters or inputs.
_WHICH: Final = re.compile(r"^jobs\[\d+\]\.|\[\d+\]")
# Figures of messages are thousandths; "is 5: expected 34 to 1000" is what a refusal says of one.
_THOUSANDTHS: Final = re.compile(r"( is )(-?\d+)(: expected )(-?\d+)( to )(\d+)")
_WORDS: Final = (("an input named image", "--image"), ("a batch of ", "--batch "), ("a guidance above", "--guidance above"))


@contextmanager
def as_options(**own: str) -> Iterator[None]:
    """A field that is refused, here or by an orchestrator, is named as the option that it was given by: that of a job, or one of a verb's
    `own`."""
    from atoll.client import InputError

    try:
        yield
    except InputError as error:
        told = in_options(error.field, error.message, own)
        if told is None:
            raise
        raise CliError(told, code=Exit.USAGE) from None


def in_options(field: str, message: str, own: Mapping[str, str] = _NONE_OF_ITS_OWN) -> str | None:
    """A refusal of this field as who used options understands it, by a verb's `own` or those of a job; None for a field that no option
    says."""
    option = own.get(field) or _OPTIONS.get(_WHICH.sub("", field))
    if option is None:
        return None
    what = re.sub(r"^jobs\[\d+\]: ", "", message)
    named = re.sub(r"^jobs\[\d+\]\.", "", field)
    for words, ours in _WORDS:
        what = what.replace(words, ours)
    if not what.startswith(named):
        return f"{option}: {what}"
    if named.endswith("_milli"):
        what = _THOUSANDTHS.sub(lambda found: "".join(_thousandths(part) for part in found.groups()), what)
    return option + what.removeprefix(named)


def _thousandths(part: str) -> str:
    return f"{int(part) / 1_000:g}" if part.lstrip("-").isdigit() else part
