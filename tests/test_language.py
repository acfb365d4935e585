"""Language and script of texts: the detectors, the step and the command."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datagen.codes import ISO_639_3, script_shares, standard_language, standard_tag
from datagen.detectors import BACKENDS, detector
from datagen.ingest import ingest
from datagen.language import detect_language, tag_language
from datagen.language_files import tag_files
from datagen.schema import UserError
from datagen.sources.files import FilesSource
from datagen.steps import run_steps
from datagen.store import Folder, read_table

SENTENCES = {
    "eng_Latn": "The quick brown fox jumps over the lazy dog, and nobody knows why it does that.",
    "deu_Latn": "Der schnelle braune Fuchs springt über den faulen Hund, und niemand weiß warum.",
    "fra_Latn": "Le renard brun saute par-dessus le chien paresseux, et personne ne sait pourquoi.",
    "rus_Cyrl": "Быстрая коричневая лиса прыгает через ленивую собаку, и никто не знает почему.",
    "jpn_Jpan": "素早い茶色の狐がのろまな犬を飛び越えるが、その理由は誰も知らない。",
    "zho_Hans": "敏捷的棕色狐狸跳过了懒狗，没有人知道这是为什么。",
    "zho_Hant": "敏捷的棕色狐狸跳過了懶狗，沒有人知道這是為什麼。",
    "kor_Hang": "빠른 갈색 여우가 게으른 개를 뛰어넘지만 왜 그러는지는 아무도 모른다.",
    "arb_Arab": "يقفز الثعلب البني السريع فوق الكلب الكسول ولا أحد يعرف لماذا يفعل ذلك.",
    "hin_Deva": "तेज़ भूरी लोमड़ी आलसी कुत्ते के ऊपर से कूदती है और कोई नहीं जानता कि क्यों।",
    "tam_Taml": "வேகமான பழுப்பு நரி சோம்பேறி நாயின் மீது தாவுகிறது.",
    "vie_Latn": "Con cáo nâu nhanh nhẹn nhảy qua con chó lười biếng, và không ai biết tại sao.",
}


def _skip_unless_installed(backend: str) -> None:
    try:
        detector(backend)
    except UserError as error:
        pytest.skip(error.found)


@pytest.mark.parametrize("backend", sorted(BACKENDS))
@pytest.mark.parametrize("tag", sorted(SENTENCES))
def test_every_backend_knows_large_languages(backend: str, tag: str) -> None:
    _skip_unless_installed(backend)
    found, score = detect_language(SENTENCES[tag], backend)
    assert found == tag
    # The score of heliport is a margin between two languages, not a probability.
    assert (0 if backend == "heliport" else 0.3) < score <= 1


@pytest.mark.parametrize("text", ["", "12 + 7 = 19", "🙂 …", "https://example.org/page"])
def test_a_text_without_letters_has_no_language(text: str) -> None:
    assert detect_language(text) == ("und_Zyyy", 0.0)


def test_a_script_of_one_language_decides() -> None:
    assert detect_language("ᱥᱟᱱᱛᱟᱲᱤ ᱯᱟᱹᱨᱥᱤ") == ("sat_Olck", 1.0)  # no backend knows Santali
    assert (
        detect_language("Հայերեն լեզու", "langdetect")[0] == "hye_Armn"
    )  # nor langdetect Armenian


def test_scripts_are_counted_from_letters() -> None:
    assert script_shares("abc жя 123 !") == {"Latn": 0.6, "Cyrl": 0.4}
    assert script_shares("東京タワーに行く") == {"Jpan": 1.0}
    assert script_shares("서울 特別市") == {"Hang": 1.0}
    assert script_shares("漢語") == {"Hant": 1.0}
    assert script_shares("汉语") == {"Hans": 1.0}
    assert script_shares("人") == {"Hans": 1.0}  # the same in both
    assert script_shares("123") == {}


def test_codes_are_of_one_style() -> None:
    assert [standard_language(c) for c in ("de", "zh", "ar", "ara", "no", "deu", "python")] == [
        "deu", "zho", "arb", "arb", "nob", "deu", "python",
    ]  # fmt: skip
    assert [standard_tag(t) for t in ("pt-BR", "zh_Hant", "deu_Latn", "sr-Latn-RS", "code")] == [
        "por", "zho_Hant", "deu_Latn", "srp_Latn", "code_Zyyy",
    ]  # fmt: skip
    assert len(ISO_639_3) >= 184


def test_langdetect_is_the_same_every_time() -> None:
    found = {detect_language("bonjour hello hallo", "langdetect") for _ in range(10)}
    assert len(found) == 1


def test_an_unknown_backend_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="fasttext, heliport, langdetect, py3langid") as raised:
        tag_files([str(tmp_path)], str(tmp_path / "out"), backend="oracle")
    assert raised.value.exit_status == 2


def test_real_sentences(shared_data: Path) -> None:
    """FLORES sentences of 40 languages the default backend knows: nearly all are right."""
    table = pq.read_table(shared_data / "langid" / "flores_sib200_train.parquet")
    wanted = {
        "eng_Latn", "deu_Latn", "fra_Latn", "spa_Latn", "ita_Latn", "por_Latn", "nld_Latn",
        "pol_Latn", "ces_Latn", "rus_Cyrl", "ukr_Cyrl", "bul_Cyrl", "ell_Grek", "heb_Hebr",
        "pes_Arab", "urd_Arab", "ben_Beng", "tam_Taml", "tel_Telu", "tha_Thai", "kor_Hang",
        "jpn_Jpan", "zho_Hans", "vie_Latn", "tur_Latn", "fin_Latn", "hun_Latn", "swe_Latn",
        "ron_Latn", "lit_Latn", "lvs_Latn", "est_Latn", "kat_Geor", "hye_Armn", "amh_Ethi",
        "khm_Khmr", "mya_Mymr", "sin_Sinh", "mar_Deva", "eus_Latn",
    }  # fmt: skip
    rows = [row for row in table.to_pylist() if row["language"] in wanted][::4]
    right = sum(detect_language(row["text"])[0] == row["language"] for row in rows)
    assert right / len(rows) > 0.97


@pytest.fixture
def tagged(tmp_path: Path) -> tuple[list[dict], dict]:
    rows = [
        {"q": SENTENCES["deu_Latn"], "d": SENTENCES["fra_Latn"], "ql": "deu_Latn", "dl": None},
        {"q": SENTENCES["eng_Latn"], "d": SENTENCES["eng_Latn"][:30], "ql": "deu", "dl": "eng"},
        {"q": "read the whole file", "d": "open(path).read()", "ql": None, "dl": "python_Zyyy"},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    columns = {"query": "q", "text": "d", "query_language": "ql", "document_language": "dl"}
    source = FilesSource(name="s", paths=(str(path),), task="retrieval", columns=columns)
    first = ingest(source)
    manifests = run_steps([first, tag_language(first)], str(tmp_path / "out"), executor="local")
    pairs = read_table(Folder(str(tmp_path / "out" / "steps" / "language")), "pairs").to_pylist()
    return pairs, manifests["language"].stats


def test_what_is_declared_stays_and_what_is_open_is_filled(tagged: tuple[list[dict], dict]) -> None:
    translated, wrong, code = tagged[0]
    assert (translated["query_detected"], translated["document_detected"]) == (
        "deu_Latn",
        "fra_Latn",
    )
    assert (translated["document_language"], translated["document_script"]) == ("fra", "Latn")
    assert (wrong["query_language"], wrong["query_script"]) == ("deu", "Latn")
    assert wrong["query_detected"] == "eng_Latn"
    assert (code["document_language"], code["document_script"]) == ("python", "Zyyy")
    assert code["document_detected"] is None and code["query_language"] == "eng"


def test_agreement_is_recorded_for_each_source(tagged: tuple[list[dict], dict]) -> None:
    _, stats = tagged
    assert stats["agreement"]["s"]["query"] == {
        "declared": 2, "checked": 2, "language_agrees": 0.5, "script_agrees": 1.0,
    }  # fmt: skip
    assert stats["detector"] == "embedmix 1"
    assert stats["confusions"] == {
        "s": [{"side": "query", "declared": "deu_Latn", "detected": "eng_Latn", "texts": 1}]
    }
    assert stats["cross_lingual"] == {"s": 2}  # declared deu beside eng; the code is not counted


def test_the_command_adds_columns_to_the_input(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    rows = [
        {"id": 1, "text": SENTENCES["deu_Latn"]},
        {"id": 2, "text": None},
        {"id": 3, "text": "7"},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + "{broken\n")
    summary = tag_files([str(path)], str(tmp_path / "out"))
    table = pq.read_table(tmp_path / "out" / "rows.parquet")
    assert table.column_names == ["id", "text", "detected_language", "detected_score", "detector"]
    assert table["detected_language"].to_pylist() == ["deu_Latn", None, "und_Zyyy"]
    assert all(0 <= score <= 1 for score in table["detected_score"].drop_null().to_pylist())
    quarantine = pq.read_table(tmp_path / "out" / "quarantine.parquet").to_pylist()
    assert [row["row"] for row in quarantine] == ["in.jsonl:4"]
    assert (summary["rows"], summary["quarantined"]) == (3, 1)
    again = tag_files([str(tmp_path / "out" / "rows.parquet")], str(tmp_path / "again"))
    assert pq.read_table(tmp_path / "again" / "rows.parquet").equals(table)
    assert not (tmp_path / "again" / "quarantine.parquet").exists()
    assert again["languages"] == {"deu_Latn": 1, "und_Zyyy": 1}


@pytest.mark.parametrize(
    ("table", "found"),
    [
        (pa.table({"body": ["a"]}), "body"),
        (pa.table({"text": [1]}), "int64"),
    ],
)
def test_a_text_column_that_is_not_there(tmp_path: Path, table: pa.Table, found: str) -> None:
    pq.write_table(table, tmp_path / "x.parquet")
    with pytest.raises(UserError, match="--text-column") as raised:
        tag_files([str(tmp_path / "x.parquet")], str(tmp_path / "out"))
    assert found in raised.value.found
    assert not (tmp_path / "out").exists()
