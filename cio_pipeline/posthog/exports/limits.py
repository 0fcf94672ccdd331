"""How much of an exported file is held in memory at once, and what is too large to be real events."""

from __future__ import annotations

PIECE_ROWS = 20_000
PIECE_BYTES = 8_000_000
"""Events are read in pieces of at most this many rows, and of fewer if they are large: this bounds the memory."""

MAX_EVENT_BYTES = 32_000_000
"""PostHog accepts no event of more than 1 MB, and no person of more."""

BOMB_BYTES, BOMB_RATIO = 512_000_000, 1000
"""A file that decompresses to more bytes than this, and by more than this factor, is a decompression bomb, not real events."""
