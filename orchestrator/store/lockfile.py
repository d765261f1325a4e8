"""One process per store: a file beside it that the kernel locks for its holder and frees when the holder is gone, however it went.

Decides who may open an embedded store. The term in the store guards each write besides: a lock on a network file system may lie.
"""

from __future__ import annotations

import fcntl
import os
import socket

from orchestrator.store.base import HeldError


class LockFile:
    """The lock of the store at `path`, not yet taken."""

    __slots__ = ("_fd", "_path")

    def __init__(self, path: str) -> None:
        self._path = path
        self._fd: int | None = None

    def acquire(self) -> None:
        """Take the lock, or keep it. HeldError naming the holder when another one has it; OSError when the file cannot be made."""
        if self._fd is not None:
            return
        # Never deleted: a lock on a file that is gone would exclude nobody.
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(fd, 200, 0).decode("ascii", "replace").strip() or "another process"
            os.close(fd)
            raise HeldError(f"the store is in use by {holder} ({self._path}): one orchestrator at a time may hold it") from None
        except OSError:
            os.close(fd)
            raise
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"pid {os.getpid()} on {socket.gethostname()}\n".encode("ascii", "replace"), 0)
        self._fd = fd

    def release(self) -> None:
        """Give it back, if held."""
        if self._fd is not None:
            os.ftruncate(self._fd, 0)
            os.close(self._fd)
            self._fd = None
