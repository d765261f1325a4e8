"""What each reason for a rejection means, and what would have to change.

Decides the words. A reason of a later orchestrator that is not here is shown by its name.
"""

from __future__ import annotations

from typing import Final

from atoll.cli.figures import duration, size, sizes
from atoll.model.placement import MEANINGS, Reason, TooSmall
from atoll.model.quote import Quote

# What would have to change, in terms of this command line.
_REMEDIES: Final[dict[Reason, str]] = {
    Reason.NOT_CONNECTED: "start its agent, or mend its link: see 'atoll sites list'",
    Reason.CORDONED: "atoll sites uncordon SITE",
    Reason.DRAINING: "wait, or atoll sites uncordon SITE",
    Reason.BREAKER_OPEN: "mend the site (atoll events says what failed), or wait: it is tried again",
    Reason.TENANT_NOT_ALLOWED: "an operator may change 'tenants' in the policy file: see 'atoll policies show'",
    Reason.SITE_NOT_ALLOWED: "submit with another --site, or none",
    Reason.REGION_NOT_ALLOWED: "submit with another --region, or none",
    Reason.GPU_TYPE_NOT_ALLOWED: "submit with another --gpu, or none",
    Reason.PRICE_TOO_HIGH: "raise --max-price, or make the job smaller",
    Reason.LOAD_TOO_DEAR: "raise --max-price, or wait: they may come",
    Reason.MEMORY_TOO_SMALL: "larger GPUs; or, unless its weights alone take more, a smaller --size, --batch or, of a film, --frames",
    Reason.EVICTION_IN_VAIN: "a later --deadline or --start-timeout, or wait for memory that nobody uses",
    Reason.MEMORY_BUSY: "wait: it is looked at again when one of them is idle",
    Reason.PRECISION_UNSUPPORTED: "another --precision, or newer GPUs",
    Reason.GANG_TOO_LARGE: "a smaller gang, or larger nodes",
    Reason.TOO_SLOW: "a smaller --size, fewer --frames or --steps, or faster GPUs",
    Reason.DISK_TOO_SMALL: "free or enlarge the model cache of its nodes",
    Reason.WEIGHTS_UNAVAILABLE: "put them in the origin store: atoll models add FOLDER",
    Reason.SIMULATED_SITE: "real work needs real sites; --simulated makes the job a rehearsal",
    Reason.REAL_SITE: "start twins with 'atoll rehearse', or submit without --simulated",
    Reason.RECENT_FAILURE: "wait: it may be tried there again later",
    Reason.NO_SLOT: "wait: the job goes there when a slot is free",
    Reason.NO_BLOCK: "wait: once it is its turn a block is kept for it until the last GPU is free; or a smaller gang",
}


def meaning(reason: str) -> str:
    """What is so."""
    known = _known(reason)
    return MEANINGS[known] if known is not None else reason.replace("_", " ")


def remedy(reason: str) -> str:
    """What would have to change; "" when this version does not know."""
    known = _known(reason)
    return _REMEDIES[known] if known is not None else ""


def advice(reason: str, quote: Quote | None, too_small: TooSmall | None = None) -> str:
    """As `remedy`, with figures where they are known: those of a quote, or of a decision what it kept of GPUs that were too small."""
    if quote is not None and reason in {Reason.PRICE_TOO_HIGH, Reason.LOAD_TOO_DEAR} and quote.price_usd_micros:
        wait = ", or wait: they may come" if reason == Reason.LOAD_TOO_DEAR else ", or make the job smaller"
        return f"raise --max-price to {_enough(quote.price_usd_micros)}{wait}"
    if quote is not None and reason == Reason.EVICTION_IN_VAIN and quote.short_us:
        return f"a --deadline or --start-timeout that is {duration(quote.short_us)} later, or wait for memory that nobody uses"
    short = quote.too_small if quote is not None else too_small
    if short is not None and reason == Reason.MEMORY_TOO_SMALL:
        return _larger(short)
    return remedy(reason)


def _larger(found: TooSmall) -> str:
    """What would do in place of GPUs that are too small: that depends on what alone is more than they have."""
    held_bytes = found.weights_bytes + found.adapters_bytes
    if found.weights_bytes > found.largest_bytes:
        # Each GPU of a gang holds the whole model, as it is stored.
        weights, largest = sizes(found.weights_bytes, found.largest_bytes)
        alone = f"its weights alone take {weights}, the largest of these has {largest}"
        return f"GPUs of {size(found.needed_bytes)} and more: {alone}; no --size, --gpus or --precision helps"
    if held_bytes > found.largest_bytes:
        held, largest = sizes(held_bytes, found.largest_bytes)
        alone = f"its weights take {size(found.weights_bytes)} and with its adapters {held}, the largest of these has {largest}"
        return f"fewer or smaller adapters; or GPUs of {size(found.needed_bytes)} and more: {alone}; no --size helps"
    needed, largest = sizes(found.needed_bytes, found.largest_bytes)
    adapters = f", {size(found.adapters_bytes)} of adapters" if found.adapters_bytes else ""
    parts = f"weights of {size(found.weights_bytes)}{adapters} and {size(found.needed_bytes - held_bytes)} beside them"
    has = f"the largest of these has {largest}"
    return f"a smaller --size, --batch or, of a film, --frames; or GPUs of {needed} and more: {parts}, {has}"


def _enough(usd_micros: int) -> str:
    """A price that is no less, in figures that --max-price takes."""
    step = 10 ** max(len(str(usd_micros)) - 3, 0)
    return f"{-(-usd_micros // step) * step / 1_000_000:.6f}".rstrip("0").rstrip(".")


def _known(reason: str) -> Reason | None:
    try:
        return Reason(reason)
    except ValueError:
        return None
