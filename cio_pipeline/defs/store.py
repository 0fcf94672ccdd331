"""What the assets work on: the settings, the tables, what is known of people, and what was delivered."""

from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from cio_pipeline.pipeline.accounting import DayCounts
from cio_pipeline.pipeline.derive import derive_day
from cio_pipeline.pipeline.extract import check_extracted_under
from cio_pipeline.pipeline.learn import learn_day, learned_under
from cio_pipeline.rules.options import Options
from cio_pipeline.settings.settings import Settings
from cio_pipeline.state.identities import Identities
from cio_pipeline.state.ledger import Ledger
from cio_pipeline.state.overlay import OverlayIdentities
from cio_pipeline.tables.files import temporary_folder
from cio_pipeline.tables.overlay import OverlayTables
from cio_pipeline.tables.pinned import PinnedTables
from cio_pipeline.tables.tables import Tables


@dataclass(frozen=True)
class Store:
    """The settings when the run began, the tables in CIO_DATA_DIR, and the database at CIO_LEDGER_URL: what each day says about
    people (`identities`), and what Customer.io has acknowledged and refused (`ledger`)."""

    settings: Settings
    tables: Tables
    identities: Identities
    ledger: Ledger

    @property
    def options(self) -> Options:
        """The settings of the rules."""
        return self.settings.options

    @property
    def learned_under(self) -> str:
        """The setting that affects what is learned, with its value."""
        return learned_under(self.settings.attributes_from)

    @property
    def first_day_of_ledger(self) -> str | None:
        """The first day for which the ledger keeps what was delivered (CIO_LEDGER_DAYS); None if it keeps all days."""
        days = self.settings.ledger_days
        return None if days is None else str(datetime.now(UTC).date() - timedelta(days=days))

    def learn(self, day: str) -> Counter[str]:
        """As `pipeline.learn.learn_day`, with this store's tables, identities and settings. Raises `NotExtracted` if the events
        were extracted under other settings."""
        self._check_extracted(day)
        return learn_day(day, self.learned_under, self.tables, self.identities, self.settings.workers)

    def derive(
        self, day: str, options: Options | None = None, *, until: datetime | None = None, into: Tables | None = None
    ) -> DayCounts:
        """As `pipeline.derive.derive_day`, with this store's tables and identities, and its options unless others are given.
        Raises `NotExtracted` if the events were extracted under other settings."""
        self._check_extracted(day)
        options, workers = options or self.options, self.settings.workers
        return derive_day(day, self.tables, self.identities, options, workers=workers, into=into, until=until)

    def _check_extracted(self, day: str) -> None:
        check_extracted_under(day, self.tables, self.settings.attributes_from, self.options.event_allowlist)

    def pinned(self) -> "Store":
        """Returns a copy of this store for a run that sends what it has checked: whatever other runs write, each partition of
        the tables stays as it is when it is first read."""
        return replace(self, tables=PinnedTables(self.tables))

    @contextmanager
    def overlay(self, first: str) -> Iterator["Store"]:
        """A copy of this store for the block. Its days from `first` on are written to temporary files, so that this store does
        not change. It has the same ledger."""
        with temporary_folder() as folder:
            tables = OverlayTables(str(folder), PinnedTables(self.tables))
            with closing(OverlayIdentities(f"sqlite:///{folder / 'identities.db'}", self.identities, first)) as identities:
                yield replace(self, tables=tables, identities=identities)
