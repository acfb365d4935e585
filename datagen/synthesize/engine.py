"""vLLM's offline engine with one model: many prompts in, JSON answers out, one row at a time.

Requests enter the engine one by one, so a prompt that does not fit, or that vLLM refuses, costs its
own row only. Answers are held to a JSON schema while they are sampled (llguidance: no grammar to
compile, no blanks outside strings). The engine lives in its actor's process.

Cost on one core (AVX512-BF16): SmolLM2-135M about 110 output tokens a second, Gemma-3-270M about
60; loading takes 15 to 30 s, most of it imports.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from datagen.packaged import resolve_model
from datagen.synthesize.llm import LLM
from datagen.synthesize.prompts import Prompt

GIB = 1 << 30


@dataclass(frozen=True, kw_only=True)
class Request:
    """One prompt, its values and the JSON schema of the answer."""

    prompt: Prompt
    values: Mapping[str, Any]
    schema: Mapping[str, Any]
    turn: int = 0  # which of the prompt's examples it sees


@dataclass(frozen=True, kw_only=True)
class Response:
    """What came back; `problem` is set when there is no answer."""

    text: str = ""
    finished: bool = False  # False: cut at max_tokens
    prompt_tokens: int = 0
    output_tokens: int = 0
    problem: str = ""


class Engine:
    """vLLM with one model; built once per actor, called for many batches."""

    def __init__(self, llm: LLM, *, cache: str):
        for key, value in llm.workers().env.items():
            os.environ.setdefault(key, value)  # in a Ray actor they are set already
        import torch
        import vllm

        options: dict[str, Any] = {"enforce_eager": False}
        if not llm.num_gpus:
            # Ray and an earlier import of torch both decide the number of threads otherwise.
            torch.set_num_threads(llm.threads)
            options = {"enforce_eager": True, "kv_cache_memory_bytes": int(llm.kv_cache_gib * GIB)}
        self.llm = llm
        self.vllm = vllm.LLM(
            model=resolve_model(llm.model, cache)[0],
            seed=llm.seed,  # of the engine: a seed per request fails on CPU
            max_model_len=llm.max_model_len,
            max_num_seqs=llm.max_num_seqs,
            tensor_parallel_size=llm.tensor_parallel_size,
            structured_outputs_config={"backend": "guidance", "disable_any_whitespace": True},
            **{"dtype": llm.dtype, **options, **dict(llm.engine)},
        )
        self.tokenizer: Any = self.vllm.get_tokenizer()
        self._number = 0

    def generate(self, requests: Sequence[Request]) -> list[Response]:
        """Responses in order of the requests."""
        found: dict[str, Response] = {}
        names, sizes = [], {}
        for request in requests:
            name = str(self._number)
            self._number += 1
            ids = self._prompt_ids(request)
            names.append(name)
            sizes[name] = len(ids)
            if problem := self._submit(name, ids, request.schema):
                found[name] = problem
        while self.vllm.llm_engine.has_unfinished_requests():
            for output in self.vllm.llm_engine.step():
                if output.finished:
                    found[output.request_id] = _response(output, sizes[output.request_id])
        return [found[name] for name in names]

    def _submit(self, name: str, ids: list[int], schema: Mapping[str, Any]) -> Response | None:
        from vllm import SamplingParams
        from vllm.sampling_params import StructuredOutputsParams

        if len(ids) > self.llm.max_model_len - self.llm.max_tokens:
            return Response(problem="prompt_too_long", prompt_tokens=len(ids))
        parameters = SamplingParams(
            temperature=self.llm.temperature,
            top_p=self.llm.top_p,
            top_k=self.llm.top_k,
            presence_penalty=self.llm.presence_penalty,
            max_tokens=self.llm.max_tokens,
            structured_outputs=StructuredOutputsParams(
                json=dict(schema), disable_any_whitespace=True
            ),
        )
        try:
            self.vllm.llm_engine.add_request(name, {"prompt_token_ids": ids}, parameters)
        except ValueError as error:
            return Response(problem="engine_error", text=str(error), prompt_tokens=len(ids))
        return None

    def _prompt_ids(self, request: Request) -> list[int]:
        if self.llm.chat:
            return self.tokenizer.apply_chat_template(
                request.prompt.messages(request.values, request.turn),
                add_generation_prompt=True,
                tokenize=True,
                return_dict=False,
            )
        text = request.prompt.text(request.values, request.turn)
        ids = self.tokenizer.encode(text, add_special_tokens=False)
        first = self.tokenizer.bos_token_id  # a tokenizer out of a GGUF file adds none itself
        return ids if first is None else [first, *ids]


def _response(output: Any, prompt_tokens: int) -> Response:
    answer = output.outputs[0]
    known = answer.finish_reason in ("stop", "length")
    return Response(
        text=answer.text,
        finished=answer.finish_reason == "stop",
        prompt_tokens=prompt_tokens,
        output_tokens=len(answer.token_ids),
        problem="" if known else "engine_error",
    )
