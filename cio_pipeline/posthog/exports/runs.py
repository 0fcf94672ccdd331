"""Finds the runs of a PostHog batch export by the names of their files, and checks that they cover a day.

A file has the events that *landed* in PostHog in the interval of its name, not those that happened in it. A run that found
nothing writes no file. If files have a maximum size, each is a numbered part, and a manifest, written last, lists the parts
that count; in 2024 the first part had no number, and there was no manifest. Several runs may have written files of one
interval, such as a backfill: all of them count, and an event in two of them is one event. Only a numbered part that is missing
from the manifests of its format is known to come from a failed run.

So a missing file may mean an empty hour or a missing run, and nothing in the folder says which: even after a failed run, later
files may follow. Therefore a day is read only if runs cover both of its ends, and gaps within it are logged. If nothing
happened in a project for that long, an empty file with the right name says so, such as
`2024-05-01T00:00:00+00:00-2024-05-02T00:00:00+00:00.jsonl`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import PurePosixPath

from cio_pipeline.posthog.exports.names import FileName, is_temporary, looks_like_data, parse_name
from cio_pipeline.posthog.source import NotExtracted
from cio_pipeline.rules.values import EPOCH

REMEDY = "Copy it again, or backfill it in PostHog."


@dataclass
class Run:
    """An interval, `start` <= landed < `end`, and the paths of its files in one folder.

    files: to be read; parts: numbered files, to be read if a manifest lists them; others: with unknown names.
    """

    start: datetime
    end: datetime
    files: list[str] = field(default_factory=list)
    parts: dict[str, FileName] = field(default_factory=dict)
    manifests: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)

    @property
    def is_finished(self) -> bool:
        """True if it has a complete file or a manifest. Parts alone belong to a run that is still running or has failed."""
        return bool(self.files or self.manifests)

    def overlaps(self, start: datetime, end: datetime) -> bool:
        """True if the two intervals have any time in common."""
        return self.start < end and self.end > start

    def __str__(self) -> str:
        return f"{'the first event' if self.start == EPOCH else _to_the_minute(self.start)} to {_to_the_minute(self.end)}"


def group_by_run(paths: Iterable[str]) -> list[Run]:
    """Returns the runs that wrote these files, sorted by time. Files without an interval in their names are skipped."""
    by_interval: dict[tuple[str, datetime, datetime], Run] = {}
    for path in sorted(paths):
        name = parse_name(path)
        if name is None:
            continue
        run = by_interval.setdefault((path.rpartition("/")[0], name.start, name.end), Run(name.start, name.end))
        if name.kind == "manifest":
            run.manifests.append(path)
        elif name.kind == "other":
            run.others.append(path)
        elif name.part is None:
            run.files.append(path)
        else:
            run.parts[path] = name
    return sorted(by_interval.values(), key=lambda run: (run.end, run.start))


def without_interval(paths: Iterable[str]) -> list[str]:
    """Returns the files that may contain events, but have no interval in their names."""
    return sorted(path for path in paths if parse_name(path) is None and looks_like_data(path))


def with_unknown_names(run: Run) -> list[str]:
    """Returns the run's files whose names cannot be parsed, except those that are still being written."""
    return [path for path in run.others if not is_temporary(path)]


def apply_manifests(run: Run, manifests: dict[str, list[str]]) -> tuple[Run, list[str]]:
    """Returns the run with `files` complete, and the parts that do not count, because a failed run has left them.

    manifests: the names in each complete manifest, by its path. Raises `NotExtracted` if a file is missing.
    """
    if not manifests:
        _check_parts(run)
        return replace(run, files=[*run.files, *run.parts] if run.files else [], manifests=[]), []
    existing = {_identity(path) for path in (*run.files, *run.parts)}
    listed, extensions = set[FileName | str](), set[str]()
    for manifest, names in manifests.items():
        for name in names:
            if _identity(name) not in existing:
                missing, lister = PurePosixPath(name).name, PurePosixPath(manifest).name
                raise NotExtracted(f"{missing} cannot be read: {lister} lists it, but it does not exist. {REMEDY}")
        listed |= {_identity(name) for name in names}
        extensions |= {parsed.extension for name in names if (parsed := parse_name(name))}
    left = [path for path, part in run.parts.items() if part.extension in extensions and _identity(path) not in listed]
    return replace(run, files=[*run.files, *(path for path in run.parts if path not in left)]), left


def _check_parts(run: Run) -> None:
    """Raises `NotExtracted` if a part is missing. In 2024, a file without a number was followed by parts from 1 on."""
    for extension in {name.extension for name in run.parts.values()}:
        numbers = {name.part or 0 for name in run.parts.values() if name.extension == extension}
        first = [path for path in run.files if (name := parse_name(path)) and name.extension == extension]
        if first and (missing := sorted(set(range(1, max(numbers))) - numbers)):
            part = PurePosixPath(first[0]).name.replace(extension, f"-{missing[0]}{extension}")
            raise NotExtracted(f"{part} cannot be read: it does not exist, but a later part does. {REMEDY}")


def _identity(path: str) -> FileName | str:
    """What a file is, however its name was changed by copying."""
    return parse_name(path) or PurePosixPath(path).name


def check_coverage(all_runs: list[Run], start: datetime, end: datetime) -> list[tuple[datetime, datetime]]:
    """Returns the gaps between `start` and `end` that no run covers. Raises `NotExtracted` if no run covers the start, the end,
    or anything."""
    gaps = find_gaps(all_runs, start, end)
    finished = [run for run in all_runs if run.is_finished]
    latest = max((run.end for run in finished), default=EPOCH)
    if latest < end:
        raise NotExtracted(
            f"The batch export reaches only to {_to_the_minute(latest)}: {start:%Y-%m-%d} is not fully exported yet."
            f" {_empty_file_remedy(max(latest, start), end)}"
        )
    first = min(run.start for run in finished)
    if first > start or gaps == [(start, end)]:
        until = min(first, end) if first > start else end
        raise NotExtracted(
            f"The batch export has no file of {_to_the_minute(start)} to {_to_the_minute(until)}: backfill it in PostHog."
            f" {_empty_file_remedy(start, until)}"
        )
    return gaps


def find_gaps(all_runs: list[Run], start: datetime, end: datetime) -> list[tuple[datetime, datetime]]:
    """Returns the intervals between `start` and `end` that no finished run covers.

    Raises `NotExtracted` if a run in such a gap is unfinished. One whose interval is covered does not matter: it may have
    failed and been run again.
    """
    gaps, covered = [], start
    finished = (run for run in all_runs if run.is_finished and run.overlaps(start, end))
    for run in sorted(finished, key=lambda run: run.start):
        if covered < run.start:
            gaps.append((covered, run.start))
        covered = max(covered, run.end)
    if covered < end:
        gaps.append((covered, end))
    for run in all_runs:
        if not run.is_finished and any(run.overlaps(*gap) for gap in gaps):
            raise NotExtracted(f"{describe_unfinished(run)} Wait until it is, or backfill it in PostHog.")
    return gaps


def describe_unfinished(run: Run) -> str:
    """Returns a sentence that says why the run counts as unfinished."""
    if run.parts or not run.others:
        return f"The batch export of {run} is not finished: it has numbered parts, but no manifest that can be read."
    return (
        f"The batch export of {run} is not finished: {PurePosixPath(run.others[0]).name} is still being written, or left over."
    )


def describe_gap(gap: tuple[datetime, datetime]) -> str:
    """Returns a sentence that says where the gap is."""
    start, end = map(_to_the_minute, gap)
    return f"The batch export has no file of {start} to {end}: nothing landed then, or a run is missing."


def _empty_file_remedy(start: datetime, end: datetime) -> str:
    return f"If nothing happened then, put an empty file {_iso(start)}-{_iso(end)}.jsonl beside the others."


def _to_the_minute(time: datetime) -> str:
    return f"{time:%Y-%m-%d %H:%M} UTC"


def _iso(time: datetime) -> str:
    return time.astimezone(UTC).isoformat()
