"""The resources: PostHog, Customer.io, and what the pipeline stores. They are configured by the environment only.

A run's resources are set up before its first step, so a wrong setting or key ends the run before anything is read or sent.
"""

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from typing import Any

import dagster as dg
from pydantic import Field
from upath import UPath

from cio_pipeline.customerio.client import TrackClient
from cio_pipeline.customerio.suppression import Suppressed
from cio_pipeline.customerio.suppression_list import read_suppressed
from cio_pipeline.defs import connections
from cio_pipeline.defs.dagster_storage import keep_engines
from cio_pipeline.defs.dead_runs import RunLock
from cio_pipeline.defs.failures import readable_setup_failures
from cio_pipeline.defs.partitions import check_days, days_tag
from cio_pipeline.defs.services import new_event_source, track_client
from cio_pipeline.defs.store import Store
from cio_pipeline.posthog.source import EventSource
from cio_pipeline.settings.environment import KEEP_ENGINES
from cio_pipeline.settings.errors import SettingsError
from cio_pipeline.settings.load import load_settings
from cio_pipeline.settings.places import is_url, redacted
from cio_pipeline.settings.settings import Settings
from cio_pipeline.state.identities import Identities
from cio_pipeline.state.ledger import Ledger
from cio_pipeline.storage_errors import explain
from cio_pipeline.tables.files import StorageError, allow_open_files, keep_private
from cio_pipeline.tables.tables import Tables

logger = logging.getLogger(__name__)


def _shown(setting: str, text_of: Callable[[Settings], str]) -> Any:
    """Returns a field that shows a setting on the resource's page, and configures nothing."""
    return Field(
        default=connections.text_about(text_of), description=f"{setting}. Shown only: it is set in the environment or .env."
    )


class PostHogResource(dg.ConfigurableResource[EventSource]):
    """The PostHog project that POSTHOG_HOST, POSTHOG_PROJECT_ID and POSTHOG_PERSONAL_API_KEY name."""

    host: str = _shown("POSTHOG_HOST", lambda settings: settings.posthog_url)
    project: str = _shown("POSTHOG_PROJECT_ID", lambda settings: settings.posthog_project_id)
    event_source: str = _shown("CIO_EVENT_SOURCE", lambda settings: settings.event_source)

    def create_resource(self, context: dg.InitResourceContext) -> EventSource:
        """Returns the source of the events, after a check of PostHog's key and project."""
        with readable_setup_failures(context):
            settings = settings_of_the_run(self, context)
            tag(context, posthog=connections.source_text(settings))
            source = new_event_source(settings)
            source.check()
        return source


@dataclass(frozen=True)
class CustomerIo:
    """Customer.io's Track API, and the people in CIO_SUPPRESSED_FILE when the run began."""

    client: TrackClient
    suppressed: Suppressed

    def traffic(self) -> Counter[str]:
        """The run's requests and bytes so far."""
        return Counter(requests=self.client.requests, bytes=self.client.bytes)


class CustomerIoResource(dg.ConfigurableResource[CustomerIo]):
    """The Customer.io workspace that CUSTOMERIO_SITE_ID and CUSTOMERIO_API_KEY belong to."""

    track_api: str = _shown("CUSTOMERIO_TRACKING_ENDPOINT", lambda settings: settings.tracking_url)
    region: str = _shown(
        "CUSTOMERIO_TRACKING_ENDPOINT", lambda settings: connections.REGIONS.get(settings.tracking_url, "not known")
    )
    requests_per_second: str = _shown("CIO_REQUESTS_PER_SECOND", lambda settings: f"{settings.requests_per_second:g}")

    def create_resource(self, context: dg.InitResourceContext) -> CustomerIo:
        """Reads the suppression list, and checks Customer.io's keys and region."""
        with readable_setup_failures(context):
            settings = settings_of_the_run(self, context)
            tag(context, customerio=connections.destination_text(settings))
            suppressed = read_suppressed(settings.suppressed_file)
            if settings.suppressed_file:
                logger.info("CIO_SUPPRESSED_FILE names %s people.", f"{suppressed.people_listed:,}")
            client = track_client(settings)
            client.check()
        return CustomerIo(client, suppressed)


class StoreResource(dg.ConfigurableResource[Store]):
    """The tables in CIO_DATA_DIR, and the identities and the ledger in the database at CIO_LEDGER_URL."""

    tables_in: str = _shown("CIO_DATA_DIR", lambda settings: redacted(settings.data_dir))
    ledger_in: str = _shown("CIO_LEDGER_URL", connections.ledger_text)
    rules: str = _shown("What is sent", connections.rules_text)

    @contextmanager
    def yield_for_execution(self, context: dg.InitResourceContext) -> Iterator[Store]:
        """Prepares the process, locks the run's file, and opens the tables and the database. When the run ends, or if this
        fails, closes the connections to the database and releases the file."""
        with ExitStack() as stack:
            with readable_setup_failures(context):
                settings = settings_of_the_run(self, context)
                tag(context, **days_tag(context.run.tags if context.run else {}))
                prepare_process()
                if context.run:
                    stack.callback(RunLock(settings.data_dir, context.run.run_id).release)
                check_bucket(settings.data_dir)
                database = (settings.ledger_url, settings.ledger_lock_seconds)
                ledger = stack.enter_context(closing(Ledger(*database)))
                store = Store(settings, Tables(settings.data_dir), Identities(*database), ledger)
            yield store


def settings_of_the_run(resource: dg.ConfigurableResource[Any], context: dg.InitResourceContext) -> Settings:
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
    raise StorageError(f"The bucket {redacted(data_dir)} (CIO_DATA_DIR) cannot be used: {why}.")
