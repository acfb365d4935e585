"""The prompts an exported model carries, in the words it was trained with.

Names as mteb and sentence-transformers look them up: `<Type>-query` where only queries carry the
instruction, the bare type where both sides do. Texts end in `Query:` and one blank, as
`datagen.schema.format_query` writes them.
"""

from datagen.schema import format_query

RETRIEVAL = "Given a question, retrieve passages that answer the question."
SIMILARITY = "Retrieve semantically similar text."
BITEXT = "Retrieve parallel sentences."
CLASSIFICATION = "Classify the topic of the given text."

PROMPTS = {
    "query": format_query(RETRIEVAL, ""),
    "document": "",
    "Retrieval-query": format_query(RETRIEVAL, ""),
    "Reranking-query": format_query(RETRIEVAL, ""),
    "BitextMining": format_query(BITEXT, ""),
    "STS": format_query(SIMILARITY, ""),
    "PairClassification": format_query(SIMILARITY, ""),
    "Classification": format_query(CLASSIFICATION, ""),
    "Clustering": format_query(CLASSIFICATION, ""),
}
