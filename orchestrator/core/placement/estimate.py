"""What a class of jobs costs at each pool, as far as it does not change from one decision to the next.

Decides nothing; keeps the answer while the fleet's `version` and what was learned of the model stand.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final, TypeVar

import numpy as np

from atoll.model import limits
from atoll.model.adapter import AdapterSpec
from atoll.model.compiled import needed_form
from atoll.model.ids import AdapterId, FormId, SiteId
from atoll.model.learned import Component
from atoll.model.modelspec import ModelSpec
from atoll.model.placement import TooSmall
from atoll.model.site import LinkSpec
from atoll.physics.coldstart import artifact_load_us, compile_us, first_generation_us, init_us
from atoll.physics.memory import peak_bytes
from orchestrator.core.learning.factors import Factors, PoolFactors
from orchestrator.core.placement.adapting import AdapterWays, Adapting, adapting
from orchestrator.core.placement.classes import ClassKey, Variant
from orchestrator.core.placement.columns import Columns
from orchestrator.core.placement.filters import Filters, predicted, too_small_for
from orchestrator.core.placement.inputs import Inputs
from orchestrator.core.placement.nothing import Nothing
from orchestrator.core.placement.policy import Policy
from orchestrator.core.placement.registry import EXECUTION, OUTPUT, Still, still
from orchestrator.core.placement.rows import BARE, COLD, FETCH_MAX_US, NO_BUDGET, READY, Bools, Fix, Ints
from orchestrator.core.placement.sets import transfer_us
from orchestrator.core.placement.sources import Sources, Ways
from orchestrator.core.placement.standing import Executions, Standing, Standings
from orchestrator.core.placement.terms import init, money, risk

# Estimates kept, in bytes: 15 KB a class at 36 sites, 1.5 MB at 3,600. Beyond it the oldest is computed again when asked for.
_KEPT_BYTES: Final = 256 * 1024 * 1024
_KEPT_MIN: Final = 64
# Sets of adapters whose figures are kept, by the ways of each: 2 KB at 36 sites. A set that is made anew has its tables made anew too.
_SETS_KEPT: Final = 256
Array = TypeVar("Array", Ints, Bools)
_DELAYS: Final = frozenset({"input", "stage", "init", "adapt", "compile", "execution", "output"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """Per pool `codes` of static rejection (0: feasible); `fix` per row as `rows.Fix` says. Microseconds, bytes. One that is `barren` is of
    a class that no pool can run whatever is predicted: nothing is, and all its tables are of zeros."""

    version: int
    learned: int  # version of the corrections
    form: FormId | None  # of the code that the class needs, None where it runs eager; and the version of who holds it
    code: int
    model: ModelSpec
    variant: Variant
    codes: Ints
    barren: bool
    memory_bytes: int
    too_small: TooSmall | None  # None: no GPU is
    standing: Standing | None  # None: barren
    still: Still
    fix: Ints
    ways: Ways  # where the weights come from
    adapting: Adapting | None  # what bringing the class's adapters takes; None: it has none
    adapters_held: tuple[int, ...]  # versions of who can give the class's adapters
    execution_us: Ints
    output_us: Ints
    unpriced_us: Ints  # time that passes although the policy's terms leave it out
    egress_usd_micros: Ints


class Estimator:
    """Estimates by class, computed when first asked for."""

    __slots__ = (
        "_adapters",
        "_adaptings",
        "_columns",
        "_estimates",
        "_factors",
        "_nothing",
        "_policy",
        "_sources",
        "_standings",
        "filters",
    )

    def __init__(
        self,
        columns: Columns,
        policy: Policy,
        links: Mapping[tuple[SiteId, SiteId], LinkSpec],
        adapters: Mapping[AdapterId, AdapterSpec],
        factors: PoolFactors,
    ) -> None:
        self._adapters = adapters
        self._adaptings: dict[tuple[AdapterId, ...], Adapting] = {}
        self._factors = factors
        self._columns = columns
        self._policy = policy
        self._sources = Sources(columns, policy, links, factors)
        self.filters = Filters(columns)
        self._estimates: dict[ClassKey, Estimate] = {}
        self._nothing = Nothing(0)
        self._standings = Standings(columns, links)

    def forget(self) -> None:
        """Links changed: compute everything again when asked."""
        self._estimates.clear()
        self._adaptings.clear()
        self._sources.forget()
        self._standings.forget()

    def of(self, key: ClassKey, model: ModelSpec) -> Estimate:
        """The estimate of this class for the fleet as it is."""
        known = self._estimates.get(key)
        learned = self._factors.version_of(model.model_id)
        if (
            known is not None
            and known.version == self._columns.version
            and known.learned == learned
            and known.model is model
            and (known.form is None or known.code == self._columns.code.version(known.form))
        ):
            if known.barren or (
                known.ways.held == self._columns.peers.version(model.model_id) and known.adapters_held == self._adapters_held(key)
            ):
                return known
            if known.adapters_held == self._adapters_held(key):
                known = self._estimates[key] = self._refetched(key, model, known)
                return known
        estimate = self._compute(key, model, known)
        kept = max(_KEPT_BYTES // max(3 * estimate.fix.nbytes, 1), _KEPT_MIN)
        while len(self._estimates) >= kept:
            del self._estimates[next(iter(self._estimates))]
        self._estimates[key] = estimate
        return estimate

    def _refetched(self, key: ClassKey, model: ModelSpec, known: Estimate) -> Estimate:
        """Other sites can give the model than before: nothing else of what it costs has changed."""
        ways, fix = self._sources.of(model), known.fix
        if ways.peers is not None or known.ways.peers is not None:
            fix = fix.copy()
            self._fetching(fix, ways, self._policy.weight_milli(key.priority))
        return replace(known, ways=ways, fix=fix)

    def _compute(self, key: ClassKey, model: ModelSpec, known: Estimate | None) -> Estimate:
        columns = self._columns
        adapters = (self._adapters.get(adapter_id) for adapter_id in key.adapters)
        adapters_bytes = sum(adapter.weights_bytes for adapter in adapters if adapter is not None)
        memory = min(model.resident_bytes + adapters_bytes + peak_bytes(model, key.shape), limits.NEEDED_BYTES_MAX)
        codes = self.filters.standing(key, model, memory)
        too_small = too_small_for(codes, columns, memory, model, adapters_bytes)
        if len(codes) and codes.all():
            return self._barren(key, model, codes, memory, too_small)
        h2d = transfer_us(model.weights_bytes, columns.h2d_rate)
        stage = np.maximum(h2d, transfer_us(model.weights_bytes, columns.disk_rate))
        bringing = self._adapting(key)
        count = len(columns.columns)
        adapt = bringing.all_us if bringing is not None else np.zeros(count, dtype=np.int64)
        standing = self._standings.of(key, model, known.standing if known is not None else None)
        factors = self._factors.of(model.model_id, columns.columns)
        ways = self._sources.of(model, factors)
        form = self._form(key, model)
        inputs = _corrected(self._inputs(key, model, standing, stage, adapt, self._compiling(form, model)), factors)
        host_saving = factors.times(Component.LOAD, stage) - factors.times(Component.LOAD, h2d)
        kinds = len(inputs.cold) // max(count, 1)
        saving_us = np.where(inputs.cold, _rows(host_saving, kinds), inputs.adapt_us)
        least_usd_micros = money.least_usd_micros(inputs, saving_us) + inputs.egress_usd_micros
        least_usd_micros = least_usd_micros.reshape(kinds, count).min(axis=0) if count else least_usd_micros
        codes = predicted(codes, key, least_usd_micros, standing.execution_us)
        most_usd_micros = key.constraints.max_price_usd_micros or NO_BUDGET
        feasible = _rows(codes == 0, kinds)
        told = still(inputs, self._policy.terms)
        whole = still(inputs, _DELAYS) if not self._policy.terms >= _DELAYS else told
        return Estimate(
            version=columns.version,
            learned=self._factors.version_of(model.model_id),
            form=form,
            code=0 if form is None else columns.code.version(form),
            model=model,
            variant=key.variant,
            codes=codes,
            barren=False,
            memory_bytes=memory,
            too_small=too_small,
            standing=standing,
            still=told,
            fix=self._fix(standing, inputs, told, feasible, factors, saving_us, ways, most_usd_micros),
            ways=ways,
            adapting=bringing,
            adapters_held=self._adapters_held(key),
            execution_us=inputs.execution_us,
            output_us=inputs.output_us,
            unpriced_us=whole.serial_us - told.serial_us,
            egress_usd_micros=inputs.egress_usd_micros,
        )

    def _barren(self, key: ClassKey, model: ModelSpec, codes: Ints, memory_bytes: int, too_small: TooSmall | None) -> Estimate:
        """Of a class that no pool can run, as the fleet is."""
        if len(self._nothing.pools) != len(codes):
            self._nothing = Nothing(len(codes))
        nothing = self._nothing
        return Estimate(
            version=self._columns.version,
            learned=self._factors.version_of(model.model_id),
            form=None,
            code=0,
            model=model,
            variant=key.variant,
            codes=codes,
            barren=True,
            memory_bytes=memory_bytes,
            too_small=too_small,
            standing=None,
            still=nothing.still,
            fix=nothing.fix,
            ways=self._sources.of(model),
            adapting=None,
            adapters_held=(),
            execution_us=nothing.rows,
            output_us=nothing.rows,
            unpriced_us=nothing.rows,
            egress_usd_micros=nothing.rows,
        )

    def _adapting(self, key: ClassKey) -> Adapting | None:
        """What bringing the class's adapters takes; the same object as before while nothing of it has changed."""
        if not key.adapters:
            return None
        ways = [self._sources.of_adapter(self._adapters[adapter_id]) for adapter_id in key.adapters if adapter_id in self._adapters]
        known = self._adaptings.pop(key.adapters, None)
        if known is None or len(known.ways) != len(ways) or any(one is not other for one, other in zip(known.ways, ways, strict=True)):
            known = adapting(ways, len(self._columns.columns))
        while len(self._adaptings) >= _SETS_KEPT:
            del self._adaptings[next(iter(self._adaptings))]
        self._adaptings[key.adapters] = known
        return known

    def adapter_ways(self, adapter: AdapterSpec) -> AdapterWays:
        """How long an adapter takes to each pool, and from where."""
        return self._sources.of_adapter(adapter)

    def _adapters_held(self, key: ClassKey) -> tuple[int, ...]:
        return tuple([self._columns.adapter_peers.version(adapter_id) for adapter_id in key.adapters]) if key.adapters else ()

    def _form(self, key: ClassKey, model: ModelSpec) -> FormId | None:
        """What code the class runs; None where it runs eager."""
        known = (self._adapters.get(adapter_id) for adapter_id in key.adapters)
        return needed_form(model, key.shape, key.gang_size, (adapter.rank for adapter in known if adapter is not None))

    def _compiling(self, form: FormId | None, model: ModelSpec) -> tuple[Ints, Ints]:
        """Microseconds per pool until code of the form runs: on a resident replica, and on one that has to be loaded."""
        columns = self._columns
        if form is None:
            none = np.zeros(len(columns.columns), dtype=np.int64)
            return none, none
        held_milli = columns.code.share_milli(form, columns.columns)
        hit_milli = columns.code.reach_milli(form, columns.columns)
        whole, cached = (
            np.array([of(model, gpu) for gpu in columns.gpu_types] or [0], dtype=np.int64)[columns.gpu]
            for of in (compile_us, artifact_load_us)
        )
        ready = (1_000 - hit_milli) * whole // 1_000 + (hit_milli - held_milli) * cached // 1_000
        return ready, ready + held_milli * cached // 1_000

    def _inputs(
        self, key: ClassKey, model: ModelSpec, standing: Standing, stage: Ints, adapt: Ints, compiling: tuple[Ints, Ints]
    ) -> Inputs:
        """All kinds of rows of every pool."""
        columns = self._columns
        count = len(columns.columns)
        kinds = BARE + 1 if key.adapters else COLD + 1
        kind = np.arange(kinds * count) // max(count, 1)
        return Inputs(
            cold=kind == COLD,
            input_us=_rows(standing.input_us, kinds),
            stage_us=_rows(stage, kinds),
            init_us=np.full(kinds * count, init_us(model), dtype=np.int64),
            # A gang has the rows of single jobs, but its resident block is one whatever it lacks: the decision tells how much.
            adapt_us=np.where((kind == READY) & (key.gang_size == 1), 0, _rows(adapt, kinds)),
            compile_us=np.where(kind == COLD, _rows(compiling[1], kinds), _rows(compiling[0], kinds)),
            execution_us=_rows(standing.execution_us, kinds),
            output_us=_rows(standing.output_us, kinds),
            usd_micros_per_hour=_rows(columns.price, kinds),
            egress_usd_micros=_rows(standing.egress_usd_micros, kinds),
            preemptions_per_million_hours=_rows(standing.preemptions_per_million_hours, kinds),
            gang_size=key.gang_size,
            weight_milli=self._policy.weight_milli(key.priority),
            seconds_per_dollar=self._policy.seconds_per_dollar,
            hazard_per_million_hours=self._policy.hazard_per_million_hours,
            fail_ppm=self._policy.load_failure_ppm,
        )

    def _fix(
        self,
        standing: Standing,
        inputs: Inputs,
        known: Still,
        feasible: Bools,
        factors: Factors,
        saving_us: Ints,
        ways: Ways,
        most_usd_micros: int,
    ) -> Ints:
        rows = len(inputs.cold)
        kinds = rows // max(len(self._columns.columns), 1)
        fix = np.zeros((rows, len(Fix)), dtype=np.int64)
        # What was learned of the way to the origin says nothing of that between nodes.
        copy = np.minimum(transfer_us(ways.model.weights_bytes, self._columns.lan_rate), FETCH_MAX_US)
        risky = risk.NAME in self._policy.terms
        first = np.full(len(self._columns.columns), first_generation_us(), dtype=np.int64)
        for column, figures in (
            (Fix.FEASIBLE, feasible),
            (Fix.SERIAL, known.serial_us),
            (Fix.INPUT, known.input_us),
            (Fix.NET, known.price_us),
            (Fix.HAZARD, risk.losses_per_million_hours(inputs) * risky),
            (Fix.FAIL_PPM, risk.failure_ppm(inputs) * risky),
            (Fix.OCCUPANCY, inputs.occupancy_us),
            (Fix.PAY, money.usd_micros_per_hour(inputs)),
            (Fix.BUDGET, most_usd_micros - inputs.egress_usd_micros if most_usd_micros < NO_BUDGET else NO_BUDGET),
            (Fix.COPY, _rows(copy, kinds)),
            (Fix.RELOAD, inputs.loading_us),
            (Fix.SAVING, saving_us),
            (Fix.ADAPT_MILLI, _rows(factors.milli[Component.ADAPT], kinds) if kinds > COLD + 1 else 0),
            (Fix.USD, inputs.usd_micros_per_hour),
            (Fix.HASH, _rows(standing.hashes, kinds)),
            (Fix.FIRST, _rows(factors.times(Component.LOAD, first), kinds) * (init.NAME in self._policy.terms)),
            (Fix.EXECUTION, known.terms[:, EXECUTION] + known.terms[:, OUTPUT]),
        ):
            fix[:, column] = figures
        self._fetching(fix, ways, inputs.weight_milli)
        return fix

    def _fetching(self, fix: Ints, ways: Ways, weight_milli: int) -> None:
        """Fill in the columns that depend on where the weights come from."""
        kinds = len(fix) // max(len(ways.us), 1)
        fix[:, Fix.FETCH] = _rows(ways.us, kinds)
        fix[:, Fix.PEERS] = 0 if ways.peers is None else _rows(np.asarray((ways.peers >= 0).any(axis=1), dtype=np.bool_), kinds)
        fix[:, Fix.CROWD] = _rows(ways.us // weight_milli * 1_000, kinds)
        fix[:, Fix.LEAVING] = _rows(self._sources.price_us(ways) * 1_000 // weight_milli, kinds)

    def executions(self, model: ModelSpec) -> Executions:
        """Of a model in its default shape, without what was learned."""
        return self._standings.executions(model, model.default_shape, model.precision)

    def factors(self, model: ModelSpec) -> Factors:
        """What was learned of the model in each pool."""
        return self._factors.of(model.model_id, self._columns.columns)

    def ways(self, model: ModelSpec) -> Ways:
        """How long the weights of a model take to each pool, and from where."""
        return self._sources.of(model)


def _rows(of_pool: Array, kinds: int) -> Array:
    """What is so per pool, for the rows of all kinds. `np.tile` takes ten times as long."""
    return np.concatenate((of_pool,) * kinds) if kinds else of_pool[:0]


def _corrected(inputs: Inputs, factors: Factors) -> Inputs:
    """The prior times what was learned of it. Staging and building a pipeline are measured, and so corrected, as one."""
    stage, init, adapt, compiling, execution, output = factors.times_each(
        (
            (Component.LOAD, inputs.stage_us),
            (Component.LOAD, inputs.init_us),
            (Component.ADAPT, inputs.adapt_us),
            (Component.COMPILE, inputs.compile_us),
            (Component.EXECUTION, inputs.execution_us),
            (Component.UPLOAD, inputs.output_us),
        )
    )
    return replace(inputs, stage_us=stage, init_us=init, adapt_us=adapt, compile_us=compiling, execution_us=execution, output_us=output)
