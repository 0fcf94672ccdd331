"""What the user chooses about the rules; README.md lists the settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cio_pipeline.rules.consent import AllowConsent


@dataclass(frozen=True)
class Options:
    """The connector's options; the defaults are the documented ones.

    Whether an event gives its `$set` or the person's properties is no option here: the extraction decides it, by
    CIO_ATTRIBUTES_FROM, and keeps `person_properties` only where they are to be taken.
    """

    identify_by_email: bool = False
    anonymous_users: Literal["all", "profiles", "identified", "emails"] = "all"
    event_allowlist: tuple[str, ...] = ()
    exclude_attributes: tuple[str, ...] = ()
    allow_delivery_overrides: bool = False
    allow_consent: AllowConsent = "unsubscribe"
    stitch_anonymous_days: int = 0
    day_is_open: bool = False
    """R22: whether the day is not over. No setting, but the hourly run's."""

    @property
    def stitches(self) -> bool:
        """R16: whether held-back events are sent once their person is known."""
        return self.stitch_anonymous_days > 0 and self.anonymous_users != "all" and not self.day_is_open

    @property
    def needs_earlier_days(self) -> bool:
        """Whether earlier days decide what is sent, and under which key, so that it matters to have learned them first."""
        return self.identify_by_email or self.anonymous_users in ("identified", "emails") or self.stitches
