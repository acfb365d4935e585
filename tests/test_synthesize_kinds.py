"""Every kind of request: what it asks, which row its answers make, and each rule that rejects them.

No LLM is needed: drawn requests and answers are literal.
"""

import json
from typing import Any

import pyarrow as pa
import pytest

from datagen.schema import DOCUMENT, PAIR, QUERY, TASKS, UserError, document_id, query_id
from datagen.store import Folder, write_shard
from datagen.synthesize.call import Response
from datagen.synthesize.kinds import KINDS, TASK, TaskKind, check_prompts
from datagen.synthesize.knobs import LENGTHS
from datagen.synthesize.llm import LLM
from datagen.synthesize.parse import parse
from datagen.synthesize.prompts import load_prompt

LARGE = LLM(
    name="Large LLM", model="a/large", licence="MIT", languages=("eng", "deu", "fra"), seed=5,
    max_model_len=8192,
)  # fmt: skip
NILE = "The Nile rises in the highlands of East Africa and ends in a wide delta in Egypt."
CODE = "def lock(self):\n    self._file = open(self._path)\n    fcntl.lockf(self._file, LOCK_EX)"
BEES = (
    "Honey bees dance on the comb. The angle of the dance against the vertical shows the others "
    "where a meadow lies, and its length how far they will have to fly on a sunny day."
)
OWLS = (
    "Owls fly without a sound because soft edges of their feathers break up the air. Mice hear "
    "nothing, and in winter the hunter finds them by ear alone below a thin layer of snow."
)
TEXT_ROWS = (
    {"title": "Rivers", "text": NILE, "language": "eng", "script": "Latn"},
    {"title": None, "text": CODE, "language": "python", "script": "Zyyy"},
    {"title": None, "text": BEES, "language": "eng", "script": "Latn"},
)


def request(kind: str, /, **knobs: Any) -> dict[str, Any]:
    return {"request": f"large-llm/{kind}/7", "turn": 7, "language": "eng", **knobs}


@pytest.fixture
def places(tmp_path) -> dict[str, Any]:
    """Shards of three documents and one query: what a block names."""
    base = {"source": "s", "origin": "public", "task": "retrieval", "cluster": ""}
    rows = [{**base, **row, "doc_id": document_id(row["title"], row["text"])} for row in TEXT_ROWS]
    query = "In which direction do bees fly?"
    queries = [
        {
            **base, "query_id": query_id("retrieval", query), "query": query, "language": "eng",
            "script": "Latn", "positives": [rows[2]["doc_id"]], "given_negatives": [],
            "instruction": "Given a question on animals, retrieve answers.",
        }
    ]  # fmt: skip
    folder = Folder(str(tmp_path))
    shard = write_shard(
        folder, "documents", 0, pa.Table.from_pylist(rows, schema=DOCUMENT), DOCUMENT
    )
    asked = write_shard(folder, "queries", 0, pa.Table.from_pylist(queries, schema=QUERY), QUERY)
    return {"folder": str(tmp_path), "documents": shard.name, "queries": asked.name}


def ask(kind: str, drawn: dict[str, Any], *answers: dict[str, Any], block: Any = None) -> Any:
    """The row that the answers make, or the rule that they break; every call is made for real."""
    asker = (KINDS | {"tasks": TaskKind})[kind](LARGE, {"requests": [drawn], **(block or {})})
    values: list[dict[str, Any]] = []
    for text in answers:
        call = asker.call(drawn, values)
        assert call is not None and call.prompt.messages(call.values, call.turn)
        assert "None" not in call.prompt.messages(call.values, call.turn)[-1]["content"]
        response = Response(text=json.dumps(text), finished=True)
        value, problem = parse(response, call.schema, cut=call.cut)
        if problem:
            return problem
        values.append(value)
    assert asker.call(drawn, values) is None
    found = asker.problem(drawn, values)
    if found is None and kind != "tasks":
        row = asker.row(drawn, values)
        pa.Table.from_pylist([row], schema=PAIR).validate(full=True)
        assert row["source"] == f"synthetic_{kind}" and row["origin"] == "synthetic"
        assert row["task"] in TASKS and row["provenance"]["row"] == drawn["request"]
        return row
    return found or asker.rows(drawn, values)


def prompt_id(*names: str) -> str:
    return "+".join(load_prompt(name).id for name in names)


class TestRetrieval:
    one_call = {
        "row": 0, "code": False, "calls": 1, "document_language": "eng", "type": "question",
        "words": "6 to 10 words", "difficulty": "for a student",
    }  # fmt: skip
    two_calls = {
        "row": 2, "code": False, "calls": 2, "document_language": "eng",
        "personas": ["a beekeeper", "a judge"], "types": ["keywords", "summary"],
        "difficulties": ["for a student"], "lengths": ["short", "long"],
    }  # fmt: skip
    chosen = {
        "persona": "a beekeeper", "type": "keywords", "difficulty": "for a student",
        "length": "long",
    }  # fmt: skip

    def ask(self, places: dict[str, Any], drawn: dict[str, Any], *answers: dict) -> Any:
        drawn = request("retrieval", shard=places["documents"], **drawn)
        return ask("retrieval", drawn, *answers, block={**places, "grounded": True})

    def test_one_call(self, places) -> None:
        row = self.ask(places, self.one_call, {"query": "Where does the  Nile end in Egypt?"})
        assert (row["query"], row["title"], row["text"], row["negatives"]) == (
            "Where does the Nile end in Egypt?",
            "Rivers",
            NILE,
            None,
        )
        assert row["instruction"] == "Given a question, retrieve passages that answer the question."
        assert row["provenance"] == {
            "row": "large-llm/retrieval/7",
            "llm": "Large LLM",
            "llm_licence": "MIT",
            "prompt": prompt_id("doc2query"),
            "seed_document": document_id("Rivers", NILE),
            "sampling": None,
            "seed": 5,
        }

    def test_two_calls_the_first_chooses_who_asks_what(self, places) -> None:
        row = self.ask(
            places, self.two_calls, self.chosen, {"query": "bee dance angle direction of meadows"}
        )
        assert row["query"] == "bee dance angle direction of meadows"
        assert row["instruction"] == "Given keywords, retrieve passages about them."
        assert row["provenance"]["prompt"] == prompt_id("configure", "query")

    def test_the_second_call_is_told_what_was_chosen(self, places) -> None:
        drawn = request("retrieval", shard=places["documents"], **self.two_calls)
        kind = KINDS["retrieval"](LARGE, {**places, "requests": [drawn], "grounded": True})
        first, second = kind.call(drawn, []), kind.call(drawn, [self.chosen])
        assert "- a judge" in first.prompt.messages(first.values, 0)[-1]["content"]
        assert first.schema["properties"]["type"]["enum"] == ["keywords", "summary"]
        asked = second.prompt.messages(second.values, 0)[-1]["content"]
        assert asked.startswith("Person: a beekeeper\nDocument: Honey bees")
        assert "Write only keywords of 5 to 8 words in English, for a student" in asked

    def test_the_query_may_be_in_another_language(self, places) -> None:
        drawn = {**self.one_call, "language": "deu"}
        row = self.ask(places, drawn, {"query": "In welches Land fließt er am Ende?"})
        assert (row["query_language"], row["query_script"]) == ("deu", "Latn")
        assert (row["document_language"], row["document_script"]) == ("eng", "Latn")

    def test_code(self, places) -> None:
        drawn = {**self.one_call, "row": 1, "code": True, "document_language": "python"}
        row = self.ask(places, drawn, {"query": "How do I lock a file exclusively?"})
        assert row["instruction"] == "Given a description, retrieve the code that does it."
        assert row["provenance"]["prompt"] == prompt_id("code2query")
        assert (row["query_language"], row["query_script"]) == ("eng", "Latn")
        assert (row["document_language"], row["document_script"]) == ("python", "Zyyy")
        assert self.ask(places, drawn, {"query": "self._file = open()"}) == "invalid_json"

    @pytest.mark.parametrize(
        ("query", "reason"),
        [
            ("Where does the dance of the bees end?", "unrelated"),
            ("the Nile ends in a wide delta in Egypt", None),
            ("highlands of East Africa and ends in a wide delta", "copies_document"),
            ("Into which sea does the Nile flow?", "copies_example"),
            ("Nile delta", "shorter_than_asked"),
            ("Nile " + "wide delta Egypt end rise highlands East " * 3, "repetitive"),
            ("Sure! Where does the Nile end?", "meta_text"),
            ("I cannot help with the Nile in Egypt.", "refused"),
            ("Query: where does the Nile end?", "template_leak"),
        ],
    )
    def test_rules(self, places, query: str, reason: str | None) -> None:
        found = self.ask(places, self.one_call, {"query": query})
        assert (found if isinstance(found, str) else None) == reason

    def test_a_choice_that_was_not_offered_is_no_answer(self, places) -> None:
        chosen = {**self.chosen, "persona": "a pilot"}
        assert self.ask(places, self.two_calls, chosen) == "invalid_json"


class TestScratch:
    drawn = {
        "task": "Given a question on animals, retrieve reports.", "task_id": "other/tasks/1/0",
        "document_language": "eng", "rarity": "common", "clarity": "clear",
        "difficulty": "for a student", "query_words": "5 to 10 words", "document_words": "40 words",
        "shape": "short_long",
    }  # fmt: skip
    value = {"query": "how do insects share places", "positive": BEES, "hard_negative": OWLS}

    def ask(self, change: dict[str, Any], **knobs: Any) -> Any:
        value = {k: v for k, v in (self.value | change).items() if v is not None}
        return ask("scratch", request("scratch", **(self.drawn | knobs)), value)

    def test_short_query_and_long_documents(self) -> None:
        row = self.ask({})
        assert (row["query"], row["text"]) == ("how do insects share places", BEES)
        assert row["negatives"] == [{"title": None, "text": OWLS}]
        assert row["instruction"] == "Given a question on animals, retrieve reports."
        assert row["provenance"]["prompt"] == prompt_id("short_long")
        assert row["provenance"]["seed_document"] is None

    def test_long_query_and_short_documents(self) -> None:
        row = self.ask(
            {"query": BEES, "positive": "insects show a way", "hard_negative": "insects eat"},
            shape="long_short", query_words="40 words", document_words="3 to 5 words",
        )  # fmt: skip
        assert (row["query"], row["text"]) == (BEES, "insects show a way")

    @pytest.mark.parametrize(
        ("shape", "words", "query", "positive"),
        [
            ("short_short", "3 to 5 words", "still waters run deep", "Quiet people feel strongly."),
            ("long_long", "40 words", BEES, OWLS),
        ],
    )
    def test_texts_of_one_length_have_no_negative(
        self, shape: str, words: str, query: str, positive: str
    ) -> None:
        change = {"query": query, "positive": positive, "hard_negative": None}
        knobs = {"shape": shape, "query_words": words, "document_words": words}
        if shape == "short_short":  # this pair is an example of the prompt
            assert self.ask(change, **knobs) == "copies_example"
            change["query"], change["positive"] = "the early bird wins", "Who comes first is lucky."
        row = self.ask(change, **knobs)
        assert (row["negatives"], row["task"]) == (None, "retrieval")
        change["positive"] = f"{change['query']} again"
        assert self.ask(change, **knobs) == "too_similar"

    def test_the_documents_may_be_in_another_language(self) -> None:
        row = self.ask({}, document_language="deu")
        assert (row["query_language"], row["document_language"]) == ("eng", "deu")

    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            ({"positive": OWLS, "hard_negative": OWLS.upper()}, "same_text"),
            ({"positive": "Bees dance on combs."}, "too_short"),
            ({"query": "insects dance where a meadow lies and its length shows"}, None),
            ({"query": "the others where a meadow lies, and its length"}, "copies_document"),
            ({"positive": "Here is a document about bees. " + BEES}, "meta_text"),
            ({"positive": "Positive: " + BEES}, "template_leak"),
            ({"query": "why does my canary not sing any more"}, "copies_example"),
            ({"hard_negative": "The owl is an owl. " * 9}, "repetitive"),
            ({"query": "bees?"}, "too_short"),
            ({"hard_negative": None}, "invalid_json"),
        ],
    )
    def test_rules(self, change: dict[str, Any], reason: str | None) -> None:
        found = self.ask(change)
        assert (found if isinstance(found, str) else None) == reason


class TestClassification:
    drawn = {
        "task": "Classify a letter by its subject.", "task_id": "other/tasks/3/0",
        "labels": ["traffic", "parks", "noise"], "label": "parks", "words": "5 to 10 words",
        "clarity": "clear",
    }  # fmt: skip
    open = {**drawn, "labels": [], "label": None}

    def ask(self, drawn: dict[str, Any], **value: Any) -> Any:
        return ask("classification", request("classification", **drawn), value)

    def test_a_label_of_the_task(self) -> None:
        row = self.ask(self.drawn, text="The swings by the pond were never repaired.")
        assert (row["text"], row["instruction"]) == ("parks", "Classify a letter by its subject.")
        assert row["negatives"] == [{"title": None, "text": text} for text in ("traffic", "noise")]
        assert row["provenance"]["prompt"] == prompt_id("sample")

    def test_labels_of_the_llm_itself(self) -> None:
        drawn = {**self.open, "language": "deu"}
        row = self.ask(
            drawn,
            text="Nachts um drei probt nebenan die Blaskapelle.",
            label="noise",
            misleading_labels=["traffic", "1st", "noises", "music lessons"],
        )
        assert (row["text"], row["task"]) == ("noise", "classification")
        assert [negative["text"] for negative in row["negatives"]] == ["traffic", "music lessons"]
        assert (row["query_language"], row["document_language"]) == ("deu", "eng")
        assert row["provenance"]["prompt"] == prompt_id("labelled")

    @pytest.mark.parametrize(
        ("text", "label", "misleading", "reason"),
        [
            ("Our parks are full of litter.", "parks", ["lights", "noise"], "label_in_text"),
            ("The swings were never repaired.", "parks", ["parks", "Parks"], "bad_labels"),
            ("The swings were never repaired.", "parks", ["1st", "2nd"], "bad_labels"),
            ("The swings were never repaired.", "parks", ["noise", "traffic"], "copies_example"),
            ("The swings were never repaired.", "parks", ["lights"], "invalid_json"),
            ("swings swing", "parks", ["lights", "noise"], "shorter_than_asked"),
            ("a b " * 20, "parks", ["lights", "noise"], "repetitive"),
            ("Room 12 cannot breathe and his lips are blue!", "parks", ["lights", "x y"],
             "copies_example"),
        ],
    )  # fmt: skip
    def test_rules(self, text: str, label: str, misleading: list[str], reason: str) -> None:
        found = self.ask(self.open, text=text, label=label, misleading_labels=misleading)
        assert found == reason


class TestSts:
    drawn = {
        "document_language": "eng", "subject": "markets on Saturdays",
        "unit": "sentence of 8 to 20 words", "high": 4.5, "low": 2.5, "difficulty": "for a student",
    }  # fmt: skip
    value = {
        "first": "The fishmonger sells his last trout before the church bell strikes noon.",
        "similar": "Before twelve o'clock the fish stall has sold all of its trout.",
        "less_similar": "The fishmonger hears the church bell and thinks of his lunch at home.",
    }

    def ask(self, **change: Any) -> Any:
        return ask("sts", request("sts", **self.drawn), self.value | change)

    def test_the_degree_is_the_score_and_the_less_similar_text_the_negative(self) -> None:
        row = self.ask()
        assert (row["query"], row["text"]) == (self.value["first"], self.value["similar"])
        assert (row["score"], row["task"]) == (4.5, "sts")
        assert [negative["text"] for negative in row["negatives"]] == [self.value["less_similar"]]

    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            ({"similar": value["first"].upper()}, "same_text"),
            ({"similar": "fish and church"}, "shorter_than_asked"),
            ({"less_similar": "Serve a glass of white wine with the golden onion tart."},
             "copies_example"),
            ({"first": "As a language model I buy no trout at a market stall."}, "meta_text"),
            ({"first": ""}, "too_short"),
        ],
    )  # fmt: skip
    def test_rules(self, change: dict[str, Any], reason: str) -> None:
        assert self.ask(**change) == reason


class TestBitext:
    drawn = {
        "document_language": "deu", "subject": "wild birds in winter",
        "unit": "sentence of 8 to 20 words", "flaw": "one number or name is wrong",
        "difficulty": "easy for anyone",
    }  # fmt: skip
    value = {
        "sentence": "Seven cranes stood in the snow behind the station this morning.",
        "translation": "Heute Morgen standen sieben Kraniche hinter dem Bahnhof im Schnee.",
        "flawed_translation": "Heute Morgen standen elf Kraniche hinter dem Bahnhof im Schnee.",
    }

    def ask(self, **change: Any) -> Any:
        return ask("bitext", request("bitext", **self.drawn), self.value | change)

    def test_the_flawed_translation_is_the_negative(self) -> None:
        row = self.ask()
        assert (row["query_language"], row["document_language"]) == ("eng", "deu")
        assert row["text"] == self.value["translation"]
        assert [negative["text"] for negative in row["negatives"]] == [
            self.value["flawed_translation"]
        ]
        assert (row["task"], row["instruction"]) == ("bitext", "Retrieve parallel sentences.")

    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            ({"flawed_translation": value["translation"]}, "same_text"),
            ({"translation": value["sentence"]}, "same_text"),
            ({"translation": "Sieben Kraniche."}, "shorter_than_asked"),
            ({"flawed_translation": "Kraniche."}, None),  # a part of it may be left out
            ({"sentence": "The night train to Vienna leaves at half past nine from track four."},
             "copies_example"),
            ({"translation": "Hier ist die Übersetzung: " + value["translation"]}, "meta_text"),
        ],
    )  # fmt: skip
    def test_rules(self, change: dict[str, Any], reason: str | None) -> None:
        found = self.ask(**change)
        assert (found if isinstance(found, str) else None) == reason


class TestClustering:
    drawn = {
        "task": "Identify the craft from a sentence.", "task_id": "other/tasks/9/0",
        "categories": 2, "category": 1, "positive": "item", "words": "5 to 10 words",
    }  # fmt: skip
    baker = {
        "name": "baker",
        "items": ["The oven is hot at four already.", "Rye needs sour dough to rise."],
    }
    smith = {
        "name": "smith",
        "items": ["Hold the iron while I strike it.", "Sparks fly up to the roof beams."],
    }

    def ask(self, *categories: dict[str, Any], **knobs: Any) -> Any:
        drawn = request("clustering", **(self.drawn | knobs))
        return ask("clustering", drawn, {"categories": list(categories)})

    def test_another_text_of_the_category_is_the_positive(self) -> None:
        row = self.ask(self.baker, self.smith, language="deu")
        assert (row["query"], row["text"]) == tuple(self.smith["items"])
        assert [negative["text"] for negative in row["negatives"]] == self.baker["items"]
        assert (row["task"], row["document_language"]) == ("clustering", "deu")

    def test_or_the_name_of_the_category(self) -> None:
        row = self.ask(self.baker, self.smith, positive="name", language="deu")
        assert (row["query"], row["text"]) == (self.smith["items"][0], "smith")
        assert [negative["text"] for negative in row["negatives"]] == ["baker"]
        assert (row["query_language"], row["document_language"]) == ("deu", "eng")

    @pytest.mark.parametrize(
        ("smith", "reason"),
        [
            ({"name": "craft"}, "bad_labels"),  # the task sentence has it
            ({"name": "bakers"}, "no_negative"),
            ({"items": ["Hold the iron here.", "Hold the iron, here!"]}, "same_text"),
            ({"items": ["Hold the hot iron here.", "Here, hold that iron."]}, "too_similar"),
            ({"items": ["The tap drips all night long.", "Hold the iron."]}, "copies_example"),
            ({"items": ["Hold the iron."]}, "invalid_json"),
            ({"items": ["It is hot.", "iron ore"]}, "too_short"),
        ],
    )
    def test_rules(self, smith: dict[str, Any], reason: str) -> None:
        baker = self.baker if reason == "no_negative" else self.baker | {"name": "the craft"}
        assert self.ask(baker, self.smith | smith) == reason

    def test_where_the_drawn_category_breaks_a_rule_the_next_is_taken(self) -> None:
        row = self.ask(self.baker, self.smith | {"items": ["Hold the iron.", "Hold the iron!"]})
        assert row["query"] == self.baker["items"][0]
        assert [negative["text"] for negative in row["negatives"]] == ["Hold the iron."]

    def test_a_text_that_runs_on_costs_its_category_only(self) -> None:
        long = ("Sparks fly up to the roof beams and down again. " * 9)[:240]
        row = self.ask(self.baker, self.smith | {"items": ["Hold the iron here.", long]})
        assert row["query"] == self.baker["items"][0]
        assert [negative["text"] for negative in row["negatives"]] == ["Hold the iron here."]

    def test_a_text_names_its_category_only_where_the_name_is_not_the_positive(self) -> None:
        smith = {"name": "smith", "items": ["The smith strikes hot iron.", "Hold the iron here."]}
        assert self.ask(self.baker, smith)["query"] == "The smith strikes hot iron."
        baker = self.baker | {"name": "the craft"}
        assert self.ask(baker, smith, positive="name") == "label_in_text"

    def test_texts_of_other_categories_that_break_a_rule_are_no_negatives(self) -> None:
        baker = {"name": "baker", "items": ["dough, dough", self.baker["items"][1]]}
        row = self.ask(baker, self.smith)
        assert [negative["text"] for negative in row["negatives"]] == [self.baker["items"][1]]
        baker["items"][1] = self.smith["items"][0]
        assert self.ask(baker, self.smith) == "no_negative"

    def test_as_many_categories_as_were_drawn(self) -> None:
        assert self.ask(self.baker) == "invalid_json"


class TestTranslation:
    def ask(self, places: dict[str, Any], translation: str) -> Any:
        drawn = request(
            "translation", shard=places["documents"], row=2, query_shard=places["queries"],
            query_row=0, document_language="eng", **{"from": "eng", "language": "deu"},
        )  # fmt: skip
        block = {"folder": places["folder"], "queries": places["folder"]}
        return ask("translation", drawn, {"translation": translation}, block=block)

    def test_the_query_is_translated_and_the_document_stays(self, places) -> None:
        row = self.ask(places, "In welche Richtung fliegen Bienen?")
        assert (row["query"], row["text"]) == ("In welche Richtung fliegen Bienen?", BEES)
        assert (row["query_language"], row["document_language"]) == ("deu", "eng")
        assert row["instruction"] == "Given a question on animals, retrieve answers."
        assert row["provenance"]["seed_document"] == document_id(None, BEES)

    @pytest.mark.parametrize(
        ("translation", "reason"),
        [
            ("In which direction do bees fly", "same_text"),
            ("Warum schnurren Katzen?", "copies_example"),
            ("Wohin fliegen", "shorter_than_asked"),
            ("Bienenflugrichtungsfrage", "shorter_than_asked"),
            ("Als KI kann ich das nicht sagen.", "meta_text"),
        ],
    )
    def test_rules(self, places, translation: str, reason: str) -> None:
        assert self.ask(places, translation) == reason


class TestCode:
    drawn = {
        "programming": "python", "subject": "a timer", "program": "function",
        "difficulty": "for a student",
    }  # fmt: skip
    timer = "def wait(seconds):\n    end = time.monotonic() + seconds\n    return end"

    def ask(self, description: str, code: str, **knobs: Any) -> Any:
        value = {"description": description, "code": code}
        return ask("code", request("code", **(self.drawn | knobs)), value)

    def test_a_description_finds_the_code(self) -> None:
        row = self.ask("compute when a pause will be over", self.timer)
        assert (row["query"], row["text"]) == ("compute when a pause will be over", self.timer)
        assert (row["document_language"], row["document_script"]) == ("python", "Zyyy")
        assert row["instruction"] == "Given a description, retrieve the code that does it."

    @pytest.mark.parametrize(
        ("code", "programming", "reason"),
        [
            ("def wait(seconds:\n    return seconds + 1", "python", "invalid_code"),
            ("function wait(seconds) { return seconds; }", "javascript", None),
            ("```js\nfunction wait(seconds) { return 1; }\n```", "javascript", "template_leak"),
            ("# ==================================", "python", "too_short"),
            ("wait(seconds);\n" * 9, "javascript", "repetitive"),
            (load_prompt("code").examples[0]["output"]["code"], "python", "copies_example"),
        ],
    )
    def test_rules(self, code: str, programming: str, reason: str | None) -> None:
        found = self.ask("compute when a pause will be over", code, programming=programming)
        assert (found if isinstance(found, str) else None) == reason

    def test_public_code_in_another_language_stays_the_positive(self, places) -> None:
        drawn = request(
            "code_translation", shard=places["documents"], row=1, document_language="python",
            programming="go", **{"language": "go"},
        )  # fmt: skip
        code = "func (s *Store) lock() error {\n\treturn syscall.Flock(s.fd, syscall.LOCK_EX)\n}"
        row = ask("code_translation", drawn, {"code": code}, block=places)
        assert (row["query"], row["text"]) == (code, CODE)
        assert (row["query_language"], row["query_script"]) == ("go", "Zyyy")
        assert (row["document_language"], row["document_script"]) == ("python", "Zyyy")
        assert row["provenance"]["seed_document"] == document_id(None, CODE)
        assert ask("code_translation", drawn, {"code": CODE}, block=places) == "same_text"


class TestTasks:
    single = {
        "kind": "classification", "shape": "", "topic": "parking fines", "aspect": "emotion",
        "labels": 2, "tasks": 1, "language": "deu",
    }  # fmt: skip
    several = {
        "kind": "scratch", "shape": "short_long", "topic": "parking fines", "aspect": "problem",
        "labels": 0, "tasks": 3,
    }  # fmt: skip

    def ask(self, drawn: dict[str, Any], **value: Any) -> Any:
        return ask("tasks", request("tasks", **drawn), value, block={"grounded": True})

    def test_one_task_with_labels(self) -> None:
        task = "Identify the emotion in a reply to a parking fine."
        (row,) = self.ask(self.single, task=task, labels=["anger", "shame"])
        pa.Table.from_pylist([row], schema=TASK).validate(full=True)
        assert (row["task_id"], row["instruction"]) == ("large-llm/tasks/7/0", task)
        assert (row["kind"], row["shape"], row["language"]) == ("classification", "", "deu")
        assert (row["labels"], row["prompt"]) == (["anger", "shame"], prompt_id("task"))

    def test_of_a_list_those_that_keep_the_rules(self) -> None:
        tasks = [
            "Given a parking fine, retrieve rules that explain it.",
            "Given a song about rain, retrieve its lyrics.",
            "Given a parking fine, retrieve rules that explain it.",
        ]
        (row,) = self.ask(self.several, tasks=tasks)
        assert (row["task_id"], row["labels"]) == ("large-llm/tasks/7/0", [])
        assert (row["kind"], row["shape"]) == ("scratch", "short_long")
        drawn = request("tasks", **self.several)
        kind = TaskKind(LARGE, {"grounded": True})
        assert kind.reasons(drawn, [{"tasks": tasks}]) == [None, "unrelated", "duplicate"]

    @pytest.mark.parametrize(
        ("drawn", "value", "reason"),
        [
            (single, {"task": "Identify the shame in a parking fine.", "labels": ["awe", "shame"]},
             "bad_labels"),
            (single, {"task": "Identify the emotion in a parking fine.", "labels": ["anger"]},
             "invalid_json"),
            (single, {"task": "Here is a task about parking fines.", "labels": ["anger", "shame"]},
             "invalid_json"),
            (several, {"tasks": ["Find chapters of sailing manuals that answer a question of a "
                                 "beginner."]}, "copies_example"),
            (several, {"tasks": []}, "invalid_json"),
        ],
    )  # fmt: skip
    def test_rules(self, drawn: dict[str, Any], value: dict[str, Any], reason: str) -> None:
        assert self.ask(drawn, **value) == reason


@pytest.mark.parametrize("name", sorted({**KINDS, "tasks": TaskKind}))
def test_prompts_of_a_kind_render_with_what_it_gives(name: str) -> None:
    uses = (KINDS | {"tasks": TaskKind})[name].prompts
    assert [prompt.name for prompt in check_prompts([name])] == sorted(uses)


def test_an_own_prompt_is_checked_before_anything_starts(tmp_path) -> None:
    own = tmp_path / "short.yaml"
    own.write_text("system: s\ninput: '{{ text }} in {{ language }}'\nexamples: []\nshots: 0\n")
    prompts = check_prompts(["retrieval"], {"doc2query": str(own)})
    assert [prompt.name for prompt in prompts] == ["code2query", "configure", "short", "query"]
    own.write_text("system: s\ninput: '{{ txt }}'\nexamples: []\nshots: 0\n")
    load_prompt.cache_clear()
    with pytest.raises(UserError, match="short uses txt"):
        check_prompts(["retrieval"], {"doc2query": str(own)})
    with pytest.raises(UserError, match="own prompts for doc2qery") as caught:
        check_prompts(["retrieval"], {"doc2qery": str(own)})
    assert caught.value.exit_status == 2


def test_an_own_prompt_is_used_and_named_in_the_provenance(tmp_path) -> None:
    own = tmp_path / "mine.yaml"
    own.write_text("system: Speak up.\ninput: '{{ task }}!'\nexamples: []\nshots: 0\n")
    drawn = request("classification", **TestClassification.drawn)
    block = {"prompts": {"sample": str(own)}}
    text = {"text": "The swings by the pond were never repaired."}
    row = ask("classification", drawn, text, block=block)
    assert row["provenance"]["prompt"] == load_prompt(str(own)).id
    assert row["provenance"]["prompt"].startswith("mine@")


def test_schemas_use_only_what_the_sampler_enforces() -> None:
    known = {
        "type", "properties", "required", "additionalProperties", "enum", "pattern", "minLength",
        "maxLength", "items", "minItems", "maxItems",
    }  # fmt: skip
    cases = [
        ("scratch", TestScratch.drawn), ("classification", TestClassification.open),
        ("sts", TestSts.drawn), ("bitext", TestBitext.drawn), ("clustering", TestClustering.drawn),
        ("code", TestCode.drawn), ("tasks", TestTasks.several),
    ]  # fmt: skip
    for name, knobs in cases:
        drawn = request(name, **knobs)
        call = (KINDS | {"tasks": TaskKind})[name](LARGE, {"requests": [drawn]}).call(drawn, [])
        assert {key for schema in nested(call.schema) for key in schema} <= known


def nested(schema: dict[str, Any]) -> list[dict[str, Any]]:
    """A schema and all those within."""
    within = [*schema.get("properties", {}).values()]
    within += [schema["items"]] if "items" in schema else []
    return [schema] + [found for one in within for found in nested(one)]


def test_every_length_is_said_for_every_type_of_query() -> None:
    assert {tuple(lengths) for lengths in LENGTHS.values()} == {("short", "medium", "long")}
