"""R12 and R13: from events' JSON to their data, and what else it says: given attributes (R7), what was repaired or left out.

Nearly all of it is read and written by orjson as it is. What may not be is read with care, to the same end.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from cio_pipeline.json_text import TOO_DEEP, UnusableJson, is_too_deep, read_object, repair_surrogates, write
from cio_pipeline.rules.attributes import EXCLUDED, LeftOut, NameRule, unset_names
from cio_pipeline.rules.columns import need_care, to_list
from cio_pipeline.rules.options import Options

REPAIRED = "half a surrogate pair became U+FFFD"
REDIRECTS = "would redirect deliveries (R13)"
NOT_DATA = frozenset({"$set", "$set_once", "$unset"})
"""R12: properties that are no data of the event."""

DELIVERY_OVERRIDES = frozenset({"recipient", "from_address", "reply_to"})


class Said(NamedTuple):
    """What an event's JSON says besides its data: given attributes, `$unset`, what of the attributes and the data to count."""

    given: dict[str, Any]
    unset: Any
    attributes: LeftOut
    data: LeftOut


class Read(NamedTuple):
    """Events' data: an Arrow array of JSON in UTF-8, null where it cannot be sent; by row, why not, and what else is said, if
    anything."""

    data: Any
    refused: dict[int, str]
    said: dict[int, Said]


class Reader:
    """Reads events. It remembers which names of properties are data."""

    def __init__(self, names: NameRule, options: Options) -> None:
        self._names = names
        self._allow_overrides = options.allow_delivery_overrides
        self._are_data: set[str] = set()

    def read(self, contents: Any, persons: Any, plain: Any) -> Read:
        """Reads events' properties and, where they are to be taken instead of `$set`, their persons': Arrow arrays of UTF-8.

        `plain`: which are their data as they stand (numpy, bool: `properties.FACTS`).
        """
        data: list[bytes | None] = []
        refused: dict[int, str] = {}
        said: dict[int, Said] = {}
        rows = np.flatnonzero(~plain)
        chosen = [array.take(pa.array(rows)) for array in (contents, persons)]
        with_care = need_care(chosen[0]) | need_care(chosen[1])
        columns = (rows.tolist(), *map(to_list, chosen), with_care.tolist())
        for row, content, person, needs_care in zip(*columns, strict=True):
            properties = None if needs_care else _object(content)
            given = None if properties is None or person is None else _object(person)
            if properties is None or (given is None and person is not None):
                try:
                    written, said[row] = self._read_with_care(content, person)
                except UnusableJson as reason:
                    written, refused[row] = None, str(reason)
                data.append(written)
                continue
            if given is not None or not self._are_data.issuperset(properties):
                given = properties.get("$set") if given is None else given
                unset = properties.get("$unset")
                overrides = self._leave_data(properties)
                if given or unset or overrides:
                    said[row] = Said(given if isinstance(given, dict) else {}, unset, [], overrides)
            data.append(orjson.dumps(properties))
        whole = pc.replace_with_mask(contents, pa.array(~plain), pa.array(data, contents.type)) if data else contents
        return Read(whole, refused, said)

    def _leave_data(self, properties: dict[str, Any]) -> LeftOut:
        """Takes out of the properties what is no data; gives what R13 leaves out."""
        for name in NOT_DATA:
            properties.pop(name, None)
        if self._are_data.issuperset(properties):
            return []
        names = properties.keys() - self._are_data
        overrides = [name for name in properties if name in names and self._is_override(name)]
        for name in overrides:
            del properties[name]
        self._are_data.update(properties)
        return [(name, REDIRECTS) for name in overrides]

    def _is_override(self, name: str) -> bool:
        return not self._allow_overrides and name.lower() in DELIVERY_OVERRIDES

    def _read_with_care(self, content: bytes | None, person: bytes | None) -> tuple[bytes, Said]:
        found = _sendable(content)
        properties, repaired = repair_surrogates(content or b"", found)
        raw_given, unusable = _given(found, person)
        given, changed = repair_surrogates((content if person is None else person) or b"", raw_given)
        unset = properties.get("$unset")
        if "$unset" in repaired:
            cleared_as_they_are = set(unset_names(found["$unset"]))
            changed += [name for name in dict.fromkeys(unset_names(unset)) if name not in cleared_as_they_are]
        attributes = unusable + [(name, REPAIRED) for name in changed if self._names(name) != EXCLUDED]
        changed_data = [(name, REPAIRED) for name in repaired if name not in NOT_DATA]
        overrides = self._leave_data(properties)
        return write(properties), Said(given, unset, attributes, changed_data + overrides)


def _object(content: bytes | None) -> dict[str, Any] | None:
    """The object in JSON that needs no care; None where there is none, or something is amiss."""
    try:
        found = orjson.loads(content or b"")
    except orjson.JSONDecodeError:
        return None
    return found if isinstance(found, dict) else None


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
