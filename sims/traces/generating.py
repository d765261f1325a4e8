"""A made-up trace of a service of generative media: what no record has (hundreds of models, origins, films), with the statistics of one.

Decides when jobs come and in which sessions; who asks, and for what, is drawn by `customers`. The same settings give the same trace.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from random import Random
from typing import Final

from atoll.model.errors import FieldError
from atoll.model.gpu import GpuType
from atoll.model.ids import AdapterId, ModelId, TenantId
from atoll.model.job import Priority
from atoll.model.modelspec import AdapterUse, Modality, ModelSpec
from atoll.model.shape import Shape
from atoll.model.splits import check_gang
from atoll.physics.estimate import predict_us
from atoll.physics.fitted import FITTED
from atoll.physics.terms import Run
from sims.traces.catalogue import Asked, asked_of, base_for, default_shape, kinds_of_ranks, weighted
from sims.traces.customers import Customer, Customers
from sims.traces.job import TraceJob
from sims.traces.metadata import TraceMeta
from sims.traces.popularity import ZIPF_EXPONENT, Popularity, popularity
from sims.traces.variants import variant

# Regions of the reference fleet where people are: share of requests, hours ahead of UTC.
REGIONS: Final = {
    "N. Virginia": (24, -5), "Oregon": (14, -8), "Sao Paulo": (7, -3), "London": (8, 0), "Frankfurt": (13, 1), "Mumbai": (9, 5),
    "Singapore": (10, 8), "Tokyo": (15, 9),
}  # fmt: skip
# Busiest at three in the afternoon, three times the load of the night.
_PEAK_H: Final = 15
_SWING: Final = 0.5
# Of the gaps between the requests of the production trace: their standard deviation is 12 times their mean.
GAP_CV: Final = 12.0
# And half of them are under a fifth of it: within a burst jobs come four times as fast.
_SHORT_GAP: Final = 0.27
# Fitted with it: most sessions are of a job or two, a few of hundreds, and eight take turns where 40 jobs come an hour.
SESSION_TAIL: Final = 1.1
SESSION_JOBS_MAX: Final = 300
SESSIONS_PER_JOB_PER_H: Final = 0.2
_SESSIONS_MIN: Final = 4
# Of films that are made on several GPUs at once so many are on each number of them: eight are a node, which is seldom free.
_GANGS: Final = {2: 5, 4: 3, 8: 2}
_US: Final = 1_000_000
_H_US: Final = 3_600 * _US
# By which deadlines are reckoned: most published times are of one.
REFERENCE_GPU: Final = "A100-80-SXM"
# "Twice the execution on the reference GPU, and ten seconds".
_DEADLINE_FACTOR: Final = 2
_DEADLINE_MS: Final = 10_000
SOURCE: Final = "made up by 'atoll sim trace generate', with statistics of alibaba/clusterdata GenTD26 and none of its rows"
LICENCE: Final = "Apache-2.0, as Atoll"
# Names have four digits.
MODELS_MAX: Final = 9_000
TENANTS_MAX: Final = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a trace is made with. `video_share` and `share_4k`: of all jobs, and of pictures; `gang_share`: of films, those on GPUs at once.

    `urgent_share` and `batch_share`: of sessions, those whose jobs are in a hurry or have time.
    """

    models: int = 600
    hours: float = 24.0
    seed: int = 0
    jobs_per_hour: float = 4_000.0
    tenants: int = 2_000
    video_share: float = 0.08
    share_4k: float = 0.02
    gap_cv: float = GAP_CV
    zipf_exponent: float = ZIPF_EXPONENT
    launches: bool = True
    diurnal: bool = True
    deadlines: bool = False
    gang_share: float = 0.0
    urgent_share: float = 0.0
    batch_share: float = 0.0

    def check(self) -> Settings:
        """Self, if it can be made; else FieldError for the first figure that cannot."""
        for name, low, high in (
            ("models", 1, MODELS_MAX),
            ("hours", 0.01, 10 * 366 * 24),
            ("jobs_per_hour", 0.01, 10_000_000),
            ("tenants", 1, TENANTS_MAX),
            ("video_share", 0, 1),
            ("share_4k", 0, 1),
            ("gap_cv", 0, 100),
            ("zipf_exponent", 0, 8),
            ("gang_share", 0, 1),
            ("urgent_share", 0, 1),
            ("batch_share", 0, 1 - self.urgent_share),
        ):
            value = getattr(self, name)
            if not math.isfinite(value) or not low <= value <= high:
                raise FieldError(name, value, f"a number from {low} to {high}")
        return self


@dataclass(slots=True, kw_only=True)
class _Session:
    number: int
    who: Customer
    left: int  # jobs that it has still to submit
    priority: Priority
    asked: dict[int, Asked] = field(default_factory=dict)
    gangs: dict[int, int] = field(default_factory=dict)


def meta_of(settings: Settings) -> TraceMeta:
    """What such a trace says of itself."""
    told = {name: f"{value:g}" if isinstance(value, float) else str(value).lower() for name, value in asdict(settings).items()}
    return TraceMeta(source=SOURCE, licence=LICENCE, synthesised=("everything",), settings=told)


class Generator:
    """Makes the jobs of a trace. `reference`: the GPU by which deadlines are reckoned."""

    def __init__(self, settings: Settings, catalogue: Mapping[ModelId, ModelSpec], reference: GpuType) -> None:
        self.settings = settings.check()
        self._catalogue = catalogue
        self._reference = reference
        self._arrivals = self._stream("arrivals")
        self._choices = self._stream("choices")
        self._names = self._stream("models")
        self._priorities = self._stream("priorities")
        self._gangs = self._stream("gangs")
        self._popularity: Popularity = popularity(
            settings.models, settings.zipf_exponent, launches=settings.launches, random=self._stream("launches")
        )
        shares = [share for share, _ in REGIONS.values()]
        self._customers = Customers(settings.tenants, shares, self._popularity, self._stream("tenants"))
        self._kinds = kinds_of_ranks(self._popularity.weights, settings.video_share)
        self._bases: list[ModelSpec] = [base_for(kind, self._names, catalogue) for kind in self._kinds]
        self._sessions: list[_Session] = []
        self._sessions_begun = 0
        self._execution_us: dict[tuple[ModelId, Asked], int] = {}

    def jobs(self) -> Iterator[TraceJob]:
        """All of them, in order of arrival."""
        end_us = round(self.settings.hours * _H_US)
        now_us = 0.0
        while True:
            now_us += self._gap() * _H_US / (self.settings.jobs_per_hour * self._load(now_us))
            if now_us >= end_us:
                return
            self._popularity.advance(int(now_us))
            yield self._job(int(now_us))

    def jobs_at(self, arrivals: Iterable[int]) -> Iterator[TraceJob]:
        """A job for each of these moments, which are in order."""
        for now_us in arrivals:
            self._popularity.advance(now_us)
            yield self._job(now_us)

    def _stream(self, name: str) -> Random:
        """Chance of its own for each purpose: another share of films does not move the arrivals."""
        return Random(f"{self.settings.seed}:{name}")

    def _gap(self) -> float:
        """Between two arrivals, 1 on average: most within bursts, and a few so long that all of them together vary as they should."""
        cv = self.settings.gap_cv
        if cv <= 1:
            return self._arrivals.gammavariate(1 / cv**2, cv**2) if cv else 1.0
        long = ((cv * cv + 1) / 2 - _SHORT_GAP**2) / (1 - _SHORT_GAP) - _SHORT_GAP
        is_long = self._arrivals.random() < (1 - _SHORT_GAP) / (long - _SHORT_GAP)
        return self._arrivals.expovariate(1 / (long if is_long else _SHORT_GAP))

    def _wakefulness(self, now_us: float) -> list[float]:
        """How much each region asks now, over its average."""
        if not self.settings.diurnal:
            return [1.0] * len(REGIONS)
        hour = now_us / _H_US
        return [1 + _SWING * math.cos((hour + ahead - _PEAK_H) * math.pi / 12) for _, ahead in REGIONS.values()]

    def _region_weights(self, now_us: float) -> list[float]:
        return [share / 100 * awake for (share, _), awake in zip(REGIONS.values(), self._wakefulness(now_us), strict=True)]

    def _load(self, now_us: float) -> float:
        return sum(self._region_weights(now_us))

    def _job(self, now_us: int) -> TraceJob:
        session = self._session(now_us)
        who = session.who
        number = self._customers.next_model(who)
        adapters = self._customers.next_adapters(who, number)
        base = self._base(number)
        asked = session.asked.get(number)
        if asked is None:
            asked = session.asked[number] = asked_of(base, self._choices, self.settings.share_4k)
        return TraceJob(
            arrival_us=now_us,
            model_id=variant(base.model_id, f"m{number:04}"),
            tenant=TenantId(who.name),
            width=asked.width,
            height=asked.height,
            frames=asked.frames,
            batch=asked.batch,
            gang_size=self._gang_size(session, number, base, asked) if self.settings.gang_share else 1,
            adapters=tuple(AdapterUse(adapter_id=AdapterId(name)) for name in adapters),
            origin=tuple(REGIONS)[who.region],
            priority=session.priority,
            deadline_ms=self._deadline_ms(base, asked) if self.settings.deadlines else 0,
            session=f"s{session.number}",
        )

    def _session(self, now_us: int) -> _Session:
        """Whose turn it is: of one of the sessions that go on, or of a new one in place of one that has ended. At night few go on."""
        going_on = max(round(self.settings.jobs_per_hour * SESSIONS_PER_JOB_PER_H), _SESSIONS_MIN)
        awake = self._wakefulness(now_us)
        while True:
            index = self._choices.randrange(going_on)
            if index >= len(self._sessions):
                index = len(self._sessions)
                self._sessions.append(self._begin(now_us))
            elif not self._sessions[index].left:
                self._sessions[index] = self._begin(now_us)
            found = self._sessions[index]
            if self._choices.random() * (1 + _SWING) < awake[found.who.region]:
                found.left -= 1
                return found

    def _begin(self, now_us: int) -> _Session:
        self._sessions_begun += 1
        left = min(int(self._choices.paretovariate(SESSION_TAIL)), SESSION_JOBS_MAX)
        who = self._customers.draw(self._region_weights(now_us))
        return _Session(number=self._sessions_begun, who=who, left=left, priority=self._priority())

    def _priority(self) -> Priority:
        at = self._priorities.random()
        if at < self.settings.urgent_share:
            return Priority.URGENT
        return Priority.BATCH if at < self.settings.urgent_share + self.settings.batch_share else Priority.NORMAL

    def _gang_size(self, session: _Session, number: int, base: ModelSpec, asked: Asked) -> int:
        """A session's films of one model are on as many GPUs each; as many as the model can share its work among."""
        found = session.gangs.get(number)
        if found is None:
            is_gang = base.modality is Modality.VIDEO and self._gangs.random() < self.settings.gang_share
            found = weighted(_GANGS, self._gangs) if is_gang else 1
            while found > 1 and not _can_share(base, default_shape(asked, base), found):
                found //= 2
            session.gangs[number] = found
        return found

    def _base(self, number: int) -> ModelSpec:
        while number >= len(self._bases):
            kind = Modality.VIDEO if self._names.random() < self.settings.video_share else Modality.IMAGE
            self._bases.append(base_for(kind, self._names, self._catalogue))
        return self._bases[number]

    def _deadline_ms(self, base: ModelSpec, asked: Asked) -> int:
        key = (base.model_id, asked)
        found = self._execution_us.get(key)
        if found is None:
            run = Run(model=base, shape=default_shape(asked, base), gpu=self._reference, precision=base.precision)
            found = self._execution_us[key] = predict_us(FITTED, run)
        return _DEADLINE_FACTOR * found // 1_000 + _DEADLINE_MS


def _can_share(model: ModelSpec, shape: Shape, gang_size: int) -> bool:
    try:
        check_gang(model, shape, gang_size)
    except FieldError:
        return False
    return True
