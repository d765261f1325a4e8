"""What people's clocks say.

Written beside lines of the audit, for those who read them, and beside demand, which decays by it. Nothing is decided by it.
"""

from __future__ import annotations

import time

from atoll.model.limits import WALL_MS_MAX


def wall_ms() -> int:
    """Milliseconds since 1970, as far as anybody knows."""
    return min(max(time.time_ns() // 1_000_000, 0), WALL_MS_MAX)
