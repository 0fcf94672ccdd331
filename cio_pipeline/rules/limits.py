"""Customer.io's limits (Track API reference and its OpenAPI description), each in one place. Bytes are bytes of UTF-8."""

from __future__ import annotations

MAX_ID_BYTES = 150
"""A person's id."""

MAX_EVENT_NAME_BYTES = 100

MAX_ATTRIBUTE_NAME_BYTES = 150
MAX_ATTRIBUTE_VALUE_BYTES = 1000
MAX_ATTRIBUTES = 300
"""How many a person may have."""

MAX_ITEM_BYTES = 32_000
"""One item of a v2 batch: an upsert or an event."""

MAX_DATA_BYTES = 100_000
"""An event's data by the v1 call."""

MAX_REQUEST_BYTES = 475_000
"""A batch must be smaller than 500 KB; Customer.io's own client sends it at 475,000 bytes."""
