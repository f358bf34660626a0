"""Prepare the next batch in a background thread while the model works on the present one."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def prepare_ahead(prepare: Callable[[T], R], batches: Iterable[T]) -> Generator[R]:
    """Yield `prepare(batch)` for each batch, in order; each is prepared while the caller works on the one before.

    At most one prepared batch waits. `prepare` always runs in the same thread, one batch after the other, so it may
    keep things for the next. What it raises is raised here when its batch is due. Use it with `contextlib.closing`:
    closing waits for the batch that is being prepared and ends the thread.
    """
    remaining = iter(batches)
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="prepare_batch") as thread:
        pending = [thread.submit(prepare, batch) for batch in islice(remaining, 1)]
        while pending:
            ready = pending.pop().result()
            pending = [thread.submit(prepare, batch) for batch in islice(remaining, 1)]
            yield ready
