"""Where the orchestrator is and how to prove who asks: from arguments, then the environment, then a configuration file.

Decides which of them counts. Must not open a connection.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from atoll.client.errors import SettingsError
from atoll.model.address import Address, parse_address
from atoll.model.errors import FieldError, quoted
from atoll.model.ids import parse_name

ADDRESS_VARIABLE: Final = "ATOLL_ADDRESS"
TOKEN_VARIABLE: Final = "ATOLL_TOKEN"  # noqa: S105 - the name of a variable
CA_VARIABLE: Final = "ATOLL_CA"
ORIGIN_VARIABLE: Final = "ATOLL_ORIGIN"
CONFIG_VARIABLE: Final = "ATOLL_CONFIG"
DEFAULT_ADDRESS: Final = Address(host="127.0.0.1")
# In place of a file of certificates: those that the system trusts.
SYSTEM_CA: Final = "system"
CONFIG_KEYS: Final = ("address", "token", "token_file", "ca", "origin", "output")
# Ten standbys are more than any deployment has; a list of a thousand is a mistake.
ADDRESSES_MAX: Final = 16
_FILE_BYTES_MAX: Final = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a connection needs. `ca` is "" (no TLS), "system" or the path of a PEM file; `output` is the command line's preferred form.

    `origin` is the site nearest to who asks, for jobs that do not say; "": not known.
    """

    addresses: tuple[Address, ...] = (DEFAULT_ADDRESS,)
    token: str = field(default="", repr=False)
    ca: str = ""
    origin: str = ""
    output: str = ""

    @property
    def shown_address(self) -> str:
        """The addresses as a person wrote them."""
        return ",".join(str(address) for address in self.addresses)


def default_config_path(environ: Mapping[str, str]) -> Path:
    """Where the configuration file is looked for when nobody names one."""
    base = environ.get("XDG_CONFIG_HOME") or os.path.join(environ.get("HOME") or os.path.expanduser("~"), ".config")
    return Path(base) / "atoll" / "config.yaml"


def resolve(
    *,
    address: str | None = None,
    token: str | None = None,
    ca: str | None = None,
    config: str | None = None,
    environ: Mapping[str, str] | None = None,
) -> Settings:
    """Settings of these arguments; what is None comes from the environment, then from the configuration file, then from defaults.

    Raises SettingsError naming the source of what is wrong. A configuration file that was named must exist.
    """
    env = os.environ if environ is None else environ
    path, named = (config, True) if config else (env.get(CONFIG_VARIABLE), True)
    if not path:
        path, named = str(default_config_path(env)), False
    stored = _config_file(Path(path).expanduser(), must_exist=named)

    def first(name: str, argument: str | None, variable: str) -> tuple[str, str]:
        """Where a value comes from, and the value."""
        choices = (f"--{name}", argument), (variable, env.get(variable)), (f"{path}: {name}", stored.get(name))
        return next(((source, value) for source, value in choices if value), ("", ""))

    source, text = first("address", address, ADDRESS_VARIABLE)
    _, secret = first("token", token, TOKEN_VARIABLE)
    if not secret and "token_file" in stored:
        secret = _read(Path(stored["token_file"]).expanduser(), f"{path}: token_file").strip()
    ca_source, authority = first("ca", ca, CA_VARIABLE)
    origin_source, origin = first("origin", None, ORIGIN_VARIABLE)
    return Settings(
        addresses=_addresses(source, text) if text else (DEFAULT_ADDRESS,),
        token=_checked_token(secret),
        ca=_checked_ca(ca_source, authority),
        origin=_checked_origin(origin_source, origin),
        output=stored.get("output", ""),
    )


def _addresses(source: str, text: str) -> tuple[Address, ...]:
    parts = [part.strip() for part in text.split(",")]
    if len(parts) > ADDRESSES_MAX:
        raise SettingsError(f"{source} names {len(parts)} addresses: expected at most {ADDRESSES_MAX}", field=source)
    try:
        return tuple(dict.fromkeys(parse_address(source, part) for part in parts))
    except FieldError as error:
        raise SettingsError(str(error), field=source) from None


def _checked_token(secret: str) -> str:
    # It travels in a header, and is not quoted in errors.
    if secret and not (secret.isascii() and secret.isprintable() and " " not in secret and len(secret) <= 512):
        raise SettingsError("the token is not one: expected at most 512 printable ASCII characters without spaces", field="token")
    return secret


def _checked_ca(source: str, authority: str) -> str:
    if not authority or authority == SYSTEM_CA:
        return authority
    path = Path(authority).expanduser()
    if "-----BEGIN CERTIFICATE-----" not in _read(path, source):
        raise SettingsError(f"{source} is {quoted(authority)}: expected a PEM file of certificates, or '{SYSTEM_CA}'", field=source)
    return str(path)


def _checked_origin(source: str, origin: str) -> str:
    try:
        return parse_name(source, origin) if origin else ""
    except FieldError as error:
        raise SettingsError(str(error), field=source) from None


def _read(path: Path, source: str) -> str:
    try:
        with path.open("rb") as opened:
            content = opened.read(_FILE_BYTES_MAX + 1)
        if len(content) > _FILE_BYTES_MAX:
            raise SettingsError(f"{source}: {path} is larger than {_FILE_BYTES_MAX} bytes", field=source)
        return content.decode("utf-8")
    except OSError as error:
        raise SettingsError(f"{source}: cannot read {path}: {error.strerror or error}", field=source) from None
    except UnicodeDecodeError:
        raise SettingsError(f"{source}: {path} is not UTF-8 text", field=source) from None


def _config_file(path: Path, *, must_exist: bool) -> dict[str, str]:
    if not must_exist and not path.exists():
        return {}
    text = _read(path, "configuration")
    import yaml

    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f"{mark.line + 1}" if mark else "0"
        raise SettingsError(f"{path}:{line}: not YAML: {getattr(error, 'problem', error)}", field="config") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise SettingsError(f"{path}: expected keys and values such as 'address: 127.0.0.1:7443'", field="config")
    for key, value in content.items():
        if key not in CONFIG_KEYS:
            raise SettingsError(f"{path}: unknown key {quoted(key)}: expected one of {', '.join(CONFIG_KEYS)}", field="config")
        if not isinstance(value, str):
            shown = "" if key == "token" else f" is {quoted(value)}"
            raise SettingsError(f"{path}: {key}{shown}: expected text", field="config")
    return content
