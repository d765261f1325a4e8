"""The truth of twins and of the simulated world: what physics predicts, times factors that no estimator is told.

Were truth equal to the prior, every prediction would be right by construction and no result would mean anything. So each site is better or
worse than its data sheets in each component, each model runs better or worse on a GPU type than its FLOPs say, loads have two modes, and no
two attempts are alike. Every factor is a hash of (seed, what it belongs to): the order of questions changes no answer, and two worlds with
one seed are one world. Pure. Only those who act out a world may use it; the orchestrator never does.
"""

from __future__ import annotations

import math
from hashlib import blake2b
from typing import Final

from atoll.model.gpu import GpuType
from atoll.model.ids import SiteId
from atoll.model.modelspec import ModelSpec
from atoll.model.shape import Precision, Shape
from atoll.physics.coldstart import init_us as prior_init_us
from atoll.physics.coldstart import stage_us as prior_stage_us
from atoll.physics.coldstart import transfer_us
from atoll.physics.execution import execution_us as prior_execution_us

# exp(0.3): one site in six is a third slower than its figures, or worse. Below it learning has nothing to find.
SIGMA_MIN: Final = 0.3
# Beyond it factors of twenty are common, which no operator would leave unrepaired.
_SIGMA_MAX: Final = 1.0
# Repeated runs of one generation on one machine differ by a few per cent.
_NOISE_SIGMA: Final = 0.05
# Share of the site's spread with which a model departs from its FLOPs on a GPU type.
_MODEL_SHARE: Final = 0.5
# Beyond three standard deviations a factor is a broken machine, and those are the business of faults.
_Z_MAX: Final = 3.0
# Of production loads of base models a third take under 4 s and most of the others 20 to 45 s: a ratio near ten. The weights are in the page
# cache, or they are not. fast / 3 + slow x 2 / 3 = 1, so that the mean over loads is what the site's rates say.
_FAST_PPM: Final = 142_857
_SLOW_PPM: Final = 1_428_571
_FAST_OF: Final = 3
_ONE_PPM: Final = 1_000_000


class HiddenWorld:
    """Durations in microseconds of one world. `key` names the attempt or load: the same key always takes the same time.

    Raises ValueError for a `sigma` (spread of a site's factors in log space) below 0.3 or above 1.
    """

    def __init__(self, seed: int, sigma: float = SIGMA_MIN) -> None:
        if not SIGMA_MIN <= sigma <= _SIGMA_MAX:
            raise ValueError(f"sigma is {sigma}: expected {SIGMA_MIN} to {_SIGMA_MAX}; a truth closer to the prior proves nothing")
        self._seed = seed
        self._sigma = sigma
        # What was hashed before; as many entries as there are sites and pairs of model and GPU type.
        self._lasting: dict[tuple[str, ...], int] = {}

    def execution_us(self, model: ModelSpec, shape: Shape, gpu: GpuType, precision: Precision, site_id: SiteId, key: str) -> int:
        """To execute a job on one GPU."""
        us = prior_execution_us(model, shape, gpu, precision)
        fit_ppm = self._lasting_ppm(_MODEL_SHARE, "fit", model.model_id, gpu.gpu_type)
        return self._taken(us * fit_ppm // _ONE_PPM, site_id, "execution", key)

    def stage_us(self, model: ModelSpec, disk_bytes_per_s: int, h2d_bytes_per_s: int, from_host: bool, site_id: SiteId, key: str) -> int:
        """From disk or host memory into the GPU. From disk there are two modes."""
        us = prior_stage_us(model, disk_bytes_per_s, h2d_bytes_per_s, from_host)
        if not from_host:
            fast = self._hashed("mode", site_id, model.model_id, key)[0] % _FAST_OF == 0
            us = us * (_FAST_PPM if fast else _SLOW_PPM) // _ONE_PPM
        return self._taken(us, site_id, "stage", f"{model.model_id}/{key}")

    def init_us(self, model: ModelSpec, site_id: SiteId, key: str) -> int:
        """To build the pipeline in a warm process."""
        return self._taken(prior_init_us(model), site_id, "init", f"{model.model_id}/{key}")

    def fetch_us(self, size_bytes: int, bytes_per_s: int, rtt_us: int, site_id: SiteId, key: str) -> int:
        """To move bytes over a link to the site."""
        return self._taken(transfer_us(size_bytes, bytes_per_s, rtt_us), site_id, "fetch", key)

    def site_ppm(self, site_id: SiteId, component: str) -> int:
        """A site's lasting factor in a component, in millionths: for reports on how well it was learned."""
        return self._lasting_ppm(1.0, "site", site_id, component)

    def _taken(self, us: int, site_id: SiteId, component: str, key: str) -> int:
        if us <= 0:
            return 0
        noise_ppm = self._drawn_ppm(_NOISE_SIGMA, "noise", site_id, component, key)
        return max(us * self.site_ppm(site_id, component) // _ONE_PPM * noise_ppm // _ONE_PPM, 1)

    def _lasting_ppm(self, share: float, *what: str) -> int:
        found = self._lasting.get(what)
        if found is None:
            found = self._lasting[what] = self._drawn_ppm(self._sigma * share, *what)
        return found

    def _drawn_ppm(self, sigma: float, *what: str) -> int:
        """A log-normal factor of mean 1, quantised so that machines whose libraries round differently agree."""
        first, second = self._hashed(*what)
        # Box and Muller, with the first in (0, 1].
        radius = math.sqrt(-2.0 * math.log((first + 1) / 2**64))
        z = max(-_Z_MAX, min(_Z_MAX, radius * math.cos(2.0 * math.pi * second / 2**64)))
        return round(math.exp(sigma * z - sigma * sigma / 2.0) * _ONE_PPM)

    def _hashed(self, *what: str) -> tuple[int, int]:
        # Lengths keep ("a", "bc") and ("ab", "c") apart.
        text = "".join(f"{len(part)}:{part}" for part in (str(self._seed), *what))
        digest = blake2b(text.encode(), digest_size=16).digest()
        return int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")
