"""What a written row says of itself: which LLM wrote it, for which kind of request, and which side.

The id of a request, `<llm>/<kind>/<index>`, is the `row` of its provenance. The query is always the
LLM's own; the document is unless it is a public one, which provenance names, or a label: that of a
classification, or of a clustering a name of a few words.
"""

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

# Labels are in many rows, and say the same in all of them.
LABELLED = "classification"
NAMED, NAME_WORDS = "clustering", 4  # a name is asked for in one to three words, a text in five
GROUP = ("llm", "kind", "language")


def written_by(pairs: pa.Table) -> pl.DataFrame:
    """`request`, `llm`, `kind`, and `language` of the query (`und` where it has none)."""
    provenance = pl.Series("provenance", pairs["provenance"].combine_chunks())
    language = pl.Series("language", pairs["query_language"], dtype=pl.String).fill_null("und")
    request = provenance.struct.field("row").rename("request")
    kind = request.str.split("/").list.get(1).rename("kind")
    return pl.DataFrame([request, provenance.struct.field("llm"), kind, language])


def written_texts(pairs: pa.Table) -> dict[str, pa.ChunkedArray]:
    """The texts of each side, `query` and `document`, null where the LLM did not write it."""
    provenance = pl.Series("provenance", pairs["provenance"].combine_chunks())
    public = provenance.struct.field("seed_document").is_not_null()
    kind, text = written_by(pairs)["kind"], pl.Series(pairs["text"], dtype=pl.String)
    name = text.str.count_matches(r"\S+") <= NAME_WORDS
    own = ~public & (kind != LABELLED) & ~((kind == NAMED) & name)
    document = pc.if_else(own.to_arrow(), pairs["text"], None)
    return {"query": pairs["query"], "document": document}
