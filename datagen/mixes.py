"""The mixes of two papers as data: which sources each stage takes, how many rows, what they carry.

`nemotron`: llama-embed-nemotron-8b (arXiv 2511.07025, tables 2 and 9). Pretraining is 5.0M
questions of Nemotron-CC-v2 and 6.8M written ones with one negative; fine-tuning the 31 sources of
table 9, with the counts of that table and four negatives, put together without weights.

`f2llm`: F2LLM-v2 (arXiv 2603.19223, section 3). The first stage is seven large sources, without
instructions; the second at most 80,000 rows of each file of the 157 sources, with instructions on
the queries and in symmetric tasks on the documents of a random 30 % of the rows. A query with fewer
than 24 negatives is dropped, as in the first version (arXiv 2510.02294); where the answer is one of
two labels, one is all there is.

Counts and names come from the catalogue (datagen.sources.catalog). A source that the paper wrote
with LLMs is one that `synthesize` writes here: `synthetic_retrieval` and so on.
"""

import dataclasses
import difflib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil

from datagen.schema import UserError
from datagen.sources import catalog
from datagen.stages import Stage

log = logging.getLogger("embedmix")

DIVERSE_QA = "nemotron/nemotron-cc-v2-diverse-qa"
SYNTHETIC = "synthetic_"
WRITTEN = {
    "synthetic_retrieval": "nemotron/synthetic-retrieval",
    "synthetic_classification": "nemotron/synthetic-classification",
    "synthetic_sts": "nemotron/synthetic-sts",
    "synthetic_bitext": "nemotron/synthetic-bitext-mining",
}
F2LLM_FIRST = tuple(
    f"f2llm-v2/{name}"
    for name in (
        "codesearchnet", "codesearchnet-ccr", "opencodegeneticinstruct", "webfaq", "mmarco",
        "clirmatrix", "paracrawl",
    )
)  # fmt: skip
ONE_OF_TWO = 1  # negatives where there are two labels
MANY = 24


@dataclass(frozen=True, kw_only=True)
class MixRecipe:
    """A published mix. `sources` says for each stage its sources, with rows (None: no limit).

    A source stands for its subsets too, as the catalogue names them: `f2llm-v2/unpc/unpc_en2fr`.
    """

    name: str
    paper: str
    stages: tuple[Stage, ...]
    sources: Mapping[str, Mapping[str, int | None]]
    max_negatives: int = MANY

    def stages_for(self, present: Sequence[str]) -> tuple[Stage, ...]:
        """The stages over the sources that are there; one without any is left out, and said.

        UserError (exit status 2) names sources that the mix does not have.
        """
        _refuse_unknown(self, present)
        found = []
        for stage in self.stages:
            told = self.sources[stage.name]
            subsets = {name: [p for p in present if _within(p, name)] for name in told}
            absent = [name for name, own in subsets.items() if not own]
            if absent:
                log.warning(
                    "%s, %s: %d of %d sources of the paper are absent: %s",
                    self.name, stage.name, len(absent), len(told), ", ".join(absent),
                )  # fmt: skip
            chosen = tuple(p for own in subsets.values() for p in own)
            if chosen:
                rows = {
                    one: count
                    for name, own in subsets.items()
                    for one, count in _divided(own, told[name]).items()
                }
                found.append(dataclasses.replace(stage, sources=chosen, source_rows=rows))
        if not found:
            raise UserError(
                found=f"no source of the mix {self.name!r}",
                expected="some of " + ", ".join(list(self._known)[:8]) + ", ...",
                do="name sources as the catalogue does: datagen sources",
                exit_status=2,
            )
        return tuple(found)

    @property
    def _known(self) -> dict[str, None]:
        return dict.fromkeys(name for told in self.sources.values() for name in told)

    def written_rows(self, share: float) -> dict[str, int]:
        """Rows by kind that LLMs write, so that a share of what each stage had is there.

        A row may be in both stages. UserError (exit status 2) when the mix has none, or for a
        share that is not above 0.
        """
        kinds = [name.removeprefix(SYNTHETIC) for name in WRITTEN if name in self._known]
        if not kinds or share <= 0:
            raise UserError(
                found=f"a share of {share:g} of the {len(kinds)} kinds of rows that LLMs wrote for "
                f"the mix {self.name!r}",
                expected="a share above 0, of a mix that has such rows (nemotron)",
                do="leave out the pool, or give another share",
                exit_status=2,
            )
        most = {
            kind: max(told.get(f"{SYNTHETIC}{kind}") or 0 for told in self.sources.values())
            for kind in kinds
        }
        return {kind: ceil(rows * share) for kind, rows in most.items()}

    def ready(self) -> list[str]:
        """Names of the catalogue's sources that can be read now, one for each subset."""
        rows = {row.name: row for row in catalog.rows()}
        known = [rows[name] for name in self._known if name in rows and rows[name].ready]
        return [
            name
            for row in known
            for name in ([f"{row.name}/{s}" for s in row.subsets] if row.subsets else [row.name])
        ]


def _within(name: str, source: str) -> bool:
    return name == source or name.startswith(f"{source}/")


def _divided(names: Sequence[str], rows: int | None) -> dict[str, int]:
    """The rows of a source over its subsets, in equal parts."""
    if rows is None:
        return {}
    share, rest = divmod(rows, len(names) or 1)
    return {name: max(share + (i < rest), 1) for i, name in enumerate(names)}


def _refuse_unknown(recipe: MixRecipe, present: Sequence[str]) -> None:
    unknown = [p for p in present if not any(_within(p, name) for name in recipe._known)]
    if unknown:
        close = {c for name in unknown for c in difflib.get_close_matches(name, recipe._known)}
        raise UserError(
            found=f"sources that the mix {recipe.name!r} does not have: " + ", ".join(unknown),
            expected="sources of its tables"
            + (", such as " + ", ".join(sorted(close)) if close else ""),
            do="leave them out, name them as the catalogue does (datagen sources), "
            "or write a recipe of your own",
            exit_status=2,
        )


def _counts(paper: str) -> dict[str, int]:
    """Source -> rows, as the paper counts them, without what is only for pretraining."""
    rows = [row for row in catalog.rows() if row.name.startswith(f"{paper}/")]
    return {
        row.name: row.papers[paper]["samples"] for row in rows if "part" not in row.papers[paper]
    }


def nemotron() -> MixRecipe:
    """llama-embed-nemotron-8b: 11.8M rows with one negative, then 4.3M with four."""
    table = _counts("nemotron")
    written = {own: table[theirs] for own, theirs in WRITTEN.items()}
    return MixRecipe(
        name="nemotron",
        paper="arXiv 2511.07025",
        stages=(
            Stage(name="pretrain", negatives=1, tasks=("retrieval",)),
            Stage(name="finetune", negatives=4),
        ),
        sources={
            "pretrain": {DIVERSE_QA: 5_000_000, "synthetic_retrieval": 6_800_000},
            "finetune": {**table, **written},
        },
    )


def f2llm() -> MixRecipe:
    """F2LLM-v2: seven sources of 27M rows without instructions, then 80,000 of each file."""
    return MixRecipe(
        name="f2llm",
        paper="arXiv 2603.19223",
        stages=(
            Stage(name="pretrain", negatives=MANY, instruction_share=0.0),
            Stage(
                name="finetune",
                negatives=MANY,
                task_negatives={"classification": ONE_OF_TWO, "pair_classification": ONE_OF_TWO},
                rows_per_source=80_000,
                symmetric_share=0.3,
            ),
        ),
        sources={
            "pretrain": dict.fromkeys(F2LLM_FIRST),
            "finetune": dict.fromkeys(_counts("f2llm-v2")),
        },
    )


MIXES = {"nemotron": nemotron, "f2llm": f2llm}
