"""Ids and secrets that this process makes: job ids that sort by time, join tokens and credentials.

Decides their form. The only place of the orchestrator that asks for chance.
"""

from __future__ import annotations

import secrets
from hashlib import sha256
from typing import Final

from atoll.model.ids import JobId

# Crockford's alphabet in lower case: in ASCII order, and without letters that look like digits.
_ALPHABET: Final = "0123456789abcdefghjkmnpqrstvwxyz"
_TIME_DIGITS: Final = 10  # 50 bits of milliseconds: 35,000 years of fleet time
_CHANCE_DIGITS: Final = 16  # 80 bits: two ids of one millisecond never meet
_SECRET_BYTES: Final = 32


def _base32(number: int, digits: int) -> str:
    found = []
    for _ in range(digits):
        found.append(_ALPHABET[number & 31])
        number >>= 5
    return "".join(reversed(found))


def new_job_id(now_us: int) -> JobId:
    """A legal name that no job has; later ones sort after those of an earlier millisecond."""
    chance = int.from_bytes(secrets.token_bytes(_CHANCE_DIGITS * 5 // 8))
    return JobId(f"j-{_base32(now_us // 1_000, _TIME_DIGITS)}{_base32(chance, _CHANCE_DIGITS)}")


def new_secret(prefix: str) -> str:
    """A token nobody guesses; the prefix tells a person, and a scanner for leaked secrets, what it is."""
    return f"{prefix}_{secrets.token_urlsafe(_SECRET_BYTES)}"


def digest_of(secret: str) -> str:
    """What is stored of a secret: sha256, hex. Without salt: these are random, not chosen by people."""
    return sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()
