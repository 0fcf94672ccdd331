"""What the user chooses about the rules; README.md lists the settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Options:
    """The connector's options; the defaults are the documented ones."""

    identify_by_email: bool = False
    anonymous_users: Literal["all", "identified", "emails"] = "all"
    event_allowlist: tuple[str, ...] = ()
    exclude_attributes: tuple[str, ...] = ()
    attributes_from: Literal["auto", "set", "person"] = "set"
    allow_delivery_overrides: bool = False
    stitch_anonymous_days: int = 0

    @property
    def stitches(self) -> bool:
        """R16: whether held-back events are sent once their person is known."""
        return self.stitch_anonymous_days > 0 and self.anonymous_users != "all"
