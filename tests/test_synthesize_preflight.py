"""Prompts that fit no context are found before an engine starts."""

from pathlib import Path
from typing import Any

import pytest
from test_synthesize_step import documents_step

from datagen.schema import UserError
from datagen.steps import run_steps
from datagen.synthesize import LLM, Knobs, synthesize


def run(output: Path, kind: str, *, cache: str, **fields: Any) -> None:
    defaults: dict[str, Any] = {"model": "smollm2-135m-instruct", "licence": "Apache-2.0"}
    llm = LLM(name="Small", languages=("eng", "deu"), **(defaults | fields))
    knobs = Knobs(languages=("eng", "deu"))
    documents = documents_step(12)
    step = synthesize(documents, tasks=None, llms=[llm], cache=cache, rows={kind: 4}, knobs=knobs)
    run_steps([documents, step], str(output), executor="local")


@pytest.mark.parametrize("kind", ["retrieval", "sts", "bitext", "code"])
def test_no_prompt_fits(tmp_path: Path, model_cache: str, kind: str) -> None:
    with pytest.raises(UserError, match=f"a prompt for {kind}") as raised:
        run(tmp_path, kind, cache=model_cache, max_model_len=120)
    assert raised.value.exit_status == 2
    assert not list(tmp_path.glob("responses/**/*.arrow"))


def test_where_no_tokenizer_is_at_hand_characters_say_what_is_hopeless(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a prompt for retrieval"):
        run(tmp_path, "retrieval", cache="", max_model_len=120, model="owner/name", revision="1")
