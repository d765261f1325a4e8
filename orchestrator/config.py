"""Configuration of the orchestrator: from flags, then the environment (ATOLL_ORCHESTRATOR_*), then defaults.

Decides what a legal configuration is, and refuses to listen where anybody could call without a credential. Opens nothing but the
files that it names.
"""

from __future__ import annotations

import math
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import IntEnum
from pathlib import Path
from typing import Any, Final

from atoll import __version__
from atoll.model.address import DEFAULT_PORT, Address, parse_address
from atoll.model.errors import AtollError, FieldError, quoted
from atoll.model.ids import parse_name
from atoll.model.orchestrators import Introduction
from orchestrator.api.auth import Token, is_loopback, operator_token, parse_tokens
from orchestrator.clock import REAL_TIME_MILLI
from orchestrator.core.placement.policies import DEFAULT
from orchestrator.core.placement.policy import Policy
from orchestrator.policy_source import load_policy
from orchestrator.store.etcd.quota import DEFAULT_QUOTA_BYTES
from orchestrator.store.etcd.target import EtcdTarget
from orchestrator.store.settings import STORE_SETTINGS, read_target
from orchestrator.telemetry.logs import LogFormat, LogLevel

# ATOLL_ORCHESTRATOR_LISTEN and so on; a prefix of its own, because clients on the same machine read ATOLL_ADDRESS and ATOLL_TOKEN.
PREFIX: Final = "ATOLL_ORCHESTRATOR_"
SECRET_VARIABLE: Final = f"{PREFIX}TOKEN"
_METRICS_PORT: Final = 7444
# A rehearsal of a day in a minute; beyond it timers of milliseconds come closer together than a loop can turn.
TIME_SCALE_MAX: Final = 1_440.0
TIME_SCALE_MIN: Final = 0.001
ENDED_JOBS: Final = 1_000_000
# etcd is no place for history: with their explanations these are 0.3 GB of the 2 GB that it has by itself.
ENDED_JOBS_IN_ETCD: Final = 100_000
_TOKENS_BYTES_MAX: Final = 4 * 1024 * 1024


class ExitCode(IntEnum):
    """How the process ends, for whoever supervises it."""

    OK = 0
    FAILED = 1  # our bug, or the core failed again and again
    CONFIG = 2  # nothing was begun: a setting is wrong
    ADDRESS_IN_USE = 3
    STORE_UNUSABLE = 4  # the data folder cannot be written, the store in it is not ours, or its etcd does not answer
    STORE_HELD = 5  # another orchestrator runs on this store
    DEPOSED = 6  # another orchestrator took over while this one ran


class StartError(AtollError):
    """The orchestrator cannot start; the message says what to do."""

    def __init__(self, code: ExitCode, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True, kw_only=True)
class OrchestratorConfig:
    """Everything that can be set. `metrics` None: no metrics are served. Durations of retention are fleet time."""

    listen: Address = Address(host="127.0.0.1")
    data_dir: Path
    name: str = ""  # "": that of the machine
    advertise: Address | None = None  # where others reach it; None: where it listens
    standby: bool = True  # while another leads on the store, wait for one's turn; where that is possible
    metrics: Address | None = Address(host="127.0.0.1", port=_METRICS_PORT)
    time_scale_milli: int = REAL_TIME_MILLI
    tokens: tuple[Token, ...] = field(default=(), repr=False)
    tls_cert: Path | None = None
    tls_key: Path | None = None
    origin_url: str = ""  # "": the folder `origin` of the data folder
    artifacts_url: str = ""  # "": the folder `artifacts` of the data folder
    retention_ms: int = 24 * 3600 * 1000
    ended_jobs_max: int = ENDED_JOBS
    store: EtcdTarget | None = None  # None: the embedded one, in the data folder
    store_quota_bytes: int = DEFAULT_QUOTA_BYTES  # of an etcd that does not say what it has
    policy: Policy = DEFAULT
    record: Path | None = None
    record_bytes_max: int = 10 * 1024**3
    log_format: LogFormat = LogFormat.AUTO
    log_level: LogLevel = LogLevel.INFO

    @property
    def origin(self) -> str:
        """Where sites fetch weights from."""
        return self.origin_url or (self.data_dir / "origin").resolve().as_uri()

    @property
    def artifacts(self) -> str:
        """Where sites put results."""
        return self.artifacts_url or (self.data_dir / "artifacts").resolve().as_uri()

    @property
    def stands_by(self) -> bool:
        """Whether it waits for its turn while another leads."""
        return self.standby and self.store is not None

    def introduced(self, bound: Address) -> Introduction:
        """What it says of itself to others, listening at `bound`."""
        machine = socket.gethostname()
        everywhere = bound.host in {"0.0.0.0", "::"}  # noqa: S104 - nothing is bound by it
        where = self.advertise or (replace(bound, host=machine) if everywhere else bound)
        name = self.name or (machine if bound.port == DEFAULT_PORT else f"{machine}-{bound.port}")
        return Introduction(name=name, address=str(where), version=__version__)

    def check(self) -> OrchestratorConfig:
        """Self, if it is safe to listen so. Raises StartError saying what to do."""
        if not self.tokens and not is_loopback(self.listen.host):
            raise StartError(
                ExitCode.CONFIG,
                f"refusing to listen on {self.listen}: no credential is configured, so whoever reaches that address could run the fleet. "
                f"Set {SECRET_VARIABLE} or give --tokens FILE (and --tls-cert and --tls-key), or listen on 127.0.0.1",
            )
        if (self.tls_cert is None) is not (self.tls_key is None):
            raise StartError(ExitCode.CONFIG, "--tls-cert and --tls-key belong together: one of them is missing")
        return self


# Flag -> what reads its text. The environment variable is PREFIX and the name in capitals.
SETTINGS: Final = (
    "listen",
    "data_dir",
    "name",
    "advertise",
    "standby",
    "metrics",
    "time_scale",
    "tokens",
    "tls_cert",
    "tls_key",
    "origin_url",
    "artifacts_url",
    "retention_hours",
    "ended_jobs_max",
    *STORE_SETTINGS,
    "policy",
    "record",
    "record_bytes_max",
    "log_format",
    "log_level",
)


def load_config(flags: Mapping[str, object | None], environ: Mapping[str, str]) -> OrchestratorConfig:
    """A checked configuration. `flags` by the names of SETTINGS, None: not given. Raises StartError naming the setting."""
    try:
        return _read(flags, environ).check()
    except StartError:
        raise
    except AtollError as error:
        raise StartError(ExitCode.CONFIG, str(error)) from error


def _read(flags: Mapping[str, object | None], environ: Mapping[str, str]) -> OrchestratorConfig:
    unknown = sorted(set(flags) - set(SETTINGS))
    if unknown:
        raise FieldError("flags", unknown, f"some of {', '.join(SETTINGS)}")

    def setting(name: str, default: object = None) -> Any:
        given = flags.get(name)
        return given if given is not None else environ.get(PREFIX + name.upper(), default)

    tokens: tuple[Token, ...] = ()
    if environ.get(SECRET_VARIABLE):
        tokens += (operator_token(environ[SECRET_VARIABLE]),)
    if setting("tokens"):
        tokens += _tokens(Path(setting("tokens")))
    store = read_target(lambda name: str(setting(name, "")))
    standby = _truth("standby", setting("standby", True))
    if store is None and setting("standby") is not None and standby:
        raise FieldError(
            "standby", "true", "false with the embedded store: one that stands by needs a store that it can share, --store etcd://..."
        )
    metrics = setting("metrics", f"127.0.0.1:{_METRICS_PORT}")
    return OrchestratorConfig(
        listen=parse_address("listen", setting("listen", "127.0.0.1"), lowest_port=0),
        data_dir=_path("data_dir", setting("data_dir", str(default_data_dir(environ)))),
        name=parse_name("name", setting("name")) if setting("name") else "",
        advertise=parse_address("advertise", setting("advertise")) if setting("advertise") else None,
        standby=standby,
        metrics=None if metrics in ("", "off") else parse_address("metrics", metrics, lowest_port=0),
        time_scale_milli=_time_scale(setting("time_scale", 1)),
        tokens=tokens,
        tls_cert=_file("tls_cert", setting("tls_cert")),
        tls_key=_file("tls_key", setting("tls_key")),
        origin_url=_url("origin_url", setting("origin_url", "")),
        artifacts_url=_url("artifacts_url", setting("artifacts_url", "")),
        retention_ms=round(_number("retention_hours", setting("retention_hours", 24), 0.001, 100_000) * 3_600_000),
        ended_jobs_max=round(
            _number("ended_jobs_max", setting("ended_jobs_max", ENDED_JOBS if store is None else ENDED_JOBS_IN_ETCD), 1, 1e9)
        ),
        store=store,
        store_quota_bytes=round(_number("store_quota_bytes", setting("store_quota_bytes", DEFAULT_QUOTA_BYTES), 1e6, 1e13)),
        policy=load_policy(str(setting("policy", DEFAULT.name))),
        record=_path("record", setting("record")) if setting("record") else None,
        record_bytes_max=round(_number("record_bytes_max", setting("record_bytes_max", 10 * 1024**3), 1, 1e15)),
        log_format=_choice("log_format", setting("log_format", LogFormat.AUTO), LogFormat),
        log_level=_choice("log_level", setting("log_level", LogLevel.INFO), LogLevel),
    )


def default_data_dir(environ: Mapping[str, str]) -> Path:
    """Where state is kept when nobody says."""
    base = environ.get("XDG_STATE_HOME") or os.path.join(environ.get("HOME") or os.path.expanduser("~"), ".local", "state")
    return Path(base) / "atoll" / "orchestrator"


def _number(name: str, value: object, low: float, high: float) -> float:
    try:
        number = float(value)  # type: ignore[arg-type] # whatever it is, the next line says what it should be
    except (TypeError, ValueError):
        raise FieldError(name, value, f"a number from {low:g} to {high:g}") from None
    if not math.isfinite(number) or not low <= number <= high:
        raise FieldError(name, value, f"a number from {low:g} to {high:g}")
    return number


def _truth(name: str, value: object) -> bool:
    known = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    text = str(value).lower()
    if text not in known:
        raise FieldError(name, value, "true or false")
    return known[text]


def _time_scale(value: object) -> int:
    return round(_number("time_scale", value, TIME_SCALE_MIN, TIME_SCALE_MAX) * REAL_TIME_MILLI)


def _path(name: str, value: object) -> Path:
    text = str(value)
    if not text or "\x00" in text:
        raise FieldError(name, text, "a path")
    return Path(text).expanduser()


def _file(name: str, value: object) -> Path | None:
    if not value:
        return None
    path = _path(name, value)
    if not path.is_file():
        raise FieldError(name, str(path), "a file that exists")
    return path


def _url(name: str, value: object) -> str:
    text = str(value)
    if len(text) > 2_000 or not text.isprintable() or " " in text:
        raise FieldError(name, text, "a folder or an fsspec URL")
    return text


def _choice(name: str, value: object, kind: type[LogFormat] | type[LogLevel]) -> Any:
    try:
        return kind(str(value))
    except ValueError:
        raise FieldError(name, value, f"one of {', '.join(kind)}") from None


def _tokens(path: Path) -> tuple[Token, ...]:
    try:
        with path.open("rb") as opened:
            content = opened.read(_TOKENS_BYTES_MAX + 1)
    except OSError as error:
        raise FieldError("tokens", str(path), f"a file that can be read ({error.strerror})") from None
    if len(content) > _TOKENS_BYTES_MAX:
        raise FieldError("tokens", str(path), f"a file of at most {_TOKENS_BYTES_MAX} bytes")
    try:
        return parse_tokens(str(path), content.decode())
    except UnicodeDecodeError:
        raise FieldError("tokens", quoted(str(path)), "UTF-8 text") from None
