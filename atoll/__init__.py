"""Atoll: many islands of GPUs, one lagoon.

What everyone shares and what users import. Decides nothing itself; the sub-packages say what each may know.
"""

from __future__ import annotations

__version__ = "0.1.0"
