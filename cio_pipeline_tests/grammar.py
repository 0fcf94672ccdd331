"""PostHog's own grammar of HogQL, from its PyPI package (Linux only: on macOS it has wheels for the newest systems alone)."""

from __future__ import annotations

import importlib
import json
import sys
from functools import cache
from types import ModuleType
from typing import Any

ERRORS = ("BaseHogQLError", "ExposedHogQLError", "NotImplementedError", "ParsingError", "SyntaxError")


@cache
def parsed(hogql: str) -> dict[str, Any]:
    """The syntax tree of a SELECT, or PostHog's account of what is wrong with it: `{"error": true, ...}`."""
    return json.loads(_parser().parse_select_json(hogql))


@cache
def _parser() -> ModuleType:
    """The package looks for PostHog's own error classes when it is imported: they are there for that moment."""
    errors = ModuleType("posthog.hogql.errors")
    for name in ERRORS:
        setattr(errors, name, type(name, (Exception,), {}))
    stubs = {"posthog": ModuleType("posthog"), "posthog.hogql": ModuleType("posthog.hogql"), "posthog.hogql.errors": errors}
    hidden = {name: sys.modules.pop(name) for name in stubs if name in sys.modules}
    sys.modules.update(stubs)
    try:
        return importlib.import_module("hogql_parser")
    finally:
        for name in stubs:
            del sys.modules[name]
        sys.modules.update(hidden)
