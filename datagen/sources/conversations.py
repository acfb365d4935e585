"""Question-answer pairs out of conversations in YAML, as the package chatterbot-corpus keeps them.

A file holds a list of conversations, a conversation is a list of utterances. Where the file is
named `conversations` each utterance is a turn and its reply the next one; everywhere else the first
is a question and all others are answers to it. One unit is one language folder.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from datagen.schema import UserError, rejected_row
from datagen.sources import SourceRows, cap, check_choice, installed_package, make_pair

# The language folders of the package; hinglish is Hindi in Latin letters.
LANGUAGES = {
    "bengali": "ben_Beng", "chinese": "zho_Hans", "dutch": "nld_Latn", "english": "eng_Latn",
    "french": "fra_Latn", "german": "deu_Latn", "hebrew": "heb_Hebr", "hindi": "hin_Deva",
    "hinglish": "hin_Latn", "indonesian": "ind_Latn", "italian": "ita_Latn",
    "japanese": "jpn_Jpan", "korean": "kor_Hang", "marathi": "mar_Deva", "oriya": "ory_Orya",
    "persian": "pes_Arab", "portuguese": "por_Latn", "russian": "rus_Cyrl", "spanish": "spa_Latn",
    "swedish": "swe_Latn", "tamil": "tam_Taml", "telugu": "tel_Telu", "thai": "tha_Thai",
    "traditionalchinese": "zho_Hant", "turkish": "tur_Latn", "ukrainian": "ukr_Cyrl",
    "urdu": "urd_Arab", "yoruba": "yor_Latn",
}  # fmt: skip
TURNS = "conversations"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConversationsSource:
    """The conversations (`<language>/*.yml`) of an installed package."""

    name: str = "chatterbot"
    package: str = "chatterbot-corpus"
    folder: str = "chatterbot_corpus/data"  # below site-packages
    licence: str = "BSD-3-Clause"
    instruction: str = "Given a question, retrieve its answer."
    languages: tuple[str, ...] = ()  # folder names; all, unless given
    max_pairs_per_language: int | None = None

    def config(self) -> dict[str, Any]:
        version, _ = installed_package(self.package, self.folder)
        return {"kind": "conversations", **dataclasses.asdict(self), "version": version}

    def plan(self) -> list[dict[str, Any]]:
        _, root = installed_package(self.package, self.folder)
        found = {path.parent.name for path in root.glob("*/*.yml")}
        languages = sorted(self.languages or found)
        for language in languages:
            check_choice(language, found & LANGUAGES.keys(), what="language folder")
        return [{**self.config(), "source": self.name, "language": name} for name in languages]


def read(unit: dict[str, Any]) -> SourceRows:
    """The pairs of one language folder."""
    _, root = installed_package(unit["package"], unit["folder"])
    rows = SourceRows()
    for path in sorted((root / unit["language"]).glob("*.yml")):
        for number, utterances in enumerate(_conversations(path)):
            row = f"{unit['language']}/{path.name}#{number}"
            _read_conversation(unit, utterances, turns=path.stem == TURNS, row=row, rows=rows)
    rows.pairs, cut = cap(rows.pairs, unit["max_pairs_per_language"])
    rows.dropped.update({"over_source_cap": cut} if cut else {})
    return rows


def _conversations(path: Path) -> list[Any]:
    try:
        content = yaml.safe_load(path.read_bytes())
        return list(content["conversations"])
    except (OSError, yaml.YAMLError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise UserError(
            found=f"{path} cannot be read: {error}",
            expected="YAML with a list `conversations`",
            do="install the package again",
        ) from error


def _read_conversation(
    unit: dict[str, Any], utterances: Any, *, turns: bool, row: str, rows: SourceRows
) -> None:
    if not isinstance(utterances, list) or len(utterances) < 2:
        rows.rows_in += 1
        record = {"source": unit["source"], "provenance": {"row": row}, "conversation": utterances}
        rows.quarantined.append(rejected_row(record, reason="not_a_conversation"))
        return
    for turn, (query, text) in enumerate(_exchanges(utterances, turns=turns)):
        rows.rows_in += 1
        tag = LANGUAGES[unit["language"]]
        rows.pairs.append(
            make_pair(
                unit["source"],
                "retrieval",
                query=query,
                text=text,
                row=f"{row}.{turn}",
                query_tag=tag,
                document_tag=tag,
                instruction=unit["instruction"],
                licence=unit["licence"],
            )
        )


def _exchanges(utterances: list[Any], *, turns: bool) -> Iterator[tuple[Any, Any]]:
    answers = utterances[1:]
    queries = utterances[:-1] if turns else [utterances[0]] * len(answers)
    return zip(queries, answers, strict=True)
