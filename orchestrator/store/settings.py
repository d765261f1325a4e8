"""Which store is meant: the settings that name one in etcd, from their texts to a target.

Decides what belongs together. Reads the files that are named, and connects to nobody.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

from atoll.model.errors import FieldError
from orchestrator.store.etcd.target import SCHEME, URL_RULE, EtcdTarget, Tls, parse_url

# Flag -> what reads its text, as in `orchestrator.config`.
STORE_SETTINGS: Final = ("store", "store_user", "store_ca", "store_cert", "store_key", "store_tls_name", "store_quota_bytes")
SQLITE: Final = "sqlite"
# `--store-ca`: the authorities that the system trusts.
_SYSTEM: Final = "system"
_PEM_BYTES_MAX: Final = 1024 * 1024

Setting = Callable[[str], str]


def read_target(setting: Setting) -> EtcdTarget | None:
    """The etcd that is meant; None: the embedded store. `setting` gives the text of a setting, "" where none is given.

    FieldError naming the setting that is wrong, or that lacks another.
    """
    url = setting("store")
    if url in ("", SQLITE):
        for name in STORE_SETTINGS[1:]:
            if setting(name):
                raise FieldError(name, setting(name), f"a store in etcd beside it: store is {url or SQLITE!r}, not {SCHEME}HOST:PORT")
        return None
    if not url.startswith(SCHEME):
        raise FieldError("store", url, f"{SQLITE!r}, or {URL_RULE}")
    target = parse_url("store", url)
    # No flag: arguments of a process are everybody's to read.
    user, password = setting("store_user"), setting("store_password")
    if bool(user) is not bool(password):
        missing = (
            "its password in ATOLL_ORCHESTRATOR_STORE_PASSWORD" if user else "the user whose password ATOLL_ORCHESTRATOR_STORE_PASSWORD is"
        )
        raise FieldError("store_user", user, missing)
    return EtcdTarget(members=target.members, prefix=target.prefix, tls=_tls(setting), user=user, password=password)


def _tls(setting: Setting) -> Tls | None:
    ca, cert, key, name = (setting(f"store_{each}") for each in ("ca", "cert", "key", "tls_name"))
    if not ca:
        for each in ("store_cert", "store_key", "store_tls_name"):
            if setting(each):
                raise FieldError(each, setting(each), f"store_ca beside it: the authority of etcd's certificates, or {_SYSTEM!r}")
        return None
    if bool(cert) is not bool(key):
        raise FieldError("store_cert", cert, "store_cert and store_key together: one of them is missing")
    return Tls(
        ca=None if ca == _SYSTEM else _pem("store_ca", ca),
        cert=_pem("store_cert", cert) if cert else None,
        key=_pem("store_key", key) if key else None,
        name=name,
    )


def _pem(name: str, path: str) -> bytes:
    try:
        with Path(path).expanduser().open("rb") as opened:
            content = opened.read(_PEM_BYTES_MAX + 1)
    except OSError as error:
        raise FieldError(name, path, f"a file that can be read ({error.strerror})") from None
    if len(content) > _PEM_BYTES_MAX or b"-----BEGIN " not in content:
        raise FieldError(name, path, "a PEM file")
    return content
