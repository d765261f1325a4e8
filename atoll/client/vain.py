"""Jobs that wait in vain: no site of the fleet can ever run them as they are.

Decides when whoever waits for a job is warned. A warning, not an error: the job is accepted, and a site that can run it may be added.
"""

from __future__ import annotations

import warnings

from atoll.model.job import Job
from atoll.model.placement import MEANINGS


class NeverRunsWarning(UserWarning):
    """No site of the fleet can ever run a job as it is. `warnings.simplefilter("error", NeverRunsWarning)` makes it an exception."""


def warn_if_in_vain(job: Job) -> None:
    """NeverRunsWarning, with the reasons, where a job waits in vain."""
    if job.deferral is None or not job.waits_in_vain:
        return
    ordered = sorted(job.deferral.rejections, key=lambda one: (-one.pools, one.reason.value))
    why = ", ".join(f"{MEANINGS[one.reason]} ({one.pools} {'pool' if one.pools == 1 else 'pools'})" for one in ordered)
    message = f"job {job.job_id} waits in vain, no site of the fleet can ever run it as it is: {why}"
    # Said of the line that waits: above it are the method that waits and this function.
    warnings.warn(message, NeverRunsWarning, stacklevel=4)
