"""How often this process looks for cycles of garbage.

Decides that alone. The state is a tree of live objects, and what a step leaves behind is freed by counting; cycles are left by exceptions
and by closed streams. Looking each 700 new objects, as Python does unless told otherwise, took a twelfth of the core's time and found
little.
"""

from __future__ import annotations

import gc
from typing import Final

# New objects until the youngest are looked at: those of some 50 steps. What a cycle can hold until then is a few megabytes.
_YOUNG: Final = 50_000
_MIDDLE: Final = 20
_OLD: Final = 20


def look_less_often() -> None:
    """Once, when the process begins to serve. What it has loaded until then stays, and is not looked at again."""
    gc.freeze()
    gc.set_threshold(_YOUNG, _MIDDLE, _OLD)
