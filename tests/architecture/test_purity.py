"""The deciding code is pure: what it may import is a list, and no call in it reaches a clock, a file or chance."""

from __future__ import annotations

import ast

import pytest

from tests.architecture.sources import REPOSITORY, imports_of, is_within, python_files, shown, tree_of

# Parts of the standard library without a clock, chance, files, processes or network. A part that is not listed is
# refused until somebody argues here that it is such a one.
PURE_STANDARD_LIBRARY = frozenset(
    {
        "__future__",
        "abc",
        "array",
        "base64",
        "binascii",
        "bisect",
        "collections",
        "contextlib",
        "copy",
        "csv",  # given lines of text; the files are opened by others
        "dataclasses",
        "decimal",
        "difflib",
        "enum",
        "fractions",
        "functools",
        "hashlib",
        "heapq",
        "ipaddress",
        "itertools",
        "json",
        "math",
        "numbers",
        "operator",
        "re",
        "string",
        "struct",
        "textwrap",
        "types",
        "typing",
        "unicodedata",
        "zlib",
    }
)

# Folder -> what it may import besides. The left columns of the table in docs/architecture.md.
PURE_PACKAGES = {
    "atoll/model": ("atoll.model",),
    "atoll/physics": ("atoll.model", "atoll.catalog", "atoll.physics"),
    "atoll/catalog": ("atoll.model", "atoll.catalog", "atoll.physics", "yaml"),
    "orchestrator/core": ("atoll.model", "atoll.catalog", "atoll.physics", "orchestrator.core", "numpy", "numba"),
    "agents/core": ("atoll.model", "atoll.physics", "agents.core"),
    "agents/twin": ("atoll.model", "atoll.physics", "agents.core", "agents.twin"),
}

# hash() and id() differ from one interpreter to the next, so a decision that reads them cannot be replayed.
IMPURE_CALLS = frozenset({"open", "print", "input", "exec", "eval", "compile", "__import__", "breakpoint", "hash", "id"})
# Chance and clocks that come with an allowed import.
IMPURE_ATTRIBUTES = frozenset({"numpy.random", "np.random"})


@pytest.mark.parametrize("folder", sorted(PURE_PACKAGES))
def test_pure_packages_import_only_what_is_listed(folder: str) -> None:
    allowed = PURE_PACKAGES[folder]
    offences = [
        f"{shown(path, found.line)} imports {found.target}"
        for path in python_files(folder)
        for found in imports_of(path)
        if found.target.split(".")[0] not in PURE_STANDARD_LIBRARY and not any(is_within(found.target, package) for package in allowed)
    ]
    assert not offences, "\n".join(offences)


@pytest.mark.parametrize("folder", sorted(PURE_PACKAGES))
def test_pure_packages_call_nothing_impure(folder: str) -> None:
    offences = []
    for path in python_files(folder):
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in IMPURE_CALLS:
                offences.append(f"{shown(path, node.lineno)} calls {node.func.id}()")
            elif isinstance(node, ast.Attribute) and ast.unparse(node) in IMPURE_ATTRIBUTES:
                offences.append(f"{shown(path, node.lineno)} uses {ast.unparse(node)}")
            elif isinstance(node, ast.AsyncFunctionDef | ast.Await | ast.AsyncFor | ast.AsyncWith):
                offences.append(f"{shown(path, node.lineno)} is asynchronous")
    assert not offences, "\n".join(offences)


@pytest.mark.parametrize("folder", sorted(PURE_PACKAGES))
def test_pure_packages_are_not_empty(folder: str) -> None:
    """The tests above would pass on a folder that was renamed."""
    assert len(python_files(folder)) >= 2, f"{REPOSITORY / folder} holds no modules"


def test_command_line_loads_servers_only_inside_a_sub_command() -> None:
    heavy = ("orchestrator", "agents", "sims", "torch", "ray", "diffusers", "transformers")
    offences = [
        f"{shown(path, found.line)} imports {found.target} when it is imported"
        for path in python_files("atoll")
        for found in imports_of(path)
        if found.at_import_time and found.target.split(".")[0] in heavy
    ]
    assert not offences, "\n".join(offences)


def test_simulator_drives_the_cores_themselves() -> None:
    """And the twins' plant. Never a driver, a store or a session of the live programs: those would bring clocks and networks with them."""
    bench = REPOSITORY / "sims" / "bench"
    offences = [
        f"{shown(path, found.line)} imports {found.target}"
        for path in python_files("sims")
        if path != bench.with_suffix(".py") and bench not in path.parents
        for found in imports_of(path)
        if found.target.split(".")[0] in {"orchestrator", "agents"}
        and not is_within(found.target, "orchestrator.core")
        and not is_within(found.target, "agents.core")
        and not is_within(found.target, "agents.twin")
    ]
    assert not offences, "\n".join(offences)
