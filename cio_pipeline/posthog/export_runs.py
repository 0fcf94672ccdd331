"""The runs of a PostHog batch export, as the names of their files tell them (PostHog makes them in `get_s3_key`).

A file is named `{start}-{end}[-{part}].{parquet|jsonl}[.{compression}]`, and holds what *landed* in PostHog in that interval,
not what happened in it. A run that found nothing writes no file. Where files have a greatest size, each is a numbered part,
and `{start}-{end}_manifest.json`, written last, names the parts that count.

So a missing file may mean an empty hour or a missing run; nothing in the folder tells which, not even later files, which may
come after a failed run too. What is settled here: a day is read only when runs reach to both of its ends, and a hole inside is
told by name. A project in which nothing happened that long says so by an empty file of the right name, such as
`2024-05-01T00:00:00+00:00-2024-05-02T00:00:00+00:00.jsonl`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import PurePosixPath

from cio_pipeline.posthog.source import EVER, NotExtracted

TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{6})?(?:Z|[+-]\d\d:\d\d)"
NAME = re.compile(
    rf"(?P<start>None|{TIME})-(?P<end>{TIME})"
    r"(?:(?P<manifest>_manifest\.json)"
    r"|(?P<part>-\d+)?\.(?:parquet(?:\.(?:zst|lz4|sz|gz|br))?|jsonl(?:\.(?:gz|br))?))"
)
"""A backfill from the first event on has `None` for its start."""

EXAMPLE = "2024-05-01T00:00:00+00:00-2024-05-02T00:00:00+00:00.parquet.zst"


@dataclass
class Run:
    """A run's interval, `start` <= landed < `end`, and the paths of its files."""

    start: datetime
    end: datetime
    files: list[str] = field(default_factory=list)
    parts: list[str] = field(default_factory=list)
    manifest: str | None = None

    @property
    def finished(self) -> bool:
        """Parts without a manifest are of a run that is still under way, or has failed."""
        return bool(self.files) or self.manifest is not None

    def overlaps(self, start: datetime, end: datetime) -> bool:
        """Whether anything may have landed both in this run's interval and in this one."""
        return self.start < end and self.end > start

    def __str__(self) -> str:
        return f"{'the first event' if self.start == EVER else _moment(self.start)} to {_moment(self.end)}"


def runs(paths: Iterable[str]) -> list[Run]:
    """The runs whose files these are, by time; paths of other names are passed over."""
    found: dict[tuple[str, str, str], Run] = {}
    for path in sorted(paths):
        folder, name = str(PurePosixPath(path).parent), NAME.fullmatch(PurePosixPath(path).name)
        if name is None:
            continue
        key = folder, name["start"], name["end"]
        run = found.setdefault(key, Run(_time(name["start"]), _time(name["end"])))
        if name["manifest"]:
            run.manifest = path
        else:
            (run.parts if name["part"] else run.files).append(path)
    return sorted(found.values(), key=lambda run: (run.end, run.start))


def gaps(found: list[Run], start: datetime, end: datetime) -> list[tuple[datetime, datetime]]:
    """What of `start` to `end` no run covers. Raises `NotExtracted` where runs do not reach to both ends, or cover nothing."""
    day = f"{start:%Y-%m-%d}"
    holes = uncovered(found, start, end)
    finished = [run for run in found if run.finished]
    reach = max((run.end for run in finished), default=EVER)
    if reach < end:
        raise NotExtracted(
            f"The batch export reaches only to {_moment(reach)}: {day} is not exported to its end yet."
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


def uncovered(found: list[Run], start: datetime, end: datetime) -> list[tuple[datetime, datetime]]:
    """What of `start` to `end` no finished run covers. Raises `NotExtracted` where an unfinished one would.

    Where finished runs cover it, an unfinished run is no obstacle: it may be what a failed one left behind.
    """
    holes = _holes([run for run in found if run.finished], start, end)
    for run in found:
        if not run.finished and any(run.overlaps(*hole) for hole in holes):
            raise NotExtracted(f"{unfinished(run)} Wait until it is, or backfill it in PostHog.")
    return holes


def unfinished(run: Run) -> str:
    """A sentence that names the run."""
    return f"The batch export of {run} is not finished: it has numbered parts, but no manifest that can be read."


def told(gap: tuple[datetime, datetime]) -> str:
    """A sentence that names the gap."""
    return f"The batch export has no file of {_moment(gap[0])} to {_moment(gap[1])}: nothing landed then, or a run is missing."


def _remedy(start: datetime, end: datetime) -> str:
    return f"If nothing happened then, put an empty file {_iso(start)}-{_iso(end)}.jsonl beside the others."


def _holes(found: list[Run], start: datetime, end: datetime) -> list[tuple[datetime, datetime]]:
    holes, covered = [], start
    for run in sorted((run for run in found if run.overlaps(start, end)), key=lambda run: run.start):
        if covered < run.start:
            holes.append((covered, run.start))
        covered = max(covered, run.end)
    return [*holes, (covered, end)] if covered < end else holes


def _time(text: str) -> datetime:
    return EVER if text == "None" else datetime.fromisoformat(text.replace("Z", "+00:00")).astimezone(timezone.utc)


def _moment(time: datetime) -> str:
    return f"{time:%Y-%m-%d %H:%M} UTC"


def _iso(time: datetime) -> str:
    return time.astimezone(timezone.utc).isoformat()
