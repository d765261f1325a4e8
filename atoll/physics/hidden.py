"""How long things really take where nothing real runs: physics times hidden factors of each site, drawn from a seed.

Decides the truth of twins and of simulated worlds. No orchestrator may import it: an estimator that could see these factors
would be right by construction, and no reported result may have truth equal to the prior.

Everything is a function of its arguments and the seeds: the order of calls, other sites and other attempts change nothing.
"""

from __future__ import annotations

import math
from hashlib import blake2b
from typing import Final

from atoll.model.adapter import AdapterSpec
from atoll.model.errors import FieldError
from atoll.model.gpu import GpuType
from atoll.model.ids import SiteId
from atoll.model.modelspec import ModelSpec
from atoll.model.shape import Precision, Shape
from atoll.physics import coldstart, execution

# Below this a world is so close to the prior that estimating it proves nothing.
SIGMA_MIN: Final = 0.3
# One site in six would be e^1 = 2.7 times slower than the prior; beyond that it is no calibration error any more.
SIGMA_MAX: Final = 1.0
# Beyond three standard deviations a machine is broken, and those are the business of faults.
_Z_MAX: Final = 3.0
# Share of the spread with which a model departs from its FLOPs on a GPU type, at every site alike: kernels suit it or do not.
_FIT_SHARE: Final = 0.5
# Spread of one attempt around its site's own level: GPUs repeat themselves, networks do not.
_EXECUTION_NOISE: Final = 0.06
_STAGE_NOISE: Final = 0.15
_INIT_NOISE: Final = 0.15
_FETCH_NOISE: Final = 0.20
# Loads have two modes. Of 7,531 base-model loads in production a third took under 4 s, most 20-45 s (medians of the two
# about 3 s and 35 s). Part of that is size; a ratio of 8 is left, placed so that the mean of the logarithm is 0:
# a third at 1/4, two thirds at 2. In thousandths, all three equally likely.
MODES_MILLI: Final = (250, 2_000, 2_000)


class HiddenWorld:
    """The truth of one world. `sigma` is the spread of a site's factors in log space, per component.

    `noise_seed`: of what differs from attempt to attempt; None: the world's own. Worlds of one seed and of different noise have the same
    sites and models, and no two attempts alike.

    `key` names the attempt (any text that differs between attempts): its noise, and for loads its mode, hang on it.
    """

    __slots__ = ("_factors", "_noise_seed", "_seed", "_sigma")

    def __init__(self, seed: int, sigma: float = 0.35, *, noise_seed: int | None = None) -> None:
        """FieldError unless `sigma` is a number from SIGMA_MIN to SIGMA_MAX."""
        if not isinstance(sigma, int | float) or isinstance(sigma, bool) or not SIGMA_MIN <= sigma <= SIGMA_MAX:
            raise FieldError("sigma", sigma, f"a number from {SIGMA_MIN} to {SIGMA_MAX}")
        self._seed = seed
        self._noise_seed = seed if noise_seed is None else noise_seed
        self._sigma = float(sigma)
        # What was hashed before: an entry for each site's component, and for each model on each GPU type.
        self._factors: dict[tuple[str, ...], int] = {}

    def execution_us(
        self, model: ModelSpec, shape: Shape, gpu: GpuType, precision: Precision, site_id: SiteId, key: str, *, gang_size: int = 1
    ) -> int:
        """Microseconds of execution on so many GPUs of one node of the site."""
        prior = execution.execution_us(model, shape, gpu, precision, gang_size=gang_size)
        return self._true(prior * self.fit_milli(model, gpu) // 1_000, site_id, "execution", key, _EXECUTION_NOISE)

    def fetch_us(self, size_bytes: int, bytes_per_s: int, rtt_us: int, site_id: SiteId, key: str) -> int:
        """Microseconds to fetch bytes to a node of the site; two modes."""
        prior = coldstart.transfer_us(size_bytes, bytes_per_s, rtt_us)
        return self._true(prior * self.mode_milli("fetch", site_id, key) // 1_000, site_id, "fetch", key, _FETCH_NOISE)

    def stage_us(self, model: ModelSpec, disk_bytes_per_s: int, h2d_bytes_per_s: int, from_host: bool, site_id: SiteId, key: str) -> int:
        """Microseconds to bring weights into a GPU of the site; two modes from disk, one from host memory."""
        prior = coldstart.stage_us(model, disk_bytes_per_s, h2d_bytes_per_s, from_host)
        if not from_host:
            prior = prior * self.mode_milli("stage", site_id, key) // 1_000
        return self._true(prior, site_id, "stage", key, _STAGE_NOISE)

    def init_us(self, model: ModelSpec, site_id: SiteId, key: str) -> int:
        """Microseconds to build the pipeline at the site."""
        return self._true(coldstart.init_us(model), site_id, "init", key, _INIT_NOISE)

    def first_generation_us(self, site_id: SiteId, key: str) -> int:
        """Microseconds that the first generation of a process takes beyond the next."""
        return self._true(coldstart.first_generation_us(), site_id, "init", f"{key}/first", _INIT_NOISE)

    def patch_us(self, adapter: AdapterSpec, site_id: SiteId, key: str) -> int:
        """Microseconds to put an adapter from a node's disk onto a resident replica at the site."""
        return self._true(coldstart.patch_us(adapter), site_id, "adapt", key, _INIT_NOISE)

    def compile_us(self, model: ModelSpec, gpu: GpuType, site_id: SiteId, key: str) -> int:
        """Microseconds to compile a model for a shape at the site."""
        return self._true(coldstart.compile_us(model, gpu), site_id, "compile", key, _INIT_NOISE)

    def artifact_load_us(self, model: ModelSpec, gpu: GpuType, site_id: SiteId, key: str) -> int:
        """Microseconds until a fresh replica runs code that its node holds."""
        return self._true(coldstart.artifact_load_us(model, gpu), site_id, "compile", key, _INIT_NOISE)

    def factor_milli(self, component: str, site_id: SiteId) -> int:
        """The site's lasting factor for a component (`execution`, `fetch`, `stage`, `init`, `adapt` or `compile`), in thousandths."""
        return self._lasting(self._sigma, "site", component, site_id)

    def fit_milli(self, model: ModelSpec, gpu: GpuType) -> int:
        """The lasting factor of a model's execution on a GPU type, in thousandths."""
        return self._lasting(self._sigma * _FIT_SHARE, "fit", model.model_id, gpu.gpu_type)

    def mode_milli(self, component: str, site_id: SiteId, key: str) -> int:
        """The factor of the mode that a load of this attempt falls into, in thousandths."""
        first, _ = _draw(self._noise_seed, "mode", component, site_id, key)
        return MODES_MILLI[first % len(MODES_MILLI)]

    def _lasting(self, sigma: float, *names: str) -> int:
        known = self._factors.get(names)
        if known is None:
            known = self._factors[names] = _log_normal_milli(_draw(self._seed, *names), sigma)
        return known

    def _true(self, prior_us: int, site_id: SiteId, component: str, key: str, noise: float) -> int:
        attempt_milli = _log_normal_milli(_draw(self._noise_seed, "attempt", component, site_id, key), noise)
        return max(prior_us * self.factor_milli(component, site_id) * attempt_milli // 1_000_000, 1)


def _draw(seed: int, *names: str) -> tuple[int, int]:
    """Two uniform 64-bit numbers that belong to these names alone (each is written with its length, so none runs into the next)."""
    text = "".join(f"{len(name)}:{name}" for name in (str(seed), *names))
    digest = blake2b(text.encode(), digest_size=16).digest()
    return int.from_bytes(digest[:8], "big"), int.from_bytes(digest[8:], "big")


def _log_normal_milli(draw: tuple[int, int], sigma: float) -> int:
    """exp(sigma x normal) in thousandths, by Box and Muller; rounded, so that the last bit of a libm cannot be seen. At least 1."""
    radius = math.sqrt(-2.0 * math.log((draw[0] + 1) / (2**64 + 1)))
    normal = radius * math.cos(2.0 * math.pi * draw[1] / 2**64)
    return max(round(1_000 * math.exp(sigma * min(max(normal, -_Z_MAX), _Z_MAX))), 1)
