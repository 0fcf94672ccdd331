"""The capture endpoint: turns what PostHog's own clients send into stored events."""

import gzip
import json
import threading
import uuid
from datetime import UTC, datetime
from typing import Any

from cio_pipeline.sandbox.posthog.capture import Event, Properties

GZIP = b"\x1f\x8b"


class Ingestion:
    """Stores events, and keeps each distinct_id's person properties, which all ids of one person share."""

    def __init__(self) -> None:
        self._persons: dict[str, Properties] = {}
        self._lock = threading.Lock()

    def stored(self, body: bytes) -> list[Event]:
        """Returns the events of a request's body, a batch or a single one, as PostHog stores them. Raises `ValueError`."""
        sent = json.loads(gzip.decompress(body) if body.startswith(GZIP) else body)
        now = datetime.now(UTC).isoformat()
        with self._lock:
            return [self._store(event, now) for event in sent.get("batch", [sent])]

    def _store(self, event: dict[str, Any], now: str) -> Event:
        moved = {name: event[name] for name in ("$set", "$set_once", "$unset") if name in event}
        properties = {**event.get("properties", {}), **moved}
        distinct_id = str(event.get("distinct_id") or properties.get("distinct_id"))
        has_person = properties.get("$process_person_profile") is not False
        return {
            "uuid": event.get("uuid") or str(uuid.uuid4()),
            "event": event["event"],
            "distinct_id": distinct_id,
            "timestamp": event.get("timestamp", now),
            "created_at": now,
            "properties": properties,
            "person_properties": self._update_person(event["event"], distinct_id, properties) if has_person else {},
        }

    def _update_person(self, name: str, distinct_id: str, properties: Properties) -> Properties:
        """Updates the person of the event, and returns their properties."""
        person = self._persons.setdefault(distinct_id, {})
        other = properties.get({"$identify": "$anon_distinct_id", "$create_alias": "alias"}.get(name, ""))
        if isinstance(other, str):
            person |= {**self._persons.get(other, {}), **person}
            self._persons[other] = person
        person |= {**properties.get("$set_once", {}), **person, **properties.get("$set", {})}
        for unset in properties.get("$unset", ()):
            person.pop(unset, None)
        return dict(person)
