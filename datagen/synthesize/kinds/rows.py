"""What the rows of all kinds share: where they come from, and which public text they are about."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from datagen.codes import UNKNOWN_SCRIPT
from datagen.schema import document_id
from datagen.store import Folder, open_shard
from datagen.synthesize.call import Drawn
from datagen.synthesize.knobs import PROGRAMMING_LANGUAGES
from datagen.synthesize.languages import script_of
from datagen.synthesize.llm import LLM
from datagen.synthesize.prompts import Prompt, load_prompt

SHOWN_CHARACTERS = 600  # of a document in the prompt: 150 to 200 tokens; the pair keeps all of it

Block = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class PromptUse:
    """What a kind gives a prompt, and the keys of the answer that it wants."""

    fields: tuple[str, ...]
    answer: tuple[str, ...]


def prompt_of(block: Block, name: str) -> Prompt:
    """The prompt of a block by name; `prompts` of the block may name a user's file instead."""
    return load_prompt(block.get("prompts", {}).get(name, name))


def one_line(text: str) -> str:
    """Runs of white space as one blank."""
    return " ".join(text.split())


def provenance(
    llm: LLM, drawn: Drawn, prompts: Iterable[Prompt], *, seed_document: str | None
) -> dict[str, Any]:
    """Who wrote a row, with which prompts (all calls, joined by +), about which document."""
    return {
        "row": drawn["request"],
        "llm": llm.name,
        "llm_licence": llm.licence,
        "prompt": "+".join(prompt.id for prompt in prompts),
        "seed_document": seed_document,
        "sampling": None,  # the reader knows what was asked
        "seed": llm.seed,
    }


def pair(
    llm: LLM,
    drawn: Drawn,
    *,
    task: str,
    instruction: str | None,
    query: str,
    document: Mapping[str, Any],
    prompts: Sequence[Prompt],
    negatives: Sequence[str] = (),
    score: float | None = None,
    seeded: bool = False,
) -> dict[str, Any]:
    """A row of PAIR; `document` is title, text, language and script of the positive.

    `seeded`: the document is a public one, which provenance names by its id.
    """
    seed = document_id(document["title"], document["text"]) if seeded else None
    same = drawn["language"] == document["language"]
    script = document["script"] if same else _script(drawn["language"])
    kind = drawn["request"].split("/")[1]
    return {
        "source": f"synthetic_{kind}",
        "task": task,
        "origin": "synthetic",
        "instruction": instruction,
        "query": query,
        "title": document["title"],
        "text": document["text"],
        "negatives": [{"title": None, "text": negative} for negative in negatives] or None,
        "score": score,
        "query_language": drawn["language"],
        "query_script": script,
        "document_language": document["language"],
        "document_script": document["script"],
        "licence": llm.licence,
        "provenance": provenance(llm, drawn, prompts, seed_document=seed),
    }


def written(text: str, language: str) -> dict[str, Any]:
    """A document that an LLM wrote, for `pair`."""
    return {"title": None, "text": text, "language": language, "script": _script(language)}


def _script(language: str) -> str:
    return UNKNOWN_SCRIPT if language in PROGRAMMING_LANGUAGES else script_of(language)


def seed_rows(
    block: Block, *, folder: str = "folder", shard: str = "shard", row: str = "row"
) -> dict[str, dict[str, Any]]:
    """The public row of every request of a block, by request; reads the shards it needs once."""
    place = Folder(block[folder])
    names = sorted({drawn[shard] for drawn in block["requests"]})
    shards = {name: open_shard(place, name) for name in names}
    return {
        drawn["request"]: shards[drawn[shard]].slice(drawn[row], 1).to_pylist()[0]
        for drawn in block["requests"]
    }


def shown(document: Mapping[str, Any], characters: int = SHOWN_CHARACTERS) -> str:
    """The beginning of a document, its title first."""
    title = f"{document['title']}\n" if document["title"] else ""
    return (title + document["text"])[:characters]
