"""What an event's JSON says: its properties and its given attributes (R7), and what of them was repaired or cannot be used."""

from __future__ import annotations

from typing import Any, NamedTuple

from cio_pipeline.json_text import (
    TOO_DEEP,
    UNUSUAL,
    UnusableJson,
    is_too_deep,
    read_object,
    read_plain_object,
    repair_surrogates,
)
from cio_pipeline.rules.attributes import EXCLUDED, LeftOut, NameRule, unset_names
from cio_pipeline.rules.columns import matches

REPAIRED = "half a surrogate pair became U+FFFD"
NOT_DATA = frozenset({"$set", "$set_once", "$unset"})
"""R12: properties that are no data of the event."""


class Read(NamedTuple):
    """An event's properties, its given attributes, and what of the attributes and of the data is to be counted."""

    properties: dict[str, Any]
    given: dict[str, Any]
    attributes: LeftOut
    data: LeftOut


def are_unusual(contents: Any) -> Any:
    """Which JSON of an Arrow array of bytes must be read with care: a numpy array of bool."""
    return matches(contents, UNUSUAL)


def read_event(content: bytes | None, person: bytes | None, is_unusual: bool, names: NameRule) -> Read:
    """Reads an event's properties and, where they are to be taken instead of `$set`, its person's.

    is_unusual: whether `are_unusual` says so of either. Raises `UnusableJson` where the properties cannot be sent.
    """
    if is_unusual:
        return _read_with_care(content, person, names)
    properties = _sendable(content, read_plain_object)
    given, unusable = _given(properties, person, read_plain_object)
    return Read(properties, given, unusable, [])


def _read_with_care(content: bytes | None, person: bytes | None, names: NameRule) -> Read:
    found = _sendable(content, read_object)
    properties, repaired = repair_surrogates(content or b"", found)
    raw_given, unusable = _given(found, person, read_object)
    given, changed = repair_surrogates((content if person is None else person) or b"", raw_given)
    if "$unset" in repaired:
        cleared_as_they_are = set(unset_names(found["$unset"]))
        changed += [name for name in dict.fromkeys(unset_names(properties["$unset"])) if name not in cleared_as_they_are]
    attributes = unusable + [(name, REPAIRED) for name in changed if names(name) != EXCLUDED]
    return Read(properties, given, attributes, [(name, REPAIRED) for name in repaired if name not in NOT_DATA])


def _given(properties: dict[str, Any], person: bytes | None, read: Any) -> tuple[dict[str, Any], LeftOut]:
    """R7: the given attributes, and why a person's properties count as absent."""
    if person is None:
        given = properties.get("$set")
        return given if isinstance(given, dict) else {}, []
    try:
        return _sendable(person, read), []
    except UnusableJson as reason:
        return {}, [("person_properties", f"{reason} (R7)")]


def _sendable(content: bytes | None, read: Any) -> dict[str, Any]:
    found: dict[str, Any] = read(content)
    if content and is_too_deep(content, found):
        raise UnusableJson(TOO_DEEP)
    return found
