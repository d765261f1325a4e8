"""Which records can be read, by the name that `--from` takes."""

from __future__ import annotations

from typing import Final

from sims.traces.loaders.arrivals import AZURE, SERVEGEN
from sims.traces.loaders.clusters import MOONCAKE, OPENB, PHILLY
from sims.traces.loaders.diffusion import DIFFUSION

LOADERS: Final = {loader.name: loader for loader in (DIFFUSION, AZURE, SERVEGEN, MOONCAKE, OPENB, PHILLY)}
