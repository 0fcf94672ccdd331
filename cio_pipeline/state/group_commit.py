"""Group commit: what several threads want to commit at the same time is committed in one transaction."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

T = TypeVar("T")


class GroupCommit(Generic[T]):
    """Commits items of several threads. Those that come while others are being committed are committed together, next."""

    def __init__(self, commit: Callable[[list[T]], None]) -> None:
        """commit: commits all of the items, in the order in which they came, or none."""
        self._commit = commit
        self._waiting: list[tuple[T, Future[None]]] = []
        self._adding, self._committing = threading.Lock(), threading.Lock()

    def add(self, item: T) -> None:
        """Returns once the item is committed. Raises what committing it, and those with it, has raised."""
        committed: Future[None] = Future()
        with self._adding:
            self._waiting.append((item, committed))
        with self._committing:
            if not committed.done():  # otherwise the thread before this one has committed it, too
                self._commit_all()
        committed.result()

    def _commit_all(self) -> None:
        with self._adding:
            group, self._waiting = self._waiting, []
        try:
            self._commit([item for item, _ in group])
        except BaseException as error:
            for _, committed in group:
                committed.set_exception(error)
        else:
            for _, committed in group:
                committed.set_result(None)
