"""Names in the settings' lists that do not occur in the events of some days, so that they may be misspelled."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Any

import orjson

from cio_pipeline.tables.tables import Tables


def unmatched(
    tables: Tables, days: Sequence[str], event_allowlist: Sequence[str], exclude_attributes: Sequence[str]
) -> Iterator[str]:
    """Yields a sentence for each of CIO_EVENT_ALLOWLIST and CIO_EXCLUDE_ATTRIBUTES that has such names. Reads `posthog_events`
    of the days, which must exist."""
    if names := set(event_allowlist):
        for day in days:
            for shard in tables.read("posthog_events", day, columns=["event"]):
                names -= set(shard["event"].unique())
        if names:
            yield f"CIO_EVENT_ALLOWLIST: no event of these days is named {_listed(names)}."
    if patterns := set(exclude_attributes):
        for attribute in _attributes(tables, days):
            patterns -= {pattern for pattern in patterns if fnmatchcase(attribute, pattern)}
            if not patterns:
                return
        yield f"CIO_EXCLUDE_ATTRIBUTES: no attribute of these days is named {_listed(patterns)}."


def _attributes(tables: Tables, days: Sequence[str]) -> Iterator[str]:
    """Yields the names of the attributes in the events of the days, each once."""
    seen: set[str] = set()
    for day in days:
        for shard in tables.read("posthog_events", day, columns=["properties", "person_properties"]):
            for properties, person in zip(shard["properties"].tolist(), shard["person_properties"].tolist(), strict=True):
                new = (_names(properties, "$set") | _names(person)) - seen
                seen |= new
                yield from new


def _names(text: Any, inside: str = "") -> set[str]:
    if not isinstance(text, str) or inside not in text:
        return set()
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        return set()
    if inside:
        value = value.get(inside) if isinstance(value, dict) else None
    return set(value) if isinstance(value, dict) else set()


def _listed(names: set[str]) -> str:
    return ", ".join(f"'{name}'" for name in sorted(names))
