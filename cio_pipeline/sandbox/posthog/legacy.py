"""PostHog's old events list, `GET /api/projects/:id/events/`, and its traps: exclusive bounds, a `next` that skips ties."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode

import duckdb
import orjson

DEFAULT_ROWS = 100
SELECT = """
SELECT uuid::VARCHAR, event, distinct_id, timestamp, properties FROM events
WHERE timestamp > $after AND timestamp < $before AND event = coalesce($event, event) ORDER BY timestamp {order} LIMIT {limit}
"""


@dataclass(frozen=True)
class EventsList:
    """The list of one version of PostHog: its page size at most, and whether it knows `orderBy`."""

    max_rows: int = 1000
    knows_order: bool = True

    def page(self, database: duckdb.DuckDBPyConnection, url: str, parameters: Mapping[str, str]) -> dict[str, Any]:
        """Answers a request that has both bounds."""
        limit = min(int(parameters.get("limit", DEFAULT_ROWS)), self.max_rows)
        is_ascending = self.knows_order and parameters.get("orderBy") == '["timestamp"]'
        bounds = {name: datetime.fromisoformat(parameters[name]) for name in ("after", "before")}
        naive = {name: bound.astimezone(UTC).replace(tzinfo=None) for name, bound in bounds.items()}
        values = {**naive, "event": parameters.get("event")}
        order = "ASC" if is_ascending else "DESC"
        rows = database.execute(SELECT.format(order=order, limit=limit + 1), values).fetchall()
        results = [_result(*row) for row in rows[:limit]]
        next_url = None
        if len(rows) > limit:
            bound = "after" if is_ascending else "before"
            next_url = f"{url}?{urlencode({**parameters, bound: results[-1]['timestamp']})}"
        return {"next": next_url, "results": results}


def _result(uuid: str, event: str, distinct_id: str, timestamp: datetime, properties: str) -> dict[str, Any]:
    parsed = orjson.loads(properties)
    return {
        "id": uuid,
        "distinct_id": distinct_id,
        "properties": {name: value.strip('"') if isinstance(value, str) else value for name, value in parsed.items()},
        "event": event,
        "timestamp": timestamp.replace(tzinfo=UTC).isoformat(timespec="microseconds"),
        "person": None,
        "elements": [],
        "elements_chain": "",
    }
