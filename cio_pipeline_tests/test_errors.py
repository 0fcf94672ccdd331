"""The tree of errors is the one that `errors.py` draws."""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Iterator

import cio_pipeline
from cio_pipeline import errors
from cio_pipeline.errors import PipelineError

LINE = re.compile(r"^([│ ]*)[├└]── (\w+) +([\w.]+)?", re.MULTILINE)


def drawn() -> Iterator[tuple[str, str]]:
    """Each drawn error with the one above it."""
    above = ["PipelineError"]
    for indent, name, _ in LINE.findall(str(errors.__doc__)):
        depth = len(indent) // 4 + 1
        yield name, above[depth - 1]
        above[depth:] = [name]


def subclasses(root: type[Exception]) -> Iterator[tuple[str, str]]:
    for error in root.__subclasses__():
        yield error.__name__, root.__name__
        yield from subclasses(error)


def test_the_drawn_tree_has_each_error_below_its_base_class() -> None:
    for module in pkgutil.walk_packages(cio_pipeline.__path__, "cio_pipeline."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    assert sorted(drawn()) == sorted(subclasses(PipelineError))


def test_each_drawn_error_can_be_imported_from_the_module_next_to_it() -> None:
    places = [(name, place) for _, name, place in LINE.findall(str(errors.__doc__)) if "." in place]
    assert len(places) == 14
    for name, place in places:
        error = getattr(importlib.import_module(f"cio_pipeline.{place}"), name)
        assert error.__module__ == f"cio_pipeline.{place}"
