"""Whether prompts fit an LLM's context at all, before any engine starts.

One document that is too long costs its own row. When none of the first requests of a kind fits, the
mistake is in the recipe: a small `max_model_len`, or a prompt file with long examples. Tokens are
counted where the tokenizer is at hand, in a folder or a package, without the few of a chat
template; else they are guessed from characters, generously enough to refuse only what is hopeless.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from datagen.packaged import resolve_model
from datagen.schema import UserError
from datagen.synthesize.call import Call, MakeKind
from datagen.synthesize.llm import LLM
from datagen.synthesize.pool import Member, Quota

LOOKED_AT = 8  # requests of each LLM and kind
CHARACTERS_PER_TOKEN = 8  # more than in any language's text


def check_lengths(members: Sequence[Member], *, kinds: Mapping[str, MakeKind], cache: str) -> None:
    """UserError for an LLM and kind of which no prompt leaves room for its answer."""
    for member in members:
        count = _counter(member.llm, cache)
        for quota in member.quotas:
            needed = _shortest(member.llm, quota, kinds[quota.kind], count)
            if needed > member.llm.max_model_len:
                raise UserError(
                    found=f"LLM {member.llm.name}: a prompt for {quota.kind} and its answer take "
                    f"{needed} tokens or more",
                    expected=f"at most max_model_len, {member.llm.max_model_len}",
                    do="raise max_model_len, lower max_tokens, or shorten the prompt's examples",
                    exit_status=2,
                )


def _shortest(llm: LLM, quota: Quota, make: MakeKind, count: Callable[[str], int]) -> int:
    """Tokens of the shortest prompt and its answer among the first requests; 0 without any."""
    drawn = quota.draw(range(LOOKED_AT))
    kind = make(llm, {**quota.more, "kind": quota.kind, "requests": drawn})
    calls = [call for one in drawn if (call := kind.call(one, [])) is not None]
    return min((_needed(llm, call, count) for call in calls), default=0)


def _needed(llm: LLM, call: Call, count: Callable[[str], int]) -> int:
    if llm.chat:
        turns = call.prompt.messages(call.values, call.turn)
        prompt = sum(count(turn["content"]) for turn in turns)
    else:
        prompt = count(call.prompt.text(call.values, call.turn))
    return prompt + (call.max_tokens or llm.max_tokens)


def _counter(llm: LLM, cache: str) -> Callable[[str], int]:
    """Counts the tokens of a text."""
    if not llm.endpoint:
        file = Path(resolve_model(llm.model, cache)[0]) / "tokenizer.json"
        if file.is_file():
            return _tokens(str(file))
    return lambda text: len(text) // CHARACTERS_PER_TOKEN


@functools.lru_cache(maxsize=8)
def _tokens(file: str) -> Callable[[str], int]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(file)
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids)
