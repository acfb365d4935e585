"""What the command `datagen synthesize` is to write: kinds, rows, languages, checks."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from datagen.packaged import resolve_model
from datagen.schema import UserError
from datagen.synthesize.judge import Judge
from datagen.synthesize.kinds import KINDS
from datagen.synthesize.knobs import SHAPES, Knobs
from datagen.synthesize.round_trip import RoundTrip

PER_LLM = 100
ABOUT_DOCUMENTS = ("retrieval", "code_translation")
WITHOUT = ("translation",)  # translates queries, which plain documents have none of


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is to be written: rows by kind, or of nothing but retrieval so many for each LLM."""

    kinds: Mapping[str, int] | None = None
    per_llm: int = PER_LLM
    languages: Sequence[str] = ()
    cross_lingual: float = 0.0
    calls: int = 1
    round_trip: RoundTrip | None = None
    judge: Judge | None = None

    def __post_init__(self) -> None:
        wrong = [k for k, n in (self.kinds or {}).items() if k not in KINDS or n < 1]
        wrong += [kind for kind in self.kinds or {} if kind in WITHOUT]
        if wrong or self.kinds == {} or self.per_llm < 1:
            raise UserError(
                found="kinds "
                + (", ".join(f"{k}={n}" for k, n in (self.kinds or {}).items()) or "none"),
                expected="KIND=ROWS with kinds out of "
                + ", ".join(kind for kind in KINDS if kind not in WITHOUT)
                + ", and one row or more",
                do="mend --kinds, e.g. --kinds retrieval=500 classification=100",
                exit_status=2,
            )

    @property
    def needs_documents(self) -> bool:
        return self.kinds is None or any(kind in ABOUT_DOCUMENTS for kind in self.kinds)

    def rows(self, llms: int, documents: int) -> dict[str, int]:
        """Rows by kind."""
        if self.kinds is not None:
            return dict(self.kinds)
        return {"retrieval": llms * min(self.per_llm, documents)}

    def knobs(self, languages: tuple[str, ...]) -> Knobs:
        """How requests are drawn."""
        kinds = self.kinds or {}
        sorts = [f"scratch/{shape}" for shape in SHAPES] if "scratch" in kinds else []
        sorts += [kind for kind in ("classification", "clustering") if kind in kinds]
        chosen: dict[str, Any] = {"task_kinds": tuple(sorts)} if sorts else {}
        return Knobs(
            languages=languages, cross_lingual=self.cross_lingual, calls=self.calls, **chosen
        )


def wanted_of(arguments: argparse.Namespace) -> Wanted:
    """What the command line asks for; UserError for what cannot be."""
    round_trip = arguments.round_trip and RoundTrip(
        encoder=resolve_model(arguments.round_trip, arguments.cache)[0],
        languages=tuple(arguments.round_trip_languages),
        stored="float32",
        cache=f"{arguments.cache}/embeddings",
    )
    judge = arguments.judge and Judge(llm=arguments.judge, share=arguments.judge_share)
    return Wanted(
        kinds=_kinds(arguments.kinds) if arguments.kinds else None,
        per_llm=PER_LLM if arguments.per_model is None else arguments.per_model,
        languages=arguments.languages,
        cross_lingual=arguments.cross_lingual,
        calls=arguments.calls,
        round_trip=round_trip or None,
        judge=judge or None,
    )


def _kinds(given: Sequence[str]) -> dict[str, int]:
    """`["retrieval=500"]` -> `{"retrieval": 500}`."""
    found: dict[str, int] = {}
    for one in given:
        kind, _, count = one.partition("=")
        found[kind] = int(count) if count.isascii() and count.isdigit() else 0
    return found
