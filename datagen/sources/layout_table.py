"""The layouts that other trainers read, as data: which columns say it, and which adapter reads it.

A layout is a map from an adapter's names to the columns that may hold them. `detect_layout` finds
the first layout whose needed columns are all there; the order of the table is from the layouts
that say most to those that say least.
"""

import dataclasses
import fnmatch
from collections.abc import Collection, Mapping
from typing import Any

from datagen.schema import UserError
from datagen.sources import check_choice
from datagen.sources.shapes import ADAPTERS, PASSED_ON


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """One layout: `columns` gives the names that a column may have, the first that is there wins.

    A name with `*` takes all columns of that form as one list.
    """

    adapter: str
    task: str
    columns: Mapping[str, tuple[str, ...]]
    about: str
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    needed: tuple[str, ...] = ()  # options that have no default
    telling: tuple[str, ...] = ()  # columns that must be there though the adapter does without
    format: str | None = None  # of files that have this layout and no other

    @property
    def required(self) -> tuple[str, ...]:
        """The adapter's names that must have a column."""
        return (*ADAPTERS[self.adapter].required, *self.telling)

    def resolve(self, found: Collection[str]) -> dict[str, str]:
        """{adapter's name: column} of the columns that are there."""
        chosen = {}
        for name, columns in self.columns.items():
            for column in columns:
                if column in found or ("*" in column and fnmatch.filter(found, column)):
                    chosen[name] = column
                    break
        return chosen

    def fits(self, found: Collection[str]) -> bool:
        """Whether all needed columns are there."""
        resolved = self.resolve(found)
        return all(name in resolved for name in self.required)

    def described(self) -> str:
        """The columns, for a person: `query, pos, [neg]`."""
        optional = [name for name in self.columns if name not in (*self.required, *PASSED_ON)]
        parts = ["|".join(self.columns[name]) for name in self.required]
        return ", ".join(parts + [f"[{'|'.join(self.columns[name])}]" for name in optional])


_QUERY = ("query", "anchor", "question")
_PASSED: dict[str, tuple[str, ...]] = {name: (name,) for name in PASSED_ON}
TYPES = {  # FlagEmbedding's word for the task of a row
    "symmetric_sts": "sts",
    "symmetric_class": "classification",
    "symmetric_clustering": "clustering",
}

LAYOUTS: Mapping[str, Layout] = {
    "tmx": Layout(
        adapter="bitext",
        task="bitext",
        columns={"first": ("first",), "second": ("second",)},
        options={"gaps": True},
        needed=("languages",),
        format="tmx",
        about="translation memory",
    ),
    "gettext": Layout(
        adapter="messages",
        task="bitext",
        columns={n: (n,) for n in ("first", "second", "language", "problem")},
        options={"language": "eng_Latn"},
        format="po",
        about="catalogs of translated messages",
    ),
    "flagembedding": Layout(
        adapter="triplets",
        task="retrieval",
        columns={
            "query": ("query",), "text": ("pos",), "negatives": ("neg",),
            "scores": ("pos_scores",), **_PASSED, "instruction": ("prompt",),
        },
        about="FlagEmbedding: lists of positives and negatives",
    ),
    "f2llm": Layout(
        adapter="triplets",
        task="retrieval",
        columns={
            "query": ("query",), "text": ("passage",), "negatives": ("negative_*", "negative"),
            **_PASSED, "language": ("lang", "language"),
        },
        about="F2LLM: numbered negatives, which may be null",
    ),
    "automodel": Layout(
        adapter="by_ids",
        task="retrieval",
        columns={
            "query": ("question", "query"), "positives": ("pos_doc",), "negatives": ("neg_doc",),
        },
        telling=("negatives",),
        about="NeMo Automodel: ids of documents that a folder or file beside holds",
    ),
    "automodel_inline": Layout(
        adapter="triplets",
        task="retrieval",
        columns={
            "query": ("query", "question"), "text": ("pos_doc",), "negatives": ("neg_doc",),
            **_PASSED,
        },
        about="NeMo Automodel: texts of documents",
    ),
    "nli": Layout(
        adapter="nli",
        task="retrieval",
        columns={"query": ("premise",), "text": ("hypothesis",), "label": ("label",), **_PASSED},
        about="sentence-transformers: entailments, with the contradictions as negatives",
    ),
    "scored_pairs": Layout(
        adapter="sts",
        task="sts",
        columns={
            "query": ("sentence1", "sentence_A"), "text": ("sentence2", "sentence_B"),
            "score": ("score",), **_PASSED,
        },
        needed=("min_score",),
        about="sentence-transformers: pairs with a similarity, of which the similar ones are used",
    ),
    "labelled_pairs": Layout(
        adapter="sts",
        task="sts",
        columns={
            "query": ("sentence1", "sentence_A"), "text": ("sentence2", "sentence_B"),
            "score": ("label",), **_PASSED,
        },
        options={"min_score": 1},
        about="sentence-transformers: pairs with label 1 (used) or 0",
    ),
    "triplets": Layout(
        adapter="triplets",
        task="retrieval",
        columns={
            "query": _QUERY, "text": ("positive", "answer", "document"),
            "negatives": ("negative*", "negatives"), **_PASSED,
        },
        about="sentence-transformers: pairs, triplets and n-tuples",
    ),
}  # fmt: skip


def detect_layout(columns: Collection[str], *, where: str, documents: bool = False) -> str:
    """The name of the layout that the columns tell; `documents`: texts by id are at hand.

    Raises UserError (exit status 2) that lists the known layouts when there is none.
    """
    for name, layout in LAYOUTS.items():
        if layout.format or (layout.adapter == "by_ids" and not documents):
            continue
        if layout.fits(columns):
            return name
    raise UserError(
        found=f"{where} has columns " + (", ".join(columns) or "none"),
        expected="one of the layouts "
        + "; ".join(f"{name} ({layout.described()})" for name, layout in LAYOUTS.items()),
        do="rename the columns, or use the source `files` with a map of columns",
        exit_status=2,
    )


def layout_columns(name: str, found: Collection[str], *, where: str) -> dict[str, str]:
    """{adapter's name: column} of a named layout; UserError unless its needed columns are there."""
    check_choice(name, LAYOUTS, what="layout")
    layout = LAYOUTS[name]
    if not layout.fits(found):
        raise UserError(
            found=f"{where} has columns " + (", ".join(found) or "none"),
            expected=f"layout {name}: {layout.described()}",
            do="name another layout, or none to have it detected",
            exit_status=2,
        )
    return layout.resolve(found)
