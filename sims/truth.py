"""How long things really take in the simulated world: the physics of the catalogue times hidden factors of each site.

Decides durations. The estimator never sees the factors; were truth equal to the prior, every prediction would be right by construction.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from atoll.model.gpu import GpuType
from atoll.model.ids import GpuTypeId, PoolId, SiteId
from atoll.model.job import JobSpec
from atoll.model.modelspec import ModelSpec
from atoll.model.site import PoolSpec
