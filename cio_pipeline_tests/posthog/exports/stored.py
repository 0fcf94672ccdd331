"""Events as PostHog stores them, from which the tests make exported files."""

from __future__ import annotations

from typing import Any


def stored(number: int, at: str = "2024-05-01T10:00:00Z", landed: str | None = None, **more: Any) -> dict[str, Any]:
    """Returns the event with this number. landed: when PostHog ingested it; more: fields that replace the usual ones."""
    return {
        "uuid": f"018f3173-7000-7421-831e-{number:012x}",
        "event": "order",
        "distinct_id": f"u{number % 7}",
        "timestamp": at,
        "created_at": landed or at,
        "properties": {"n": number},
        "person_properties": {"plan": "pro"},
        **more,
    }
