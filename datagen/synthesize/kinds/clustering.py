"""Clustering: texts of several categories of one kind of text, two for each category.

The query is a text of the category that was drawn, or of the next one that keeps the rules; the
positive is the other text of it, or its name; the negatives are what stands there for the other
categories and keeps the rules. Names of categories are English.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from datagen.synthesize.call import Call, Drawn, Value
from datagen.synthesize.kinds.rows import Block, PromptUse, one_line, pair, prompt_of, written
from datagen.synthesize.kinds.schemas import (
    answer,
    least,
    room,
    several,
    text,
    token_budget,
    whole_budget,
)
from datagen.synthesize.languages import language_name
from datagen.synthesize.llm import LLM
from datagen.synthesize.rules import (
    distinct_problem,
    folded,
    label_in_text,
    length_problem,
    other_labels,
    similar_problem,
    text_problem,
)

ITEMS = 2
NAME_CHARACTERS = 48


class ClusteringKind:
    """A text and another of its category."""

    name = "clustering"
    prompts: ClassVar[Mapping[str, PromptUse]] = {
        "cluster": PromptUse(
            fields=("task", "categories", "words", "language"), answer=("categories",)
        )
    }

    def __init__(self, llm: LLM, block: Block):
        self.llm, self.prompt = llm, prompt_of(block, "cluster")

    def call(self, drawn: Drawn, values: Sequence[Value]) -> Call | None:
        if values:
            return None
        count = drawn["categories"]
        words, language = drawn["words"], drawn["language"]
        item = text(room(words), minimum=least(words, language=language))
        category = answer(name=text(NAME_CHARACTERS, minimum=2), items=several(item, ITEMS, ITEMS))
        asked = (["4 words"] + [words] * ITEMS) * count
        budget = token_budget(self.llm, *asked, language=language)
        if language == "eng":  # elsewhere a word has tokens enough
            budget = whole_budget(self.llm, *([NAME_CHARACTERS] + [room(words)] * ITEMS) * count)
        return Call(
            prompt=self.prompt,
            values={**drawn, "language": language_name(drawn["language"])},
            schema=answer(categories=several(category, count, count)),
            turn=drawn["turn"],
            max_tokens=budget,
            cut=True,  # a text that runs on costs its category only
        )

    def problem(self, drawn: Drawn, values: Sequence[Value]) -> str | None:
        found = self._in_turn(drawn, values[0])
        return None if None in found.values() else next(iter(found.values()))

    def _in_turn(self, drawn: Drawn, value: Value) -> dict[int, str | None]:
        """What is wrong with each category as the row's own, the one that was drawn first."""
        count = len(value["categories"])
        order = [(drawn["category"] + i) % count for i in range(count)]
        return {number: self._category_problem(drawn, value, number) for number in order}

    def _category_problem(self, drawn: Drawn, value: Value, number: int) -> str | None:
        own = value["categories"][number]
        name = one_line(own["name"])
        if len(own["name"]) >= NAME_CHARACTERS:
            return "truncated"
        for item in own["items"]:
            if problem := self._item_problem(drawn, item, name):
                return problem
        if label_in_text(name, drawn["task"]):
            return "bad_labels"
        if problem := distinct_problem(*own["items"]) or similar_problem(*own["items"]):
            return problem
        return None if self._negatives(drawn, value, own) else "no_negative"

    def row(self, drawn: Drawn, values: Sequence[Value]) -> dict[str, Any]:
        sound = self._in_turn(drawn, values[0])
        number = next(number for number, problem in sound.items() if problem is None)
        own = values[0]["categories"][number]
        query, other = (one_line(item) for item in own["items"])
        if drawn["positive"] == "name":
            document = written(one_line(own["name"]), "eng")
        else:
            document = written(other, drawn["language"])
        return pair(
            self.llm,
            drawn,
            task="clustering",
            instruction=drawn["task"],
            query=query,
            document=document,
            prompts=[self.prompt],
            negatives=self._negatives(drawn, values[0], own),
        )

    def _item_problem(self, drawn: Drawn, item: str, name: str) -> str | None:
        if len(item) >= room(drawn["words"]):
            return "truncated"
        problem = text_problem(item, maximum=room(drawn["words"]))
        if problem := problem or length_problem(item, drawn["words"]):
            return problem
        if drawn["positive"] == "name" and label_in_text(name, item):
            return "label_in_text"
        return "copies_example" if folded(item) in folded(self.prompt.answers()) else None

    def _negatives(self, drawn: Drawn, value: Value, own: Mapping[str, Any]) -> list[str]:
        """Of the other categories the names, or the texts, that keep the rules."""
        others = [category for category in value["categories"] if category is not own]
        names = [one_line(category["name"]) for category in others]
        usable = other_labels(one_line(own["name"]), names)
        if drawn["positive"] == "name":
            return usable
        found: list[str] = []
        for category, name in zip(others, names, strict=True):
            for item in map(one_line, category["items"] if name in usable else []):
                known = distinct_problem(*own["items"], *found, item)
                if not known and not self._item_problem(drawn, item, name):
                    found.append(item)
        return found
