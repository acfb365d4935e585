"""Rules that generated texts are held to, each with examples it takes and leaves."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datagen.synthesize.rules import (
    copies,
    distinct_problem,
    document_problem,
    label_in_text,
    labels_problem,
    length_problem,
    other_labels,
    query_problem,
    related,
    sample_problem,
    similar_problem,
    task_problem,
    text_problem,
    words_in,
)

BEES = "Honey bees dance on the comb; the angle of the dance tells the direction of a meadow."
CODE = "def read_unicodestring4(f):\n    n = read_uint4(f)\n    return str(f.read(n), 'utf-8')"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("How do bees tell where a meadow is?", None),
        ("bees!", "too_short"),
        ("???!!!???", "too_short"),
        ("蜜蜂跳舞", None),
        ("bee " * 100, "too_long"),
        ("As an AI, I have no opinion on bees.", "meta_text"),
        ("Here is a question about bees.", "meta_text"),
        ("What does the document say of bees?", "meta_text"),
        ("What is this passage about?", "meta_text"),
        ("I'm sorry, but I have nothing to say.", "refused"),
        ("I cannot help with bees today.", "refused"),
        ("A question of 6 to 10 words", "template_leak"),
        ("Query: how do bees dance", "template_leak"),
        ("Dear [your name], bees dance.", "template_leak"),
        ("Ask {{ text }} of the bees", "template_leak"),
        ("A flower is a flower that is a flower that is a flower", "repetitive"),
        ("debug message, debug message, debug message", "repetitive"),
    ],
)
def test_no_text_speaks_of_its_making(text: str, reason: str | None) -> None:
    assert text_problem(text) == reason


@pytest.mark.parametrize(
    ("query", "document", "reason"),
    [
        ("In which direction is the meadow?", BEES, None),
        ("bee dance direction", BEES, None),
        ("the angle of the dance tells the direction", BEES, "copies_document"),
        ("How do I sort the files of a folder?", BEES, "unrelated"),
        ("Into which sea does the Nile flow?", BEES, "copies_example"),
        ("decode a unicode string from a file", CODE, None),
        ("remove duplicates from a list of tuples", CODE, "unrelated"),
    ],
)
def test_a_query_is_about_its_document(query: str, document: str, reason: str | None) -> None:
    examples = '[{"query": "Into which sea does the Nile flow?"}]'
    assert query_problem(query, document, examples=examples, grounded=True) == reason


def test_a_large_llm_may_find_other_words_than_the_document() -> None:
    found = query_problem("insect navigation by waggling", BEES, examples="", grounded=False)
    assert found is None


def test_relation_looks_into_identifiers_and_into_scripts_without_blanks() -> None:
    assert related("parse the headers", "def parseHTTPHeaders(lines): ...")
    assert related("unicode string length", "read_unicodestring4")
    assert related("蜜蜂为什么跳舞", "蜜蜂在蜂巢上跳舞")
    assert not related("蜜蜂为什么跳舞", "图书馆星期天关门")
    assert not related("what is it?", "what is it?")  # no content word at all


def test_keywords_may_be_taken_from_the_document_but_sentences_may_not() -> None:
    assert not copies("hairy cell leukemia", "Signs of hairy cell leukemia include weakness.")
    assert copies(
        "signs of hairy cell leukemia include", "Signs of hairy cell leukemia include it."
    )
    long = "whether the signs of hairy cell leukemia include weakness and fever at night"
    assert copies(long, "The signs of hairy cell leukemia include weakness and fever in children.")


@pytest.mark.parametrize(
    ("text", "label", "reason"),
    [
        ("The benches by the pond are broken again.", "parks", None),
        ("Our parks are full of broken benches.", "parks", "label_in_text"),
        ("All Parks close at nine in the evening.", "parks", "label_in_text"),
        ("He parksides with nobody at the council.", "parks", None),
        ("We waited an hour for the key.", "displeased", "copies_example"),
    ],
)
def test_a_sample_does_not_name_its_label(text: str, label: str, reason: str | None) -> None:
    assert sample_problem(text, label, examples="We waited an hour for the key.") == reason


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        (["traffic", "parks", "lost property"], None),
        (["traffic"], "bad_labels"),
        (["traffic", "traffic"], "bad_labels"),
        (["travel", "travel related"], "bad_labels"),
        (["concerned", "concerning"], "bad_labels"),
        (["1st", "2nd"], "bad_labels"),
        (["news of the", "other"], "bad_labels"),
        (["good", "chicken, lamb, pasta"], "bad_labels"),
        (["gut", "schlecht"], None),
    ],
)
def test_labels_are_different_short_phrases(labels: list[str], reason: str | None) -> None:
    assert labels_problem(labels) == reason


def test_labels_that_can_stand_beside_another() -> None:
    assert other_labels("noise", ["traffic", "noises", "1st", "traffic", "parks"]) == [
        "traffic",
        "parks",
    ]
    assert other_labels("1st", ["traffic"]) == []


@pytest.mark.parametrize(
    ("task", "labels", "reason"),
    [
        ("Identify the emotion in a political speech.", ["anger", "hope"], None),
        ("Determine the subject of a speech.", ["speech", "music"], "bad_labels"),
        ("Identify the kind of diary entry.", ["anger", "hope"], "unrelated"),
        ("Name the sport of a speech.", ["tennis", "golf"], "copies_example"),
    ],
)
def test_a_task_is_about_its_topic_and_new(
    task: str, labels: list[str], reason: str | None
) -> None:
    examples = '[{"task": "Name the sport.", "labels": ["golf", "tennis", "chess"]}]'
    assert task_problem(task, labels, topic="political speeches", examples=examples) == reason


@given(st.text(max_size=80), st.text(max_size=80))
def test_rules_take_any_text(text: str, document: str) -> None:
    problem = query_problem(text, document, examples="[]", grounded=False)
    assert problem != "copies_example"
    assert problem is not None or len(text) >= 4


@given(st.from_regex(r"[a-z]{2,9}( [a-z]{2,9}){0,2}", fullmatch=True))
def test_a_label_is_found_wherever_it_stands(label: str) -> None:
    assert all(label_in_text(label, text) for text in (label, f"So {label}.", f"{label.upper()}!"))


@pytest.mark.parametrize(
    "text",
    [
        "As an AI, I cannot smell flowers.",
        "Sure! bees dance on the comb",
        "Certainly, the bees dance.",
        "Here's your query about bees",
        "Als KI habe ich keine Meinung zu Bienen.",
        "Hier ist eine Frage zu Bienen",
        "Gerne! Warum tanzen Bienen?",
        "Voici une question sur les abeilles",
        "En tant qu'IA, je ne danse pas.",
        "Aquí tienes una pregunta sobre abejas",
        "Claro, las abejas bailan.",
        "Como modelo de linguagem, não danço.",
        "Ecco la domanda sulle api",
        "Natuurlijk! waarom dansen bijen?",
        "Oto pytanie o pszczołach: dlaczego tańczą",
        "Вот вопрос о пчёлах: почему они танцуют",
        "以下是关于蜜蜂的问题",
        "作为一个AI，我不会跳舞。",
        "もちろん、蜂は踊ります。",
        "다음은 벌에 관한 질문입니다",
        "بالطبع، النحل يرقص",
        "Berikut adalah pertanyaan tentang lebah",
    ],
)
def test_meta_text_is_known_in_many_languages(text: str) -> None:
    assert text_problem(text) == "meta_text"
    assert document_problem(text, maximum=300) == "meta_text"


@pytest.mark.parametrize(
    "text",
    [
        "Sure signs of a swarm in May",
        "Claro de luna sobre el lago",
        "Is the language of bees a dance?",
        "Ecco perché le api danzano in cerchio",
        "Вот почему пчёлы танцуют",
        "Hier ist es kalt geworden",
        "Klar und kalt war die Nacht am See",
    ],
)
def test_sentences_that_only_begin_alike_stay(text: str) -> None:
    assert text_problem(text) is None


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't help with that.",
        "Lo siento, pero no puedo ayudar con eso.",
        "Es tut mir leid, das kann ich nicht.",
        "Désolé, je ne peux pas répondre.",
        "抱歉，我无法回答这个问题。",
    ],
)
def test_a_refusal_is_no_text(text: str) -> None:
    assert text_problem(text) == "refused"
    assert document_problem(text, maximum=300) == "refused"


@pytest.mark.parametrize(
    ("text", "asked", "reason"),
    [
        ("How do bees tell where a meadow is?", "6 to 10 words", None),
        ("How do bees tell where a meadow is?", "4 to 7 words", None),  # a factor of two is given
        ("bees", "4 to 7 words", "shorter_than_asked"),
        ("one two three four five six seven eight nine", "2 to 4 words", "longer_than_asked"),
        ("word " * 60, "100 words", None),
        ("word " * 40, "100 words", "shorter_than_asked"),
        ("蜜蜂怎样告诉同伴草地在哪里", "6 to 10 words", None),
        ("蜜蜂", "6 to 10 words", "shorter_than_asked"),
        ("蜜蜂" * 30, "6 to 10 words", "longer_than_asked"),
        ("ミツバチはなぜ踊るのですか", "3 to 5 words", None),
        ("ผึ้งบอกทางไปทุ่งหญ้าอย่างไร", "4 to 8 words", None),
    ],
)
def test_a_text_is_about_as_long_as_was_asked(text: str, asked: str, reason: str | None) -> None:
    assert length_problem(text, asked) == reason


def test_scripts_without_blanks_are_counted_by_characters() -> None:
    assert words_in("bees dance on the comb") == 5
    assert words_in("我喜欢蜜蜂 very much") == pytest.approx(5 / 1.7 + 2)
    assert words_in("") == 0


def test_copies_are_seen_where_there_are_no_blanks() -> None:
    document = "蜜蜂在蜂巢上跳舞，舞蹈与垂直线的角度告诉其他蜜蜂草地的方向。"
    assert copies("舞蹈与垂直线的角度告诉其他蜜蜂草地的方向", document)
    assert not copies("蜜蜂怎样告诉同伴草地在哪里", document)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Sign the document, put it into the {blue} box <b>and</b> go. " + BEES, None),
        ("Dear editor, I'm sorry that I am late. " + BEES, None),
        ("Positive: " + BEES, "template_leak"),
        ("<|im_start|>assistant " + BEES, "template_leak"),
        ("Here is a document about bees. " + BEES, "meta_text"),
        ("bees!", "too_short"),
        ("word " * 100, "repetitive"),
        (BEES * 5, "repetitive"),
        ("x" * 700, "too_long"),
    ],
)
def test_a_document_may_do_what_a_query_may_not(text: str, reason: str | None) -> None:
    assert document_problem(text, maximum=600) == reason


def test_texts_of_one_row_differ_and_pairs_do_not_repeat_each_other() -> None:
    assert distinct_problem("Bees dance.", "bees dance", "Owls fly.") == "same_text"
    assert distinct_problem("Bees dance.", "Owls fly.") is None
    assert distinct_problem("{", "}") is None  # without words they are compared as they are
    assert similar_problem("the dance of honey bees", "honey bees dance") == "too_similar"
    assert similar_problem("still waters run deep", "Quiet people feel strongly.") is None
