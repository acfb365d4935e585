"""Which LLM is asked what: requests drawn by seeded hashes from documents and tasks.

A request is a JSON dict: its id, what the prompt needs, and where its document is. Drawing reads
only the columns it needs and depends on nothing but ids and the seed, so requests are the same on
any cluster and in any order of the input.
"""

import hashlib
import heapq
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from datagen.store import Folder, open_shard
from datagen.synthesize.llm import LLM

MINIMUM_DOCUMENT_CHARACTERS = 80
CODE_SCRIPT = "Zyyy"  # what code is tagged with

QUERY_TYPES = ("question", "keywords", "statement")  # what each means is up to the prompt
QUERY_WORDS = ("4 to 7 words", "6 to 10 words", "8 to 14 words")
DIFFICULTIES = ("easy for anyone", "for a student", "for an expert")
TEXT_WORDS = ("5 to 10 words", "10 to 20 words", "20 to 30 words")
ASPECTS = ("subject", "opinion", "intent", "urgency", "emotion", "kind", "audience", "problem")
TOPICS = (
    "customer support messages", "film reviews", "homework questions", "weather reports",
    "cooking recipes", "news headlines", "product reviews", "travel stories", "medical questions",
    "programming questions", "job advertisements", "messages between friends", "science articles",
    "complaints about trains", "song lyrics", "letters from lawyers", "advice on pets",
    "gardening tips", "comments of museum visitors", "bank transfers", "sports commentary",
    "restaurant orders", "emergency calls", "holiday bookings", "book summaries", "phone contracts",
    "insurance claims", "exam answers", "birthday cards", "house advertisements", "diary entries",
    "software bug reports", "invitations", "political speeches", "parking fines", "music reviews",
)  # fmt: skip


def draw(key: str, choices: Sequence[Any]) -> Any:
    """One of the choices, decided by the key alone."""
    return choices[_number(key) % len(choices)]


def _number(key: str) -> int:
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big")


def seed_documents(
    folder: Folder,
    shards: Sequence[str],
    llms: Sequence[LLM],
    *,
    counts: Sequence[int],
    seed: int,
    minimum_characters: int = MINIMUM_DOCUMENT_CHARACTERS,
) -> list[list[dict[str, Any]]]:
    """For every LLM the places (shard, row) of the documents that it is given.

    Of the public retrieval documents in its languages an LLM takes those with the lowest hash; the
    hash is its own, so large collections are shared out and small ones are read by all. Places come
    in order: a unit then reads one shard, or few.
    """
    chosen: list[list[tuple[int, int, int, str]]] = [[] for _ in llms]
    for number, shard in enumerate(shards):
        documents = list(_eligible(open_shard(folder, shard), minimum_characters))
        for own, llm, count in zip(chosen, llms, counts, strict=True):
            own += [
                (_number(f"{seed}/{llm.slug}/{doc_id}"), number, row, language)
                for row, doc_id, language in documents
                if language in llm.languages
            ]
            own[:] = heapq.nsmallest(count, own)
    return [
        [
            {"shard": shards[number], "row": row, "language": language}
            for _, number, row, language in sorted(own, key=lambda entry: entry[1:3])
        ]
        for own in chosen
    ]


def _eligible(documents: pa.Table, minimum_characters: int) -> Iterator[tuple[int, str, str]]:
    """Row, id and query language of the documents to ask about; about code one asks in English."""
    long_enough = pc.greater_equal(pc.utf8_length(documents["text"]), minimum_characters)
    public = pc.and_(
        pc.equal(documents["origin"], "public"), pc.equal(documents["task"], "retrieval")
    )
    rows = pc.indices_nonzero(pc.and_(public, long_enough)).to_pylist()
    columns = documents.select(["doc_id", "language", "script"]).take(rows).to_pydict()
    for row, doc_id, language, script in zip(rows, *columns.values(), strict=True):
        yield row, doc_id, "eng" if script == CODE_SCRIPT else language


def retrieval_requests(
    llm: LLM, places: Sequence[Mapping[str, Any]], *, seed: int
) -> list[dict[str, Any]]:
    """One request a document: type, length and difficulty drawn apart from each other."""
    requests = []
    for i, place in enumerate(places):
        name = f"{llm.slug}/retrieval/{i}"
        knobs = {
            "type": draw(f"{seed}/{name}/type", QUERY_TYPES),
            "words": draw(f"{seed}/{name}/words", QUERY_WORDS),
            "difficulty": draw(f"{seed}/{name}/difficulty", DIFFICULTIES),
        }
        requests.append({"request": name, "turn": i, **place, **knobs})
    return requests


def sample_requests(
    llm: LLM, tasks: Sequence[Mapping[str, Any]], *, count: int, seed: int
) -> list[dict[str, Any]]:
    """Texts for tasks in turn; the label and the length are drawn."""
    requests = []
    for i in range(count if tasks else 0):
        name = f"{llm.slug}/classification/{i}"
        key, task = f"{seed}/{name}", tasks[i % len(tasks)]
        requests.append(
            {
                "request": name,
                "turn": i,
                "task": task["instruction"],
                "task_id": task["task_id"],
                "labels": task["labels"],
                "label": draw(f"{key}/label", task["labels"]),
                "words": draw(f"{key}/words", TEXT_WORDS),
                "language": task["language"],
            }
        )
    return requests


def task_requests(
    llm: LLM, *, count: int, languages: Sequence[str], seed: int
) -> list[dict[str, Any]]:
    """Topics in turn, each LLM from its own start; aspect and number of labels are drawn."""
    written = [language for language in languages if language in llm.languages]
    first = _number(f"{seed}/{llm.slug}/topic")
    requests = []
    for i in range(count if written else 0):
        name = f"{llm.slug}/task/{i}"
        key = f"{seed}/{name}"
        requests.append(
            {
                "request": name,
                "turn": i,
                "topic": TOPICS[(first + i) % len(TOPICS)],
                "aspect": draw(f"{key}/aspect", ASPECTS),
                "count": draw(f"{key}/count", (2, 3, 4, 5)),
                "language": draw(f"{key}/language", written),
            }
        )
    return requests
