"""Card: metadata that the Hub's own library reads, configs that load, names that stay names."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from huggingface_hub import DatasetCard
from markdown_it import MarkdownIt
from small_mix import HOSTILE, build, rows_of

from datagen.card import hub_licence, write_card
from datagen.escape import markdown
from datagen.report import write_report
from datagen.steps import run_steps

TITLE = 'Small: "mix" <b>\n- injected: true'


@pytest.fixture(scope="module")
def mix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("card")
    dedup, mine, mixed = build(str(folder), *rows_of(hostile=True))
    report = write_report(mixed, steps=[dedup, mine])
    card = write_card(mixed, report, title=TITLE, recipe="demo", command="make demo")
    run_steps([dedup, mine, mixed, report, card], str(folder), executor="local")
    return folder / "mix"


@pytest.fixture(scope="module")
def card(mix: Path) -> str:
    return (mix / "README.md").read_text()


def test_the_hub_library_reads_the_metadata(mix: Path) -> None:
    data = DatasetCard.load(mix / "README.md").data.to_dict()
    assert data["language"] == ["ar", "de", "en", "zh"]
    assert data["license"] == ["apache-2.0", "bsd-3-clause", "cc-by-sa-4.0", "mit", "other"]
    assert data["size_categories"] == ["n<1K"]
    assert "text-retrieval" in data["task_categories"]
    assert {"synthetic", "code"} <= set(data["tags"])
    assert data["pretty_name"] == TITLE
    assert "injected" not in data
    assert [config["config_name"] for config in data["configs"]] == [
        "documents",
        "pretrain",
        "finetune",
    ]


def test_the_datasets_library_loads_each_config(mix: Path, tmp_path: Path) -> None:
    program = (
        "import datasets, json, sys\n"
        "sizes = {name: datasets.load_dataset(sys.argv[1], name, split='train').num_rows\n"
        "         for name in ('documents', 'pretrain', 'finetune')}\n"
        "print(json.dumps(sizes))\n"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    found = subprocess.run(
        [sys.executable, "-c", program, str(mix)],
        env=environment, capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert json.loads(found.stdout) == {"documents": 118, "pretrain": 43, "finetune": 79}


def test_the_lines_of_python_run_as_printed(mix: Path, card: str) -> None:
    (program,) = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    assert len([line for line in program.splitlines() if line]) == 5
    found = subprocess.run(
        [sys.executable, "-c", program], cwd=mix, capture_output=True, text=True, check=True
    )
    assert "document" in found.stdout


def test_names_cannot_become_markup(card: str) -> None:
    body = card.split("---\n", 2)[2]
    rendered = MarkdownIt("gfm-like", {"html": True, "linkify": False}).render(body)
    assert "<b>" not in rendered and "<i>" not in rendered and "<a " not in rendered
    row = "<td>evil|source`&lt;b&gt; [x](javascript:alert(1))</td>"
    assert rendered.count(row) == 2
    assert rendered.count("<table>") == 4
    assert "<li>injected" not in rendered


@pytest.mark.parametrize(
    "name",
    [
        HOSTILE["source"],
        "a | b",
        "*b* _i_ `c`",
        "[x](http://x)",
        "![i](u)",
        "<!-- -->",
        "&lt;",
        "1\n# two",
    ],
)
def test_escaped_text_reads_as_it_was(name: str) -> None:
    rendered = MarkdownIt("commonmark", {"html": True}).render(f"- x {markdown(name)}")
    text = re.sub(r"\s+", " ", name).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    assert rendered == f"<ul>\n<li>x {text}</li>\n</ul>\n"


def test_the_body_says_what_the_mix_is(card: str) -> None:
    assert "| bitext | catalogs | public | 13 | arb, eng | bsd-3-clause |" in card
    assert "| retrieval | questions | synthetic | 13 | eng | apache-2.0 |" in card
    assert "| tiny-llm | apache-2.0 | 27 |" in card
    assert "The licence of each LLM applies to what it wrote" in card
    assert "evaluation tasks were removed: faq-test, news-test." in card
    assert "```\nmake demo\n```" in card and "Recipe demo, fingerprint" in card
    assert not re.search(r"\n\n\n", card)


def test_one_licence_for_the_collection_can_be_given(mix: Path, tmp_path: Path) -> None:
    dedup, mine, mixed = build(str(tmp_path), *rows_of(["trivia"]))
    report = write_report(mixed, steps=[dedup, mine])
    card = write_card(mixed, report, title="One", licence="cc-by-sa-4.0")
    run_steps([dedup, mine, mixed, report, card], str(tmp_path), executor="local")
    text = (tmp_path / "mix" / "README.md").read_text()
    header = yaml.safe_load(text.split("---\n")[1])
    assert header["license"] == "cc-by-sa-4.0"
    assert "synthetic" not in header["tags"]
    assert "No row of this mix was written by an LLM." in text


def test_licences_are_spelled_as_the_hub_does() -> None:
    assert hub_licence("CC-BY-SA-4.0") == "cc-by-sa-4.0"
    assert hub_licence("Apache 2.0") == "apache-2.0"
    assert hub_licence("PSF-2.0") == "other"
    assert hub_licence(None) == "unknown"
