"""The command `atoll`: its verbs, and how every error becomes one line and one exit code.

Decides what is loaded: the modules of the verbs are light, and each loads the SDK or a server only when it runs.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated, Final

import typer

from atoll.cli import (
    adapters,
    agent,
    copies,
    costs,
    events,
    fleet,
    jobs,
    models,
    orchestrator,
    orchestrators,
    policies,
    quote,
    sim,
    sites,
    store,
    submit,
    up,
    version,
)
from atoll.cli.exits import HELP, CliError, Exit, code_of, hint_of
from atoll.cli.output import note, printable
from atoll.cli.session import AddressOption, CaOption, ConfigOption, OutputOption, TokenOption, begin, examples
from atoll.cli.verbs import USAGE_ERROR, Noun, Verb
from atoll.model.errors import AtollError

DEBUG_VARIABLE: Final = "ATOLL_DEBUG"

app = typer.Typer(
    cls=Noun,
    name="atoll",
    help="Many uneven sites of GPUs that behave like one pool.\n\nSubmit jobs, follow them, and operate the sites that run them.",
    epilog=examples(
        """
        atoll up  # an orchestrator and a site on this machine
        atoll submit tiny-image --prompt "a lighthouse" --seed 7 --wait --out lighthouse.png
        atoll jobs explain JOB  # why it ran where it ran
        atoll sites drain aws-use1 --deadline 10m --reason "switch replaced" --dry-run
        """
    )
    + f"\n\n{HELP}",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)


@app.callback()
def root(
    address: AddressOption = None, token: TokenOption = None, ca: CaOption = None, config: ConfigOption = None, output: OutputOption = None
) -> None:
    """Options here hold for the verb that follows; they may stand after it too."""
    begin({"address": address, "token": token, "ca": ca, "config": config, "output": output})


_MODULES: Final = (
    up, submit, quote, jobs, sites, models, adapters, costs, policies, sim, fleet, events, orchestrators, orchestrator, agent, store,
    version,
)  # fmt: skip
for module in _MODULES:
    module.register(app)
copies.add_to(models.app)


@app.command(
    "demo",
    cls=Verb,
    epilog=examples(
        """
        atoll demo
        atoll demo --verify  # make its pictures again without Atoll, and compare their pixels
        """
    ),
)
def demo(
    *,
    verify: Annotated[
        bool, typer.Option("--verify", help="Make the pictures again with plain diffusers and compare their pixels.")
    ] = False,
    out: Annotated[str, typer.Option("--out", metavar="FOLDER", help="Where pictures, models and logs go.")] = "out",
    fleet: Annotated[
        str, typer.Option("--fleet", metavar="FILE", show_default=False, help="Which sites to rehearse (default: clusters.yaml).")
    ] = "",
) -> None:
    """Two real sites and 36 twins on this machine; pictures and films in out/. Needs the extra 'worker'."""
    from atoll.cli.demo import run

    raise typer.Exit(run(out=out, fleet=fleet, verify=verify))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line; its exit code. Prints one line for whatever goes wrong, and a traceback only with ATOLL_DEBUG=1."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        code = app(given, prog_name="atoll", standalone_mode=False)
        sys.stdout.flush()
        return int(code or Exit.OK)
    except KeyboardInterrupt:
        return _interrupted()
    except BrokenPipeError:
        return _nobody_reads()
    except AtollError as error:
        return _failed(str(error), code_of(error), hint_of(error), error)
    except USAGE_ERROR as error:
        return _misused(error)
    except typer.Abort:
        return _interrupted()
    except Exception as error:  # noqa: BLE001 - our bug: still one line, unless somebody wants to see it
        hint = f"this is a bug of atoll's; {DEBUG_VARIABLE}=1 shows where"
        return _failed(f"{type(error).__name__}: {error}", Exit.FAILED, hint, error)


def _misused(error: Exception) -> int:
    """A command line that cannot be read: what is wrong, and where the right form is explained."""
    context = getattr(error, "ctx", None)
    path = getattr(context, "command_path", "atoll")
    message = error.format_message() if hasattr(error, "format_message") else str(error)
    if not message:  # a group without a verb: Typer has printed its help
        return Exit.USAGE
    return _failed(message.rstrip("."), Exit.USAGE, f"see '{path} --help'", error)


def _failed(message: str, code: int, hint: str, error: BaseException) -> int:
    if os.environ.get(DEBUG_VARIABLE) == "1":
        import traceback

        traceback.print_exception(error)
    for line in (message, *(error.more if isinstance(error, CliError) else ())):
        note(f"error: {printable(line)}")
    if hint:
        note(f"hint: {printable(hint)}")
    return int(code)


def _interrupted() -> int:
    note("interrupted")
    return Exit.INTERRUPTED


def _nobody_reads() -> int:
    # What is left in the buffer would raise again at exit.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return Exit.OK
