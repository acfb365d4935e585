"""Which written rows stay: rules one after the other, each row counted once."""

import numpy as np
import pyarrow as pa
import pytest
from written_rows import queries, row, table

from datagen.schema import PAIR, QUARANTINE
from datagen.synthesize.near import Pool, near_duplicate_rule
from datagen.synthesize.select import Rule, Verdict, select
from datagen.synthesize.written import written_by, written_texts
from datagen.synthesize.written_language import language_rule, other_language

WHERE = "Where do honey bees find flowers when the meadow behind the house is mown in June?"


def queries_with(word: str, reason: str) -> Rule:
    def rule(pairs: pa.Table) -> Verdict:
        texts = pairs["query"].to_pylist()
        broken = np.array([word in text for text in texts], bool)
        return Verdict(reason, broken, np.array(["?" in text for text in texts], bool))

    return rule


def test_a_row_is_counted_under_the_first_rule_that_it_breaks():
    pairs = queries("a", "retrieval", ["red?", "blue?", "red and blue?", "green"])
    found = select(pairs, [queries_with("red", "no_red"), queries_with("blue", "no_blue")])
    assert found.kept["query"].to_pylist() == ["green"]
    assert found.reasons.to_pylist() == ["no_red", "no_blue", "no_red", None]
    assert found.not_judged == {"no_red": 1, "no_blue": 1}
    assert found.rejected.schema == QUARANTINE
    assert found.rejected["row"].to_pylist() == [f"a/retrieval/{i}" for i in range(3)]
    assert found.rejected["reason"].to_pylist() == ["no_red", "no_blue", "no_red"]
    assert "red and blue?" in found.rejected["record"][2].as_py()


def test_no_rows_and_no_rules_are_fine():
    rules = [language_rule(), near_duplicate_rule(Pool())]
    assert select(PAIR.empty_table(), rules).kept.num_rows == 0
    pairs = queries("a", "retrieval", ["one"])
    assert select(pairs, []).kept == pairs


def test_what_another_rule_rejects_does_not_stand_in_the_way():
    pairs = queries("a", "retrieval", [WHERE, WHERE.upper(), WHERE + "!"])
    found = select(pairs, [queries_with("Where", "no_case"), near_duplicate_rule(Pool())])
    assert found.reasons.to_pylist() == ["no_case", None, "no_case"]


def test_rules_look_at_what_the_llm_wrote_only():
    same = "The same public document, which many queries have as their answer, in words enough."
    rows = [row("a/retrieval/0", "first question"), row("a/retrieval/1", "another one")]
    rows += [row("a/scratch/0", "a third"), row("a/scratch/1", "and a fourth")]
    pairs = table([{**one, "text": same} for one in rows])
    found = select(pairs, [near_duplicate_rule(Pool())])
    assert found.reasons.to_pylist() == [None, None, None, "near_duplicate"]


def test_every_request_id_names_its_kind():
    found = written_by(table([row("smollm2-135m/sts/17", "x", query_language=None)]))
    assert found.rows() == [("smollm2-135m/sts/17", "smollm2-135m", "sts", "und")]


def test_public_documents_and_labels_are_not_written():
    kinds = ("retrieval", "scratch", "classification", "clustering", "translation", "sts")
    found = written_texts(table([row(f"a/{kind}/0", kind, text=f"of {kind}") for kind in kinds]))
    assert found["query"].to_pylist() == list(kinds)
    assert found["document"].to_pylist() == [None, "of scratch", None, None, None, "of sts"]


LONG = {
    "eng": "Where can I find a list of all stations on the line to the airport?",
    "deu": "Wo finde ich eine Liste aller Haltestellen auf der Strecke zum Flughafen?",
    "fra": "Où puis-je trouver la liste de toutes les gares sur la ligne de l'aéroport ?",
    "rus": "Где найти список всех станций на линии, которая ведёт в аэропорт?",
    "zho": "在哪里可以找到通往机场线路上所有车站的列表？",
    "jpn": "空港へ行く路線の駅の一覧はどこで見つけられますか？",
    "arb": "أين أجد قائمة بجميع المحطات على الخط المؤدي إلى المطار؟",
}


@pytest.mark.parametrize(
    ("written", "asked", "script", "reason"),
    [
        ("deu", "deu", "Latn", None),
        ("eng", "deu", "Latn", "other_language"),
        ("fra", "deu", "Latn", "other_language"),
        ("eng", "rus", "Cyrl", "other_language"),
        ("arb", "ara", "Arab", None),  # the macro-language
        ("zho", "cmn", "Hans", None),
        ("zho", "zho", "Hant", None),  # short texts do not tell the two apart
        ("zho", "jpn", "Jpan", "other_language"),
        ("jpn", "zho", None, "other_language"),
        ("eng", "xxx", "Latn", None),  # a language that the detector does not know
        ("eng", None, None, None),
    ],
)
def test_only_a_confident_disagreement_is_another_language(written, asked, script, reason):
    more = {"query_language": asked, "query_script": script}
    pairs = table([row("a/retrieval/0", LONG[written], **more)])
    assert select(pairs, [language_rule()]).reasons.to_pylist() == [reason]


def test_foreign_names_do_not_make_another_language():
    text = "怎样在 GitHub 上打开 Pull Request 和 Issue？"
    pairs = table([row("a/retrieval/0", text, query_language="zho", query_script="Hans")])
    found = select(pairs, [language_rule()])
    assert (found.reasons.to_pylist(), found.not_judged) == ([None], {"other_language": 1})


def test_short_texts_code_and_close_languages_are_not_rejected():
    danish = "Hvor finder jeg en liste over alle stationer på strækningen til lufthavnen?"
    pairs = table(
        [
            row("a/retrieval/0", "Apollo 11 Moon", query_language="deu"),
            row("a/retrieval/1", danish, query_language="nob"),
            row("a/code/0", LONG["deu"], query_language="deu", document_script="Zyyy",
                document_language="python", text="def first(path): return open(path).readline()"),
        ]
    )  # fmt: skip
    found = select(pairs, [language_rule()])
    assert found.reasons.to_pylist() == [None, None, None]
    assert found.not_judged == {"other_language": 1}


def test_the_document_is_looked_at_where_the_llm_wrote_it():
    more = {"query_language": "deu", "document_language": "deu", "text": LONG["eng"]}
    rows = [row(f"a/{kind}/0", LONG["deu"], **more) for kind in ("retrieval", "scratch", "sts")]
    found = select(table(rows), [language_rule()])
    assert found.reasons.to_pylist() == [None, "other_language", "other_language"]


def test_names_of_categories_are_labels_and_other_texts_of_clustering_are_not():
    name = row("a/clustering/0", LONG["deu"], query_language="deu", text="public transport")
    item = row("a/clustering/1", LONG["deu"], query_language="deu", text=LONG["eng"])
    label = row(
        "a/classification/0", LONG["deu"], query_language="deu", text="a very long label of six"
    )
    rows = table([{**one, "document_language": "deu"} for one in (name, item, label)])
    assert written_texts(rows)["document"].to_pylist() == [None, LONG["eng"], None]
    assert select(rows, [language_rule()]).reasons.to_pylist() == [None, "other_language", None]


def test_real_texts_are_seldom_rejected(shared_data):
    import polars as pl

    rows = pl.read_parquet(shared_data / "classification" / "sib200.parquet").filter(
        pl.int_range(pl.len()).over("language") < 40
    )
    tag = rows["language"].str.split("_").list
    other, judged = other_language(rows["text"], tag.get(0), tag.get(1))
    table = rows.select(script=tag.get(1), other=other, judged=judged).filter("judged")
    shares = table.group_by("script").agg(share=pl.col("other").mean(), count=pl.len())
    assert judged.mean() > 0.85
    assert other[judged].mean() < 0.01
    assert shares.filter(pl.col("count") >= 100)["share"].max() <= 0.02
    english = rows.filter(language="eng_Latn")["text"]
    asked = pl.Series(["swh"] * len(english))
    caught, _ = other_language(english, asked, pl.Series(["Latn"] * len(english)))
    assert caught.mean() > 0.7
