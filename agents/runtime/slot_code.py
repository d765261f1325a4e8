"""Compiled code as a slot's process uses it: the folder of the form that an attempt needs, and what becomes of it afterwards.

Decides when code is taken from the fleet's shelf and when it is put there. Neither ever fails an attempt: code that cannot be had is made,
and code that cannot be shared stays on its node. Runs in the slot's one thread. Must not know how code is made, nor which attempt comes
next.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from agents.compiled_files import BadCodeError, CodeFiles
from agents.compiled_shelf import CodeShelf
from agents.engine.errors import EngineError
from agents.objects import StoreError
from atoll.model.compiled import Environment, artifact_key
from atoll.model.errors import FieldError
from atoll.model.ids import FormId

_TROUBLE: Final = (BadCodeError, EngineError, StoreError, FieldError, OSError)

Say = Callable[[str], None]


class SlotCode:
    """The code of one slot's node. `shared`: code of other sites of the fleet is executed here, and theirs may execute this."""

    def __init__(self, files: CodeFiles, environment: Environment, *, shared: bool) -> None:
        self._files = files
        self._environment = environment
        self._shared = shared
        self._fresh: FormId | None = None

    @property
    def forms(self) -> tuple[FormId, ...]:
        """Forms whose code is on the node's disk."""
        return self._files.held(self._environment)

    def prepare(self, form: FormId, artifacts_url: str, say: Say) -> Path:
        """The folder for the code of a form, with what this node or, if shared, the fleet has of it."""
        key = artifact_key(form, self._environment)
        if self._files.use(key):
            say(f"code {key} is on this disk")
        elif self._shared:
            try:
                with tempfile.TemporaryDirectory(prefix="atoll-code-") as folder:
                    packed = Path(folder) / "code.tar"
                    if CodeShelf(artifacts_url).get(key, packed):
                        self._files.unpack(key, form, packed)
                        say(f"code {key} comes from the artifact store")
            except _TROUBLE as error:
                say(f"code {key} cannot be taken over and is made here: {error}")
        return self._files.folder(key)

    def made(self, form: FormId) -> None:
        """A generation ran by the code of this form: it is complete."""
        key = artifact_key(form, self._environment)
        if not self._files.use(key):
            try:
                self._files.complete(key, form)
                self._files.make_room(key)
            except OSError:
                return  # a full disk: the next attempt makes it again
            self._fresh = form

    def share(self, artifacts_url: str) -> str:
        """After an attempt: offer to the fleet what it made. What went wrong, "" if nothing did."""
        fresh, self._fresh = self._fresh, None
        if fresh is None or not self._shared:
            return ""
        key = artifact_key(fresh, self._environment)
        try:
            with tempfile.TemporaryDirectory(prefix="atoll-code-") as folder:
                packed = Path(folder) / "code.tar"
                self._files.pack(key, packed)
                CodeShelf(artifacts_url).put(key, packed, time.time_ns() // 1_000)
        except _TROUBLE as error:
            return f"code {key} stays on this node: {error}"
        return ""
