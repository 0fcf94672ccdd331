"""Finds the runs of a PostHog batch export by the names of their files.

A file has the events that *landed* in PostHog in the interval of its name, not those that happened in it. A run that found
nothing writes no file. If files have a maximum size, each is a numbered part, and a manifest, written last, names the parts
that count; in 2024 the first part had no number, and there was no manifest. Several runs may have written files of one
interval, such as a backfill: all of them count, and an event in two of them is one event. Only a numbered part that is missing
from the manifests of its format is known to come from a failed run.

So a missing file may mean an empty hour or a missing run. Nothing in the folder says which: even after a failed run, later
files may follow. Therefore a day is read only if runs cover both of its ends, and gaps within it are reported by name. If
nothing happened in a project for that long, an empty file with the right name says so, such as
`2024-05-01T00:00:00+00:00-2024-05-02T00:00:00+00:00.jsonl`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import PurePosixPath

from cio_pipeline.posthog.exports.names import Named, is_temporary, looks_like_data, named
from cio_pipeline.posthog.source import NotExtracted
from cio_pipeline.rules.values import EPOCH

AGAIN = "Copy it again, or backfill it in PostHog."


@dataclass
class Run:
    """An interval, `start` <= landed < `end`, and the paths of its files in one folder.

    files: those to read; parts: numbered, to be read only once a manifest names them; others: with unknown names.
    """

    start: datetime
    end: datetime
    files: list[str] = field(default_factory=list)
    parts: dict[str, Named] = field(default_factory=dict)
    manifests: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)

    @property
    def finished(self) -> bool:
        """True if it has a complete file or a manifest. Parts alone belong to a run that is still running or has failed."""
        return bool(self.files or self.manifests)

    def overlaps(self, start: datetime, end: datetime) -> bool:
        """True if the two intervals have any time in common."""
        return self.start < end and self.end > start

    def __str__(self) -> str:
        return f"{'the first event' if self.start == EPOCH else _moment(self.start)} to {_moment(self.end)}"


def runs(paths: Iterable[str]) -> list[Run]:
    """Groups files into runs, sorted by time. Paths without an interval in their names are skipped: see `unnamed`."""
    by_interval: dict[tuple[str, datetime, datetime], Run] = {}
    for path in sorted(paths):
        name = named(path)
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


def unnamed(paths: Iterable[str]) -> list[str]:
    """Returns the files that may hold events, but have no interval in their names."""
    return sorted(path for path in paths if named(path) is None and looks_like_data(path))


def counted_files(run: Run, manifests: dict[str, list[str]]) -> tuple[Run, list[str]]:
    """Returns the run with all of its files that count, and the parts that a failed run has left.

    manifests: the names in each complete manifest. Raises `NotExtracted` if a file is missing.
    """
    if not manifests:
        _check_numbers(run)
        return replace(run, files=[*run.files, *run.parts] if run.files else [], manifests=[]), []
    there = {_identity(path) for path in (*run.files, *run.parts)}
    listed, endings = set[Named | str](), set[str]()
    for manifest, names in manifests.items():
        for name in names:
            if _identity(name) not in there:
                by = PurePosixPath(manifest).name
                raise NotExtracted(f"{PurePosixPath(name).name} cannot be read: {by} names it, but it is not there. {AGAIN}")
        listed |= {_identity(name) for name in names}
        endings |= {found.ending for name in names if (found := named(name))}
    left = [path for path, part in run.parts.items() if part.ending in endings and _identity(path) not in listed]
    return replace(run, files=[*run.files, *(path for path in run.parts if path not in left)]), left


def strange(run: Run) -> list[str]:
    """Returns the run's files with unknown names that do not look unfinished."""
    return [path for path in run.others if not is_temporary(path)]


def _check_numbers(run: Run) -> None:
    """Raises `NotExtracted` if a part is missing. In 2024, a file without a number was followed by parts from 1 on."""
    for ending in {name.ending for name in run.parts.values()}:
        numbers = {name.part or 0 for name in run.parts.values() if name.ending == ending}
        first = [path for path in run.files if (name := named(path)) and name.ending == ending]
        if first and (missing := sorted(set(range(1, max(numbers))) - numbers)):
            part = PurePosixPath(first[0]).name.replace(ending, f"-{missing[0]}{ending}")
            raise NotExtracted(f"{part} cannot be read: it is not there, but a later part is. {AGAIN}")


def _identity(path: str) -> Named | str:
    return named(path) or PurePosixPath(path).name


def gaps(all_runs: list[Run], start: datetime, end: datetime) -> list[tuple[datetime, datetime]]:
    """Returns the parts of `start` to `end` that no run covers. Raises `NotExtracted` if no run covers the start, the end, or
    anything."""
    day = f"{start:%Y-%m-%d}"
    holes = uncovered(all_runs, start, end)
    finished = [run for run in all_runs if run.finished]
    reach = max((run.end for run in finished), default=EPOCH)
    if reach < end:
        raise NotExtracted(
            f"The batch export reaches only to {_moment(reach)}: {day} is not fully exported yet."
            f" {_remedy(max(reach, start), end)}"
        )
    first = min(run.start for run in finished)
    if first > start or holes == [(start, end)]:
        upto = min(first, end) if first > start else end
        raise NotExtracted(
            f"The batch export has no file of {_moment(start)} to {_moment(upto)}: backfill it in PostHog."
            f" {_remedy(start, upto)}"
        )
    return holes


def uncovered(all_runs: list[Run], start: datetime, end: datetime) -> list[tuple[datetime, datetime]]:
    """Returns the parts of `start` to `end` that no finished run covers. Raises `NotExtracted` if an unfinished one would.

    An unfinished run does not matter if finished runs cover its interval: it may be left from a failure.
    """
    holes = _holes([run for run in all_runs if run.finished], start, end)
    for run in all_runs:
        if not run.finished and any(run.overlaps(*hole) for hole in holes):
            raise NotExtracted(f"{unfinished(run)} Wait until it is, or backfill it in PostHog.")
    return holes


def unfinished(run: Run) -> str:
    """Returns a sentence that says that the run is not finished."""
    if run.parts or not run.others:
        return f"The batch export of {run} is not finished: it has numbered parts, but no manifest that can be read."
    return (
        f"The batch export of {run} is not finished: {PurePosixPath(run.others[0]).name} is still being written, or left over."
    )


def describe_gap(gap: tuple[datetime, datetime]) -> str:
    """Returns a sentence that says where the gap is."""
    return f"The batch export has no file of {_moment(gap[0])} to {_moment(gap[1])}: nothing landed then, or a run is missing."


def _remedy(start: datetime, end: datetime) -> str:
    return f"If nothing happened then, put an empty file {_iso(start)}-{_iso(end)}.jsonl beside the others."


def _holes(some_runs: list[Run], start: datetime, end: datetime) -> list[tuple[datetime, datetime]]:
    holes, covered = [], start
    for run in sorted((run for run in some_runs if run.overlaps(start, end)), key=lambda run: run.start):
        if covered < run.start:
            holes.append((covered, run.start))
        covered = max(covered, run.end)
    return [*holes, (covered, end)] if covered < end else holes


def _moment(time: datetime) -> str:
    return f"{time:%Y-%m-%d %H:%M} UTC"


def _iso(time: datetime) -> str:
    return time.astimezone(UTC).isoformat()
