"""What an event's JSON says: its properties and its given attributes (R7), and what of them was repaired or cannot be used."""

from __future__ import annotations

from typing import Any, NamedTuple

import orjson

from cio_pipeline.json_text import LEVELS, TOO_DEEP, UnusableJson, is_too_deep, read_object, repair_surrogates
from cio_pipeline.rules.attributes import EXCLUDED, LeftOut, NameRule, unset_names

REPAIRED = "half a surrogate pair became U+FFFD"
NOT_DATA = frozenset({"$set", "$set_once", "$unset"})
"""R12: properties that are no data of the event."""


class Read(NamedTuple):
    """An event's properties, its given attributes, and what of the attributes and of the data is to be counted."""

    properties: dict[str, Any]
    given: dict[str, Any]
    attributes: LeftOut
    data: LeftOut


def read_event(content: bytes | None, person: bytes | None, has_long_number: bool, names: NameRule) -> Read:
    """Reads an event's properties and, where they are to be taken instead of `$set`, its person's.

    has_long_number: whether `have_long_numbers` says so of either. Raises `UnusableJson` where the properties cannot be sent.
    """
    if not has_long_number:
        properties = _read_fast(content)
        given = _read_fast(person) if person is not None or properties is None else properties.get("$set")
        if properties is not None and (person is None or given is not None):
            return Read(properties, given if isinstance(given, dict) else {}, [], [])
    return _read_with_care(content, person, names)


def _read_fast(content: bytes | None) -> dict[str, Any] | None:
    """The object in JSON without long numbers; None where there may be something amiss."""
    if not content:
        return {}
    try:
        found = orjson.loads(content)
    except orjson.JSONDecodeError:
        return None
    is_shallow = content.count(b"{") + content.count(b"[") <= LEVELS
    return found if is_shallow and isinstance(found, dict) else None


def _read_with_care(content: bytes | None, person: bytes | None, names: NameRule) -> Read:
    found = _sendable(content)
    properties, repaired = repair_surrogates(content or b"", found)
    raw_given, unusable = _given(found, person)
    given, changed = repair_surrogates((content if person is None else person) or b"", raw_given)
    if "$unset" in repaired:
        cleared_as_they_are = set(unset_names(found["$unset"]))
        changed += [name for name in dict.fromkeys(unset_names(properties["$unset"])) if name not in cleared_as_they_are]
    attributes = unusable + [(name, REPAIRED) for name in changed if names(name) != EXCLUDED]
    return Read(properties, given, attributes, [(name, REPAIRED) for name in repaired if name not in NOT_DATA])


def _given(properties: dict[str, Any], person: bytes | None) -> tuple[dict[str, Any], LeftOut]:
    """R7: the given attributes, and why a person's properties count as absent."""
    if person is None:
        given = properties.get("$set")
        return given if isinstance(given, dict) else {}, []
    try:
        return _sendable(person), []
    except UnusableJson as reason:
        return {}, [("person_properties", f"{reason} (R7)")]


def _sendable(content: bytes | None) -> dict[str, Any]:
    found = read_object(content)
    if content and is_too_deep(content, found):
        raise UnusableJson(TOO_DEEP)
    return found
