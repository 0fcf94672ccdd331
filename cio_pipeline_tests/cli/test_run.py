"""How a run from the command line ends: what was refused, what failed, what a list missed, what stopped it, its exit status."""

from __future__ import annotations

import errno
import json
import logging
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dagster as dg
import pytest

from cio_pipeline.cli.commands import main
from cio_pipeline.cli.run import Lines
from cio_pipeline.cli.terminal import one_line
from cio_pipeline.customerio.client import NotDelivered
from cio_pipeline.customerio.delivery import deliver
from cio_pipeline.definitions import defs
from cio_pipeline.defs.asset_keys import asset_key
from cio_pipeline.defs.delivery.preconditions import is_backfill
from cio_pipeline.defs.failures import RunNotStarted
from cio_pipeline.defs.partitions import PARTITION, RANGE_END, RANGE_START, days_between
from cio_pipeline.posthog.source import NotExtracted
from cio_pipeline.sandbox.customerio import server as customerio
from cio_pipeline.sandbox.posthog import server as posthog
from cio_pipeline.sandbox.processes import Sandbox, bare_environment
from cio_pipeline.settings.load import load_settings
from cio_pipeline.state.acknowledgement import Acknowledgement
from cio_pipeline.state.ledger import Ledger
from cio_pipeline.state.refusals import Refusal
from cio_pipeline_tests.customerio.test_refusals import answer_where

DAY, THIRD_DAY = "2025-01-01", "2025-01-03"
YESTERDAY, TODAY = (str(datetime.now(UTC).date() - timedelta(days=back)) for back in (1, 0))


def event(number: int, name: str = "paid", who: str = "jane", day: str = DAY) -> dict[str, Any]:
    properties = {"$set": {"plan": "pro"}}
    uuid = f"00000000-0000-4000-8000-{number:012d}"
    return {"uuid": uuid, "event": name, "distinct_id": who, "timestamp": f"{day}T10:00:00Z", "properties": properties}


@dataclass
class Services:
    """Both services, and what a run said of them."""

    posthog: posthog.PostHog
    customerio: customerio.CustomerioServer
    folder: Path


@pytest.fixture
def services(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Services]:
    """One event of four is refused by the rules, on the first day and on the third."""
    events = [event(number, who=who, day=day) for day in (DAY, THIRD_DAY) for number, who in enumerate(("a", "b", "c", " "))]
    with posthog.serve(iter(events)) as source, customerio.serve() as workspace:
        environment = Sandbox(source.url, workspace.url).environment(tmp_path / "data", date(2025, 1, 1))
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        yield Services(source, workspace, tmp_path)


def run(day: str = DAY, last: str | None = None, *options: str) -> int:
    return main(["run", "--from", day, "--to", last or day, *options])


def test_what_the_rules_refuse_is_in_the_last_lines_and_in_the_status(
    services: Services, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run() == 1
    said = capsys.readouterr()
    day = [line for line in said.out.splitlines() if line.startswith(f"{DAY}: 3 events sent")]
    assert day
    assert ", 0 refused by Customer.io, " in day[0]
    assert f"{DAY}: 4 events, 0 filtered, 1 refused by the rules." in said.out.splitlines()
    assert said.err == (
        f"The rules refused 1 of 4 events, 25 % (CIO_REFUSED_SHARE allows 1 % of a day, {DAY} has 25 %):"
        " 1 because distinct_id is blank (R14). The table `rejects` has each of them.\n"
    )
    monkeypatch.setenv("CIO_REFUSED_SHARE", "25%")
    assert run() == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert said.out.splitlines()[-1].startswith(
        "The rules refused 1 of 4 events, 25 % (CIO_REFUSED_SHARE allows 25 % of a day):"
    )


def test_a_run_keeps_the_engines_of_dagsters_storage(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[str] = []
    monkeypatch.setattr("cio_pipeline.cli.run.keep_engines", lambda: kept.append("engines"))
    monkeypatch.setattr("cio_pipeline.cli.run._run", lambda *_, **__: None)
    main(["run", "--today"])
    assert kept == ["engines"]


def test_a_day_that_was_delivered_is_said_though_a_later_one_fails(
    services: Services, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail_on_the_third(day: str, *given: Any) -> Any:
        if day == THIRD_DAY:
            raise NotDelivered("Customer.io is away.")
        return deliver(day, *given)

    monkeypatch.setattr("cio_pipeline.customerio.delivery.deliver", fail_on_the_third)
    assert run(DAY, THIRD_DAY) == 1
    said = capsys.readouterr()
    assert [line.partition(" events sent")[0] for line in said.out.splitlines() if " events sent, " in line] == [
        f"{DAY}: 3",
        "2025-01-02: 0",
    ]
    kept = f"0 of 3 events of {THIRD_DAY} are delivered and kept: run the day again for the rest."
    assert said.err == f"Customer.io is away. {kept}\n"


def test_each_run_of_a_range_knows_how_long_the_range_is(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its last run may have but the youngest day, which by itself would not be a backfill (CIO_MAX_CAMPAIGN_EVENTS)."""
    runs: list[tuple[list[str], bool]] = []

    def note(job: str, instance: dg.DagsterInstance, config: Any, tags: dict[str, str], *_: Any) -> None:
        chunk = days_between(tags[RANGE_START], tags[RANGE_END])
        runs.append((chunk, is_backfill(tags, chunk)))

    monkeypatch.setattr("cio_pipeline.cli.run._run", note)
    monkeypatch.setenv("CIO_DAYS_PER_RUN", "2")
    run(DAY, THIRD_DAY)
    run(DAY, "2025-01-02")
    assert runs == [([DAY, "2025-01-02"], True), ([THIRD_DAY], True), ([DAY, "2025-01-02"], False)]


def test_today_is_run_by_the_hourly_job(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[Any] = []
    monkeypatch.setattr("cio_pipeline.cli.run._run", lambda job, *_: runs.append(job))
    assert main(["run", "--today"]) == 0
    assert runs == ["customerio_hourly"]


def test_failed_checks_and_lists_without_effect_are_in_the_last_lines(
    services: Services, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"CIO_EVENT_ALLOWLIST": "paid,payed", "CIO_EXCLUDE_ATTRIBUTES": "pl*,utm_*", "CIO_REFUSED_SHARE": "50%"}
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    assert run(THIRD_DAY) == 0
    *_, event_list, attributes, checks, _ = capsys.readouterr().out.splitlines()
    assert event_list == "CIO_EVENT_ALLOWLIST: no event of these days is named 'payed'."
    assert attributes == "CIO_EXCLUDE_ATTRIBUTES: no attribute of these days is named 'utm_*'."
    assert checks.startswith("The check earlier_days_learned of customers failed: ")
    assert "(`make run FROM=2025-01-01 TO=2025-01-02`)" in checks


@pytest.mark.parametrize(
    ("tags", "sentence"),
    [
        ({RANGE_START: "2025-01-03", RANGE_END: DAY}, "comes after"),
        ({RANGE_START: YESTERDAY, RANGE_END: TODAY}, "is not a partition"),
        ({PARTITION: "2024-12-31"}, "2024-12-31 is not a partition"),
    ],
)
def test_days_in_a_runs_tags_are_checked_before_anything_is_read(
    services: Services, tags: dict[str, str], sentence: str
) -> None:
    with dg.DagsterInstance.ephemeral() as instance, pytest.raises(RunNotStarted, match=sentence):
        defs.resolve_job_def("customerio_sync").execute_in_process(instance=instance, tags=tags)
    assert services.customerio.requests == []
    assert services.posthog.project.account()["requests"] == {}
    assert not (services.folder / "data" / "posthog_events").exists()


DERIVE, OPEN = "cio_pipeline.defs.store.derive_day", "cio_pipeline.cli.run.dg.DagsterInstance.local_temp"
FULL = OSError(errno.ENOSPC, "no", "/folder/file")


@pytest.mark.parametrize(
    ("where", "error", "status", "sentence"),
    [
        (DERIVE, FULL, 1, "No space left on device (/folder/file): nothing can be written to CIO_DATA_DIR, "),
        (
            DERIVE,
            KeyboardInterrupt(),
            130,
            "Interrupted: what Customer.io has acknowledged is kept, and a rerun sends the rest.",
        ),
        (DERIVE, NotExtracted("a\n\x1b[2Jb\u202e"), 1, "a  [2Jb\n"),
        (OPEN, OSError(errno.EROFS, "no"), 1, "Read-only file system: nothing can be written to CIO_DATA_DIR, "),
        (
            OPEN,
            sqlite3.OperationalError("disk I/O error"),
            1,
            "Dagster's own database in DAGSTER_HOME cannot be used: disk I/O error: is its disk full or read-only?\n",
        ),
        (
            OPEN,
            sqlite3.DatabaseError("file is not a database"),
            1,
            "Dagster's own database in DAGSTER_HOME cannot be used: file is",
        ),
        (OPEN, ValueError("jane@example.com"), 1, "The run failed: ValueError at test_run.py:"),
    ],
)
def test_whatever_stops_a_run_is_one_sentence(
    services: Services,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    status: int,
    sentence: str,
    where: str,
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(where, fail)
    assert run() == status
    said = capsys.readouterr().err
    assert said.startswith(sentence)
    assert said.count("\n") == 1


@pytest.mark.parametrize("step", ["cio__identities", "customers_events_rejects"])
def test_ctrl_c_between_two_steps_is_one_sentence(
    services: Services, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    handle = dg.DagsterInstance.handle_new_event

    def press(self: dg.DagsterInstance, event: dg.EventLogEntry, **given: Any) -> None:
        if event.dagster_event_type == dg.DagsterEventType.STEP_SUCCESS and event.step_key == step:
            os.kill(os.getpid(), signal.SIGINT)
        handle(self, event, **given)

    monkeypatch.setattr(dg.DagsterInstance, "handle_new_event", press)
    assert run() == 130
    said = capsys.readouterr().err
    assert said == "Interrupted: what Customer.io has acknowledged is kept, and a rerun sends the rest.\n"


@pytest.mark.parametrize("has_home", [False, True])
def test_ctrl_c_in_a_terminal_which_all_processes_of_the_run_receive_is_one_sentence(
    services: Services, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, has_home: bool
) -> None:
    if has_home:
        (tmp_path / "home").mkdir()
        (tmp_path / "home" / "dagster.yaml").write_text("telemetry:\n  enabled: false\n")
        monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "home"))
    arrived, interrupted = threading.Event(), threading.Event()

    def batch(_: bytes) -> Any:
        arrived.set()
        interrupted.wait(60)
        raise ConnectionError

    monkeypatch.setattr(services.customerio.workspace, "batch", batch)
    command = [sys.executable, "-m", "cio_pipeline", "run", "--partition", DAY]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as terminal:
        assert arrived.wait(60)
        os.killpg(terminal.pid, signal.SIGINT)
        time.sleep(0.5)
        interrupted.set()
        said = terminal.communicate(timeout=60)[1]
    assert terminal.returncode == 130
    assert said == "Interrupted: what Customer.io has acknowledged is kept, and a rerun sends the rest.\n"


def test_what_is_logged_stands_in_dagsters_log_of_the_run(services: Services, capsys: pytest.CaptureFixture[str]) -> None:
    run()
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith(f"{DAY}: ")]
    assert f"{DAY}: 4 of 4 events read." in said
    with dg.DagsterInstance.local_temp(str(services.folder / "data" / "dagster")) as instance:
        [last] = instance.get_runs(limit=1)
        logged = [entry.user_message for entry in instance.all_logs(last.run_id) if entry.dagster_event is None]
    assert [line for line in logged if line.startswith(f"{DAY}: ")] == said


def test_what_customerio_has_refused_is_listed_without_anybodys_data_and_sent_again(
    services: Services, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["refusals"]) == 0
    assert capsys.readouterr().out == "Nothing is refused.\n"
    batch = services.customerio.workspace.batch

    def refuse_customers(body: bytes) -> Any:
        items = json.loads(body)["batch"]
        spoilt = [{**item, "action": "odd"} if item["action"] == "identify" else item for item in items]
        return batch(json.dumps({"batch": spoilt}).encode())

    with monkeypatch.context() as broken:
        broken.setattr(services.customerio.workspace, "batch", refuse_customers)
        assert run() == 1
    said = capsys.readouterr().err
    assert "Customer.io refused 3 items: `python -m cio_pipeline refusals` lists them" in said
    assert main(["refusals", "--partition", DAY]) == 0
    *items, total = capsys.readouterr().out.splitlines()
    assert len(items) == 3
    assert all(line.startswith(f"{DAY}: customer of id ***: ") for line in items)
    reason = total.removeprefix("3 refused: 3 for ").removesuffix(".")
    assert main(["refusals", "--limit", "2"]) == 0
    more = "Not listed: 1 more. Choose a day or a reason, or give a --limit."
    assert capsys.readouterr().out.splitlines() == [*items[:2], more, total]
    assert main(["refusals", "--reason", "another"]) == 0
    assert capsys.readouterr().out == "Nothing is refused.\n"
    assert main(["redeliver", "--reason", reason]) == 0
    assert " 3 upserts sent, " in capsys.readouterr().out
    assert main(["refusals"]) == 0
    assert capsys.readouterr().out == "Nothing is refused.\n"
    assert main(["redeliver"]) == 0


@pytest.fixture
def refused(services: Services, monkeypatch: pytest.MonkeyPatch) -> str:
    """Customer.io refuses the upsert of one person. Gives the reason."""
    monkeypatch.setenv("CIO_REFUSED_SHARE", "25%")
    with monkeypatch.context() as broken:
        refuse_upsert_of_a(services, broken, {"action": "odd"})
        assert run() == 1
    return refusal_reason()


def refuse_upsert_of_a(services: Services, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]) -> None:
    """Customer.io gets the upsert of the person a with these changes."""
    batch = services.customerio.workspace.batch

    def refuse(body: bytes) -> Any:
        items = json.loads(body)["batch"]
        of_a = [item["action"] == "identify" and item["identifiers"] == {"id": "a"} for item in items]
        spoilt = [{**item, **changes} if is_meant else item for item, is_meant in zip(items, of_a, strict=True)]
        return batch(json.dumps({"batch": spoilt}).encode())

    monkeypatch.setattr(services.customerio.workspace, "batch", refuse)


def refusal_reason() -> str:
    """The reason of the only refusal that is open."""
    settings = load_settings()
    [refusal] = Ledger(settings.ledger_url).refusals()[DAY]
    return refusal.reason


WHOLE = (400, {"errors": [{"reason": "invalid", "field": "attributes.plan"}]})


@pytest.mark.parametrize("names_items", [True, False])
@pytest.mark.parametrize("by_reason", [True, False])
def test_a_redelivery_fails_if_an_item_is_refused_again_even_if_for_another_reason(
    services: Services, refused: str, monkeypatch: pytest.MonkeyPatch, names_items: bool, by_reason: bool
) -> None:
    chosen = ["--reason", refused] if by_reason else []
    answer = services.customerio.answer
    with monkeypatch.context() as broken:
        if names_items:
            refuse_upsert_of_a(services, broken, {"identifiers": {}})
        else:
            answer_where(services.customerio, lambda _, body: b'"id":"a"' in body, WHOLE)
        assert main(["redeliver", *chosen]) == 1
    services.customerio.answer = answer  # type: ignore[method-assign]
    assert refusal_reason() not in (refused, "")
    assert main(["redeliver", "--reason", refusal_reason()]) == 0


def test_a_redelivery_fails_if_an_item_has_changed_so_that_a_run_of_the_day_sends_it(services: Services, refused: str) -> None:
    services.posthog.add([event(9, who="a") | {"properties": {"$set": {"plan": "free"}}, "timestamp": f"{DAY}T11:00:00Z"}])
    derive = [asset_key(name) for name in ("posthog_events", "identities", "customers", "events", "rejects")]
    with dg.DagsterInstance.ephemeral() as instance:
        job = defs.resolve_job_def("customerio_sync")
        assert job.execute_in_process(instance=instance, partition_key=DAY, asset_selection=derive).success
    assert main(["redeliver", "--reason", refused]) == 1
    assert run() == 0
    assert main(["redeliver"]) == 0


def test_a_redelivery_fails_if_another_run_has_meanwhile_added_a_refusal_for_the_chosen_reason(
    services: Services, refused: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = services.customerio.workspace.batch
    other = Acknowledgement(refused=[Refusal("1", "event", refused, "", "{}", "id:u1")])

    def batch_of_another(body: bytes) -> Any:
        Ledger(load_settings().ledger_url).acknowledge(THIRD_DAY, other)
        return batch(body)

    monkeypatch.setattr(services.customerio.workspace, "batch", batch_of_another)
    assert main(["redeliver", "--reason", refused]) == 1


def test_a_redelivery_does_not_fail_for_refusals_that_were_not_chosen(services: Services, refused: str) -> None:
    settings = load_settings()
    Ledger(settings.ledger_url).acknowledge(
        THIRD_DAY, Acknowledgement(refused=[Refusal("1", "event", "another", "", "{}", "id:u1")])
    )
    assert main(["redeliver", "--partition", DAY]) == 0
    assert main(["redeliver", "--partition", THIRD_DAY]) == 1


def test_checks_that_failed_are_said_although_the_run_fails_for_another_reason(
    services: Services, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What Dagster has recorded by then is read, and each failed check is a line."""
    found = dg.AssetCheckEvaluation(dg.AssetKey("posthog_events"), "attributes_given", False, {}, description="None.")
    recorded = SimpleNamespace(event_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION, event_specific_data=found)
    instance = SimpleNamespace(all_logs=lambda *_, **__: [SimpleNamespace(dagster_event=recorded)])

    def fail(**_: Any) -> None:
        raise NotDelivered("Customer.io is away.")

    monkeypatch.setattr("cio_pipeline.cli.run._instance", lambda _: nullcontext(instance))
    monkeypatch.setattr(defs, "resolve_job_def", lambda _: SimpleNamespace(execute_in_process=fail))
    assert run() == 1
    said = capsys.readouterr()
    assert said.out == "The check attributes_given of posthog_events failed: None.\n"
    assert said.err == "Customer.io is away.\n"


def test_a_home_of_dagsters_that_is_not_there_is_one_sentence(
    services: Services, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for value, why in (("/nowhere/at/all", "/nowhere/at/all is not a folder"), ("here", "it must be an absolute path")):
        monkeypatch.setenv("DAGSTER_HOME", value)
        assert run() == 2
        assert capsys.readouterr().err.startswith(f"DAGSTER_HOME is wrong: {why}")
    assert services.customerio.requests == []


def test_nothing_that_a_terminal_obeys_is_printed(services: Services, capsys: pytest.CaptureFixture[str]) -> None:
    record = logging.LogRecord("cio_pipeline", logging.INFO, "", 0, "read\r\x1b]0;title\x07\n\u2028more \u202egnp", None, None)
    Lines().emit(record)
    assert capsys.readouterr().out == "read  ]0;title   more  gnp\n"
    assert one_line("Größe, 3 €") == "Größe, 3 €"


INSTANCE = """
import os, time
from cio_pipeline.cli.run import _instance
from cio_pipeline.settings.load import load_settings
open(f"ready {os.getpid()}", "w").close()
while not os.path.exists("go"):
    time.sleep(0.01)
with _instance(load_settings()) as instance:
    instance.get_runs_count()
"""


def test_two_first_runs_at_once_make_one_instance(tmp_path: Path) -> None:
    nowhere = Sandbox("http://127.0.0.1:1", "http://127.0.0.1:1").environment(tmp_path / "data", date(2025, 1, 1))
    command = [sys.executable, "-c", INSTANCE]
    both = [subprocess.Popen(command, env=nowhere, cwd=tmp_path, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    while len(list(tmp_path.glob("ready *"))) < 2:
        assert [process.poll() for process in both] == [None, None]
        time.sleep(0.05)
    (tmp_path / "go").touch()
    assert [(process.communicate(timeout=120)[1], process.returncode) for process in both] == [("", 0)] * 2
    heads = (
        "import sqlite3, sys; print(sqlite3.connect(sys.argv[1]).execute('select count(*) from alembic_version').fetchall())"
    )
    for database in (tmp_path / "data" / "dagster").rglob("*.db"):
        said = subprocess.run([sys.executable, "-c", heads, str(database)], capture_output=True, text=True, check=True).stdout
        assert said == "[(1,)]\n"


def test_an_unreadable_env_file_ends_dagsters_loading_in_that_sentence(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("CIO_SUPPRESSED_FILE=\"/secret\nPOSTHOG_HOST='x'\n")
    command = [sys.executable, "-m", "dagster", "definitions", "validate", "-m", "cio_pipeline.definitions"]
    environment = bare_environment(tmp_path)
    refused = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120)
    assert refused.returncode != 0
    sentence = (
        f"SettingsError: {tmp_path}/.env, line 1 cannot be read with certainty: its quote is not closed on the same line."
    )
    assert sentence in refused.stdout + refused.stderr
    assert "secret" not in refused.stdout + refused.stderr
