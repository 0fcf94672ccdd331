"""Tables are made again where the code that decides what is in them has changed."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from cio_pipeline.events import DECIDING

PACKAGE = Path(__file__).parent.parent / "cio_pipeline"
DECIDES_NOTHING = {"errors", "state", "tables", "worker_pool", "posthog"}
"""They keep and carry rows. What `posthog` reads is extracted again where its code has changed (`extraction`)."""


def imported(module: Path) -> Iterator[Path]:
    """The package's modules that one of them imports, by `from a import b` whichever of the two is the module."""
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == PACKAGE.name:
            path = PACKAGE.parent.joinpath(*node.module.split("."))
            paths = (path, *(path / alias.name for alias in node.names))
            yield from (found for one in paths if (found := one.with_suffix(".py")).exists())


@pytest.mark.parametrize("start", ["pipeline", "learning"])
def test_every_module_that_decides_what_is_learned_and_derived_counts(start: str) -> None:
    seen, new = set[Path](), {PACKAGE / f"{start}.py"}
    while new:
        module = new.pop()
        seen.add(module)
        room = module.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if room not in DECIDES_NOTHING:
            assert room in DECIDING, f"{module.name} decides, but is not in DECIDING"
            new |= set(imported(module)) - seen
    assert PACKAGE / "rules" / "facts.py" in seen
