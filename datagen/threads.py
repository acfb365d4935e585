"""Independent pieces of torch work on several CPU threads, each piece on one thread.

Threads that share one operation wait for each other at its end; when anything else runs on the
machine that costs a factor of 3 to 7. Pieces on one thread each have no such end, and give the same
bits whatever their number.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

Run = Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]


@contextmanager
def side_by_side(threads: int) -> Iterator[Run]:
    """A `map` over `threads` threads; inside the block torch operations use one thread each."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    limit = torch.set_num_threads
    try:
        with ThreadPoolExecutor(threads, initializer=limit, initargs=(1,)) as pool:
            yield pool.map
    finally:
        torch.set_num_threads(before)
