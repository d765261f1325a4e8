"""`atoll policies`: by which figures places are chosen, and whether a file of them is right. Only `show` asks an orchestrator.

Decides how policies look; what may be in one is the orchestrator's matter, whose code is loaded when a verb runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Final

import typer

from atoll.cli.exits import CliError, Exit
from atoll.cli.output import Column, Form, Listing, note, plain, say, show_list, show_plain
from atoll.cli.session import session, verb
from atoll.cli.verbs import Noun

if TYPE_CHECKING:
    from atoll.catalog.problems import SourceErrors
    from atoll.client import PolicyInUse
    from orchestrator.core.placement.policy import Policy

_DEFAULT: Final = "default"
# Without an orchestrator there is an answer too: nobody waits long for one.
_LOOK_S: Final = 1.5
app = typer.Typer(cls=Noun, name="policies", help="By which figures places are chosen.", no_args_is_help=True)


def register(root: typer.Typer) -> None:
    """Add the noun to the command."""
    verb(
        app,
        "list",
        epilog="""
        atoll policies list
        """,
    )(list_)
    verb(
        app,
        "show",
        epilog="""
        atoll policies show  # what the fleet runs by
        atoll policies show --packaged -o yaml > own.yaml  # a file to edit; every figure with its unit, bounds and reason
        atoll policies show own.yaml  # what differs from the default
        """,
    )(show)
    verb(
        app,
        "check",
        epilog="""
        atoll policies check own.yaml
        """,
    )(check)
    root.add_typer(app)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Known:
    """A policy as it is listed."""

    name: str
    digest: str
    chooses: str


_LISTING: Final[Listing[_Known]] = Listing(
    kind="policy",
    ref=lambda known: known.name,
    columns=(
        Column(title="NAME", cell=lambda known: known.name),
        Column(title="CHOOSES", cell=lambda known: known.chooses),
        Column(title="DIGEST", cell=lambda known: known.digest, wide=True),
    ),
)


def list_() -> None:
    """Policies that Atoll knows: the default, and the baselines that it is measured against."""
    from orchestrator.core.placement.policies import POLICIES, summary

    known = [_Known(name=name, digest=policy.identity.digest, chooses=summary(policy)) for name, policy in POLICIES.items()]
    show_list(session().form, _LISTING, known)


def show(
    policy: Annotated[
        str, typer.Argument(metavar="[NAME|FILE]", show_default=False, help="A name of 'atoll policies list', or a file; else the fleet's.")
    ] = "",
    *,
    packaged: Annotated[bool, typer.Option("--packaged", help="The default that this version of Atoll comes with.")] = False,
) -> None:
    """What a policy is made of; with -o yaml as a file that can be edited and fed back.

    Without a name: the one that the orchestrator runs by, or where none answers the default that Atoll comes with. It says which.
    """
    if policy and packaged:
        raise CliError("--packaged is given with a name: expected one of them", code=Exit.USAGE)
    form = session().form
    if policy or packaged:
        _show(form, load(policy or _DEFAULT))
        return
    found = _of_the_fleet()
    if found is None:
        _show(form, load(_DEFAULT))
        return
    address, in_use = found
    note(f"the policy that the orchestrator at {address} runs by")
    if form in {Form.JSON, Form.YAML}:
        _written(form, in_use.text)
    else:
        _describe(_read(in_use.text), form)


def _of_the_fleet() -> tuple[str, PolicyInUse] | None:
    """Where an orchestrator answers, and its policy; None, and a word, where there is none, or one that cannot say."""
    from atoll.client import UnavailableError, UnsupportedError

    with session().client(_LOOK_S) as client:
        address = client.settings.shown_address
        try:
            return address, client.policy()
        except UnavailableError as error:
            note(f"{error}: this is the default that Atoll comes with")
        except UnsupportedError:
            note(f"the orchestrator at {address} is of a version that does not tell its policy: this is the default that Atoll comes with")
    return None


def _read(text: str) -> Policy:
    from atoll.catalog.problems import SourceErrors
    from orchestrator.core.placement.policy_file import parse_policy

    try:
        return parse_policy(text, "the fleet's policy", in_use=True)
    except SourceErrors as error:
        hint = "it is of another version of Atoll; -o yaml shows it as it is"
        raise CliError(str(error.errors[0]), code=Exit.FAILED, hint=hint) from None


def _show(form: Form, found: Policy) -> None:
    if form in {Form.JSON, Form.YAML}:
        from orchestrator.core.placement.policy_file import write_policy

        _written(form, write_policy(found))
    else:
        _describe(found, form)


def check(file: Annotated[str, typer.Argument(metavar="FILE", help="A policy file.")]) -> None:
    """Read a policy file as an orchestrator would, and say every mistake with its line."""
    found = load(file)
    form = session().form
    if form in {Form.JSON, Form.YAML}:
        show_plain(form, plain(found.identity))
    else:
        _describe(found, form)


def _written(form: Form, text: str) -> None:
    """A policy file as it is, or its keys and values."""
    if form is Form.YAML:
        say(text.rstrip("\n"))
    else:
        import yaml

        show_plain(form, yaml.safe_load(text))


def _describe(policy: Policy, form: Form) -> None:
    from orchestrator.core.placement.policies import summary
    from orchestrator.core.placement.policy_file import differences

    if form is Form.NAME:
        say(f"policy/{policy.name}")
        return
    say(f"policy/{policy.name}, {policy.identity.digest}: {summary(policy)}")
    changed = differences(policy)
    say("  Every figure is the default." if not changed else "  What differs from the default:")
    for key, value, default in changed:
        say(f"    {key}: {value} (default {default})")


def load(where: str) -> Policy:
    """The policy of this name or file. Raises CliError with every mistake found, each with its line."""
    from atoll.catalog.problems import SourceErrors
    from orchestrator.policy_source import load_policy

    try:
        return load_policy(where)
    except SourceErrors as error:
        first, *more = [str(one) for one in error.errors]
        raise CliError(first, code=Exit.USAGE, more=tuple(more), hint=_keys(error)) from None


def _keys(error: SourceErrors) -> str:
    """All keys of a policy file, where one was unknown: too many to follow each such mistake."""
    from atoll.model.errors import UnknownKeyError

    known = next((one.known for one in error.errors if isinstance(one, UnknownKeyError) and not one.within), ())
    return (
        f"the keys of a policy file are {', '.join(known)}; 'atoll policies show --packaged -o yaml' says what each is for" if known else ""
    )
