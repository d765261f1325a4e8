"""What each reason for a rejection means, and what would have to change.

Decides the words. A reason of a later orchestrator that is not here is shown by its name.
"""

from __future__ import annotations

from typing import Final

from atoll.model.placement import Reason

# Reason -> (what is so, what would have to change).
REASONS: Final[dict[Reason, tuple[str, str]]] = {
    Reason.NOT_CONNECTED: ("the site is not connected", "start its agent, or mend its link: see 'atoll sites list'"),
    Reason.CORDONED: ("the site is cordoned", "atoll sites uncordon SITE"),
    Reason.DRAINING: ("the site is being drained", "wait, or atoll sites uncordon SITE"),
    Reason.BREAKER_OPEN: ("attempts kept failing there", "mend the site (atoll events says what failed), or wait: it is tried again"),
    Reason.SITE_NOT_ALLOWED: ("the job names other sites", "submit with another --site, or none"),
    Reason.REGION_NOT_ALLOWED: ("the job names other regions", "submit with another --region, or none"),
    Reason.GPU_TYPE_NOT_ALLOWED: ("the job names other GPU types", "submit with another --gpu, or none"),
    Reason.PRICE_TOO_HIGH: ("it would cost more than the job may", "raise --max-price, or make the job smaller"),
    Reason.LOAD_TOO_DEAR: ("the price is too high while the weights are far", "raise --max-price, or wait: they may come"),
    Reason.MEMORY_TOO_SMALL: ("the GPU is too small for the model at this shape", "a smaller --size, --frames or --batch, or larger GPUs"),
    Reason.MEMORY_BUSY: ("the memory is held by replicas at work", "wait: it is looked at again when one of them is idle"),
    Reason.PRECISION_UNSUPPORTED: ("the GPU cannot compute in this precision", "another --precision, or newer GPUs"),
    Reason.GANG_TOO_LARGE: ("its nodes have fewer GPUs than the job wants at once", "a smaller gang, or larger nodes"),
    Reason.DISK_TOO_SMALL: ("the weights do not fit on the disk of a node", "free or enlarge the model cache of its nodes"),
    Reason.WEIGHTS_UNAVAILABLE: ("the weights cannot be had there", "put them in the origin store: atoll models add FOLDER"),
    Reason.SIMULATED_SITE: ("a twin: it only rehearses", "real work needs real sites; --simulated makes the job a rehearsal"),
    Reason.REAL_SITE: ("a real site: it runs no rehearsals", "start twins with 'atoll rehearse', or submit without --simulated"),
    Reason.RECENT_FAILURE: ("this job failed there a moment ago", "wait: it may be tried there again later"),
    Reason.NO_SLOT: ("every slot has all the work that may be bound to it", "wait: the job goes there when a slot is free"),
}


def meaning(reason: str) -> str:
    """What is so."""
    known = _known(reason)
    return known[0] if known else reason.replace("_", " ")


def remedy(reason: str) -> str:
    """What would have to change; "" when this version does not know."""
    known = _known(reason)
    return known[1] if known else ""


def _known(reason: str) -> tuple[str, str] | None:
    try:
        return REASONS.get(Reason(reason))
    except ValueError:
        return None
