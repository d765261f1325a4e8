"""Which store is meant, and what belongs together: the settings of the orchestrator that name one."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.config import ENDED_JOBS, ENDED_JOBS_IN_ETCD, ExitCode, StartError, load_config
from orchestrator.store.etcd.target import Tls
from orchestrator.store.opening import STORE_FILE, open_store
from orchestrator.store.sqlite import SqliteStore

URL = "etcd://10.0.0.1:2379,10.0.0.2:2379/atoll"


@pytest.mark.parametrize("given", [None, "sqlite"])
def test_without_a_word_the_store_is_embedded(given: str | None, tmp_path: Path) -> None:
    config = load_config({"store": given, "data_dir": str(tmp_path)}, {})
    assert (config.store, config.ended_jobs_max) == (None, ENDED_JOBS)
    store = open_store(config.data_dir, config.store, quota_bytes=1)
    assert isinstance(store, SqliteStore)
    assert not (tmp_path / STORE_FILE).exists()


def test_an_etcd_is_named_by_flags_or_by_the_environment_its_password_by_that_alone(tmp_path: Path) -> None:
    for name in ("ca", "cert", "key"):
        (tmp_path / name).write_text(f"-----BEGIN {name}-----\n")
    environ = {"ATOLL_ORCHESTRATOR_STORE": URL, "ATOLL_ORCHESTRATOR_STORE_PASSWORD": "secret"}
    files = {f"store_{name}": str(tmp_path / name) for name in ("ca", "cert", "key")}
    config = load_config({"store_user": "atoll", "store_tls_name": "etcd.internal", "store_quota_bytes": "8e9", **files}, environ)
    target = config.store
    assert target is not None
    assert (str(target), target.user, target.password) == (URL, "atoll", "secret")
    assert target.tls == Tls(ca=b"-----BEGIN ca-----\n", cert=b"-----BEGIN cert-----\n", key=b"-----BEGIN key-----\n", name="etcd.internal")
    assert (config.store_quota_bytes, config.ended_jobs_max) == (8 * 10**9, ENDED_JOBS_IN_ETCD)
    assert "secret" not in repr(config)


def test_how_many_ended_jobs_are_kept_may_be_said_for_etcd_too() -> None:
    assert load_config({"store": URL, "ended_jobs_max": "7"}, {}).ended_jobs_max == 7


def test_the_systems_authorities_are_trusted_by_name() -> None:
    target = load_config({"store": URL, "store_ca": "system"}, {}).store
    assert target is not None
    assert target.tls == Tls()


@pytest.mark.parametrize(
    ("flags", "environ", "told"),
    [
        ({"store": "redis://a"}, {}, "store is 'redis://a': expected 'sqlite', or etcd://HOST:PORT"),
        ({"store": "etcd://a b"}, {}, "store is 'etcd://a b': expected etcd://HOST:PORT"),
        ({"store_user": "atoll"}, {}, "store_user is 'atoll': expected a store in etcd beside it"),
        ({"store": "sqlite", "store_ca": "system"}, {}, "store_ca is 'system': expected a store in etcd beside it"),
        ({"store": URL, "store_user": "atoll"}, {}, "expected its password in ATOLL_ORCHESTRATOR_STORE_PASSWORD"),
        ({"store": URL}, {"ATOLL_ORCHESTRATOR_STORE_PASSWORD": "x"}, "expected the user whose password"),
        ({"store": URL, "store_cert": "c", "store_key": "k"}, {}, "store_cert is 'c': expected store_ca beside it"),
        ({"store": URL, "store_ca": "system", "store_cert": "c"}, {}, "store_cert and store_key together"),
        (
            {"store": URL, "store_ca": "/nowhere/ca.pem"},
            {},
            r"store_ca is '/nowhere/ca.pem': .* can be read \(No such file",
        ),
        ({"store": URL, "store_ca": "/dev/null"}, {}, "expected a PEM file"),
        ({"store": URL, "store_quota_bytes": "2GB"}, {}, "store_quota_bytes is '2GB': expected a number"),
    ],
)
def test_what_does_not_belong_together_is_told_by_its_setting(flags: dict[str, object], environ: dict[str, str], told: str) -> None:
    with pytest.raises(StartError, match=told) as refused:
        load_config(flags, environ)
    assert refused.value.code is ExitCode.CONFIG
