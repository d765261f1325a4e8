"""Ids and secrets that this process makes: job ids that sort by time, join tokens and credentials.

Decides their form. The only place of the orchestrator that asks for chance.
"""

from __future__ import annotations

import secrets
from base64 import b32hexencode
from functools import lru_cache
from hashlib import sha256
from typing import Final

from atoll.model.ids import JobId

# Base 32 with digits before letters: in ASCII order, so that ids sort as their numbers do.
_ALPHABET: Final = "0123456789abcdefghijklmnopqrstuv"
_TIME_DIGITS: Final = 10  # 50 bits of milliseconds: 35,000 years of fleet time
_CHANCE_BYTES: Final = 10  # 80 bits, 16 digits: two ids of one millisecond never meet
_SECRET_BYTES: Final = 32


@lru_cache(maxsize=4)
def _time_digits(now_ms: int) -> str:
    digits = [_ALPHABET[(now_ms >> shift) & 31] for shift in range(5 * (_TIME_DIGITS - 1), -1, -5)]
    return "".join(digits)


def new_job_id(now_us: int) -> JobId:
    """A legal name that no job has; later ones sort after those of an earlier millisecond."""
    chance = b32hexencode(secrets.token_bytes(_CHANCE_BYTES)).decode().lower()
    return JobId(f"j-{_time_digits(now_us // 1_000)}{chance}")


def new_secret(prefix: str) -> str:
    """A token nobody guesses; the prefix tells a person, and a scanner for leaked secrets, what it is."""
    return f"{prefix}_{secrets.token_urlsafe(_SECRET_BYTES)}"


def digest_of(secret: str) -> str:
    """What is stored of a secret: sha256, hex. Without salt: these are random, not chosen by people."""
    return sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()
