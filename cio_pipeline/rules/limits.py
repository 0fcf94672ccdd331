"""Customer.io's limits (Track API reference and its OpenAPI description). Sizes are bytes of UTF-8."""

from __future__ import annotations

MAX_ID_BYTES = 150
"""Of a person's id."""

MAX_EVENT_NAME_BYTES = 100

MAX_ATTRIBUTE_NAME_BYTES = 150
MAX_ATTRIBUTE_VALUE_BYTES = 1000
MAX_ATTRIBUTES = 300
"""Of one person."""

MAX_ITEM_BYTES = 32_000
"""Of one item of a v2 batch, an upsert or an event."""

MAX_DATA_BYTES = 100_000
"""Of an event's data in the v1 call."""

MAX_REQUEST_BYTES = 475_000
"""Of a v2 batch: it must be smaller than 500 KB, and Customer.io's own client stops at 475,000 bytes."""
