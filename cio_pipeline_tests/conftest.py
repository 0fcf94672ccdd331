"""What several tests share: settings that name nothing real, the sandbox in process, and PostHog's grammar."""

from __future__ import annotations

import logging
import os
import re
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cio_pipeline.sandbox.customerio import server as customerio
from cio_pipeline.sandbox.posthog.answers import Answer
from cio_pipeline.sandbox.posthog.project import Project
from cio_pipeline.settings import environment
from cio_pipeline_tests import examples as examples  # Hypothesis' profile
from cio_pipeline_tests.bucket import s3
from cio_pipeline_tests.grammar import parsed
from cio_pipeline_tests.postgres import database, postgres

KEPT = re.compile(r"PATH|HOME|USER|LOGNAME|TMPDIR|LANG|LC_\w+|TZ|TERM|\w*LIBRARY_PATH|VIRTUAL_ENV|(PY|COV|XDG_|HYPOTHESIS)\w+")
"""Tests see no setting, proxy, credential, `.netrc` or `.env` of the machine they run on, from the first import on."""

for name in list(os.environ):
    if not KEPT.fullmatch(name):
        del os.environ[name]
os.environ["NETRC"] = os.devnull
os.environ[environment.KEEP_ENGINES] = "yes"  # as under the package's own commands: runs take a third of the time
environment.ENV_FILE = Path(os.devnull)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The UI's tests, which take longest and mostly wait, go first: another process has the rest meanwhile."""
    items.sort(key=lambda item: item.path.name != "test_ui.py")


@pytest.fixture(autouse=True)
def same_umask() -> Iterator[None]:
    """A run in process makes what it writes private; what other tests write is as before."""
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.fixture(autouse=True)
def logged(caplog: pytest.LogCaptureFixture) -> None:
    """What the pipeline logs is in `caplog`, from INFO on, as in Dagster."""
    caplog.set_level(logging.INFO, "cio_pipeline")


@pytest.fixture(autouse=True)
def every_query_is_hogql(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """PostHog's own grammar knows each query that the sandbox's PostHog answers in this process."""
    answered: list[str] = []
    answer = Project.query

    def noted(self: Project, body: Any) -> Answer:
        found = answer(self, body)
        answered.append(body["query"]["query"])
        return found

    monkeypatch.setattr(Project, "query", noted)
    yield
    if sys.platform == "linux":
        assert [hogql for hogql in set(answered) if parsed(hogql).get("error")] == []


@pytest.fixture
def workspace() -> Iterator[customerio.CustomerioServer]:
    """A local Customer.io."""
    with customerio.serve() as server:
        yield server


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """A PostgreSQL server's URL."""
    with postgres() as url:
        yield url


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """An S3 server's URL; it has the buckets `exports` and `tables`."""
    with s3("exports", "tables") as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of an empty database, of each kind in turn."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'ledger.db'}"
        return
    with database(request.getfixturevalue("postgres_server"), f"test_{uuid.uuid4().hex}") as url:
        yield url
