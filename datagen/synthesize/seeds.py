"""Numbers and choices that a key decides: the same on any machine, in any order, in any process."""

import functools
import hashlib
from collections.abc import Sequence
from importlib.resources import files
from typing import TypeVar

T = TypeVar("T")


def number(key: str) -> int:
    """64 bits of the key's hash."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big")


def fraction(key: str) -> float:
    """A number in 0 (included) to 1 (not included)."""
    return (number(key) >> 11) / (1 << 53)


def draw(key: str, choices: Sequence[T]) -> T:
    """One of the choices, decided by the key alone."""
    return choices[number(key) % len(choices)]


def draw_some(key: str, choices: Sequence[T], count: int) -> list[T]:
    """So many different ones of the choices, in an order that the key decides."""
    taken: dict[int, None] = {}
    turn = 0
    while len(taken) < min(count, len(choices)):
        taken[number(f"{key}/{turn}") % len(choices)] = None
        turn += 1
    return [choices[place] for place in taken]


@functools.cache
def lines(name: str) -> tuple[str, ...]:
    """The lines of a file in `data`: what there is to choose from, one entry a line."""
    text = files("datagen.synthesize").joinpath(f"data/{name}").read_text("utf-8")
    return tuple(text.splitlines())
