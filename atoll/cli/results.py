"""Where results are put: found to be possible before a job is submitted, which may cost an hour and money.

Decides whether a path will do. What is missing of its folders is made when there is something to put there.
"""

from __future__ import annotations

import os
from pathlib import Path

from atoll.model.errors import FieldError


def place_of(option: str, text: str, jobs: int = 1) -> Path:
    """The path, if a result can be put there: a folder, or a file in one that is there or can be made. FieldError otherwise."""
    path = Path(text).expanduser()
    if not text.strip() or "\x00" in text:
        raise FieldError(option, text, "a file, or a folder for all files")
    folder = path if path.is_dir() or text.endswith(os.sep) else path.parent
    above = next(one for one in (folder, *folder.absolute().parents) if one.exists())
    if not above.is_dir():
        raise FieldError(option, text, f"a path below a folder: {above} is a file")
    if not os.access(above, os.W_OK | os.X_OK):
        raise FieldError(option, text, f"a folder that you may write to: {above} is not")
    if path.is_file() and jobs == 1 and not os.access(path, os.W_OK):
        raise FieldError(option, text, "a file that you may write to, or a new one")
    if text.endswith(os.sep):
        folder.mkdir(parents=True, exist_ok=True)  # as a folder it is meant, and nothing else says so later
    return path


def make_folder(path: Path) -> None:
    """Make what is missing of the folders above a file."""
    if not path.is_dir():
        path.parent.mkdir(parents=True, exist_ok=True)
