"""The resources: PostHog, Customer.io, and what the pipeline stores. They are configured by the environment only.

A run's resources are set up before its first step, so a wrong setting or key ends the run before anything is read or sent.
"""

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg
from pydantic import Field, PrivateAttr
from upath import UPath

from cio_pipeline.customerio.client import TrackClient
from cio_pipeline.customerio.suppression import Suppressed
from cio_pipeline.customerio.suppression_list import read_suppressed
from cio_pipeline.defs import connections
from cio_pipeline.defs.dagster_storage import keep_engines
from cio_pipeline.defs.dead_runs import RunLock
from cio_pipeline.defs.failures import with_readable_setup_failures
from cio_pipeline.defs.partitions import check_days, days_tag
from cio_pipeline.defs.services import new_event_source, track_client
from cio_pipeline.pipeline.accounting import DayCounts
from cio_pipeline.pipeline.derive import derive_day
from cio_pipeline.pipeline.learn import learn_day, learned_under
from cio_pipeline.posthog.source import EventSource
from cio_pipeline.rules.options import Options
from cio_pipeline.settings.environment import KEEP_ENGINES
from cio_pipeline.settings.load import load_settings
from cio_pipeline.settings.places import is_url, shown
from cio_pipeline.settings.settings import Settings, SettingsError
from cio_pipeline.state.identities import Identities
from cio_pipeline.state.ledger import Ledger
from cio_pipeline.state.overlay import OverlayIdentities
from cio_pipeline.storage_errors import explain
from cio_pipeline.tables.files import StorageError, allow_open_files, keep_private, temporary_folder
from cio_pipeline.tables.overlay import OverlayTables
from cio_pipeline.tables.tables import Tables

logger = logging.getLogger(__name__)


def _shown(setting: str, text_of: Callable[[Settings], str]) -> Any:
    """Returns a field that shows a setting on the resource's page, and configures nothing."""
    return Field(
        default=connections.text_about(text_of), description=f"{setting}. Shown only: it is set in the environment or .env."
    )


class PostHog(dg.ConfigurableResource[None]):
    """The PostHog project that POSTHOG_HOST, POSTHOG_PROJECT_ID and POSTHOG_PERSONAL_API_KEY name."""

    host: str = _shown("POSTHOG_HOST", lambda settings: settings.posthog_url)
    project: str = _shown("POSTHOG_PROJECT_ID", lambda settings: settings.posthog_project_id)
    event_source: str = _shown("CIO_EVENT_SOURCE", lambda settings: settings.event_source)
    _source: EventSource = PrivateAttr()

    @with_readable_setup_failures
    def setup_for_execution(self, context: dg.InitResourceContext) -> None:
        """Reads the settings, and checks PostHog's key and project."""
        settings = settings_of_the_run(self, context)
        tag(context, posthog=connections.source_text(settings))
        self._source = new_event_source(settings)
        self._source.check()

    @property
    def source(self) -> EventSource:
        """The source of the events."""
        return self._source


class CustomerIo(dg.ConfigurableResource[None]):
    """The Customer.io workspace that CUSTOMERIO_SITE_ID and CUSTOMERIO_API_KEY belong to."""

    track_api: str = _shown("CUSTOMERIO_TRACKING_ENDPOINT", lambda settings: settings.tracking_url)
    region: str = _shown(
        "CUSTOMERIO_TRACKING_ENDPOINT", lambda settings: connections.REGIONS.get(settings.tracking_url, "not known")
    )
    requests_per_second: str = _shown("CIO_REQUESTS_PER_SECOND", lambda settings: f"{settings.requests_per_second:g}")

    _client: TrackClient = PrivateAttr()
    _suppressed: Suppressed = PrivateAttr()

    @with_readable_setup_failures
    def setup_for_execution(self, context: dg.InitResourceContext) -> None:
        """Reads the settings and the suppression list, and checks Customer.io's keys and region."""
        settings = settings_of_the_run(self, context)
        tag(context, customerio=connections.destination_text(settings))
        self._suppressed = read_suppressed(settings.suppressed_file)
        if settings.suppressed_file:
            logger.info("CIO_SUPPRESSED_FILE names %s people.", f"{self._suppressed.people_listed:,}")
        self._client = track_client(settings)
        self._client.check()

    @property
    def client(self) -> TrackClient:
        """The Track API."""
        return self._client

    @property
    def suppressed(self) -> Suppressed:
        """The people in CIO_SUPPRESSED_FILE when the run began."""
        return self._suppressed

    def traffic(self) -> Counter[str]:
        """The run's requests and bytes so far."""
        return Counter(requests=self._client.requests, bytes=self._client.bytes)


class Store(dg.ConfigurableResource[None]):
    """The tables in CIO_DATA_DIR, and the identities and the ledger in the database at CIO_LEDGER_URL."""

    tables_in: str = _shown("CIO_DATA_DIR", lambda settings: shown(settings.data_dir))
    ledger_in: str = _shown("CIO_LEDGER_URL", connections.ledger_text)
    rules: str = _shown("What is sent", connections.rules_text)
    _settings: Settings = PrivateAttr()
    _lock: RunLock | None = PrivateAttr(default=None)
    _tables: Tables = PrivateAttr()
    _ledger: Ledger = PrivateAttr()
    _identities: Identities = PrivateAttr()

    @with_readable_setup_failures
    def setup_for_execution(self, context: dg.InitResourceContext) -> None:
        """Reads the settings, prepares the process, locks the run's file, and opens the tables and the database."""
        settings = self._settings = settings_of_the_run(self, context)
        tag(context, **days_tag(context.run.tags if context.run else {}))
        prepare_process()
        self._lock = RunLock(settings.data_dir, context.run.run_id) if context.run else None
        check_bucket(settings.data_dir)
        self._tables = Tables(settings.data_dir)
        database = (settings.ledger_url, settings.ledger_lock_seconds)
        self._ledger, self._identities = Ledger(*database), Identities(*database)

    def teardown_after_execution(self, context: dg.InitResourceContext) -> None:  # noqa: ARG002
        """Closes the connections to the database, and releases the run's file."""
        self._ledger.close()
        if self._lock is not None:
            self._lock.release()

    @contextmanager
    def overlay(self, first: str) -> Iterator["Store"]:
        """A copy of this store for the block. Its days from `first` on are written to temporary files, so that this store does
        not change. It has the same ledger."""
        with temporary_folder() as folder:
            copy = Store()
            copy._settings, copy._ledger = self._settings, self._ledger
            copy._tables = OverlayTables(str(folder), self._tables)
            copy._identities = identities = OverlayIdentities(f"sqlite:///{folder / 'identities.db'}", self._identities, first)
            try:
                yield copy
            finally:
                identities.close()

    @property
    def settings(self) -> Settings:
        """The settings when the run began."""
        return self._settings

    @property
    def options(self) -> Options:
        """The settings of the rules."""
        return self._settings.options

    @property
    def learned_under(self) -> str:
        """The setting that affects what is learned, with its value."""
        return learned_under(self._settings.attributes_from)

    def learn(self, day: str) -> Counter[str]:
        """As `pipeline.learn.learn_day`, with this store's tables, identities and settings."""
        return learn_day(day, self.learned_under, self._tables, self._identities, self._settings.workers)

    def derive(
        self, day: str, options: Options | None = None, *, until: datetime | None = None, into: Tables | None = None
    ) -> DayCounts:
        """As `pipeline.derive.derive_day`, with this store's tables and identities, and its options unless others are given."""
        workers = self._settings.workers
        return derive_day(day, self._tables, self._identities, options or self.options, until, into, workers)

    @property
    def first_day_of_ledger(self) -> str | None:
        """The first day for which the ledger keeps what was delivered (CIO_LEDGER_DAYS); None if it keeps all days."""
        days = self._settings.ledger_days
        return None if days is None else str(datetime.now(UTC).date() - timedelta(days=days))

    @property
    def tables(self) -> Tables:
        """The tables between the steps."""
        return self._tables

    @property
    def identities(self) -> Identities:
        """What each day says about people."""
        return self._identities

    @property
    def ledger(self) -> Ledger:
        """What Customer.io has acknowledged and refused."""
        return self._ledger


def settings_of_the_run(resource: dg.ConfigurableResource[None], context: dg.InitResourceContext) -> Settings:
    """Returns the settings of the run.

    Raises `DaysError` if the run's days are not partitions, and `SettingsError` if a setting is wrong, or if the run config
    sets a field that only shows a setting.
    """
    check_days(context.run.tags if context.run else {})
    for name, field in type(resource).model_fields.items():
        if getattr(resource, name) != field.default:
            raise SettingsError(
                f"The run config cannot set {name}: {field.description} Remove resources from the run config, and launch again."
            )
    return load_settings()


def tag(context: dg.InitResourceContext, **values: str) -> None:
    """Adds tags to the run, so that the list of runs shows its days, its source and its destination."""
    if context.run is not None and context.instance is not None:
        context.instance.add_run_tags(context.run.run_id, values)


def prepare_process() -> None:
    """Changes this process for the run: what it writes is readable by its owner only (umask), and it may open as many files as
    the system allows. Under this package's own commands, Dagster's storage keeps its engines."""
    keep_private()
    allow_open_files()
    if os.environ.get(KEEP_ENGINES) == "yes":
        keep_engines()


def check_bucket(data_dir: str) -> None:
    """Raises `StorageError` if the tables are in a bucket that cannot be reached or read."""
    if not is_url(data_dir):
        return
    try:
        UPath(data_dir).exists()
    except Exception as error:  # each file system has errors of its own, and they may contain keys
        why = explain(error)
    else:
        return
    raise StorageError(f"The bucket {shown(data_dir)} (CIO_DATA_DIR) cannot be used: {why}.")
