"""Work on shards in several processes, each of which holds one shard at a time.

The workers are forked by a fork server, a separate process that has loaded what they need, because this process has Dagster's
threads, and must not be forked.
"""

from __future__ import annotations

import gc
import logging
import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from itertools import islice
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import ForkServerContext
from typing import Any, TypeVar

from cio_pipeline.errors import PipelineError
from cio_pipeline.progress import EVERY_SECONDS

LOADED = ["cio_pipeline.pipeline.extract", "cio_pipeline.pipeline.derive"]
SHARDS_IN_THIS_PROCESS = 2
"""Up to this many shards are worked on in this process, as starting others would take longer."""

T = TypeVar("T")
logger = logging.getLogger(__name__)


class WorkerDied(PipelineError):
    """A worker process ended before its work was done; the message is one sentence."""


def map_shards(
    work: Callable[..., T], shards: Iterable[tuple[Any, ...]], number: int, workers: int, what: str
) -> Generator[T, None, None]:
    """Yields the results of `work` for the arguments of each shard, in order.

    number: of the shards; what: for the progress in the log. At most one shard more than there are workers is worked on, or
    waits for earlier results to be taken. Raises what `work` raises, and `WorkerDied`. Once the iterator is closed, no worker
    runs any more.
    """
    in_this_process = workers == 1 or number <= SHARDS_IN_THIS_PROCESS
    results = (work(*shard) for shard in shards) if in_this_process else _pooled(work, shards, min(workers, number))
    began = logged = time.monotonic()
    with closing(results):
        for done, result in enumerate(results, 1):
            yield result
            if (now := time.monotonic()) - logged >= EVERY_SECONDS:
                logged = now
                logger.info("%s: %d of %d shards, %.1f a second.", what, done, number, done / (now - began))


def load_workers(workers: int) -> None:
    """Starts the fork server, if there are to be several workers. It loads what they need while this process continues.

    It inherits that Ctrl-C is blocked: while it loads, Ctrl-C would end it with a traceback.
    """
    if workers > 1:
        _context()
        resource_tracker.ensure_running()  # it would unblock Ctrl-C
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            forkserver.ensure_running()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _context() -> ForkServerContext:
    """Returns the context of the fork server, which takes the environment from this process.

    A worker uses the memory that Arrow frees for its next shard. If it were returned to the system after 10 ms, as by default,
    the system would clear it again each time.
    """
    os.environ.setdefault("MIMALLOC_PURGE_DELAY", "-1")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(LOADED)
    return context


def _pooled(work: Callable[..., T], shards: Iterable[tuple[Any, ...]], workers: int) -> Generator[T, None, None]:
    waiting = iter(shards)
    _wait_until_loaded(workers)
    with ProcessPoolExecutor(workers, _context(), initializer=_prepare) as pool:
        running: deque[Future[T]] = deque()
        try:
            running.extend(pool.submit(work, *shard) for shard in islice(waiting, workers + 1))
            while running:
                yield running.popleft().result()
                running.extend(pool.submit(work, *shard) for shard in islice(waiting, 1))
        except BrokenProcessPool:
            raise WorkerDied(
                "A worker process was ended from outside, perhaps because memory ran out: run this again; if it happens again,"
                " with a smaller CIO_WORKERS."
            ) from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _wait_until_loaded(workers: int) -> None:
    """Returns once the fork server can fork. Ctrl-C while a worker of the pool waits for that would leave the worker to start
    without its parent, with a traceback; this process, which does nothing, does not mind."""
    load_workers(workers)
    first = _context().Process(target=int)
    first.start()
    first.join()


def _prepare() -> None:
    """Prepares a worker: it leaves Ctrl-C to its parent, keeps what it writes private, and ends when its parent is killed.

    What the fork server has loaded is not garbage; collecting it, or collecting often, would take a tenth of the time.
    """
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # by which the pool ends the others if one is killed
    os.umask(0o077)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
    os._exit(1)
