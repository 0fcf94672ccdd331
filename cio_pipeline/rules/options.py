"""The settings of the rules; docs/settings.md lists them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cio_pipeline.rules.consent import AllowConsent

AnonymousUsers = Literal["all", "profiles", "identified", "emails"]
"""CIO_ANONYMOUS_USERS."""

AttributesFrom = Literal["auto", "set", "person"]
"""CIO_ATTRIBUTES_FROM."""


@dataclass(frozen=True)
class Options:
    """The settings of the rules, with their documented defaults.

    CIO_ATTRIBUTES_FROM is not among them. The extraction applies it: `person_properties` is kept only if it is to be used
    instead of `$set`.
    """

    identify_by_email: bool = False
    anonymous_users: AnonymousUsers = "all"
    event_allowlist: tuple[str, ...] = ()
    exclude_attributes: tuple[str, ...] = ()
    allow_delivery_overrides: bool = False
    allow_consent: AllowConsent = "unsubscribe"
    stitch_anonymous_days: int = 0
    day_is_open: bool = False
    """R22: whether the day is not over yet. Set by the hourly run, not by a setting."""

    @property
    def stitches(self) -> bool:
        """R16: whether events that are held back are sent once their person is known."""
        return self.stitch_anonymous_days > 0 and self.anonymous_users != "all" and not self.day_is_open

    @property
    def needs_earlier_days(self) -> bool:
        """Whether earlier days affect what is sent and under which key, so that they must be learned first."""
        return self.identify_by_email or self.anonymous_users in ("identified", "emails") or self.stitches
