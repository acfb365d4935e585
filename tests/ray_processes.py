"""The processes of the Ray that this test started: another one may run on the machine."""

import contextlib
import time

import psutil


def ray_processes(kind: str) -> list[psutil.Process]:
    """Workers of Ray under this process that run what is called so, as `Replica`."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            title = "".join(process.cmdline()[:1])
            if title.startswith("ray::") and kind in title:
                found.append(process)
    return found


def wait_until_gone(*kinds: str, seconds: float = 60.0) -> None:
    """Actors that were killed end a moment later: nobody may count those of an earlier test."""
    end = time.monotonic() + seconds
    while left := [process for kind in kinds for process in ray_processes(kind)]:
        assert time.monotonic() < end, f"{left} are still there after {seconds} s"
        time.sleep(0.05)
