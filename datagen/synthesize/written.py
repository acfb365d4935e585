"""What a written row says of itself: which LLM wrote it, for which kind of request, and which side.

The id of a request, `<llm>/<kind>/<index>`, is the `row` of its provenance. The query is always the
LLM's own; the document is unless it is a public one, which provenance names, or a label.
"""

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

LABELLED = ("classification", "clustering")  # kinds whose documents are names, each in many rows
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
    own = ~public & ~written_by(pairs)["kind"].is_in(LABELLED)
    document = pc.if_else(own.to_arrow(), pairs["text"], None)
    return {"query": pairs["query"], "document": document}
