"""Arrow schemas of the tables that decontamination writes beside queries and documents."""

import pyarrow as pa

REMOVED = pa.schema(
    [
        pa.field("query_id", pa.string()),  # null where the document matches
        pa.field("doc_id", pa.string()),  # null where the query matches
        pa.field("source", pa.string(), nullable=False),
        pa.field("task", pa.string(), nullable=False),  # name of the evaluation task
        # What it matches there: query, document, near_query, near_document, pair.
        pa.field("kind", pa.string(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("matched_text", pa.string(), nullable=False),
        pa.field("similarity", pa.float32(), nullable=False),  # 1 where the texts are equal
    ]
)
TAGS = pa.schema(
    [
        pa.field("query_id", pa.string()),
        pa.field("doc_id", pa.string()),  # both where only the pair matches
        pa.field("source", pa.string(), nullable=False),
        pa.field("tasks", pa.list_(pa.string()), nullable=False),  # sorted
        pa.field("kinds", pa.list_(pa.string()), nullable=False),
        pa.field("similarity", pa.float32(), nullable=False),  # the highest
    ]
)
EVALUATION = pa.schema(
    [
        pa.field("key", pa.uint64(), nullable=False),
        pa.field("task", pa.string(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("generic", pa.bool_(), nullable=False),
        pa.field("matched_text", pa.string(), nullable=False),
    ]
)
NEAR_TEXT = pa.schema(
    [
        pa.field("key", pa.uint64(), nullable=False),
        pa.field("query", pa.bool_(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("words", pa.float32(), nullable=False),
        pa.field("shingles", pa.uint32(), nullable=False),
    ]
)
NEAR_SHINGLE = pa.schema(
    [
        pa.field("shingle", pa.uint64(), nullable=False),
        pa.field("text", pa.uint32(), nullable=False),  # row in near_texts
    ]
)
NEAR_COUNT = pa.schema(
    [
        pa.field("shingle", pa.uint64(), nullable=False),
        pa.field("count", pa.uint32(), nullable=False),
    ]
)
HIT = pa.schema(
    [
        pa.field("side", pa.string(), nullable=False),
        pa.field("id", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("positives", pa.list_(pa.string())),
        *EVALUATION,
        pa.field("similarity", pa.float32(), nullable=False),
    ]
)
INDEX_TABLES = {
    "evaluation": EVALUATION,
    "near_texts": NEAR_TEXT,
    "near_shingles": NEAR_SHINGLE,
    "near_counts": NEAR_COUNT,
}
