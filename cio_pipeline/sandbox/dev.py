"""`make dev`: the Dagster UI on the sandbox, until Ctrl-C."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cio_pipeline.cli.ui import dagster_dev, interruptible
from cio_pipeline.sandbox.processes import empty_folder, sandbox, sandbox_folder
from cio_pipeline.settings.places import DAGSTER_YAML

DAYS = 10


def dev(folder: Path | None = None, days: int = DAYS, **settings: str) -> int:
    """Runs both services and `dagster dev` with the last days, until Ctrl-C or SIGTERM.

    Everything is written to the folder, which is emptied first. settings: in addition to the sandbox's own.
    """
    interruptible()
    folder = folder or sandbox_folder("dev")
    home = folder / "dagster"
    empty_folder(folder)
    home.mkdir()
    shutil.copy(DAGSTER_YAML, home)
    start = datetime.now(UTC).date() - timedelta(days=days)
    try:
        with sandbox(start, days) as services:
            print(
                f"PostHog:     {services.posthog}\nPeople page: {services.customerio}, the local Customer.io\n"
                "Events go from one to the other, and nothing goes anywhere else: neither .env nor your settings are read.\n"
                f"Everything is written to {folder}, which is emptied at each start. Dagster is starting ...",
                flush=True,
            )
            return dagster_dev(home, services.environment(folder, start, DAGSTER_HOME=str(home), **settings))
    except KeyboardInterrupt:
        print("Dagster and the sandbox have ended.", flush=True)
        return 0
