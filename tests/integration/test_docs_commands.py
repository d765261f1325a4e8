"""The documentation is true: its commands are run, in order, against real fleets; what cannot be run here is at least well-formed.

A ```console block holds commands, one a line after "$ ". One that ends in "&" is a server: it runs as a process until the page's fleet
ends. "# exit code N" names a status other than 0. JOB is the id of the job submitted last. A ```yaml block that begins with "# NAME.yaml"
is that file. A ```python block runs as it stands, and prints what a ```text block right after it says. In ```sh blocks, and in `atoll ...`
within a sentence, verbs, options and targets must exist.
"""

from __future__ import annotations

import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest
from typer.main import get_command

from atoll.cli.app import app, main
from atoll.client import Client, ClientError
from atoll.model.site import SiteConnection
from tests.architecture.sources import REPOSITORY
from tests.integration.etcd_members import needs_etcd
from tests.integration.ray_site import free_port_block

Shown = pytest.CaptureFixture[str]

PAGES: Final = ("README.md", "CONTRIBUTING.md", *sorted(f"docs/{path.name}" for path in (REPOSITORY / "docs").glob("*.md")))
# Pages that run one after the other on one fleet, which the first of them starts.
TWINS: Final = ("docs/operations.md",)
ETCD: Final = ("docs/store.md",)
REAL: Final = ("docs/agents.md", "README.md", "docs/python.md")
# Pages that need no fleet: where a ```text block comes right after a command, that is what it prints. How many commands each has.
ALONE: Final = {"docs/costs.md": 7, "docs/placement.md": 1, "docs/simulation.md": 6}
# What the pages have today, less a little: a page that has lost its commands proves nothing.
COMMANDS_MIN: Final = {TWINS: 55, REAL: 18, ETCD: 12}
PYTHON_MIN: Final = 6
# Twins run faster than real time, at a rate at which a busy machine does not make them fall silent.
TIME_SCALE: Final = 3
# Bounds a wait for something that must come; how soon is never asserted with it.
PATIENCE_S: Final = 90.0
DEFAULT_ADDRESS: Final = "127.0.0.1:7443"
DEFAULT_ETCD: Final = "127.0.0.1:2379"
STANDBY_ADDRESS: Final = "127.0.0.1:7543"
# What a reader types besides our own commands.
TOOLS: Final = frozenset({"cp", "curl", "etcdctl", "export", "grep", "openssl", "rm", "source"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A fenced block of a page."""

    page: str
    line: int
    language: str
    text: str

    @property
    def place(self) -> str:
        """Where it is, for a failure's message."""
        return f"{self.page}:{self.line}"


def blocks(page: str, *languages: str) -> list[Block]:
    """The page's blocks of these languages, in order."""
    text = (REPOSITORY / page).read_text(encoding="utf-8")
    found = re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [
        Block(page=page, line=text.count("\n", 0, match.start()) + 2, language=match[1], text=match[2])
        for match in found
        if match[1] in languages
    ]


def commands(block: Block) -> list[str]:
    """Lines of a shell block, continued ones joined, without what is behind "# " unless it names an exit code."""
    lines = block.text.replace("\\\n", " ").splitlines()
    return [line for line in (re.sub(r"\s+# (?!exit code \d+).*", "", line).strip() for line in lines) if line and line[0] != "#"]


# --- what is run --------------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Fleet:
    """A fleet as a reader of the docs has it: servers that run as processes, and a shell in a folder of its own."""

    folder: Path
    address: str
    shown: Shown
    standby: str
    etcd: str
    etcd_peers: str
    servers: list[subprocess.Popen[bytes]] = field(default_factory=list)
    job: str = ""
    run: int = 0
    printed: str = ""

    def play(self, block: Block) -> None:
        """Run a ```console block."""
        for line in block.text.splitlines():
            assert line.startswith("$ atoll "), f"{block.place}: a console block holds '$ atoll ...' lines only: {line!r}"
            command, _, code = self._here(line.removeprefix("$ atoll ")).partition("  # exit code ")
            if command.endswith(" &"):
                self._serve(block, shlex.split(command.removesuffix(" &")))
            else:
                self._do(block, shlex.split(command), int(re.match(r"\d+", code)[0]) if code else 0)  # type: ignore[index]
            self.run += 1

    def execute(self, block: Block, names: dict[str, Any]) -> str:
        """Run a ```python block; what it prints."""
        self.shown.readouterr()
        exec(compile(self._here(block.text), block.place, "exec"), names)
        return self.shown.readouterr().out

    def _here(self, text: str) -> str:
        moved = {"/tmp/": f"{self.folder}/", DEFAULT_ADDRESS: self.address, STANDBY_ADDRESS: self.standby, DEFAULT_ETCD: self.etcd}
        for shown, here in moved.items():
            text = text.replace(shown, here)
        return text

    def _do(self, block: Block, arguments: list[str], expected: int) -> None:
        arguments = [self.job if argument == "JOB" else argument for argument in arguments]
        self.shown.readouterr()
        if arguments[:2] == ["models", "build-starters"]:  # loads torch, which this process has no use for
            done = subprocess.run([sys.executable, "-m", "atoll.cli", *arguments], capture_output=True, text=True)
            code, out, err = done.returncode, done.stdout, done.stderr
        else:
            code = main(arguments)
            out, err = self.shown.readouterr()
        self.printed = out
        assert code == expected, f"{block.place}: atoll {shlex.join(arguments)}\nended with {code}, not {expected}\n{out}\n{err}"
        if expected:
            # An answer that is a no, or not known yet, is no error; but nothing ends with a code and without a word.
            assert err.startswith("error: ") or (out and err), f"{block.place}: atoll {shlex.join(arguments)}\nsays no reason: {err}"
        elif arguments[0] == "submit":
            self.job = re.findall(r"job/(\S+)", out)[-1]

    def _serve(self, block: Block, arguments: list[str]) -> None:
        if arguments[:2] == ["store", "etcd"]:
            arguments = [*arguments, "--listen", self.etcd, "--listen-peers", self.etcd_peers]
        log = self.folder / f"{len(self.servers)}.log"
        with log.open("wb") as said:
            server = subprocess.Popen([sys.executable, "-m", "atoll.cli", *arguments], stdout=said, stderr=said, start_new_session=True)
        self.servers.append(server)
        if arguments[0] == "store":
            return  # whoever needs it waits for it
        ready: Callable[[Client], bool] = answers if arguments[0] == "orchestrator" else all_connected
        if self.standby in arguments:
            ready = partial(stands_by, self.standby)
        deadline_s = time.monotonic() + PATIENCE_S
        with Client(connect_timeout_s=1.0) as client:
            while not ready(client):
                said_so_far = log.read_text(encoding="utf-8")
                assert server.poll() is None, f"{block.place}: ended with {server.returncode}:\n{said_so_far}"
                assert time.monotonic() < deadline_s, f"{block.place}: not ready after {PATIENCE_S:g} s:\n{said_so_far}"
                time.sleep(0.1)

    def end(self) -> None:
        """Stop the servers as a supervisor would, those that were started last first. Each must end well."""
        codes = []
        for server in reversed(self.servers):
            if server.poll() is None:
                server.send_signal(signal.SIGTERM)
            try:
                code = server.wait(PATIENCE_S)
                # etcd ends by the signal itself, as many programs do.
                codes.append(0 if code == -signal.SIGTERM and "etcd" in server.args else code)  # type: ignore[operator] # a list, as started here
            except subprocess.TimeoutExpired:
                server.kill()
                codes.append(server.wait())
        assert not any(codes), f"servers ended with {codes}"


def answers(client: Client) -> bool:
    """Whether there is an orchestrator."""
    try:
        client.fleet()
    except ClientError:
        return False
    return True


def stands_by(address: str, client: Client) -> bool:
    """Whether the one there does, and has read everything."""
    return any(view.address == address and view.lag_ms == 0 for view in client.orchestrators())


def all_connected(client: Client) -> bool:
    """Whether every site that is declared is there, with GPUs."""
    return all(view.connection is SiteConnection.CONNECTED and view.pools for view in client.sites_list())


@pytest.fixture
def fleet(short_path: Path, free_ports: Callable[[], int], capsys: Shown, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fleet]:
    """Nothing yet: pages start their own servers. The environment moves what has a default address, and changes no flag of theirs."""
    address = f"127.0.0.1:{free_ports()}"
    settings = {
        "ATOLL_ADDRESS": address,
        "ATOLL_ORCHESTRATOR_LISTEN": address,
        "ATOLL_ORCHESTRATOR_METRICS": "off",
        "ATOLL_AGENT_ORCHESTRATOR": address,
        "ATOLL_AGENT_NODE_IP": "127.0.1.61",
        "ATOLL_AGENT_PORT_BASE": str(free_port_block()),
        "ATOLL_AGENT_CACHE_DIR": str(short_path / "cache"),
        "XDG_STATE_HOME": str(short_path / "state"),
        "PYTHONPATH": str(REPOSITORY),
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    (short_path / "clusters.yaml").symlink_to(REPOSITORY / "clusters.yaml")
    monkeypatch.chdir(short_path)
    standby, etcd, peers = (f"127.0.0.1:{free_ports()}" for _ in range(3))
    found = Fleet(short_path, address, capsys, standby, etcd, peers)
    yield found
    found.end()


@pytest.mark.timeout(300)  # half a minute of waiting for twins, and half a minute of playing them, where many share two cores
def test_operations_against_the_reference_fleet_of_twins(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATOLL_ORCHESTRATOR_TIME_SCALE", str(TIME_SCALE))
    for page in TWINS:
        for block in blocks(page, "console"):
            fleet.play(block)
    assert fleet.run >= COMMANDS_MIN[TWINS]


@needs_etcd
def test_the_store_in_etcd(fleet: Fleet) -> None:
    for page in ETCD:
        for block in blocks(page, "console"):
            fleet.play(block)
    assert fleet.run >= COMMANDS_MIN[ETCD]


@pytest.mark.slow
def test_a_real_site_its_pictures_and_the_sdk(fleet: Fleet) -> None:
    ran = 0
    for page in REAL:
        names: dict[str, Any] = {"__name__": page}
        for block, following in followed(blocks(page, "console", "python", "text")):
            if block.language == "console":
                fleet.play(block)
            elif block.language == "python":
                printed = fleet.execute(block, names)
                ran += 1
                if following is not None and following.language == "text":
                    assert printed == following.text, following.place
    assert fleet.run >= COMMANDS_MIN[REAL]
    assert ran >= PYTHON_MIN
    for name, first in (("lighthouse.png", b"\x89PNG"), ("gull.png", b"\x89PNG")):
        assert (fleet.folder / name).read_bytes().startswith(first)
    assert (fleet.folder / "waves.mp4").read_bytes() == (fleet.folder / "again.mp4").read_bytes()
    # The first job of a compiled model pays for its code, and the next is told that the node has it.
    with Client(connect_timeout_s=5.0) as client:
        last = [job.attempts[-1] for job in client.list() if job.spec.prompt in ("rain", "waves") and job.spec.model_id == "tiny-video"]
    (rain, compiled, eager) = last
    assert compiled.times.compile_us > 0 and rain.times.compile_us == eager.times.compile_us == -1
    told = [one.explanation.chosen.terms_us[one.explanation.term_names.index("compile")] for one in last if one.explanation is not None]
    assert told[0] == told[2] == 0 < told[1]


@pytest.mark.timeout(400)  # the page on simulation plays runs
@pytest.mark.parametrize("page", ALONE)
def test_a_page_without_a_fleet_shows_what_its_commands_print(page: str, fleet: Fleet) -> None:
    for block, following in followed(blocks(page, "console", "text", "yaml")):
        if block.language == "yaml" and (named := re.match(r"# (\w+\.yaml)\n", block.text)):
            Path(named[1]).write_text(block.text, encoding="utf-8")
        if block.language != "console":
            continue
        fleet.play(block)
        if following is not None and following.language == "text":
            assert fleet.printed == following.text, following.place
    assert fleet.run >= ALONE[page]


def followed(found: list[Block]) -> Iterator[tuple[Block, Block | None]]:
    """Each block and the one after it."""
    return zip(found, [*found[1:], None], strict=True)


# --- what is read -------------------------------------------------------------------------------------------------------------


def test_every_page_with_commands_is_run() -> None:
    with_commands = {page for page in PAGES if blocks(page, "console", "python")}
    assert with_commands == {*TWINS, *ETCD, *REAL, *ALONE}


@pytest.mark.parametrize("page", PAGES)
def test_what_a_reader_runs_elsewhere_is_well_formed(page: str) -> None:
    for block in blocks(page, "sh", "bash", "shell", ""):
        for line in commands(block):
            for part in re.split(r"\s+(?:&&|\|)\s+", line.removesuffix("&")):
                words = [word for word in shlex.split(part) if not re.match(r"[A-Z_]+=", word)]
                check(words, f"{block.place}: {line}", whole=True)


@pytest.mark.parametrize("page", PAGES)
def test_what_a_sentence_names_exists(page: str) -> None:
    prose = re.sub(r"^```.*?^```$", "", (REPOSITORY / page).read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for words in (shlex.split(code) for code in re.findall(r"`((?:atoll|make) [^`]+)`", prose)):
        check(words, f"{page}: {shlex.join(words)}", whole=False)
    for target in re.findall(r"\]\(([^)]+)\)", prose):
        path, _, anchor = target.partition("#")
        linked = (REPOSITORY / page).parent / path if path else REPOSITORY / page
        assert linked.exists(), f"{page}: {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", linked.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}, f"{page}: {target}"


def check(words: list[str], place: str, *, whole: bool) -> None:
    """A command that a reader may run: a verb and options that exist, or a target. `whole`: nothing may be missing."""
    if words and words[0] == "make":
        targets = re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        assert set(words[1:2]) <= set(targets), place
    elif words and words[0] in {"atoll", "xargs"}:
        parse(words[words.index("atoll") + 1 :], place, missing_argument="JOB" if words[0] == "xargs" else "", whole=whole)
    else:
        assert not words or words[0] in TOOLS, f"{place}: what is {words[0]}?"


def parse(arguments: list[str], place: str, *, missing_argument: str, whole: bool) -> None:
    """Fails unless these are arguments that the command line takes. Nothing is run."""
    command: Any = get_command(app)
    rest = list(arguments)
    while hasattr(command, "commands"):
        assert rest, f"{place}: a verb is missing"
        if not whole and rest[0] in {"--help", "..."}:
            return
        name, *rest = rest
        assert name in command.commands, f"{place}: there is no {name!r}; there are {', '.join(command.commands)}"
        command = command.commands[name]
    if whole:
        command.make_context(command.name, [*rest, *([missing_argument] if missing_argument else [])])
        return
    options = {option for parameter in command.params for option in parameter.opts}
    named = {word for word in rest if re.match(r"--?[a-z]", word)}
    assert named <= options, f"{place}: {named - options}"


def verbs(command: Any, *before: str) -> Iterator[str]:
    """Every verb of the command line, in full."""
    if not hasattr(command, "commands"):
        yield " ".join(before)
        return
    for name, inner in command.commands.items():
        yield from verbs(inner, *before, name)


def test_every_verb_is_documented() -> None:
    text = "\n".join((REPOSITORY / page).read_text(encoding="utf-8") for page in PAGES)
    missing = [verb for verb in verbs(get_command(app)) if not re.search(rf"\batoll {verb}\b", text)]
    assert missing == []


def test_the_readme_names_every_folder_of_the_code() -> None:
    named = set(re.findall(r"^\| `(\w+)/` \|", (REPOSITORY / "README.md").read_text(encoding="utf-8"), re.MULTILINE))
    tracked = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, check=False).stdout.split()
    folders = {name.partition("/")[0] for name in tracked if "/" in name and not name.startswith(".")}
    assert named == folders or (not folders and all((REPOSITORY / name).is_dir() for name in named))


def test_exit_codes_are_those_of_the_program() -> None:
    from agents.session import ExitCode as AgentExit
    from atoll.cli.exits import Exit
    from orchestrator.config import ExitCode as OrchestratorExit

    for page, codes in (("docs/operations.md", {*Exit}), ("docs/agents.md", {*OrchestratorExit, *AgentExit})):
        rows = re.findall(r"^\| (\d+) \|", (REPOSITORY / page).read_text(encoding="utf-8"), re.MULTILINE)
        assert {int(row) for row in rows} == {int(code) for code in codes}
