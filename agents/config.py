"""Configuration of an agent: from flags, then the environment (ATOLL_AGENT_*), then defaults.

Decides what a legal configuration is. Opens nothing but the files that it names.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, TypeVar

from agents.telemetry import LogFormat, LogLevel
from atoll.model.address import Address, parse_address
from atoll.model.errors import AtollError, FieldError
from atoll.model.ids import SiteId, parse_name
from atoll.model.limits import BYTES_MAX, PRICE_USD_MICROS_MAX
from atoll.model.site import SiteRuntime
from atoll.packaged import FLEETS
from atoll.physics.hidden import SIGMA_MIN

E = TypeVar("E", bound=StrEnum)

PREFIX: Final = "ATOLL_AGENT_"
# The token that `atoll sites add` printed; never a flag, because flags are seen by every user of a machine.
TOKEN_VARIABLE: Final = "ATOLL_JOIN_TOKEN"  # noqa: S105 - the name of a variable
_TOKEN_CHARS_MAX: Final = 512
# 96 bits in hex digits: shorter ones can be guessed at a port that anybody may reach.
_TOKEN_CHARS_MIN: Final = 24
# As long as the orchestrator keeps ended jobs readable: a result without its job, or a job without its result, helps nobody.
_RESULTS_HOURS: Final = 24
# A day of pictures at a few a second is some 100 GB; films are larger.
_RESULTS_BYTES: Final = 10**12
# As many as clients take.
_ORCHESTRATORS_MAX: Final = 16
_CACHE_BYTES: Final = 200 * 10**9
_PORTS_FROM: Final = 21_000
_SEED: Final = 1
_SIGMA: Final = 0.35
# One site in six is then e = 2.7 times slower than the prior: beyond it that is no error of calibration any more.
_SIGMA_MAX: Final = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RaySettings:
    """A real site on this host. Bytes; figures as `agents.runtime.ray.RayConfig` explains them."""

    cache_dir: Path
    cache_bytes: int = _CACHE_BYTES
    address: str | None = None
    node_ip: str = "127.0.1.1"
    port_base: int = _PORTS_FROM
    use_gpus: bool = True
    slots: int = 1  # of a host without GPUs
    slot_memory_bytes: int = 0  # 0: all of a GPU's, of a host without GPUs half of its memory among the slots
    threads: int = 1
    usd_micros_per_gpu_hour: int = 0
    share_compiled: bool = False  # execute compiled code that other sites of the fleet made
    results_hours: int = _RESULTS_HOURS  # how long results stay in the artifact store
    results_bytes: int = _RESULTS_BYTES  # and how much of it they may take, the newest first
    weights_listen: Address | None = None  # where other sites read the weights in the cache; None: nowhere
    peer_token: str = field(default="", repr=False)  # what this site's weights are given for, and what it shows to other sites for theirs


@dataclass(frozen=True, slots=True, kw_only=True)
class TwinSettings:
    """A rehearsed site. `fleet`: the file that declares it. `seed` and `sigma`: of the hidden truth of its world."""

    fleet: Path
    seed: int = _SEED
    sigma: float = _SIGMA


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """How to reach the orchestrator, of which there may be several, and what is told of oneself. `give_up_after_s` None: dial for ever."""

    orchestrators: tuple[Address, ...] = (Address(host="127.0.0.1"),)
    token: str = field(default="", repr=False)
    ca_file: Path | None = None
    give_up_after_s: float | None = None
    metrics: Address | None = None
    log_format: LogFormat = LogFormat.AUTO
    log_level: LogLevel = LogLevel.INFO


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentConfig:
    """One agent. `state_dir` None: nothing survives the process (twins only). `end_work`: leaving ends what executes."""

    site_id: SiteId
    reach: Reach
    state_dir: Path | None
    runtime: RaySettings | TwinSettings
    end_work: bool = False

    @property
    def kind(self) -> SiteRuntime:
        """What executes."""
        return SiteRuntime.RAY if isinstance(self.runtime, RaySettings) else SiteRuntime.TWIN


@dataclass(frozen=True, slots=True, kw_only=True)
class RehearseConfig:
    """The twins of all sites of a fleet file, in one process. Their outboxes are in memory: a twin's work ends with its process."""

    fleet: Path
    reach: Reach
    sites: tuple[SiteId, ...] = ()  # (): all of the file
    seed: int = _SEED
    sigma: float = _SIGMA
    noise_seed: int | None = None  # of what differs from attempt to attempt; None: `seed`


_REACH: Final = ("orchestrator", "ca_file", "give_up_after", "metrics", "log_format", "log_level")
# Flag -> setting; the environment variable is PREFIX and the name in capitals.
AGENT_SETTINGS: Final = (
    *_REACH,
    "site",
    "runtime",
    "state_dir",
    "end_work",
    "cache_dir",
    "cache_bytes",
    "ray_address",
    "node_ip",
    "port_base",
    "use_gpus",
    "slots",
    "slot_memory_bytes",
    "threads",
    "usd_micros_per_gpu_hour",
    "share_compiled",
    "results_hours",
    "results_bytes",
    "weights_listen",
    "peer_token_file",
    "fleet",
    "seed",
    "sigma",
)
REHEARSE_SETTINGS: Final = (*_REACH, "fleet", "sites", "seed", "sigma", "noise_seed")


class ConfigError(AtollError):
    """A setting is wrong; the message names it, its value and what would be right."""


def load_agent_config(flags: Mapping[str, object | None], environ: Mapping[str, str]) -> AgentConfig:
    """A checked configuration. `flags` by the names of AGENT_SETTINGS, None: not given. Raises ConfigError."""
    try:
        return _agent(_Settings(flags, environ, AGENT_SETTINGS), environ)
    except FieldError as error:
        raise ConfigError(str(error)) from error


def load_rehearse_config(flags: Mapping[str, object | None], environ: Mapping[str, str]) -> RehearseConfig:
    """As `load_agent_config`, by the names of REHEARSE_SETTINGS; `sites` separated by commas."""
    try:
        settings = _Settings(flags, environ, REHEARSE_SETTINGS)
        names = str(settings.get("sites", "")).split(",")
        return RehearseConfig(
            fleet=settings.fleet("clusters.yaml"),
            reach=_reach(settings, environ),
            sites=tuple(SiteId(parse_name("sites", name.strip())) for name in names if name.strip()),
            seed=settings.whole("seed", _SEED, 0, 2**63 - 1),
            sigma=settings.number("sigma", _SIGMA, SIGMA_MIN, _SIGMA_MAX),
            noise_seed=settings.whole("noise_seed", _SEED, 0, 2**63 - 1) if settings.get("noise_seed") is not None else None,
        )
    except FieldError as error:
        raise ConfigError(str(error)) from error


def default_state_dir(site_id: SiteId, environ: Mapping[str, str]) -> Path:
    """Where an agent's state is kept when nobody says."""
    return _base(environ, "XDG_STATE_HOME", ".local/state") / "atoll" / "agents" / site_id


def _base(environ: Mapping[str, str], variable: str, below_home: str) -> Path:
    home = environ.get("HOME") or os.path.expanduser("~")
    return Path(environ.get(variable) or os.path.join(home, below_home))


def _agent(settings: _Settings, environ: Mapping[str, str]) -> AgentConfig:
    site_id = SiteId(parse_name("site", settings.get("site")))
    kind = settings.choice("runtime", SiteRuntime.RAY, SiteRuntime)
    state_dir = settings.path("state_dir", default_state_dir(site_id, environ))
    return AgentConfig(
        site_id=site_id,
        reach=_reach(settings, environ),
        state_dir=state_dir,
        runtime=_ray(settings, environ) if kind is SiteRuntime.RAY else _twin(settings),
        end_work=settings.truth("end_work", default=False),
    )


def _ray(settings: _Settings, environ: Mapping[str, str]) -> RaySettings:
    cache_dir = settings.path("cache_dir", _base(environ, "XDG_CACHE_HOME", ".cache") / "atoll" / "weights")
    address, listen = settings.get("ray_address"), settings.get("weights_listen", "off")
    return RaySettings(
        cache_dir=cache_dir,
        cache_bytes=settings.whole("cache_bytes", _CACHE_BYTES, 1, BYTES_MAX),
        address=str(address) if address else None,
        node_ip=str(settings.get("node_ip", "127.0.1.1")),
        port_base=settings.whole("port_base", _PORTS_FROM, 1_024, 65_000),
        use_gpus=settings.truth("use_gpus", default=True),
        slots=settings.whole("slots", 1, 1, 50),
        slot_memory_bytes=settings.whole("slot_memory_bytes", 0, 0, BYTES_MAX),
        threads=settings.whole("threads", 1, 1, 1_024),
        usd_micros_per_gpu_hour=settings.whole("usd_micros_per_gpu_hour", 0, 0, PRICE_USD_MICROS_MAX),
        share_compiled=settings.truth("share_compiled", default=False),
        results_hours=settings.whole("results_hours", _RESULTS_HOURS, 1, 10 * 365 * 24),
        results_bytes=settings.whole("results_bytes", _RESULTS_BYTES, 1, BYTES_MAX),
        weights_listen=None if listen in ("", "off") else parse_address("weights_listen", listen, lowest_port=0),
        peer_token=_peer_token(settings),
    )


def _peer_token(settings: _Settings) -> str:
    """The first line of the file that is named, if one is."""
    if not settings.get("peer_token_file"):
        return ""
    path = settings.file("peer_token_file", "")
    try:
        with path.open("rb") as file:
            token = file.read(_TOKEN_CHARS_MAX + 2).decode("ascii").strip()
    except (OSError, UnicodeDecodeError):
        token = ""
    # The value itself is a secret and is not quoted.
    if not _TOKEN_CHARS_MIN <= len(token) <= _TOKEN_CHARS_MAX or not token.isprintable() or " " in token:
        what = f"one line of {_TOKEN_CHARS_MIN} to {_TOKEN_CHARS_MAX} printable ASCII characters"
        raise FieldError("peer_token_file", str(path), what)
    return token


def _twin(settings: _Settings) -> TwinSettings:
    return TwinSettings(
        fleet=settings.fleet("clusters.yaml"),
        seed=settings.whole("seed", _SEED, 0, 2**63 - 1),
        sigma=settings.number("sigma", _SIGMA, SIGMA_MIN, _SIGMA_MAX),
    )


def _reach(settings: _Settings, environ: Mapping[str, str]) -> Reach:
    token = environ.get(TOKEN_VARIABLE, "")
    if len(token) > _TOKEN_CHARS_MAX or not token.isascii() or not token.isprintable() or " " in token:
        # The value itself is a secret and is not quoted.
        raise FieldError(TOKEN_VARIABLE, f"({len(token)} characters)", f"at most {_TOKEN_CHARS_MAX} printable ASCII characters")
    metrics = settings.get("metrics", "off")
    patience = settings.get("give_up_after")
    ca_file = settings.get("ca_file")
    return Reach(
        orchestrators=_orchestrators(str(settings.get("orchestrator", "127.0.0.1"))),
        token=token,
        ca_file=settings.file("ca_file", "") if ca_file else None,
        give_up_after_s=settings.number("give_up_after", 0, 0, 1e9) if patience not in (None, "") else None,
        metrics=None if metrics in ("", "off") else parse_address("metrics", metrics, lowest_port=0),
        log_format=settings.choice("log_format", LogFormat.AUTO, LogFormat),
        log_level=settings.choice("log_level", LogLevel.INFO, LogLevel),
    )


def _orchestrators(text: str) -> tuple[Address, ...]:
    parts = [part.strip() for part in text.split(",")]
    if len(parts) > _ORCHESTRATORS_MAX:
        raise FieldError("orchestrator", f"{len(parts)} addresses", f"at most {_ORCHESTRATORS_MAX}")
    return tuple(dict.fromkeys(parse_address("orchestrator", part) for part in parts))


class _Settings:
    """Flags before environment before defaults; each reader checks what it gives."""

    def __init__(self, flags: Mapping[str, object | None], environ: Mapping[str, str], names: tuple[str, ...]) -> None:
        unknown = sorted(set(flags) - set(names))
        if unknown:
            raise FieldError("flags", unknown, f"some of {', '.join(names)}")
        self._flags = flags
        self._environ = environ

    def get(self, name: str, default: object = None) -> Any:
        given = self._flags.get(name)
        return given if given is not None else self._environ.get(PREFIX + name.upper(), default)

    def number(self, name: str, default: float, low: float, high: float) -> float:
        value = self.get(name, default)
        expected = f"a number from {low:g} to {high:g}"
        try:
            number = float(value)
        except (TypeError, ValueError):
            raise FieldError(name, value, expected) from None
        if not math.isfinite(number) or not low <= number <= high:
            raise FieldError(name, value, expected)
        return number

    def whole(self, name: str, default: int, low: int, high: int) -> int:
        value = self.get(name, default)
        expected = f"a whole number from {low} to {high}"
        try:
            number = int(str(value))
        except ValueError:
            raise FieldError(name, value, expected) from None
        if not low <= number <= high:
            raise FieldError(name, value, expected)
        return number

    def truth(self, name: str, *, default: bool) -> bool:
        value = self.get(name, default)
        known = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
        text = str(value).lower()
        if text not in known:
            raise FieldError(name, value, "true or false")
        return known[text]

    def choice(self, name: str, default: E, kind: type[E]) -> E:
        value = self.get(name, default)
        try:
            return kind(str(value))
        except ValueError:
            raise FieldError(name, value, f"one of {', '.join(kind)}") from None

    def path(self, name: str, default: Path) -> Path:
        text = str(self.get(name, default))
        if not text or "\x00" in text:
            raise FieldError(name, text, "a path")
        return Path(text).expanduser().absolute()

    def fleet(self, default: str) -> Path:
        """A fleet's file, or its name."""
        name = str(self.get("fleet", default))
        return Path(name) if name in FLEETS else self.file("fleet", default)

    def file(self, name: str, default: str) -> Path:
        path = self.path(name, Path(default))
        if not path.is_file():
            raise FieldError(name, str(path), "a file that exists")
        return path
