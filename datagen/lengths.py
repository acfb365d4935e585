"""How long the texts of a mix are, counted on a sample with a tokenizer, else in characters.

The sample is evenly spaced over the rows of each table, so it holds every source by its share, and
the same mix gives the same sample. Cost: reading and tokenising SAMPLED texts a table.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from datagen.mix_shards import Sharded, take_ordered
from datagen.schema import UserError, format_document, format_query
from datagen.store import Folder

SAMPLED = 20_000
EDGES = np.unique(np.geomspace(1, 32_768, 46).round())  # of the histograms, in tokens or characters


def text_lengths(
    folder: Folder, stages: Sequence[str], *, tokenizer: str | None
) -> dict[str, np.ndarray]:
    """Histograms between EDGES: the queries of each stage, instruction included, and documents."""
    count = _token_counter(tokenizer) if tokenizer else _characters
    texts: dict[str, list[str]] = {}
    for stage in stages:
        rows = _sampled(folder, stage, ("instruction", "query"))
        texts[f"{stage} queries"] = [format_query(r["instruction"], r["query"]) for r in rows]
    rows = _sampled(folder, "documents", ("title", "text"))
    texts["documents"] = [format_document(row["title"], row["text"]) for row in rows]
    return {
        name: np.histogram(np.clip(count(some), EDGES[0], EDGES[-1]), EDGES)[0]
        for name, some in texts.items()
    }


def _sampled(folder: Folder, table: str, columns: Sequence[str]) -> list[Mapping[str, Any]]:
    shards = Sharded.of(folder, table)
    wanted = np.unique(np.linspace(0, len(shards) - 1, min(SAMPLED, len(shards))).astype(np.int64))
    return [
        row
        for shard, rows in shards.places(wanted)
        for row in take_ordered(shards.open(shard).select(columns), rows).to_pylist()
    ]


def _characters(texts: Sequence[str]) -> list[int]:
    return [len(text) for text in texts]


def _token_counter(path: str) -> Any:
    """A function from texts to their numbers of tokens, special ones left out."""
    from tokenizers import Tokenizer

    file = Path(path) / "tokenizer.json" if Path(path).is_dir() else Path(path)
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # tokenizers raises Exception itself
        raise UserError(
            found=f"{file} is no tokenizer: {error}",
            expected="a tokenizer.json, or a model folder that has one",
            do="name such a folder, or leave --tokenizer out to count characters",
            exit_status=2,
        ) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()

    def count(texts: Sequence[str]) -> list[int]:
        return [
            len(encoding.ids)
            for encoding in tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        ]

    return count
