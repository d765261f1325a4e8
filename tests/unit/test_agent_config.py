"""Settings of an agent: flags before environment before defaults, and one clear error for each that is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from agents.app import fleet_of
from agents.config import ConfigError, RaySettings, TwinSettings, load_agent_config, load_rehearse_config
from atoll.model.site import SiteRuntime
from atoll.packaged import load_packaged

FLEET = str(Path(__file__).resolve().parents[2] / "clusters.yaml")


def test_defaults_are_a_real_site_on_this_machine() -> None:
    config = load_agent_config({"site": "here"}, {"HOME": "/home/somebody"})
    assert (config.kind, list(map(str, config.reach.orchestrators))) == (SiteRuntime.RAY, ["127.0.0.1:7443"])
    assert config.state_dir == Path("/home/somebody/.local/state/atoll/agents/here")
    assert isinstance(config.runtime, RaySettings)
    assert config.runtime.cache_dir == Path("/home/somebody/.cache/atoll/weights")
    assert config.reach.give_up_after_s is None
    assert config.reach.metrics is None


def test_flags_come_before_the_environment() -> None:
    environ = {"ATOLL_AGENT_SITE": "from-environment", "ATOLL_AGENT_ORCHESTRATOR": "far:1", "ATOLL_AGENT_SLOTS": "3"}
    config = load_agent_config({"site": "from-flag", "orchestrator": None}, environ)
    assert (config.site_id, list(map(str, config.reach.orchestrators))) == ("from-flag", ["far:1"])
    assert isinstance(config.runtime, RaySettings)
    assert config.runtime.slots == 3
    several = load_agent_config({"site": "a", "orchestrator": "one, two:9,one"}, {}).reach.orchestrators
    assert list(map(str, several)) == ["one:7443", "two:9"]


def test_a_twin_names_its_fleet_file() -> None:
    config = load_agent_config({"site": "a", "runtime": "twin", "fleet": FLEET, "seed": 7}, {})
    assert config.runtime == TwinSettings(fleet=Path(FLEET), seed=7)


def test_a_fleet_that_has_a_name_is_no_file() -> None:
    assert load_rehearse_config({"fleet": "fleet-small"}, {}).fleet == Path("fleet-small")
    fleet = fleet_of(Path("fleet-small"), load_packaged().gpus)
    assert len(fleet.sites) == 36 and all(pool.nodes >= 1 for site in fleet.sites for pool in site.pools)
    with pytest.raises(ConfigError, match="a file that exists"):
        load_rehearse_config({"fleet": "fleet-smal"}, {})


def test_the_token_is_read_from_the_environment_and_never_shown() -> None:
    config = load_agent_config({"site": "a"}, {"ATOLL_JOIN_TOKEN": "very-secret"})
    assert config.reach.token == "very-secret"
    assert "very-secret" not in repr(config)
    with pytest.raises(ConfigError, match="ATOLL_JOIN_TOKEN") as error:
        load_agent_config({"site": "a"}, {"ATOLL_JOIN_TOKEN": "very secret"})
    assert "very secret" not in str(error.value)


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ({}, "site is None"),
        ({"site": "../up"}, "site is '../up'"),
        ({"site": "a\nb"}, "site is 'a\\\\nb'"),
        ({"site": "a", "runtime": "slurm"}, "runtime is 'slurm': expected one of ray, twin"),
        ({"site": "a", "orchestrator": "host:99999"}, "orchestrator is 'host:99999'"),
        ({"site": "a", "slots": "0"}, "slots is '0'"),
        ({"site": "a", "slots": "many"}, "slots is 'many'"),
        ({"site": "a", "give_up_after": "nan"}, "give_up_after is 'nan'"),
        ({"site": "a", "use_gpus": "perhaps"}, "use_gpus is 'perhaps': expected true or false"),
        ({"site": "a", "ca_file": "/no/such/file"}, "ca_file is '/no/such/file': expected a file that exists"),
        ({"site": "a", "runtime": "twin", "fleet": "/no/such.yaml"}, "fleet is '/no/such.yaml'"),
        ({"site": "a", "runtime": "twin", "fleet": FLEET, "sigma": "0"}, "sigma is '0'"),
        ({"site": "a", "colour": "blue"}, "flags is \\['colour'\\]"),
        ({"site": "a", "state_dir": "a\0b"}, "state_dir"),
    ],
)
def test_each_mistake_is_named_with_its_value_and_the_remedy(flags: dict[str, object], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        load_agent_config(flags, {})


def test_a_rehearsal_may_be_of_some_sites() -> None:
    config = load_rehearse_config({"fleet": FLEET, "sites": "aws-use1, neo-kef"}, {})
    assert config.sites == ("aws-use1", "neo-kef")
    with pytest.raises(ConfigError, match="sites is 'A'"):
        load_rehearse_config({"fleet": FLEET, "sites": "A"}, {})


def test_serving_weights_is_off_and_its_secret_is_never_shown(tmp_path: Path) -> None:
    plain = load_agent_config({"site": "a"}, {}).runtime
    assert isinstance(plain, RaySettings) and plain.weights_listen is None and plain.peer_token == ""
    secret = tmp_path / "token"
    secret.write_text("0123456789abcdef01234567\n")
    served = load_agent_config({"site": "a", "weights_listen": "0.0.0.0:8443", "peer_token_file": str(secret)}, {})
    assert isinstance(served.runtime, RaySettings)
    assert str(served.runtime.weights_listen) == "0.0.0.0:8443" and served.runtime.peer_token == "0123456789abcdef01234567"
    assert "0123456789" not in repr(served)
    for text in ("short", "0123456789abcdef 01234567", "x" * 600, "\x00" * 30, ""):
        secret.write_text(text)
        with pytest.raises(ConfigError, match=r"peer_token_file is .*: expected one line of 24 to 512") as error:
            load_agent_config({"site": "a", "peer_token_file": str(secret)}, {})
        assert text.strip("\x00") == "" or text not in str(error.value)
