"""Group commit: what several threads want to commit at the same time is committed in one transaction."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar

T = TypeVar("T")


class GroupCommit(Generic[T]):
    """Commits items of several threads. Those that come while others are being committed are committed together, next.

    It has a thread of its own, so that Ctrl-C, which interrupts a thread that adds an item, undoes no other thread's commit.
    """

    def __init__(self, commit: Callable[[list[T]], None]) -> None:
        """commit: commits all of the items, in the order in which they came, or none."""
        self._commit = commit
        self._waiting = SimpleQueue[tuple[T, Future[None]]]()
        self._thread = ThreadPoolExecutor(1, "group-commit")

    def add(self, item: T) -> None:
        """Returns once the item is committed. Raises what committing it, and those with it, has raised."""
        committed: Future[None] = Future()
        self._waiting.put((item, committed))
        self._thread.submit(self._commit_waiting)
        committed.result()

    def _commit_waiting(self) -> None:
        """Commits all that wait: perhaps nothing, as the previous call has committed it, too."""
        group: list[tuple[T, Future[None]]] = []
        with suppress(Empty):
            while True:
                group.append(self._waiting.get_nowait())
        if not group:
            return
        try:
            self._commit([item for item, _ in group])
        except BaseException as error:  # each thread that waits raises it
            for _, committed in group:
                committed.set_exception(error)
        else:
            for _, committed in group:
                committed.set_result(None)
