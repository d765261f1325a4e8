"""How a command line ends: one line, one code, and quickly."""

from __future__ import annotations

import gzip
import json
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from atoll.cli.app import main
from atoll.cli.exits import Exit
from tests.architecture.sources import REPOSITORY
from tests.unit.broken_orchestrator import CONTENT, Troubles, serving

Shown = pytest.CaptureFixture[str]


@pytest.fixture
def troubles() -> Troubles:
    return Troubles()


@pytest.fixture
def address(troubles: Troubles, free_port: int) -> Iterator[str]:
    with serving(troubles, free_port):
        yield f"127.0.0.1:{free_port}"


def error_of(shown: Shown) -> str:
    """The one line on standard error that says what went wrong."""
    captured = shown.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert lines[0].startswith("error: ")
    assert all(line.startswith("hint: ") for line in lines[1:])
    assert "Traceback" not in captured.err
    return lines[0].removeprefix("error: ")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["jobs", "gett"], "atoll jobs has no verb 'gett'; did you mean 'get'?"),
        (["sites", "describe"], "atoll sites has no verb 'describe'; did you mean 'get'?"),
        (["sim", "trace", "describe"], "atoll sim trace has no verb 'describe'; did you mean 'inspect'?"),
        (["policies", "get"], "atoll policies has no verb 'get'; did you mean 'show'?"),
        (["job", "get"], "atoll has no verb 'job'; did you mean 'jobs'?"),
        (["ls"], "atoll has no verb 'ls'; did you mean 'jobs list' or 'sites list' or 'models list'?"),
        (["store", "zap"], "atoll store has no verb 'zap'; expected one of backup, restore, etcd"),
        (["zzz"], "atoll has no verb 'zzz'; none is like it"),
        (["jobs", "get"], "Missing argument 'JOB...'"),
        (["jobs", "get", "x", "--nope"], "No such option: --nope"),
        (["jobs", "list", "--limit", "-3"], "--limit is '-3': expected a whole number from 0 to 1000000"),
        (["jobs", "list", "--state", "done"], "--state is 'done': expected one of queued, placed, running"),
        (["jobs", "list", "-o", "xml"], "--output is 'xml': expected one of table, wide, json, yaml, name"),
        (["submit", "m", "--size", "0x0"], "--size is '0x0': expected WIDTHxHEIGHT in pixels"),
        (["submit", "m", "--steps", "nan"], "--steps is 'nan': expected a whole number from 1 to 1000"),
        (["submit", "m", "--steps", "1000000000"], "--steps is '1000000000': expected a whole number from 1 to 1000"),
        (["submit", "m", "--guidance", "nan"], "--guidance is 'nan': expected a number from 0 to 100"),
        (["submit", "m", "--deadline", "10"], "--deadline is '10': expected a duration such as 90s, 10m or 1h30m"),
        (["submit", "m", "--priority", "high"], "--priority is 'high': expected one of urgent, normal, batch"),
        (["submit", "m", "--max-price", "cheap"], "--max-price is 'cheap': expected dollars from 0.000001"),
        (["submit", "m", "--origin", "../x"], "--origin is '../x': expected"),
        (["submit", "m", "--out", "x.png", "--simulated"], "--out is given with --simulated"),
        (["sites", "drain", "tokyo-1", "--deadline", "10m"], "--reason is missing"),
        (["sites", "drain", "tokyo-1", "--reason", "x", "--deadline", "0s"], "--deadline is '0s'"),
        (["sites", "cordon", "tokyo-1", "--reason", " "], "--reason is missing"),
        (["sites", "add", "../etc", "--region", "r"], "NAME is '../etc'"),
        (["sites", "add", "x", "--region", "r", "--wan", "fast"], "--wan is 'fast': expected a rate such as 10Gbps"),
        (["--address", "a b", "fleet"], "--address is 'a b': expected HOST:PORT"),
        (["--address", "h:99999", "fleet"], "--address is 'h:99999': expected a port"),
        (["costs", "residuals", "--model", "A b"], "--model is 'A b': expected 1 to 63 of a-z"),
        (["fleet", "--config", "/nowhere/config.yaml"], "configuration: cannot read /nowhere/config.yaml"),
        (["fleet", "--ca", "/nowhere/ca.pem"], "--ca: cannot read /nowhere/ca.pem"),
    ],
)
def test_wrong_usage_names_the_option_the_value_and_the_remedy(arguments: list[str], said: str, capsys: Shown) -> None:
    assert main(arguments) == Exit.USAGE
    assert error_of(capsys).startswith(said)


@pytest.mark.parametrize("words", [["policies", "check"], ["policies", "show"], ["sites", "apply"], ["sim", "sweep"], ["sim", "replay"]])
def test_a_file_that_is_no_text_is_one_error_that_says_what_it_is(words: list[str], capsys: Shown, tmp_path: Path) -> None:
    packed, binary = tmp_path / "own.yaml.gz", tmp_path / "own.yaml"
    packed.write_bytes(gzip.compress(b"name: own"))
    assert main([*words, str(packed)]) == Exit.USAGE
    told = error_of(capsys)
    assert f" is '{packed}'"[:40] in told and told.endswith(": expected text, and this is compressed: unpack it first, with gunzip")
    binary.write_bytes(b"name: \xff\xfe\n")
    assert main([*words, str(binary)]) == Exit.USAGE
    said = error_of(capsys)
    assert "UTF-8" in said and "codec" not in said


def test_bad_ids_are_refused_before_anything_is_sent(address: str, troubles: Troubles, capsys: Shown) -> None:
    for bad in ("a/b", "..", "a\nb", "a\x00b", "x" * 64, ""):
        assert main(["jobs", "get", bad, "--address", address]) == Exit.USAGE
        assert error_of(capsys).startswith("job_id is ")
    assert troubles.calls == []


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, Exit.USAGE),
        (grpc.StatusCode.NOT_FOUND, Exit.NOT_FOUND),
        (grpc.StatusCode.UNAUTHENTICATED, Exit.REFUSED),
        (grpc.StatusCode.PERMISSION_DENIED, Exit.REFUSED),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, Exit.REFUSED),
        (grpc.StatusCode.ALREADY_EXISTS, Exit.CONFLICT),
        (grpc.StatusCode.FAILED_PRECONDITION, Exit.CONFLICT),
        (grpc.StatusCode.DEADLINE_EXCEEDED, Exit.TIMEOUT),
        (grpc.StatusCode.INTERNAL, Exit.FAILED),
    ],
)
def test_what_an_orchestrator_refuses_is_an_exit_code(
    address: str, troubles: Troubles, capsys: Shown, status: grpc.StatusCode, code: Exit
) -> None:
    troubles.refuse = (status, "because\nof \x1b[31mthis", (("atoll-reference", "ref-1"),))
    assert main(["jobs", "get", "job-0", "--address", address]) == code
    assert error_of(capsys) == "because of \N{REPLACEMENT CHARACTER}[31mthis"


def test_no_orchestrator_at_the_address(free_port: int, capsys: Shown, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATOLL_ADDRESS", f"127.0.0.1:{free_port}")
    assert main(["fleet"]) == Exit.UNAVAILABLE
    assert error_of(capsys) == f"no orchestrator answers at 127.0.0.1:{free_port} (connection refused)"


def test_an_orchestrator_that_is_only_starting_is_worth_another_try(capfd: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert main(["fleet", "--address", f"127.0.0.1:{listener.getsockname()[1]}"]) == Exit.UNAVAILABLE
    error, hint = capfd.readouterr().err.splitlines()
    assert error.endswith("(something listens there and says nothing yet)")
    assert "try again" in hint and "atoll up" not in hint, "one is there already"


def test_shared_options_stand_before_or_after_the_verb(address: str, capsys: Shown) -> None:
    for arguments in (
        ["--address", address, "-o", "json", "jobs", "get", "job-0"],
        ["jobs", "get", "job-0", "--address", address, "-o", "json"],
        ["--address", "127.0.0.1:1", "-o", "yaml", "jobs", "get", "--address", address, "job/job-0", "-o", "json"],
    ):
        assert main(arguments) == Exit.OK
        assert json.loads(capsys.readouterr().out)["job_id"] == "job-0"


def test_address_and_token_come_from_arguments_then_environment_then_file(
    address: str, troubles: Troubles, capsys: Shown, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "secret").write_text("from-file-0123456789\n")
    config = tmp_path / "config.yaml"
    config.write_text(f"address: {address}\ntoken_file: {tmp_path / 'secret'}\noutput: name\n")
    monkeypatch.setenv("ATOLL_CONFIG", str(config))
    assert main(["jobs", "get", "job-0"]) == Exit.OK
    monkeypatch.setenv("ATOLL_TOKEN", "from-environment")
    monkeypatch.setenv("ATOLL_ADDRESS", address)
    assert main(["jobs", "get", "job-0"]) == Exit.OK
    assert main(["jobs", "get", "job-0", "--token", "from-argument", "-o", "name"]) == Exit.OK
    assert capsys.readouterr().out == "job/job-0\n" * 3
    assert troubles.tokens == ["Bearer from-file-0123456789", "Bearer from-environment", "Bearer from-argument"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("adress: x\n", "unknown key 'adress': expected one of address, token"),
        ("- a\n", "expected keys and values such as 'address"),
        ("address: [\n", ":2: not YAML"),
        ("address: 7443\n", "address is 7443: expected text"),
        ("token: 7443\n", "token: expected text"),
        ("origin: Tokyo 1\n", "config.yaml: origin is 'Tokyo 1': expected"),
        ("output: xml\n", "output in the configuration is 'xml'"),
    ],
)
def test_mistakes_in_the_configuration_are_named(content: str, said: str, capsys: Shown, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(content)
    assert main(["fleet", "--config", str(config)]) == Exit.USAGE
    assert said in error_of(capsys)


def test_submit_prints_ids_on_standard_output_and_nothing_else(address: str, capsys: Shown) -> None:
    assert main(["submit", "tiny-image", "--prompt", "-o", "--count", "3", "--address", address]) == Exit.OK
    shown = capsys.readouterr()
    assert shown.out == "job/job-0\njob/job-1\njob/job-2\n"
    assert shown.err == "3 jobs accepted\n"


def test_a_refused_batch_says_what_was_accepted(address: str, capsys: Shown) -> None:
    assert main(["submit", "unknown", "--count", "2", "--address", address]) == Exit.USAGE
    assert "MODEL is 'unknown'" in error_of(capsys)


def test_submit_waits_and_fetches(address: str, capsys: Shown, tmp_path: Path) -> None:
    out = tmp_path / "lighthouse.png"
    assert main(["submit", "tiny-image", "--out", str(out), "--address", address]) == Exit.OK
    assert out.read_bytes() == CONTENT
    shown = capsys.readouterr()
    assert shown.out.splitlines()[-1] == str(out)
    assert [line.split(" ", 1)[1] for line in shown.err.splitlines()] == ["is queued", "is placed", "succeeded"]


def test_waiting_too_long_is_a_code_of_its_own(address: str, troubles: Troubles, capsys: Shown) -> None:
    troubles.never_ends = True
    assert main(["submit", "tiny-image", "--wait", "--timeout", "300ms", "--address", address]) == Exit.TIMEOUT
    assert "error: 1 of 1 job had not ended after 300ms; nothing was stopped" in capsys.readouterr().err


def test_help_of_every_verb_has_an_example(capsys: Shown) -> None:
    verbs = {
        "": ["submit", "quote", "events", "fleet", "up", "orchestrator", "agent", "rehearse"],
        "jobs": ["list", "get", "watch", "cancel", "explain", "logs", "download"],
        "sites": ["list", "get", "apply", "add", "cordon", "uncordon", "drain", "remove"],
        "models": ["list", "get", "add", "remove", "build-starters"],
        "store": ["backup"],
    }
    for noun, names in verbs.items():
        for name in names:
            assert main([*([noun] if noun else []), name, "--help"]) == Exit.OK
            shown = capsys.readouterr().out
            assert f"atoll {noun + ' ' if noun else ''}{name}" in shown.split("Examples:")[1]
            assert not re.search(r"<(bool|str|int|float)>|list\[", shown), "what an option takes is said in words of this command line"


PROBE = """
import sys
from atoll.cli.app import main
code = main(sys.argv[1:])
heavy = {"orchestrator", "agents", "sims", "torch", "ray", "grpc", "google.protobuf", "numpy", "yaml"}
print(sorted(heavy & set(sys.modules)), code)
"""


@pytest.mark.parametrize("arguments", [["version"], ["--help"], ["submit", "--help"], ["quote", "--help"], ["jobs", "gett"]])
def test_what_needs_no_orchestrator_loads_no_sdk_and_no_server(arguments: list[str]) -> None:
    done = subprocess.run([sys.executable, "-c", PROBE, *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1].startswith("[] ")


def test_debugging_shows_where_it_happened(free_port: int, capsys: Shown, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATOLL_DEBUG", "1")
    assert main(["fleet", "--address", "nonsense:"]) == Exit.USAGE
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["costs", "check", "--cv"], ["submit", "m", "--size"], ["costs", "predict", "--nope"], ["sites", "get"]])
def test_a_wrong_command_line_points_to_the_help_of_its_own_verb(words: list[str], capsys: Shown) -> None:
    verb = [word for word in words if word not in {"--cv", "m", "--size", "--nope"}]
    assert main(words) == Exit.USAGE
    assert capsys.readouterr().err.splitlines()[-1] == f"hint: see 'atoll {' '.join(verb)} --help'"
