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


def set_openmp_threads(threads: int) -> None:
    """Let torch, and every OpenMP library that is loaded, use so many threads in this thread.

    A process may have several of them (torch's, scikit-learn's), each counting for itself and for
    each thread; vLLM's attention on a CPU asks two of them and stops where they differ.
    """
    import torch
    from threadpoolctl import threadpool_limits

    torch.set_num_threads(threads)
    threadpool_limits(threads, user_api="openmp")


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
