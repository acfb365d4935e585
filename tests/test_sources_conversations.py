"""Question-answer pairs from the conversations of an installed package."""

from collections import Counter
from pathlib import Path

import pytest

from datagen.schema import UserError
from datagen.sources import SourceRows, conversations
from datagen.sources.conversations import LANGUAGES, ConversationsSource

UNIT = {"source": "c", "language": "german", "instruction": "i", "licence": "l"}


def _pairs(utterances: object, *, turns: bool) -> SourceRows:
    rows = SourceRows()
    conversations._read_conversation(UNIT, utterances, turns=turns, row="f#0", rows=rows)
    return rows


def test_a_question_and_its_answers() -> None:
    rows = _pairs(["Wie alt bist du?", "Jung.", "Zwei."], turns=False)
    assert [(p["query"], p["text"], p["provenance"]["row"]) for p in rows.pairs] == [
        ("Wie alt bist du?", "Jung.", "f#0.0"),
        ("Wie alt bist du?", "Zwei.", "f#0.1"),
    ]
    assert rows.pairs[0]["query_language"] == "deu"


def test_turns_answer_each_other() -> None:
    rows = _pairs(["Hallo", "Hallo!", "Wie geht es?"], turns=True)
    assert [(p["query"], p["text"]) for p in rows.pairs] == [
        ("Hallo", "Hallo!"),
        ("Hallo!", "Wie geht es?"),
    ]


@pytest.mark.parametrize("broken", ["a text that lost its list", ["alone"], None])
def test_what_is_no_conversation_is_quarantined(broken: object) -> None:
    rows = _pairs(broken, turns=False)
    assert (rows.rows_in, rows.pairs) == (1, [])
    assert rows.quarantined[0]["reason"] == "not_a_conversation"


def test_every_language_of_the_package() -> None:
    units = ConversationsSource().plan()
    assert [unit["language"] for unit in units] == sorted(LANGUAGES)
    parts = [conversations.read(unit) for unit in units]
    for part in parts:
        assert part.rows_in == len(part.pairs) + len(part.quarantined)
    pairs = [pair for part in parts for pair in part.pairs]
    tags = Counter(f"{p['document_language']}_{p['document_script']}" for p in pairs)
    assert len(tags) == 28
    assert {"zho_Hant", "zho_Hans", "hin_Latn", "ory_Orya"} <= tags.keys()
    assert len(pairs) > 11_000


def test_the_cap_is_counted() -> None:
    (unit,) = ConversationsSource(languages=("german",), max_pairs_per_language=10).plan()
    rows = conversations.read(unit)
    assert len(rows.pairs) == 10
    assert rows.rows_in == 10 + rows.dropped["over_source_cap"]


def test_a_broken_file_is_the_users_to_mend(tmp_path: Path) -> None:
    path = tmp_path / "x.yml"
    path.write_text("conversations: [unclosed")
    with pytest.raises(UserError, match="x.yml"):
        conversations._conversations(path)
