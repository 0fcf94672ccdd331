"""Tables are made again where the code that decides what is in them has changed."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from cio_pipeline.pipeline.events import DECIDING
from cio_pipeline.pipeline.extract import READING

PACKAGE = Path(__file__).parents[2] / "cio_pipeline"
CARRIES_ROWS = {"errors", "state", "worker_pool"}
CARRIES_READ_ROWS = CARRIES_ROWS | {"tables", "posthog"}
"""What `posthog` reads is extracted again if its code has changed."""

CARRIES_ANSWERS = CARRIES_ROWS | {"http", "progress", "storage_errors", "temporary_files"}


def imported(module: Path) -> Iterator[Path]:
    """The package's modules that one of them imports, by `from a import b` whichever of the two is the module."""
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == PACKAGE.name:
            path = PACKAGE.parent.joinpath(*node.module.split("."))
            paths = (path, *(path / alias.name for alias in node.names))
            yield from (found for one in paths if (found := one.with_suffix(".py")).exists())


@pytest.mark.parametrize(
    ("start", "counted", "not_counted"),
    [
        ("derive", DECIDING, CARRIES_READ_ROWS),
        ("learn", DECIDING, CARRIES_READ_ROWS),
        ("extract", READING, CARRIES_ANSWERS),
    ],
)
def test_every_module_that_decides_what_is_in_a_table_counts(
    start: str, counted: tuple[str, ...], not_counted: set[str]
) -> None:
    seen, new = set[Path](), {PACKAGE / "pipeline" / f"{start}.py"}
    while new:
        module = new.pop()
        seen.add(module)
        path = module.relative_to(PACKAGE).with_suffix("")
        names = {path.as_posix(), path.parts[0]}
        if not names & not_counted:
            assert names & set(counted), f"{path} decides, but does not count"
            new |= set(imported(module)) - seen
    assert PACKAGE / "rules" / "facts.py" in seen
