"""Where a demo keeps what it makes.

    out/                  the pictures
    out/.fleet/models     starter models: the origin store; kept from run to run
    out/.fleet/cache      weights as the real sites fetched them; kept from run to run
    out/.fleet/run        stores and state of this run; wiped when the next one starts
    out/.fleet/logs       one log for each program of this run; wiped likewise

Decides names, what is kept, and that one demo at a time uses a folder.
"""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from atoll.cli.exits import CliError, Exit

PICTURES: Final = (".png", ".mp4")
OUT: Final = Path("out")


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """The folders of one demo; absolute paths."""

    out: Path

    @property
    def fleet(self) -> Path:
        """Everything but the pictures."""
        return self.out / ".fleet"

    @property
    def models(self) -> Path:
        """The origin store."""
        return self.fleet / "models"

    @property
    def run(self) -> Path:
        """State of the programs."""
        return self.fleet / "run"

    @property
    def logs(self) -> Path:
        """What the programs say."""
        return self.fleet / "logs"

    def cache(self, site: str) -> Path:
        """The disk tier of a real site."""
        return self.fleet / "cache" / site

    def shown(self, path: Path) -> str:
        """A path as a person would type it here."""
        try:
            return str(path.relative_to(Path.cwd()))
        except ValueError:
            return str(path)

    def prepare(self) -> None:
        """Make the folders; what an earlier run left of its state goes."""
        for folder in (self.run, self.logs):
            shutil.rmtree(folder, ignore_errors=True)
        for folder in (self.run, self.logs, self.models):
            folder.mkdir(parents=True, exist_ok=True)

    def pictures(self) -> list[Path]:
        """The pictures there are, by name."""
        if not self.out.is_dir():
            return []
        return sorted(path for path in self.out.iterdir() if path.suffix in PICTURES and not path.name.startswith(".") and path.is_file())


@contextmanager
def held(places: Places) -> Iterator[None]:
    """The folder for this demo alone. CliError when another one uses it, or when it cannot be written."""
    try:
        places.fleet.mkdir(parents=True, exist_ok=True)
        lock = (places.fleet / "lock").open("w")
    except OSError as error:
        raise CliError(f"cannot write below {places.out}: {error.strerror or error}") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise CliError(f"another demo is using {places.out}: expected one at a time", code=Exit.CONFLICT) from None
        yield
