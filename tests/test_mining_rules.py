"""Each rule of mining alone on hand-made vectors, their combination, and the sweep over scores."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hand_made import document, mine_by_hand, query
from hand_made import model as model
from hypothesis import given
from hypothesis import strategies as st

from datagen.mining_rules import Rules, choose
from datagen.schema import UserError, document_id
from datagen.store import Folder, read_table, write_shard
from datagen.sweep import sweep_file
from datagen.vectors import Teachers, embedding_schema, embedding_table


def test_of_several_ceilings_the_lowest_holds():
    lowest = np.array([0.9, 0.5, -0.4])
    rules = Rules(margin=0.95, absolute_margin=0.1, max_score=0.45)
    np.testing.assert_allclose(rules.ceilings(lowest), [0.45, 0.4, -0.5])
    np.testing.assert_allclose(Rules(margin=None).ceilings(lowest), [np.inf] * 3)


SCORES = np.array([[0.9, 0.85, 0.7, 0.6, 0.5, 0.4], [0.6, 0.5, 0.4, -np.inf, -np.inf, -np.inf]])


def taken(rules: Rules, ceiling: float = 1.0) -> list[list[int]]:
    mask = choose(SCORES.astype(np.float32), np.full(2, ceiling), ["a", "b"], rules)
    return [np.flatnonzero(row).tolist() for row in mask]


def test_ranks_are_counted_before_the_ceiling():
    assert taken(Rules(negatives=2, rank_window=4)) == [[0, 1], [0, 1]]
    assert taken(Rules(negatives=2, rank_window=4, skip_top=1)) == [[1, 2], [1, 2]]
    assert taken(Rules(negatives=2, rank_window=4, skip_top=1), ceiling=0.65) == [[3], [1, 2]]
    assert taken(Rules(negatives=2), ceiling=0.65) == [[3, 4], [0, 1]]


def test_f2llm_rules_take_24_of_the_first_100_after_five():
    scores = np.linspace(0.9, 0.5, 120, dtype=np.float32)[None]
    rules = Rules(negatives=24, rank_window=100, skip_top=5, max_score=0.8, margin=0.95)
    found = np.flatnonzero(choose(scores, rules.ceilings(np.array([0.9])), ["q"], rules)[0])
    assert found.tolist() == list(range(30, 54))  # the first at or below 0.8
    assert scores[0, 29] > 0.8 >= scores[0, 30]


def test_a_draw_depends_on_the_query_and_the_seed_alone():
    rules = Rules(negatives=2, sample_from=5)
    both = taken(rules)
    alone = choose(SCORES[:1].astype(np.float32), np.ones(1), ["a"], rules)
    assert np.flatnonzero(alone[0]).tolist() == both[0] and len(both[0]) == 2
    assert max(both[0]) < 5
    draws = {tuple(taken(Rules(negatives=2, sample_from=5, seed=seed))[0]) for seed in range(40)}
    assert len(draws) > 5
    first = Rules(negatives=2, sample_from=5, keep_first=True)
    assert all(0 in taken(first, ceiling)[0] for ceiling in (1.0, 0.95))


@given(
    scores=st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=30),
    ceiling=st.floats(-1, 1),
    negatives=st.integers(1, 5),
    skip=st.integers(0, 4),
    extra=st.integers(0, 20),
    draw=st.booleans(),
)
def test_what_is_chosen_holds_every_rule(scores, ceiling, negatives, skip, extra, draw):
    window = skip + negatives + extra
    rules = Rules(
        negatives=negatives,
        rank_window=window,
        skip_top=skip,
        sample_from=negatives + 2 if draw else None,
    )
    ranked = np.sort(np.float32(scores))[::-1][None]
    found = np.flatnonzero(choose(ranked, np.array([ceiling]), ["q"], rules)[0])
    possible = [i for i in range(skip, min(window, len(scores))) if float(ranked[0, i]) <= ceiling]
    assert len(found) == min(negatives, len(possible))
    assert set(found.tolist()) <= set(possible[: negatives + 2] if draw else possible[:negatives])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"margin": 95}, "margin 95"),
        ({"negatives": 0}, "0 negatives"),
        ({"skip_top": 5}, "skip_top 5 without rank_window"),
        ({"rank_window": 20, "skip_top": 5}, "rank_window 20 for 24 negatives after 5 skipped"),
        ({"sample_from": 10}, "24 negatives drawn from 10"),
        ({"languages": "english"}, "languages 'english'"),
        ({"absolute_margin": -0.1}, "absolute margin -0.1"),
    ],
)
def test_rules_that_contradict_themselves_are_named(wrong, message):
    with pytest.raises(UserError, match=message) as caught:
        Rules(**wrong)
    assert caught.value.exit_status == 2


# --- in the step -------------------------------------------------------------------------------


def negatives_of(output, model, queries, documents, **options):
    rules = Rules(**{"negatives": 2, **options.pop("rules", {})})
    mined, manifest = mine_by_hand(output, model, queries, documents, rules=rules, **options)
    found = {name: row["negatives"] for name, row in mined.items()}
    return found, manifest.stats["mining"]["sources"]["s"]


RING = [document("right", 20)] + [document(f"n{i}", 10 * i) for i in range(9)]


def test_a_rank_window_and_skipped_ranks(tmp_path, model):
    queries = [query("q", 0, ["right"])]
    plain, _ = negatives_of(tmp_path / "a", model, queries, RING)
    assert plain["q"] == ["n3", "n4"]  # n0, n1, n2 score above 0.95 x cos 20°
    options = {"rank_window": 5, "skip_top": 4}
    with pytest.raises(UserError):
        Rules(negatives=2, **options)
    found, facts = negatives_of(
        tmp_path / "b", model, queries, RING, rules={"rank_window": 6, "skip_top": 4}
    )
    assert found["q"] == ["n4", "n5"]
    assert facts["skipped_top"] == 1  # n3; the others were above the ceiling anyway


def test_languages_of_the_positive_or_other_than_the_query(tmp_path, model):
    def deu(name, angle):
        return document(name, angle, language="deu", script="Latn")

    documents = [deu("richtig", 10), deu("falsch", 50), deu("fern", 90)]
    documents += [document("wrong", 40, language="eng", script="Latn"), document("unknown", 45)]
    queries = [query("q", 0, ["richtig"], language="eng", script="Latn")]
    expected = {
        "any": ["wrong", "unknown"],
        "same": ["falsch", "fern"],
        "other": ["unknown", "falsch"],
    }
    for mode, names in expected.items():
        found, _ = negatives_of(
            tmp_path / mode, model, queries, documents, rules={"languages": mode}
        )
        assert found["q"] == names, mode


def test_labels_are_wrong_at_any_score(tmp_path, model):
    task = {"task": "classification"}
    documents = [document("good", 10, **task), document("bad", 9, **task)]
    documents += [document("right", 10), document("near", 9)]
    queries = [query("c", 0, ["good"], **task), query("r", 0, ["right"])]
    found, _ = negatives_of(tmp_path, model, queries, documents)
    assert found == {"c": ["bad"], "r": []}


def test_texts_of_one_class_and_a_querys_own_text_are_never_negatives(tmp_path, model):
    """Clustering: a and b are of one class because a query says so, b and c likewise."""
    task = {"task": "clustering"}
    ids = {name: document_id(None, name) for name in "abcxy"}
    documents = [
        document(ids[name], angle, text=name, **task)
        for name, angle in zip("abcxy", (0, 30, 60, 70, 80), strict=True)
    ]
    queries = [query("a", 0, [ids["b"]], **task), query("b", 30, [ids["c"]], **task)]
    queries += [query("x", 70, [ids["y"]], **task)]
    found, facts = negatives_of(tmp_path, model, queries, documents, rules={"negatives": 4})
    assert found["a"] == [ids["x"], ids["y"]]
    assert found["x"] == [ids["b"], ids["a"]]  # c scores like the positive
    assert facts["excluded"]["known_positive"] == 3
    sts = [{**row, "task": "sts"} for row in documents]
    found, facts = negatives_of(
        tmp_path / "sts", model, [query("a", 0, [ids["x"]], task="sts")], sts,
        rules={"margin": None, "negatives": 4},
    )  # fmt: skip
    assert found["a"] == [ids["b"], ids["c"], ids["y"]]  # not a itself, though it scores 1
    assert facts["caught"]["own_text"] == 1


def test_queries_with_too_few_are_kept_dropped_or_padded_and_counted(tmp_path, model):
    task = {"task": "sts"}
    documents = [document("right", 10, **task), document("n", 60, **task)] + RING[5:]
    queries = [query("q", 0, ["right"], **task)]
    kept, facts = negatives_of(tmp_path / "k", model, queries, documents, rules={"negatives": 3})
    assert (kept["q"], facts["queries_with_fewer"]) == (["n"], 1)
    gone, facts = negatives_of(
        tmp_path / "d", model, queries, documents, rules={"negatives": 3, "too_few": "drop"}
    )
    assert (gone["q"], facts["dropped"]) == ([], 1)
    full, facts = negatives_of(
        tmp_path / "p", model, queries, documents, rules={"negatives": 3, "too_few": "pad"}
    )
    assert full["q"][0] == "n" and len(full["q"]) == 3 and facts["padded"] == 2
    assert set(full["q"][1:]) <= {row["doc_id"] for row in RING[5:]}


def test_a_query_with_ten_thousand_positives(tmp_path, model):
    documents = [document(f"p{i:05d}", 5 + 20 * i / 10_000) for i in range(10_000)]
    documents += [document("n0", 40), document("n1", 50)]
    names = sorted(row["doc_id"] for row in documents[:10_000])
    found, facts = negatives_of(
        tmp_path, model, [query("q", 0, names), query("r", 45, ["n0"])], documents
    )
    assert found["q"] == ["n0", "n1"]
    assert facts["excluded"]["known_positive"] == 10_001


# --- stored candidates -------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"rank_window": 8, "skip_top": 1}, {"sample_from": 4}])
def test_stored_candidates_change_nothing_and_give_the_same_negatives(tmp_path, model, options):
    draw = np.random.default_rng(3)
    documents = [document(f"d{i:02d}", float(draw.uniform(0, 120))) for i in range(60)]
    queries = [query(f"q{i:02d}", float(draw.uniform(0, 90)), [f"d{i:02d}"]) for i in range(30)]
    rules = {"negatives": 3, **options}
    plain, _ = negatives_of(tmp_path / "a", model, queries, documents, rules=rules)
    stored, _ = negatives_of(tmp_path / "b", model, queries, documents, rules=rules, candidates=12)
    assert stored == plain
    listed = read_table(Folder(str(tmp_path / "b" / "steps" / "mine")), "candidates").to_pylist()
    for row in listed:
        scores = np.float32(row["scores"])[None]
        setting = Rules(**rules)
        ceiling = setting.ceilings(np.array([row["lowest_positive_score"]]))
        chosen = choose(scores, ceiling, [row["query_id"]], setting)[0]
        names = [row["documents"][i] for i in np.flatnonzero(chosen)]
        if len(names) == 3:
            assert names == stored[row["query_id"]]


def test_the_sweep_tries_rules_on_stored_scores(tmp_path):
    rows = [
        {
            "query_id": 1,
            "lowest_positive_score": 0.8,
            "documents": [5, 6, 7],
            "scores": [0.78, 0.75, 0.5],
        },
        {"query_id": 2, "lowest_positive_score": 0.5, "documents": [5], "scores": [0.6]},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "candidates.parquet")
    result = sweep_file(str(tmp_path), Rules(negatives=2), margins=[0.9, 1.0])
    strict, loose = result["settings"]
    assert (strict["margin"], strict["mean_negatives"], strict["queries_with_enough"]) == (
        0.9,
        0.5,
        0,
    )
    assert strict["queries_whose_list_ended"] == 1  # of the other the list has all there is
    assert (loose["mean_negatives"], loose["queries_with_enough"]) == (1.0, 1)
    assert loose["mean_ratio_to_positive"] == pytest.approx((0.78 + 0.75) / 2 / 0.8, abs=1e-4)
    assert json.loads((tmp_path / "sweep.json").read_text()) == result["settings"]
    with pytest.raises(UserError, match="a rank window of 100, 3 stored candidates"):
        sweep_file(str(tmp_path), Rules(rank_window=100))
    with pytest.raises(UserError, match="no candidates.parquet"):
        sweep_file(str(tmp_path / "empty"), Rules())


# --- several encoders --------------------------------------------------------------------------


def test_scores_of_several_encoders_are_their_mean(tmp_path):
    """The second encoder has other vectors: a document that only one of them likes falls back."""
    angles = {
        "one": {"query": [0], "doc": [10, 20, 60]},
        "two": {"query": [0], "doc": [10, 80, 40]},
    }
    teachers = []
    for name, sides in angles.items():
        folder = Folder(str(tmp_path / name))
        shards = {}
        for side, degrees in sides.items():
            radians = np.deg2rad(degrees)
            vectors = np.stack([np.cos(radians), np.sin(radians)], axis=1).astype(np.float16)
            schema = embedding_schema("id", "float16")
            ids = pa.chunked_array([[str(i) for i in range(len(degrees))]])
            shard = write_shard(folder, side, 0, embedding_table(ids, vectors, schema), schema)
            shards[side] = [shard.name]
        teachers.append({"place": folder.uri, **shards})
    left, right = Teachers.of(teachers, "query"), Teachers.of(teachers, "doc")
    assert left.shape == (1, 4) and right.shape == (3, 4)
    scores = (left[:] @ right[:].T)[0]
    mean = [np.mean(np.cos(np.deg2rad(pair))) for pair in ((10, 10), (20, 80), (60, 40))]
    np.testing.assert_allclose(scores, mean, atol=1e-3)
    alone = Teachers.of(teachers[:1], "doc")
    assert alone[:].dtype == np.float16  # one encoder: its vectors as they are
