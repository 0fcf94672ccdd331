"""Answers of several lanes are recorded together: each once, none before it is committed, and all fail together."""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from cio_pipeline.state.group_commit import GroupCommit

SECONDS = 30


class Commits:
    """Commits that last until they are let go, as numbers."""

    def __init__(self) -> None:
        self.groups: list[list[int]] = []
        self.began, self.go_on = threading.Semaphore(0), threading.Semaphore(0)

    def commit(self, numbers: list[int]) -> None:
        self.began.release()
        assert self.go_on.acquire(timeout=SECONDS)
        if 13 in numbers:
            raise ValueError("thirteen")
        self.groups.append(numbers)


def added_while_the_first_is_committed(commits: Commits, threads: ThreadPoolExecutor, numbers: list[int]) -> list[Future[None]]:
    """Adds the first number and, once it is being committed, the others."""
    group_commit = GroupCommit(commits.commit)
    first = threads.submit(group_commit.add, numbers[0])
    assert commits.began.acquire(timeout=SECONDS)
    others = []
    for count, number in enumerate(numbers[1:], 1):
        others.append(threads.submit(group_commit.add, number))
        while group_commit._waiting.qsize() < count:
            assert not others[-1].done()
    commits.go_on.release()
    return [first, *others]


def test_what_comes_while_another_is_committed_is_committed_together_and_in_order() -> None:
    commits = Commits()
    with ThreadPoolExecutor(4) as threads:
        added = added_while_the_first_is_committed(commits, threads, [1, 2, 3, 4])
        added[0].result(SECONDS)
        assert commits.began.acquire(timeout=SECONDS)
        assert not any(one.done() for one in added[1:])  # their commit is not over
        commits.go_on.release()
        assert [one.result(SECONDS) for one in added] == [None] * 4
    assert commits.groups == [[1], [2, 3, 4]]


def test_a_commit_that_fails_fails_for_all_that_it_should_have_committed_and_for_no_other() -> None:
    commits = Commits()
    with ThreadPoolExecutor(4) as threads:
        added = added_while_the_first_is_committed(commits, threads, [1, 12, 13])
        commits.go_on.release()
        added[0].result(SECONDS)
        for failed in added[1:]:
            with pytest.raises(ValueError, match="thirteen"):
                failed.result(SECONDS)
    assert commits.groups == [[1]]


class Interrupted(Future[None]):
    """Ctrl-C comes while the main thread waits for its commit."""

    def result(self, timeout: float | None = None) -> None:
        if threading.current_thread() is threading.main_thread():
            raise KeyboardInterrupt
        super().result(timeout)


def test_ctrl_c_in_a_thread_that_waits_undoes_no_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cio_pipeline.state.group_commit.Future", Interrupted)
    commits = Commits()
    group_commit = GroupCommit(commits.commit)
    with pytest.raises(KeyboardInterrupt):
        group_commit.add(1)
    with ThreadPoolExecutor(1) as threads:
        other = threads.submit(group_commit.add, 2)
        for _ in range(2):
            commits.go_on.release()
        other.result(SECONDS)
    assert [number for group in commits.groups for number in group] == [1, 2]


def test_many_threads_lose_nothing_and_commit_nothing_twice() -> None:
    committed: list[int] = []
    group_commit = GroupCommit(committed.extend)

    def add(number: int) -> None:
        group_commit.add(number)
        assert number in committed

    with ThreadPoolExecutor(16) as threads:
        list(threads.map(add, range(2_000)))
    assert sorted(committed) == list(range(2_000))
