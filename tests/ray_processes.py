"""The processes of the Ray that this test started: another one may run on the machine."""

import contextlib

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
