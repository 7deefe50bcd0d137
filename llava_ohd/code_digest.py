"""What code a command runs: its script, and every module of the package that the script can import.

A result made by other code is stale, and one made before a change elsewhere is not. Comments and layout do not count.
"""

import ast
import hashlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

__all__ = ["PACKAGE", "code_digest"]

PACKAGE = Path(__file__).resolve().parent


def code_digest(file: Path) -> str:
    """Returns a SHA-256 over a Python file and all modules of the package that it imports, directly or through others.

    Args:
        file: A script, or a module of the package.
    """
    seen: set[Path] = set()
    waiting = [file.resolve()]
    while waiting:
        current = waiting.pop()
        if current not in seen:
            seen.add(current)
            waiting += _imported(current)
    names = {
        str(path.relative_to(PACKAGE.parent) if path.is_relative_to(PACKAGE) else path.name): path for path in seen
    }
    return hashlib.sha256("\n".join(f"{name} {_parsed(names[name])[1]}" for name in sorted(names)).encode()).hexdigest()


@cache
def _parsed(file: Path) -> tuple[ast.Module, str]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return tree, hashlib.sha256(ast.dump(tree).encode()).hexdigest()


def _imported(file: Path) -> Iterator[Path]:
    """Yields the files of the package that a file imports, also inside functions; absolute imports only."""
    for node in ast.walk(_parsed(file)[0]):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in names:
            top, *parts = name.split(".")
            place = PACKAGE.joinpath(*parts)
            if top == PACKAGE.name:
                yield from (path for path in (place.with_suffix(".py"), place / "__init__.py") if path.is_file())
