"""A failed run says why in RUN_FAILURE itself, in one sentence, and is run again by Dagster only where that may help."""

from __future__ import annotations

from pathlib import Path

import dagster as dg
import pytest

from cio_pipeline.settings.load import load_settings
from cio_pipeline.state.ledger import Ledger
from cio_pipeline_tests.defs.assets.test_deliver import DAY, PARTITION, Workspace, the_job, workspace
from cio_pipeline_tests.postgres import URL_PASSWORD

__all__ = ["workspace"]

RUN_RETRIES = {"run_retries": {"enabled": True, "max_retries": 1, "retry_on_asset_or_op_failure": False}}
"""As in dagster.yaml."""

NOT_IN_A_SENTENCE = ("Exceeded max_retries", "resource_fn", "RetryRequested", "Error occurred while executing", "Traceback")
CUSTOMERIO_IS_DOWN = "Customer.io (127.0.0.1) could not be reached in 9 tries: it answered 503."


def sentence_of_the_failure(home: Path) -> tuple[str, bool]:
    """Runs the day on an instance with run retries; gives what RUN_FAILURE says, and whether Dagster will run it again."""
    with dg.DagsterInstance.local_temp(str(home), overrides=RUN_RETRIES) as instance:
        result = dg.execute_job(dg.reconstructable(the_job), instance, tags={PARTITION: DAY})
        assert not result.success
        [failed] = instance.all_logs(result.run_id, of_type=dg.DagsterEventType.RUN_FAILURE)
        error = failed.get_dagster_event().job_failure_data.error
        run = instance.get_run_by_id(result.run_id)
    assert error is not None
    assert error.cause is None
    assert not any(words in error.message for words in NOT_IN_A_SENTENCE)
    kind, _, sentence = error.message.strip().partition(": ")
    assert kind in ("dagster._core.definitions.events.Failure", "cio_pipeline.defs.failures.RunNotStarted")
    assert run is not None
    return sentence, run.tags["dagster/will_retry"] == "true"


def test_a_wrong_key_of_customerio_ends_the_run_for_good(workspace: Workspace, tmp_path: Path) -> None:
    workspace.faults = lambda number, path: ("status", 401, {})
    assert sentence_of_the_failure(tmp_path) == (
        "CUSTOMERIO_SITE_ID and CUSTOMERIO_API_KEY are not accepted by Customer.io (401):"
        " they must be a Tracking API site ID and key of this workspace.",
        False,
    )
    assert [request.method for request in workspace.requests] == ["GET"]


def test_a_wrong_key_of_posthog_ends_the_run_for_good(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POSTHOG_PERSONAL_API_KEY", "phx_another_key")
    sentence, will_retry = sentence_of_the_failure(tmp_path)
    assert sentence.startswith("POSTHOG_PERSONAL_API_KEY ")
    assert not will_retry


def test_customerio_down_for_long_says_what_is_delivered(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cio_pipeline.customerio.batches.MAX_REQUEST_BYTES", 400)
    workspace.faults = lambda number, path: ("status", 503, {}) if number >= 4 else None
    sentence, will_retry = sentence_of_the_failure(tmp_path)
    delivered = workspace.workspace.totals()["events"]
    assert 0 < delivered < 4
    kept = f"{delivered} of 4 events of {DAY} are delivered and kept: run the day again for the rest."
    assert sentence == f"{CUSTOMERIO_IS_DOWN} {kept}"
    assert not will_retry


def test_customerio_down_before_the_run_is_tried_once_more_by_dagster(workspace: Workspace, tmp_path: Path) -> None:
    workspace.faults = lambda number, path: ("status", 503, {})
    assert sentence_of_the_failure(tmp_path) == (CUSTOMERIO_IS_DOWN, True)


def test_a_database_that_is_away_is_an_end_with_its_sentence_and_tried_once_more(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CIO_LEDGER_URL", f"postgresql://cio:{URL_PASSWORD}@127.0.0.1:1/cio")
    sentence, will_retry = sentence_of_the_failure(tmp_path)
    assert sentence.startswith("The ledger's database (CIO_LEDGER_URL) cannot be used: connection failed")
    assert URL_PASSWORD not in sentence
    assert will_retry


def test_a_database_that_goes_away_while_a_day_is_learned_is_a_sentence(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_: object) -> None:
        Ledger(f"sqlite:///{tmp_path}", load_settings().ledger_lock_seconds)

    monkeypatch.setattr("cio_pipeline.defs.store.learn_day", gone)
    sentence, will_retry = sentence_of_the_failure(tmp_path)
    assert sentence == "The ledger's database (CIO_LEDGER_URL) cannot be used: unable to open database file."
    assert not will_retry


def test_a_limit_that_is_exceeded_is_said(workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CIO_MAX_NEW_CUSTOMERS", "1")
    sentence, will_retry = sentence_of_the_failure(tmp_path)
    assert sentence.startswith("This run would make 2 new customers, more than CIO_MAX_NEW_CUSTOMERS allows (1): ")
    assert not will_retry
