"""From what was configured to a store that nobody has taken over yet.

Decides where the embedded one lies. Must not know who leads.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import structlog

from atoll.model.orchestrators import Introduction
from orchestrator.api.auth import is_loopback
from orchestrator.store.base import Store
from orchestrator.store.etcd.store import EtcdStore
from orchestrator.store.etcd.target import EtcdTarget
from orchestrator.store.sqlite import SqliteStore

_log = structlog.get_logger(__name__)

STORE_FILE: Final = "atoll.sqlite"


def open_store(data_dir: Path, target: EtcdTarget | None, *, quota_bytes: int, me: Introduction = Introduction()) -> Store:
    """The store in this etcd, or (None) the embedded one in this folder. Nothing is asked or made yet. `me` is told to others there."""
    if target is None:
        return SqliteStore(data_dir / STORE_FILE)
    if target.password and target.tls is None and not all(is_loopback(member.host) for member in target.members):
        _log.warning("store_password_without_tls", store=str(target), advice="give --store-ca: whoever listens between can read it")
    return EtcdStore(target, quota_bytes=quota_bytes, me=me)
