"""The document that a query was written for must be found with it."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from endpoint_server import EndpointServer
from test_synthesize_step import documents_step, served
from writing_server import reply
from written_rows import row, table

from datagen.cli import main
from datagen.dedup import dedup
from datagen.embedding_cache import EmbeddingCache
from datagen.encode import Encoder
from datagen.mine import mine_negatives
from datagen.packaged import resolve_model
from datagen.schema import UserError, document_id
from datagen.steps import run_steps
from datagen.store import Folder, read_table
from datagen.synthesize import synthesize
from datagen.synthesize.ranker import NOT_JUDGED, Ranker, positive_ranks
from datagen.synthesize.round_trip import RoundTrip

NILE = "The Nile rises in the highlands of East Africa and reaches the Mediterranean Sea in Egypt."
BEES = "Honey bees dance on the comb; the angle of the dance tells the direction of a meadow."
BREAD = "Bread rises because yeast turns sugar into carbon dioxide, which the dough catches."
PIANO = "I would not sell the piano, which my grandmother bought with her first wages."


def unit(rows) -> np.ndarray:
    vectors = np.asarray(rows, np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_the_rank_counts_better_documents():
    queries = unit([[1, 0], [1, 0], [0, 1]])
    documents = unit([[1, 0.1], [1, 0.5], [1, 2], [0.1, 1]])
    assert positive_ranks(queries, documents, np.array([0, 2, 1])).tolist() == [1, 3, 3]


def test_equal_scores_do_not_count():
    documents = unit([[1, 1], [1, 1], [1, 1], [1, 0]])
    assert positive_ranks(unit([[0, 1]]), documents, np.array([2])).tolist() == [1]
    assert positive_ranks(np.empty((0, 2)), documents, np.array([], int)).tolist() == []


def test_ranks_are_those_of_the_whole_score_matrix():
    draw = np.random.default_rng(0)
    queries, documents = unit(draw.normal(size=(50, 16))), unit(draw.normal(size=(700, 16)))
    positives = draw.integers(700, size=50)
    scores = queries.astype(np.float64) @ documents.astype(np.float64).T
    better = scores > scores[np.arange(50), positives][:, None]
    found = positive_ranks(queries, documents, positives)
    assert found.tolist() == (better.sum(axis=1) + 1).tolist()


@pytest.fixture(scope="module")
def encoder(model_cache) -> Encoder:
    return Encoder(resolve_model("all-minilm-l6-v2", model_cache)[0])


def ranker(encoder: Encoder, *texts: str, languages: tuple[str, ...] = ("eng",)) -> Ranker:
    ids = [document_id(None, text) for text in texts]
    return Ranker(encoder, ids, encoder.encode(texts, stored="float16"), languages)


def test_a_query_that_misses_its_document_ranks_behind(encoder):
    pairs = table(
        [
            row("a/retrieval/0", "Into which sea does the Nile flow?", text=NILE),
            row("a/retrieval/1", "How do bees tell each other where a meadow is?", text=BREAD),
            row("a/retrieval/2", "Warum geht Brot auf?", text=BREAD, query_language="deu"),
            row("a/retrieval/3", "Why does bread rise?", title="Baking", text=BREAD),
        ]
    )
    ranks = ranker(encoder, BEES, PIANO, NILE).ranks(pairs).tolist()
    assert (ranks[0], ranks[2]) == (1, NOT_JUDGED)
    assert ranks[1] > 1
    assert ranks[3] <= 2  # the same text without the title is a document, too


@pytest.mark.parametrize(
    "more",
    [
        {"query_language": "deu"},
        {"document_language": "python"},
        {"document_language": None},
        {"task": "classification"},
    ],
)
def test_other_languages_and_tasks_are_left_alone(encoder, more):
    pairs = table([row("a/retrieval/0", "Why does bread rise?", **{"text": NILE, **more})])
    test = ranker(encoder)
    assert test.ranks(pairs).tolist() == [NOT_JUDGED]
    assert test.ranks(pairs.slice(0, 0)).tolist() == []


def test_code_is_judged_where_the_encoder_knows_it(encoder):
    code = "def first_line(path):\n    return open(path).readline()"
    more = {"text": code, "document_language": "python"}
    pairs = table([row("a/retrieval/0", "read only the first line of a file", **more)])
    test = ranker(encoder, NILE, BREAD, languages=("eng", "python"))
    assert test.ranks(pairs).tolist() == [1]


@pytest.mark.parametrize("more", [{"k": 0}, {"languages": ()}, {"languages": ("xqz",)}])
def test_a_round_trip_that_cannot_be(more):
    with pytest.raises(UserError):
        RoundTrip(encoder="/models/minilm", **more)


def test_a_build_encodes_each_text_once(tmp_path, model_cache, monkeypatch):
    """The round trip, mining, and whoever asks next share what they encode."""
    forwarded: list[str] = []
    forward = Encoder.batches

    def counting(self, texts):
        forwarded.extend(texts)
        return forward(self, texts)

    monkeypatch.setattr(Encoder, "batches", counting)
    encoder, _ = resolve_model("all-minilm-l6-v2", model_cache)
    documents = documents_step()
    with EndpointServer(reply=reply) as server:
        written = synthesize(
            documents,
            tasks=None,
            llms=[served(server, "One")],
            cache="",
            rows={"retrieval": 12},
            grounded=False,
            block_requests=4,
            round_trip=RoundTrip(encoder=encoder, documents=50),
        )
        run_steps([documents, written], str(tmp_path), executor="local")
    sampled = set(forwarded)
    assert len(forwarded) == len(sampled) >= 50 + 12
    both = dedup(written, against=documents)
    mined = mine_negatives(both, encoder=encoder)
    manifest = run_steps([documents, written, both, mined], str(tmp_path), executor="local")["mine"]
    assert len(forwarded) == len(set(forwarded))
    place = Folder(f"{tmp_path}/steps/{both.name}")
    texts = set(read_table(place, "queries")["query"].to_pylist())
    texts |= set(read_table(place, "documents")["text"].to_pylist())
    assert texts <= set(forwarded)
    assert set(forwarded) - sampled == texts - sampled
    assert len(texts & sampled) >= 50 + 12 and len(texts - sampled) <= 11
    assert manifest.stats["mining"]["sources"]["towns"]["queries"] == 1
    (space,) = Path(tmp_path, "embeddings").iterdir()
    assert len([path for path in space.iterdir() if path.name.startswith("segment-")]) == 1


def test_prompts_are_those_of_mining(tmp_path):
    from tiny_encoder import tiny_export

    folder = tiny_export(tmp_path / "m", prompts={"query": "q: ", "document": "d: "})
    config = RoundTrip(encoder=folder).config()
    assert (config["query_prompt"], config["document_prompt"]) == ("q: ", "d: ")
    assert RoundTrip(encoder=folder, document_prompt="").config()["document_prompt"] == ""


def test_the_commands_for_writing_and_for_mining_share_their_vectors(tmp_path, minilm, capsys):
    texts = [f"The {thing} of the town of Bergen stands near the old harbour, by the {thing} wall."
             for thing in ("lighthouse", "bakery", "library", "museum")]  # fmt: skip
    rows = [{"doc_id": i, "text": text, "language": "eng"} for i, text in enumerate(texts)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "d.parquet")
    asked = [{"query_id": 0, "query": "Where is the lighthouse?", "positives": [0]}]
    pq.write_table(pa.Table.from_pylist(asked), tmp_path / "q.parquet")
    cache = ["--cache", str(tmp_path / "cache")]
    documents = ["--documents", str(tmp_path / "d.parquet")]
    with EndpointServer(reply=reply) as server:
        write = ["synthesize", *documents, "--models", f"{server.url}#small", "--kinds"]
        write += ["retrieval=3", "--round-trip", minilm, *cache, "--output", str(tmp_path / "s")]
        assert main(write) == 0
    (space,) = (tmp_path / "cache" / "embeddings").iterdir()
    before = EmbeddingCache(str(space.parent), json.loads((space / "key.json").read_text())).rows()
    mine = ["mine", *documents, "--queries", str(tmp_path / "q.parquet"), "--encoder", minilm]
    assert main([*mine, *cache, "--output", str(tmp_path / "m")]) == 0
    assert [space] == list(space.parent.iterdir())
    after = EmbeddingCache(str(space.parent), json.loads((space / "key.json").read_text())).rows()
    assert before >= 4 and after == before + 1  # the query


def test_an_encoder_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="no model folder"):
        RoundTrip(encoder=str(tmp_path / "gone")).config()
