"""Report: numbers that agree with the rows, and a page that no text of the data can take over."""

import base64
import hashlib
import html
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from plotly.offline import get_plotlyjs
from small_mix import HOSTILE, build, rows_of

from datagen.cli import main
from datagen.escape import visible
from datagen.lengths import EDGES, text_lengths
from datagen.overview import BINS, add_scores, count_mix, language_table, quantile
from datagen.packaged import unpack
from datagen.plots import rules_plot, score_plot
from datagen.report import cut, render_mix, write_report
from datagen.report_tables import (
    agreement_tables,
    check_tables,
    dropped_tables,
    gather_facts,
    llm_tables,
    overlap_tables,
)
from datagen.samples import sample_rows
from datagen.schema import UserError
from datagen.steps import run_steps
from datagen.store import Folder, read_manifest, read_table
from datagen.synthesize.llm_table import summed


class Page(HTMLParser):
    """Tags and attributes of a page, and its text."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

        self.text += " " if tag in ("dd", "td", "th", "dt", "small", "h2", "p", "title") else ""

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    dedup, mine, mix = build(str(folder), *rows_of(hostile=True))
    report = write_report(mix, steps=[dedup, mine])
    run_steps([dedup, mine, mix, report], str(folder), executor="local")
    return folder


@pytest.fixture(scope="module")
def page(output: Path) -> str:
    return (output / "mix" / "report.html").read_text()


def test_the_counts_are_those_of_the_rows(output: Path) -> None:
    overview = count_mix(Folder(f"{output}/mix"))
    for stage in ("pretrain", "finetune"):
        rows = read_table(Folder(f"{output}/mix"), stage).to_pylist()
        counted = overview.rows.filter(stage=stage)
        assert counted["rows"].sum() == len(rows)
        assert counted["pairs"].sum() == sum(len(row["positives"]) for row in rows)
        synthetic = counted.filter(pl.col("llm") == "tiny-llm")["rows"].sum()
        assert synthetic == sum(row["origin"] == "synthetic" for row in rows)
    assert overview.languages == {"eng", "arb", "deu", "zho"}
    assert overview.programming_languages == {"python"}
    negatives = sum(int(pair[1].sum()) for pair in overview.scores.values())
    assert negatives == overview.rows["negatives"].sum()


def test_the_headline_and_tables_show_them(page: str) -> None:
    text = " ".join(Page(page).text.split())
    assert "Queries to pretrain 43 52 pairs, 32.6 % synthetic" in text
    assert "Queries to finetune 79 91 pairs, 16.5 % synthetic" in text
    assert "Documents 118" in text
    assert "Languages 4 natural, and 1 programming" in text
    assert "dedup: 106 pairs in, 85 kept, 14 dropped, 7 quarantined" in text
    assert "tiny-llm retrieval 40 33 31 invalid json 7, near duplicate 2 412 164.80 2.50" in text
    assert ", by language" in text and ", by kind and language" in text
    assert "tiny-llm <img src=x onerror=alert(7)><U+202E> 40 33 31" in text
    assert "faq-test 3 1 2" in text and "news-test 0 · ·" in text
    assert "near duplicate 3" in text


def test_the_ledger_lists_every_step_in_order_and_reconciles(output: Path) -> None:
    ledger = json.loads((output / "mix" / "ledger.json").read_text())
    assert list(dict.fromkeys(row["step"] for row in ledger)) == ["dedup", "mix"]
    for row in ledger:
        gone = sum(row["dropped"].values()) + sum(row["quarantined"].values())
        assert row["rows_in"] == row["kept"] + gone
    mixed = [row for row in ledger if row["step"] == "mix"]
    assert sum(row["rows_in"] for row in mixed) == 85


def test_the_page_loads_nothing_and_runs_only_the_scripts_that_its_policy_names(page: str) -> None:
    parsed = Page(page)
    assert not {"img", "iframe", "link", "object", "embed", "form", "i"} & set(parsed.tags)
    assert not [a for a in parsed.attributes if a[1].startswith("on") or a[1] == "src"]
    targets = [value for _, name, value in parsed.attributes if name in ("href", "xlink:href")]
    assert targets and all(target.startswith("#") for target in targets)
    (policy,) = [value for _, name, value in parsed.attributes if "default-src" in value]
    directives = dict(part.split(maxsplit=1) for part in policy.split("; "))
    assert directives["default-src"] == directives["base-uri"] == "'none'"
    scripts = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    digests = [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts]
    assert directives["script-src"].split() == [f"'sha256-{digest}'" for digest in digests]
    assert len(scripts) == 2 and scripts[0].startswith("/**\n* plotly.js")
    data = re.findall(r'<script type="application/json">(.*?)</script>', page, re.DOTALL)
    assert len(data) == page.count('<figure class="plot"') == len([json.loads(d) for d in data])


def test_hostile_text_is_shown_and_not_obeyed(page: str) -> None:
    parsed = Page(page)
    assert "<script>alert('query')</script>" in parsed.text
    assert "&lt;script&gt;" in page
    assert "</title><img src=x onerror=alert(1)>" in parsed.text
    assert "{{ 7 * 7 }}" in parsed.text
    assert "<U+202E>gnorw<U+202C> <U+0000><U+0007>" in parsed.text
    written = page.replace(get_plotlyjs(), "")
    assert not re.search("[\x00-\x08\x0b-\x1f\u202a-\u202e]", written)
    assert "evil|source`<b>" in parsed.text
    assert html.escape(HOSTILE["licence"]) in page


def test_text_of_any_direction_gets_its_own_direction(page: str) -> None:
    assert '<div class="text" dir="auto">&lt;a href=' in page
    assert re.search(r'<dd class="text" dir="auto">catalogs query', page)


def test_long_text_is_cut_with_an_ellipsis(page: str) -> None:
    assert cut("a" * 320) == "a" * 320
    assert cut("a" * 321) == "a" * 320 + "…"
    assert HOSTILE["text"] not in html.unescape(page)


def test_control_characters_are_spelled_out() -> None:
    assert visible("a\x00b\u202ec\td\ne\r") == "a<U+0000>b<U+202E>c\td\ne<U+000D>"
    assert visible("שלום עולם, 你好") == "שלום עולם, 你好"


def test_samples_show_every_source_of_a_task_and_the_right_texts(output: Path) -> None:
    folder = Folder(f"{output}/mix")
    samples = sample_rows(folder, read_manifest(folder), per_task=10)
    assert sorted(samples) == ["bitext", "classification", "retrieval", "sts"]
    assert all(len(rows) == 10 for rows in samples.values())
    assert len({row["source"] for row in samples["retrieval"]}) == 4
    texts = read_table(folder, "documents")["text"].to_pylist()
    by_id = {row["query_id"]: row for row in read_table(folder, "finetune").to_pylist()}
    for row in samples["retrieval"]:
        stored = by_id[row["query_id"]]
        assert [d["text"] for d in row["negatives"]] == [texts[n] for n in stored["negatives"][:4]]
        assert [d["score"] for d in row["positives"]] == stored["positive_scores"][:3]
        assert row["negative_count"] == len(stored["negatives"])


def test_samples_spread_over_more_sources_than_are_shown(tmp_path: Path) -> None:
    queries, documents, found = rows_of(["trivia"], per_source=14)
    for i, row in enumerate(queries):
        row["source"] = f"source-{i % 7}"
    build(str(tmp_path), queries, documents, found)
    folder = Folder(f"{tmp_path}/mix")
    shown = sample_rows(folder, read_manifest(folder), per_task=3)["retrieval"]
    assert [row["source"] for row in shown] == ["source-0", "source-2", "source-4"]


def test_many_languages_are_sorted_and_many_sources_share_a_column() -> None:
    counts = pl.DataFrame(
        [
            {"source": f"s{i:02d}", "language": language, "script": script, "rows": rows}
            for i in range(50)
            for language, script, rows in (("deu", "Latn", 2), ("srp", "Cyrl", 5), (None, None, 1))
        ]
    )
    table = language_table(counts, max_sources=3)
    assert table is not None
    assert table["sources"] == ["s00", "s01", "s02", "47 other sources"]
    assert table["lines"] == [
        ("srp_Cyrl", 250, [5, 5, 5, 235]),
        ("deu_Latn", 100, [2, 2, 2, 94]),
        ("und", 50, [1, 1, 1, 47]),
    ]


def test_quantiles_come_from_the_histogram_to_the_width_of_a_bin() -> None:
    scores = np.random.default_rng(0).uniform(-0.3, 0.9, 10_000)
    histogram = np.histogram(scores, np.linspace(-1, 1, BINS + 1))[0]
    for share in (0.1, 0.5, 0.9):
        assert quantile(histogram, share) == pytest.approx(np.quantile(scores, share), abs=2 / BINS)
    assert quantile(np.zeros(BINS), 0.5) is None


def test_plots_are_data_with_the_page_s_colours_and_escaped_names() -> None:
    pair = np.zeros((2, BINS), dtype=np.int64)
    pair[0, 190], pair[1, 120] = 5, 15
    plot = score_plot({"retrieval": pair, "<b>\u202ests": pair[::-1]}, of="task")
    positives, negatives = plot.figure["data"]
    assert positives["line"]["color"] == "var(--kept)"
    assert positives["x"][95] == 0.91 and positives["y"][95] == 1.0 and sum(positives["y"]) == 1
    assert negatives["x"][60] == 0.21 and negatives["y"][60] == 1.0
    (menu,) = plot.figure["layout"]["updatemenus"]
    assert [b["label"] for b in menu["buttons"]] == ["retrieval", "&lt;b&gt;&lt;U+202E&gt;sts"]
    assert menu["buttons"][1]["args"][0]["y"][0] == negatives["y"]


def test_ratios_are_of_the_lowest_positive_of_a_query() -> None:
    table = pa.table(
        {
            "task": ["retrieval", "retrieval"],
            "source": ["faq", "faq"],
            "positive_scores": [[0.8, 0.5], [-0.1]],
            "negative_scores": [[0.25, 0.495], [0.3]],
        }
    )
    scores: dict = {}
    ratios: dict = {}
    add_scores(scores, ratios, table)
    (counts,) = ratios.values()
    assert np.flatnonzero(counts).tolist() == [25, 49]  # 0.5 and 0.99; none of a negative positive
    assert scores["retrieval", "faq"].sum(axis=1).tolist() == [3, 3]


def test_lengths_are_counted_in_characters_or_in_tokens(output: Path, model_cache: str) -> None:
    folder = Folder(f"{output}/mix")
    stages = ["pretrain", "finetune"]
    characters = text_lengths(folder, stages, tokenizer=None)
    tokens = text_lengths(folder, stages, tokenizer=unpack("all-minilm-l6-v2", model_cache))
    assert list(tokens) == ["pretrain queries", "finetune queries", "documents"]
    assert [c.sum() for c in tokens.values()] == [43, 79, 118]
    middle = {name: np.average(EDGES[1:], weights=c) for name, c in characters.items()}
    assert all(np.average(EDGES[1:], weights=c) < middle[name] for name, c in tokens.items())
    with pytest.raises(UserError, match="no tokenizer"):
        text_lengths(folder, stages, tokenizer=f"{output}/mix")


def test_each_rule_of_mining_shows_what_it_took_away() -> None:
    faq = {"queries": 5, "ceiling_share_of_top": 0.25, "caught": {"known_positive": 10}}
    plot = rules_plot("mine", {"faq": faq}, top=20)
    found = {trace["name"]: trace["x"] for trace in plot.figure["data"]}
    assert found == {"ceiling": [0.25], "known positive": [0.1]}


def test_overlap_is_a_share_of_each_source() -> None:
    shared = {"clusters": {"a": 10, "b": 100, "c": 5}, "shared": [["a", "b", 5]]}
    (table,) = overlap_tables({"overlap": {"dedup": {"query": shared}}}, most=10)
    assert table == {"side": "query", "sources": ["a", "b"], "shares": [[0.0, 0.5], [0.05, 0.0]]}


def test_the_command_renders_the_same_page_again(
    output: Path, page: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (output / "mix" / "report.html").unlink()
    assert main(["report", f"{output}/mix"]) == 0
    place = json.loads(capsys.readouterr().out)["report"]
    assert Path(place).read_text() == page


def test_a_mix_without_its_steps_shows_what_it_says_itself(output: Path, tmp_path: Path) -> None:
    shutil.copytree(output / "mix", tmp_path / "downloaded")
    text = " ".join(Page(Path(render_mix(str(tmp_path / "downloaded"))).read_text()).text.split())
    assert "106 pairs in, 85 kept" in text  # from ledger.json
    assert "No decontamination step lies beside this mix" in text
    (tmp_path / "downloaded" / "ledger.json").unlink()
    text = " ".join(Page(Path(render_mix(str(tmp_path / "downloaded"))).read_text()).text.split())
    assert "85 queries in, 82 kept" in text
    assert "106 pairs in" not in text


def test_a_step_folder_is_not_a_mix(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="a finished mix"):
        render_mix(f"{output}/steps/dedup")
    assert main(["report", f"{output}/steps/mine"]) == 2
    assert "found:" in capsys.readouterr().err


def test_what_cleaning_dropped_and_detection_doubts_is_shown():
    facts = {
        "samples": {
            "clean": {"faq": {"url_only": [{"row": "7", "query": "Why?", "text": "www.x"}]}}
        },
        "agreement": {
            "language": {
                "tweets": {
                    "query": {"declared": 9, "checked": 8, "language_agrees": 0.75},
                    "document": {"declared": 9, "checked": 0, "language_agrees": 0.0},
                }
            }
        },
        "confusions": {
            "language": {
                "tweets": [
                    {"side": "query", "declared": "ary_Arab", "detected": "arb_Arab", "texts": 2}
                ]
            }
        },
    }
    (dropped,) = dropped_tables(facts)
    assert dropped["rows"] == [
        {"rule": "url_only", "source": "faq", "query": "Why?", "document": "www.x"}
    ]
    (agreement,) = agreement_tables(facts)
    assert agreement["rows"] == [
        {
            "source": "tweets",
            "side": "query",
            "declared": 9,
            "checked": 8,
            "agrees, %": 75.0,
            "otherwise": {"ary_Arab as arb_Arab": 2},
        }
    ]


def test_what_each_llm_wrote_is_shown_by_kind_and_by_language():
    groups = [("sts", "eng", 10, 4.0), ("sts", "deu", 6, 2.0), ("code", "eng", 4, 0.0)]
    table = [
        {
            "llm": "tiny-llm", "kind": kind, "language": language, "requested": n, "valid": n,
            "kept": n - 1, "prompt_tokens": 9 * n, "output_tokens": 20 * n, "seconds": seconds,
            "gpu_seconds": 0.0, "reasons": {"near_duplicate": 1}, "distinct_2": 0.5,
        }
        for kind, language, n, seconds in groups
    ]  # fmt: skip
    by_kind = summed(table, by=("llm", "kind"))
    facts = gather_facts([])
    facts["llms"], facts["llms_by_language"] = {"synthesize": by_kind}, {"synthesize": table}
    facts["round_trip"] = {"synthesize": {"rows": 20, "judged": 12, "found": 9, "round_trip": 3}}
    whole, languages, groups_shown = llm_tables(facts)
    assert [row["kind"] for row in whole["rows"]] == ["code", "sts"]
    assert [row["tokens_per_second"] for row in whole["rows"]] == [None, 53.3]
    assert [(row["language"], row["requested"]) for row in languages["rows"]] == [
        ("deu", 6), ("eng", 14),
    ]  # fmt: skip
    assert languages["rows"][1]["reasons"] == {"near_duplicate": 2}
    assert [row["requested"] for row in groups_shown["rows"]] == [10, 6, 4]
    assert groups_shown["rows"][0]["distinct_2"] == 0.5
    (checks,) = check_tables(facts)
    assert checks["rows"] == [
        {"step": "synthesize", "rows": 20, "judged": 12, "found": 9, "round_trip": 3}
    ]
