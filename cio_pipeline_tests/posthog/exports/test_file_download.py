"""PostHog's on-demand export: every event of the day exactly once, whatever happens, and the key goes only to PostHog."""

from __future__ import annotations

import json
import resource
import traceback
from collections.abc import Iterator
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import orjson
import pandas as pd
import pytest
import requests

from cio_pipeline.errors import PipelineError
from cio_pipeline.http import retry as http
from cio_pipeline.posthog.exports import downloads as downloads_module
from cio_pipeline.posthog.exports import file_exports
from cio_pipeline.posthog.exports.file_download import FileDownloadSource
from cio_pipeline.posthog.source import NEEDED, NotExtracted, NothingSoFar, without_duplicates
from cio_pipeline.sandbox.posthog import server as posthog
from cio_pipeline.sandbox.posthog.answers import Answer, Refused
from cio_pipeline.sandbox.posthog.file_downloads import FileDownloads
from cio_pipeline_tests.posthog.exports.stored import stored

START = datetime(2024, 5, 1, tzinfo=UTC)
END = START + timedelta(days=1)


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, names in (
        (file_exports, ("POLL_SECONDS", "EMPTY_LIST_SECONDS")),
        (downloads_module, ("PAUSE_SECONDS",)),
        (http, ("BACKOFF_SECONDS", "LONGEST_BACKOFF_SECONDS")),
    ):
        for name in names:
            monkeypatch.setattr(module, name, 0.01)
    monkeypatch.setattr(file_exports, "CREATION_PAUSES", (0.0, 0.01, 0.01))


@pytest.fixture
def server() -> Iterator[posthog.PostHog]:
    with posthog.serve() as running:
        yield running


@pytest.fixture
def downloads(server: posthog.PostHog) -> FileDownloads:
    return server.project.file_downloads


def source(server: posthog.PostHog, key: str = "phx_sandbox", project: str = "1", **options: Any) -> FileDownloadSource:
    return FileDownloadSource(
        server.url, project, key, **{"late_days": 2, "allowlist": (), "attributes_from": "set", **options}
    )


def read(found: FileDownloadSource) -> pd.DataFrame:
    window = found.events(START, END)
    frames = [table.to_pandas() for table in window.frames]
    if not frames:
        return pd.DataFrame({"properties": []})
    events = without_duplicates(pd.concat(frames))
    return events[events.pop(NEEDED)] if NEEDED in events else events


def numbers(events: pd.DataFrame) -> list[int]:
    return [json.loads(text)["n"] for text in events["properties"]]


def test_a_day_is_read_to_the_microsecond_from_any_number_of_files(server: posthog.PostHog, downloads: FileDownloads) -> None:
    times = ["2024-05-01T00:00:00Z", "2024-05-01T23:59:59.999999Z", "2024-04-30T23:59:59.999999Z", "2024-05-02T00:00:00Z"]
    server.add(stored(number, at=times[number % 4]) for number in range(100))
    downloads.file_rows = 30
    assert sorted(numbers(read(source(server)))) == [number for number in range(100) if number % 4 < 2]


def test_late_events_are_read_for_as_many_days_as_configured(server: posthog.PostHog) -> None:
    server.add(stored(days, landed=f"2024-05-0{1 + days}T20:00:00Z") for days in range(5))
    server.add([stored(9, at="2024-05-01T10:00:00Z", landed="2024-04-30T10:00:01Z")])
    assert {days: sorted(numbers(read(source(server, late_days=days)))) for days in (0, 2)} == {0: [0, 9], 2: [0, 1, 2, 9]}


def test_a_window_of_more_than_a_week_takes_several_exports(server: posthog.PostHog, downloads: FileDownloads) -> None:
    server.add(stored(days, landed=f"2024-05-0{1 + days}T20:00:00Z") for days in range(7))
    server.add([stored(8, landed="2024-05-09T20:00:00Z")])
    assert len(read(source(server, late_days=10))) == 8
    assert [run.end - run.start <= timedelta(weeks=1) for run in downloads.runs.values()] == [True, True]


def test_only_events_that_the_settings_need_are_returned(server: posthog.PostHog) -> None:
    server.add([stored(1), stored(2, event="visit"), stored(3, event="visit", person_properties={"email": "a@example.com"})])
    events = read(source(server, allowlist=("order",), attributes_from="person"))
    assert numbers(events) == [1, 3]
    assert events["person_properties"].tolist() == ['{"plan":"pro"}', '{"email":"a@example.com"}']


def test_a_day_without_events_is_empty(server: posthog.PostHog) -> None:
    assert read(source(server)).empty


def test_the_history_is_read_by_queries(server: posthog.PostHog, downloads: FileDownloads) -> None:
    server.add([stored(1), stored(2, event="$identify"), stored(3, event="$set", at="2016-01-01T00:00:00Z")])
    frames = list(source(server).history(START + timedelta(hours=12)).frames)
    assert sorted(numbers(pd.concat(frames))) == [2, 3]
    assert not downloads.runs


def test_a_day_that_is_not_over_is_refused(server: posthog.PostHog) -> None:
    today = datetime.now(UTC)
    with pytest.raises(NotExtracted, match="is not over yet"):
        source(server).events(today - timedelta(hours=1), today + timedelta(hours=1))


def test_a_day_that_is_not_over_is_not_requested_because_it_would_be_billed_each_time(
    server: posthog.PostHog, downloads: FileDownloads
) -> None:
    with pytest.raises(NothingSoFar, match="PostHog bills each export"):
        source(server).readable_until(START, START + timedelta(hours=12))
    assert not downloads.runs


def test_yesterdays_export_reaches_up_to_now(server: posthog.PostHog, downloads: FileDownloads) -> None:
    now = datetime.now(UTC)
    list(source(server).events(now - timedelta(days=1), now - timedelta(hours=1)).frames)
    assert [now - run.end < timedelta(minutes=3) for run in downloads.runs.values()] == [True]


def test_neither_the_key_nor_our_headers_follow_the_redirect(
    server: posthog.PostHog, downloads: FileDownloads, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.add([stored(1)])
    brought: list[set[str]] = []
    file = downloads.file

    def noted(link: str, headers: set[str]) -> Answer:
        brought.append({name.lower() for name in headers})
        return file(link, headers)

    monkeypatch.setattr(downloads, "file", noted)
    assert len(read(source(server))) == 1
    assert brought == [{"host", "accept-encoding", "user-agent"}]


def test_the_limit_of_concurrent_exports_is_waited_out(
    server: posthog.PostHog, downloads: FileDownloads, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.add([stored(1)])
    downloads.at_once = 1
    blocking = requests.post(
        f"{server.url}/api/projects/1/file_download_batch_exports/",
        json={
            "model": "events",
            "file": {"format": "Parquet"},
            "data_interval_start": "2024-05-01T00:00:00Z",
            "data_interval_end": "2024-05-02T00:00:00Z",
        },
        headers={"Authorization": "Bearer phx_sandbox"},
        timeout=5,
    ).json()["id"]

    def waited(_: float) -> None:
        downloads.runs[blocking].polls -= 1

    downloads.runs[blocking].polls = 3
    monkeypatch.setattr("time.sleep", waited)
    assert len(read(source(server))) == 1
    assert server.project.statuses[429] == 3


@pytest.mark.parametrize("status", ["Failed", "FailedRetryable", "FailedBilling", "Terminated", "TimedOut", "Cancelled"])
def test_a_failed_export_is_requested_once_more(server: posthog.PostHog, downloads: FileDownloads, status: str) -> None:
    server.add([stored(1)])
    downloads.ends_as = [status]
    assert len(read(source(server))) == 1
    downloads.ends_as = [status, status]
    with pytest.raises(NotExtracted, match=f"ended as {status} twice"):
        read(source(server))


def test_an_expired_link_is_requested_again(server: posthog.PostHog, downloads: FileDownloads) -> None:
    server.add([stored(1)])
    downloads.expired = 2
    assert len(read(source(server))) == 1
    downloads.expired = 100
    with pytest.raises(NotExtracted, match="could not be downloaded in 5 tries \\(its link answered 403\\)"):
        read(source(server))


def test_a_download_that_is_html_or_cut_short_is_repeated(
    server: posthog.PostHog, downloads: FileDownloads, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.add(stored(number) for number in range(1000))
    file, wrong = downloads.file, [b"<html>maintenance</html>", b"", None, None]

    def breaks(*asked: Any) -> Answer:
        whole = file(*asked)
        if not wrong:
            return whole
        return Answer(whole.content[: len(whole.content) // 2] if (content := wrong.pop()) is None else content)

    monkeypatch.setattr(downloads, "file", breaks)
    assert len(read(source(server))) == 1000
    assert not wrong
    assert len(downloads.runs) == 1
    wrong += [b"<html>maintenance</html>"] * 5
    with pytest.raises(NotExtracted, match=r"could not be downloaded in 5 tries \(it is not a complete Parquet file: .* bytes"):
        read(source(server))


def test_a_full_disk_is_reported_and_nothing_is_downloaded_again(
    server: posthog.PostHog, downloads: FileDownloads, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.add(stored(number) for number in range(1000))
    file, asked = downloads.file, list[Any]()

    def counted(*given: Any) -> Answer:
        asked.append(given)
        return file(*given)

    monkeypatch.setattr(downloads, "file", counted)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(NotExtracted, match=r"^The temporary folder .+ is full: free some space, or set TMPDIR to a folder"):
            read(source(server))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert len(asked) == 1


def test_a_temporary_folder_that_disappears_during_a_download_is_reported(
    server: posthog.PostHog, downloads: FileDownloads, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    server.add([stored(1)])
    monkeypatch.setattr("cio_pipeline.posthog.exports.file_download.spill_folder", lambda: nullcontext(tmp_path / "gone"))
    with pytest.raises(NotExtracted, match=r"^A file of PostHog's export cannot be written: No such file or directory\.$"):
        read(source(server))


def test_a_file_that_posthog_still_calls_unfinished_is_requested_again(
    server: posthog.PostHog, downloads: FileDownloads, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer, unfinished = downloads.answer, [True, True]

    def not_yet(method: str, path: list[str], *rest: Any) -> Answer:
        if "download" in path and unfinished:
            unfinished.pop()
            raise Refused(400, "validation_error", "invalid_input", "Batch export run is still in progress")
        return answer(method, path, *rest)

    monkeypatch.setattr(downloads, "answer", not_yet)
    server.add([stored(1)])
    assert len(read(source(server))) == 1
    unfinished += [True] * 5
    with pytest.raises(NotExtracted, match=r"could not be downloaded in 5 tries .* still in progress"):
        read(source(server))


@pytest.mark.parametrize("method", ["POST", "GET"])
def test_an_answer_that_is_not_an_export_is_reported_in_one_sentence(
    server: posthog.PostHog, downloads: FileDownloads, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    answer = downloads.answer

    def other(asked: str, path: list[str], *rest: Any) -> Answer:
        given = answer(asked, path, *rest)
        return Answer(b'{"results": []}', given.status) if asked == method and "cancel" not in path else given

    monkeypatch.setattr(downloads, "answer", other)
    with pytest.raises(NotExtracted, match="PostHog's answer is not an export"):
        read(source(server))


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, RuntimeError])
def test_the_export_of_a_cancelled_run_is_cancelled(
    server: posthog.PostHog, downloads: FileDownloads, monkeypatch: pytest.MonkeyPatch, interrupt: type[BaseException]
) -> None:
    downloads.polls = 5

    def interrupted(_: float) -> None:
        raise interrupt

    monkeypatch.setattr("time.sleep", interrupted)
    with pytest.raises(interrupt):
        read(source(server))
    assert [run.cancelled for run in downloads.runs.values()] == [True]


@pytest.mark.parametrize("status", [404, 405])
def test_a_posthog_that_does_not_list_exports_may_still_create_them(
    server: posthog.PostHog, downloads: FileDownloads, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    answer = downloads.answer

    def lists_none(method: str, path: list[str], *rest: Any) -> Answer:
        if (method, path) == ("GET", []):
            raise Refused(status, "invalid_request", "error", "No list.")
        return answer(method, path, *rest)

    monkeypatch.setattr(downloads, "answer", lists_none)
    server.add([stored(1)])
    source(server).check()
    assert len(read(source(server))) == 1


def test_a_posthog_without_file_downloads_is_reported_at_the_first_request(
    server: posthog.PostHog, downloads: FileDownloads, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(*_: Any) -> Answer:
        raise Refused(404, "invalid_request", "not_found", "Endpoint not found.")

    monkeypatch.setattr(downloads, "answer", unknown)
    source(server).check()
    with pytest.raises(NotExtracted, match="or this PostHog has no file downloads"):
        read(source(server))


@pytest.mark.parametrize(
    ("wrong", "names"),
    [
        ({"key": "phx_wrong"}, "POSTHOG_PERSONAL_API_KEY is not accepted"),
        ({"key": "phx_sandbox_unscoped"}, "POSTHOG_PERSONAL_API_KEY lacks the scope Batch Export Write"),
        ({"project": "2"}, "POSTHOG_PROJECT_ID is not found"),
    ],
)
def test_wrong_settings_are_reported_without_the_key(server: posthog.PostHog, wrong: dict[str, str], names: str) -> None:
    for act in (source(server, **wrong).check, lambda: read(source(server, **wrong))):
        with pytest.raises(NotExtracted, match=names) as refused:
            act()
        assert "phx_" not in str(refused.value)
    source(server).check()


def answering(downloads: FileDownloads, monkeypatch: pytest.MonkeyPatch, *bodies: Any, wait_for: str = "Completed") -> None:
    """Replaces PostHog's next answers about a completed run by these."""
    answer, left = downloads.answer, list(bodies)

    def other(method: str, path: list[str], *rest: Any) -> Answer:
        given = answer(method, path, *rest)
        if method == "GET" and len(path) == 1 and wait_for.encode() in given.content and left:
            return Answer(orjson.dumps(left.pop(0)))
        return given

    monkeypatch.setattr(downloads, "answer", other)


DONE = {"status": "Completed"}


@pytest.mark.parametrize(
    "bodies",
    [
        [DONE] * 3,
        [DONE | {"files": None}] * 3,
        [DONE | {"files": []}],
        [DONE | {"files": [], "records_completed": 2}] * 3,
        [{}, [], {"status": 5}, {"detail": "maintenance"}],
    ],
)
def test_a_late_list_of_files_is_waited_for(
    server: posthog.PostHog, downloads: FileDownloads, monkeypatch: pytest.MonkeyPatch, bodies: list[Any]
) -> None:
    server.add([stored(1), stored(2)])
    monkeypatch.setattr(file_exports, "EMPTY_LIST_SECONDS", 5)
    answering(downloads, monkeypatch, *bodies)
    assert sorted(numbers(read(source(server)))) == [1, 2]
    assert len(downloads.runs) == 1


@pytest.mark.parametrize(
    "body",
    [
        DONE,
        DONE | {"files": None},
        DONE | {"files": None, "records_completed": 0},
        DONE | {"files": [], "records_completed": 2},
        DONE | {"files": [], "records_completed": "2"},
    ],
)
def test_a_list_of_files_that_never_comes_is_an_error(
    server: posthog.PostHog, downloads: FileDownloads, monkeypatch: pytest.MonkeyPatch, body: Any
) -> None:
    monkeypatch.setattr(file_exports, "LIST_SECONDS", 0.05)
    answering(downloads, monkeypatch, *[body] * 1000)
    with pytest.raises(NotExtracted, match="is completed, but the list of its files did not come in"):
        read(source(server))


def test_an_empty_exports_files_are_not_waited_for(
    server: posthog.PostHog, downloads: FileDownloads, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_exports, "EMPTY_LIST_SECONDS", 600)
    answering(downloads, monkeypatch, DONE | {"files": [], "records_completed": 0})
    assert read(source(server)).empty


def test_fewer_rows_than_posthog_exported_fail_with_both_numbers_unless_more_files_come(
    server: posthog.PostHog, downloads: FileDownloads, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.add(stored(number) for number in range(20))
    downloads.file_rows = 10
    answer, looks = downloads.answer, [1000]

    def second_file_later(method: str, path: list[str], *rest: Any) -> Answer:
        given = answer(method, path, *rest)
        if method != "GET" or len(path) != 1 or b"Completed" not in given.content:
            return given
        looks[0] -= 1
        body = orjson.loads(given.content)
        return Answer(orjson.dumps(body | {"files": body["files"][: 1 if looks[0] > 0 else 2], "records_completed": 20}))

    monkeypatch.setattr(downloads, "answer", second_file_later)
    with pytest.raises(NotExtracted, match="export has 20 events, but its files only 10: run the day again later"):
        read(source(server))
    monkeypatch.setattr(file_exports, "EMPTY_LIST_SECONDS", 5)
    looks[0] = 3
    assert len(read(source(server))) == 20


def test_a_finished_export_is_read_again_and_not_billed_again(
    server: posthog.PostHog, downloads: FileDownloads, tmp_path: Path
) -> None:
    server.add([stored(1)])
    for _ in range(2):
        assert numbers(read(source(server, data_dir=str(tmp_path)))) == [1]
    assert len(downloads.runs) == 1
    [kept] = (tmp_path / "file_downloads").iterdir()
    assert "phx_" not in kept.name + kept.read_text()
    assert numbers(read(source(server, data_dir=str(tmp_path), late_days=3))) == [1]
    assert len(downloads.runs) == 2


PASSING = [("502", 502, {}), ("a page", 200, b"<html>maintenance</html>"), ("cut", 202, b'{"id": "0')]


@pytest.mark.parametrize("is_listed", [True, False])
@pytest.mark.parametrize(("status", "content"), [fault[1:] for fault in PASSING], ids=[fault[0] for fault in PASSING])
def test_an_export_whose_answer_was_lost_is_found_in_the_list_or_created_at_most_three_times(
    server: posthog.PostHog,
    downloads: FileDownloads,
    monkeypatch: pytest.MonkeyPatch,
    status: int,
    content: Any,
    is_listed: bool,
) -> None:
    server.add([stored(1)])
    answer = downloads.answer

    def lost(method: str, path: list[str], *rest: Any) -> Answer:
        given = answer(method, path, *rest)
        if (method, path) == ("GET", []) and is_listed:
            return listing(downloads)
        return Answer(content or orjson.dumps({}), status) if (method, path) == ("POST", []) else given

    monkeypatch.setattr(downloads, "answer", lost)
    if is_listed:
        assert numbers(read(source(server))) == [1]
    else:
        with pytest.raises(PipelineError):
            read(source(server))
    assert len(downloads.runs) == (1 if is_listed else 3)


@pytest.mark.parametrize(
    ("where", "status", "content"),
    [
        ("look", 500, b"{}"),
        ("look", 403, b'{"detail": "No permission."}'),
        ("look", 200, b"<html>maintenance</html>"),
        ("look", 200, b'{"status": "Completed"}'),
        ("download", 503, b"{}"),
        ("download", 400, b'{"detail": "Batch export run is still in progress"}'),
        ("store", 503, b""),
        ("store", 200, b"<html>maintenance</html>"),
    ],
)
def test_a_finished_export_is_not_created_again_after_a_transient_error(
    server: posthog.PostHog,
    downloads: FileDownloads,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    where: str,
    status: int,
    content: bytes,
) -> None:
    monkeypatch.setattr(file_exports, "LIST_SECONDS", 0.05)
    server.add([stored(1)])
    again = source(server, data_dir=str(tmp_path))
    read(again)
    answer, file = downloads.answer, downloads.file

    def faulty(method: str, path: list[str], *rest: Any) -> Answer:
        is_meant = "download" in path if where == "download" else where == "look" and len(path) == 1 and method == "GET"
        return Answer(content, status) if is_meant else answer(method, path, *rest)

    monkeypatch.setattr(downloads, "answer", faulty)
    monkeypatch.setattr(downloads, "file", lambda *given: Answer(content, status) if where == "store" else file(*given))
    with pytest.raises(PipelineError):
        read(again)
    monkeypatch.setattr(downloads, "answer", answer)
    monkeypatch.setattr(downloads, "file", file)
    assert numbers(read(again)) == [1]
    assert [run.cancelled for run in downloads.runs.values()] == [False]


@pytest.mark.parametrize("records", [20, "20", 20.0])
def test_a_file_that_is_listed_twice_is_read_once_and_the_missing_rows_are_noticed(
    server: posthog.PostHog, downloads: FileDownloads, monkeypatch: pytest.MonkeyPatch, records: Any
) -> None:
    server.add(stored(number) for number in range(20))
    downloads.file_rows = 10
    answer = downloads.answer

    def twice(method: str, path: list[str], *rest: Any) -> Answer:
        given = answer(method, path, *rest)
        body = orjson.loads(given.content or b"{}")
        if body.get("status") != "Completed":
            return given
        return Answer(orjson.dumps(body | {"files": body["files"][:1] * 2, "records_completed": records}))

    monkeypatch.setattr(downloads, "answer", twice)
    with pytest.raises(NotExtracted, match="export has 20 events, but its files only 10"):
        read(source(server))


def test_a_link_that_posthog_never_returns_is_not_retried_again_for_each_try_of_a_download(
    server: posthog.PostHog, downloads: FileDownloads, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.add([stored(1)])
    answer, asked = downloads.answer, 0

    def no_link(method: str, path: list[str], *rest: Any) -> Answer:
        nonlocal asked
        asked += "download" in path
        return Answer(b"{}", 500) if "download" in path else answer(method, path, *rest)

    monkeypatch.setattr(downloads, "answer", no_link)
    with pytest.raises(http.Unavailable, match="in 9 tries: it answered 500"):
        read(source(server))
    assert asked == 9


def listing(downloads: FileDownloads) -> Answer:
    """A list of the exports with their intervals."""
    found = [
        {"id": name, "data_interval_start": run.start.isoformat(), "data_interval_end": f"{run.end:%Y-%m-%dT%H:%M:%SZ}"}
        for name, run in downloads.runs.items()
    ]
    return Answer(orjson.dumps({"results": found}))


def test_an_export_that_has_failed_or_is_unknown_or_whose_files_have_expired_is_created_again(
    server: posthog.PostHog, downloads: FileDownloads, tmp_path: Path
) -> None:
    server.add([stored(1)])
    again = source(server, data_dir=str(tmp_path))
    read(again)
    downloads.expired = 1
    assert numbers(read(again)) == [1]
    assert len(downloads.runs) == 2
    next(reversed(downloads.runs.values())).ends_as = "Failed"
    assert numbers(read(again)) == [1]
    assert len(downloads.runs) == 3
    downloads.runs.clear()
    assert numbers(read(again)) == [1]
    for kept in (tmp_path / "file_downloads").iterdir():
        kept.write_text("../../elsewhere")
    assert numbers(read(again)) == [1]


def test_an_export_that_posthog_lists_with_its_interval_is_read_again(
    server: posthog.PostHog, downloads: FileDownloads, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.add([stored(1)])
    answer = downloads.answer

    def answers(method: str, path: list[str], *rest: Any) -> Answer:
        return listing(downloads) if (method, path) == ("GET", []) else answer(method, path, *rest)

    monkeypatch.setattr(downloads, "answer", answers)
    for _ in range(2):
        assert numbers(read(source(server))) == [1]
    assert len(downloads.runs) == 1


def test_no_error_of_a_download_contains_its_link(
    server: posthog.PostHog, downloads: FileDownloads, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.add([stored(1)])
    for location in ("http://127.0.0.1:1/secret?X-Amz-Signature=secret", "ftp://127.0.0.1/secret", "http://[secret/secret", ""):
        answer = FileDownloads.answer

        def elsewhere(method: str, path: list[str], *rest: Any, where: str = location, was: Any = answer) -> Answer:
            given = was(downloads, method, path, *rest)
            return Answer(b"", 302, {"Location": where}) if "download" in path else given

        monkeypatch.setattr(downloads, "answer", elsewhere)
        with pytest.raises(PipelineError) as refused:
            read(source(server))
        assert "secret" not in "".join(traceback.format_exception(refused.value))
