"""The kinds of requests: what each asks, what its answers may not be, which rows they make."""

from collections.abc import Iterable, Mapping
from typing import Any

from datagen.schema import UserError
from datagen.synthesize.kinds.bitext import BitextKind
from datagen.synthesize.kinds.classification import ClassificationKind
from datagen.synthesize.kinds.clustering import ClusteringKind
from datagen.synthesize.kinds.code import CodeKind, CodeTranslationKind
from datagen.synthesize.kinds.judge import JudgeKind
from datagen.synthesize.kinds.negative import NegativeKind
from datagen.synthesize.kinds.retrieval import RetrievalKind
from datagen.synthesize.kinds.rows import provenance
from datagen.synthesize.kinds.scratch import ScratchKind
from datagen.synthesize.kinds.sts import StsKind
from datagen.synthesize.kinds.tasks import TASK, TaskKind
from datagen.synthesize.kinds.translation import TranslationKind
from datagen.synthesize.prompts import Prompt, check_prompt, load_prompt

KINDS: dict[str, Any] = {  # each a MakeKind with `prompts`, what it gives to and wants of each
    kind.name: kind
    for kind in (
        RetrievalKind,
        ScratchKind,
        ClassificationKind,
        StsKind,
        BitextKind,
        ClusteringKind,
        TranslationKind,
        CodeKind,
        CodeTranslationKind,
    )
}
_OTHERS: tuple[Any, ...] = (TaskKind, JudgeKind, NegativeKind)
_ALL: dict[str, Any] = {**KINDS, **{kind.name: kind for kind in _OTHERS}}

__all__ = ["KINDS", "TASK", "TaskKind", "check_prompts", "provenance"]


def check_prompts(kinds: Iterable[str], own: Mapping[str, str] | None = None) -> list[Prompt]:
    """The prompts of some kinds, each proven to render; UserError before any engine starts.

    `own` puts a user's file in the place of a prompt: {"doc2query": "my/doc2query.yaml"}.
    """
    own = dict(own or {})
    uses = {name: use for kind in kinds for name, use in _ALL[kind].prompts.items()}
    unknown = sorted(set(own) - {name for kind in _ALL.values() for name in kind.prompts})
    if unknown:
        raise UserError(
            found="own prompts for " + ", ".join(unknown),
            expected="names out of " + ", ".join(sorted(uses)),
            do="name the prompt that yours takes the place of",
            exit_status=2,
        )
    prompts = {name: load_prompt(own.get(name, name)) for name in sorted(uses)}
    for name, prompt in prompts.items():
        check_prompt(prompt, uses[name].fields, uses[name].answer)
    return list(prompts.values())
