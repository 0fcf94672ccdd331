"""Another run writes a day's tables again while a run delivers: what was checked is what is sent."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from cio_pipeline.defs.delivery.run_delivery import RunDelivery
from cio_pipeline.defs.resources import StoreResource
from cio_pipeline.settings.load import load_settings
from cio_pipeline.tables.files import StorageError
from cio_pipeline_tests.defs.assets.test_deliver import redeliver, refusing
from cio_pipeline_tests.defs.test_days_of_a_run import DAYS, Start, Workspace, event, execute, run, sent
from cio_pipeline_tests.defs.test_days_of_a_run import start as start

EVENTS = [
    event(2 * number + which, name, "jane", f"{day}T10:00:00Z", **{"$set": {"email": "jane@example.com", "plan": str(number)}})
    for number, day in enumerate(DAYS)
    for which, name in enumerate(["visit", "paid"])
]


def derive_again(monkeypatch: pytest.MonkeyPatch, day: str, **settings: str) -> None:
    """Derives the day as another run with these settings does."""
    with monkeypatch.context() as others:
        for name, value in settings.items():
            others.setenv(name, value)
        with StoreResource().yield_for_execution(dg.build_init_resource_context()) as store:
            store.derive(day)


def after(monkeypatch: pytest.MonkeyPatch, check: str, do: Callable[[], None]) -> None:
    """Does this after the first time that `RunDelivery` has made this check."""
    checked, todo = getattr(RunDelivery, check), [do]

    def check_then_do(delivery: RunDelivery, *arguments: Any) -> Any:
        result = checked(delivery, *arguments)
        if todo:
            todo.pop()()
        return result

    monkeypatch.setattr(RunDelivery, check, check_then_do)


def identifiers_sent(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The kinds of identifiers that the workspace is sent from now on."""
    kinds, batch = set[str](), workspace.workspace.batch

    def noted(body: bytes) -> Any:
        kinds.update(kind for item in json.loads(body)["batch"] for kind in item["identifiers"])
        return batch(body)

    monkeypatch.setattr(workspace.workspace, "batch", noted)
    return kinds


def versions(day: str) -> list[Path]:
    return [path for path in (Path(load_settings().data_dir) / "derived" / day).iterdir() if path.is_dir()]


def test_a_day_that_is_derived_under_other_settings_after_the_checks_is_sent_as_it_was_checked(
    start: Start, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = start(EVENTS)
    kinds = identifiers_sent(workspace, monkeypatch)
    after(monkeypatch, "check_limits", lambda: derive_again(monkeypatch, DAYS[1], CIO_IDENTIFY_BY_EMAIL="Yes"))
    receipts = run(instance, DAYS)
    assert [receipt["events sent"] for receipt in receipts.values()] == [2, 2, 2]
    assert (kinds, sent(workspace)) == ({"id"}, {"people": 1, "events": 6})
    assert len(versions(DAYS[1])) == 2


def test_a_day_whose_checked_tables_are_gone_is_not_sent(
    start: Start, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    def replace_and_remove() -> None:
        checked = versions(DAYS[1])
        derive_again(monkeypatch, DAYS[1], CIO_IDENTIFY_BY_EMAIL="Yes")
        for version in checked:
            shutil.rmtree(version)

    workspace = start(EVENTS)
    after(monkeypatch, "check_limits", replace_and_remove)
    with pytest.raises(dg.Failure) as failure:
        execute(instance, DAYS)
    assert isinstance(failure.value.__context__, StorageError)
    assert str(failure.value.description) == (
        f"Shard 0 of customers of {DAYS[1]} cannot be read (No such file or directory):"
        " another run has replaced it since this one began, so run this again."
    )
    assert sent(workspace) == {"people": 1, "events": 2}, "the day before it"


def test_what_was_refused_is_compared_with_the_tables_that_were_checked(
    start: Start, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By tables without the event, its refusal would be closed as no longer to be sent."""
    workspace = start(EVENTS)
    with monkeypatch.context() as broken:
        refusing(workspace, broken, "paid")
        run(instance, DAYS[:1])
    after(monkeypatch, "check_forecast", lambda: derive_again(monkeypatch, DAYS[0], CIO_EVENT_ALLOWLIST="visit"))
    receipt = redeliver(instance)
    assert (receipt["events sent"], receipt["refused still, of all days"]) == (1, 0)
    assert "refusals no longer to be sent" not in receipt
