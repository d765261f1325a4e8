"""Generates each package of PACKAGES from its folder below protos/: messages, services, and type stubs for both.

The same function serves ``make protos`` (writes into the tree) and the stale-proto test (writes into a temporary folder
and compares), so that the two cannot disagree. Nothing generated is ever edited by hand.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

PROTO_ROOT = Path(__file__).resolve().parent
REPOSITORY = PROTO_ROOT.parent
# Our own contract, and the part of etcd's that the store speaks.
PACKAGES = (Path("atoll/v1"), Path("orchestrator/store/etcd/pb"))

INIT_TEXT = '''"""Generated from protos/{package} by ``make protos``; never edited by hand."""
'''

# A file without a service gets no *_pb2_grpc module: it would be an empty one that imports grpc.
SERVICE = re.compile(r"^service\s+\w+", re.MULTILINE)

# Everything a generation may leave in the package; a file of this kind that is no longer produced is stale and goes.
GENERATED_PATTERNS = ("*_pb2.py", "*_pb2.pyi", "*_pb2_grpc.py", "*_pb2_grpc.pyi", "__init__.py")


class GenerationError(RuntimeError):
    """protoc refused the files, or there are none. The text is protoc's own, which names file and line."""


def generate(into: Path) -> list[Path]:
    """Compiles every proto into its package below ``into``; returns the files of all packages, in order.

    A file whose bytes would not change is left alone, so that build tools see only real changes.
    Raises GenerationError when protoc refuses; nothing in ``into`` has been touched then.
    """
    with tempfile.TemporaryDirectory(prefix="atoll-protos-") as name:
        fresh = Path(name)
        for package in PACKAGES:
            _compile(package, fresh)
        return [path for package in PACKAGES for path in _publish(fresh / package, into / package)]


def _compile(package: Path, fresh: Path) -> None:
    sources = sorted((PROTO_ROOT / package).glob("*.proto"))
    if not sources:
        raise GenerationError(f"no .proto file in {PROTO_ROOT / package}")
    _protoc(sources, "python", "mypy", out=fresh)
    services = [source for source in sources if SERVICE.search(source.read_text(encoding="utf-8"))]
    if services:
        _protoc(services, "grpc_python", "mypy_grpc", out=fresh)
    (fresh / package / "__init__.py").write_text(INIT_TEXT.format(package=package), encoding="utf-8")


def _protoc(sources: list[Path], *plugins: str, out: Path) -> None:
    """protoc of grpcio-tools, in a process of its own: as a library it writes its errors past Python's streams."""
    scripts = Path(sysconfig.get_path("scripts"))
    command = [
        sys.executable,
        "-m",
        "grpc_tools.protoc",
        f"--proto_path={PROTO_ROOT}",
        f"--plugin=protoc-gen-mypy={scripts / 'protoc-gen-mypy'}",
        f"--plugin=protoc-gen-mypy_grpc={scripts / 'protoc-gen-mypy_grpc'}",
        *(f"--{plugin}_out={'quiet:' if plugin.startswith('mypy') else ''}{out}" for plugin in plugins),
        *(str(source.relative_to(PROTO_ROOT)) for source in sources),
    ]
    done = subprocess.run(command, cwd=PROTO_ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise GenerationError(done.stderr.strip() or f"protoc ended with {done.returncode}")


def _publish(fresh: Path, target: Path) -> list[Path]:
    target.mkdir(parents=True, exist_ok=True)
    produced = {path.name for path in fresh.iterdir() if path.is_file()}
    for pattern in GENERATED_PATTERNS:
        for old in target.glob(pattern):
            if old.name not in produced:
                old.unlink()
    for name in sorted(produced):
        content = (fresh / name).read_bytes()
        place = target / name
        if not place.exists() or place.read_bytes() != content:
            place.write_bytes(content)
    return [target / name for name in sorted(produced)]


def main() -> int:
    parser = argparse.ArgumentParser(description="Generate the packages of messages from the files beside this one.")
    parser.add_argument("--out", type=Path, default=REPOSITORY, help="receives the packages (default: the repository)")
    arguments = parser.parse_args()
    try:
        written = generate(arguments.out)
    except GenerationError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{len(written)} files in {arguments.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
