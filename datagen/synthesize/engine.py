"""vLLM's engine with one model, fed without a pause: prompts in, JSON answers out, one at a time.

A thread steps the engine as long as there is work and takes in new requests between two steps, so
the batch is full while requests of several blocks come and go. A prompt that does not fit, or that
vLLM refuses, costs its own row only. Answers are held to a JSON schema while they are sampled
(llguidance: no grammar to compile, no blanks outside strings). The engine lives in its actor's
process.

Cost on one core (AVX512-BF16): SmolLM2-135M about 110 output tokens a second, Gemma-3-270M about
60; loading takes 15 to 30 s, most of it imports.
"""

import asyncio
import logging
import os
import queue
import threading
from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any

from datagen.packaged import resolve_model
from datagen.synthesize.call import Call, Response
from datagen.synthesize.llm import LLM
from datagen.threads import set_openmp_threads

log = logging.getLogger("embedmix")
GIB = 1 << 30


class EngineDied(RuntimeError):
    """The engine stopped; what it was answering has to be asked of another."""


class Engine:
    """vLLM with one model and the thread that steps it; `answer` may be awaited many at a time."""

    def __init__(self, llm: LLM, *, cache: str):
        self.llm = llm
        for key, value in llm.environment().items():
            os.environ.setdefault(key, value)  # in a Ray actor they are set already
        import vllm

        let_numba_be()
        options: dict[str, Any] = {"enforce_eager": False}
        if not llm.num_gpus:
            # Ray and an earlier import of torch both decide the number of threads otherwise.
            self._set_threads()
            options = {"enforce_eager": True, "kv_cache_memory_bytes": int(llm.kv_cache_gib * GIB)}
        self.vllm = vllm.LLM(
            model=resolve_model(llm.model, cache)[0],
            revision=llm.revision or None,
            tokenizer_revision=llm.revision or None,
            seed=llm.seed,  # of the engine: a seed per request fails on CPU
            max_model_len=llm.max_model_len,
            max_num_seqs=llm.max_num_seqs,
            tensor_parallel_size=llm.tensor_parallel_size,
            pipeline_parallel_size=llm.pipeline_parallel_size,
            structured_outputs_config={"backend": "guidance", "disable_any_whitespace": True},
            **{"dtype": llm.dtype, **options, **dict(llm.engine)},
        )
        self.tokenizer: Any = self.vllm.get_tokenizer()
        self._new: queue.SimpleQueue[tuple[list[int], Call, Future] | None] = queue.SimpleQueue()
        self._open: dict[str, tuple[int, Future]] = {}
        self._died: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    async def answer(self, call: Call) -> Response:
        """The response to one call; EngineDied when the engine has stopped."""
        ids = self._prompt_ids(call)
        if len(ids) > self.llm.max_model_len - (call.max_tokens or self.llm.max_tokens):
            return Response(problem="prompt_too_long", prompt_tokens=len(ids))
        if self._died is not None:
            raise EngineDied(repr(self._died))
        future: Future[Response] = Future()
        self._new.put((ids, call, future))
        if self._died is not None:  # meanwhile: nobody reads the queue any more
            raise EngineDied(repr(self._died))
        return await asyncio.wrap_future(future)

    def _set_threads(self) -> None:
        if not self.llm.num_gpus:
            set_openmp_threads(self.llm.threads)

    async def close(self) -> None:
        """Stop the thread once it has nothing left to answer."""
        self._new.put(None)
        await asyncio.to_thread(self._thread.join)

    def _run(self) -> None:
        number, closing = 0, False
        try:
            self._set_threads()
            while not closing or self._open:
                while not closing and (not self._open or not self._new.empty()):
                    entry = self._new.get()
                    if entry is None:
                        closing = True
                    else:
                        self._submit(str(number), *entry)
                        number += 1
                if self._open:
                    self._step()
        except BaseException as error:
            log.exception("the engine of %s stopped", self.llm.name)
            self._fail(error)

    def _step(self) -> None:
        for output in self.vllm.llm_engine.step():
            if output.finished:
                size, future = self._open.pop(output.request_id)
                future.set_result(_response(output, size))

    def _fail(self, error: BaseException) -> None:
        self._died = error
        waiting = [future for _, future in self._open.values()]
        while not self._new.empty():
            entry = self._new.get()
            waiting += [entry[2]] if entry else []
        for future in waiting:
            future.set_exception(EngineDied(repr(error)))

    def _submit(self, name: str, ids: list[int], call: Call, future: Future) -> None:
        try:
            self.vllm.llm_engine.add_request(
                name, {"prompt_token_ids": ids}, self._sampling(call.schema, call.max_tokens)
            )
        except ValueError as error:
            future.set_result(
                Response(problem="engine_error", text=str(error), prompt_tokens=len(ids))
            )
        else:
            self._open[name] = len(ids), future

    def _sampling(self, schema: Mapping[str, Any], max_tokens: int | None) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import StructuredOutputsParams

        return SamplingParams(
            temperature=self.llm.temperature,
            top_p=self.llm.top_p,
            top_k=self.llm.top_k,
            presence_penalty=self.llm.presence_penalty,
            max_tokens=max_tokens or self.llm.max_tokens,
            structured_outputs=StructuredOutputsParams(
                json=dict(schema), disable_any_whitespace=True
            ),
        )

    def _prompt_ids(self, call: Call) -> list[int]:
        if self.llm.chat:
            ids = self.tokenizer.apply_chat_template(
                call.prompt.messages(call.values, call.turn),
                add_generation_prompt=True,
                tokenize=True,
                return_dict=False,
            )
            prefix = self.llm.answer_prefix
            return [*ids, *self.tokenizer.encode(prefix, add_special_tokens=False)]
        text = call.prompt.text(call.values, call.turn)
        ids = self.tokenizer.encode(text, add_special_tokens=False)
        first = self.tokenizer.bos_token_id  # a tokenizer out of a GGUF file adds none itself
        return ids if first is None else [first, *ids]


def let_numba_be() -> None:
    """vLLM 0.32 on a CPU looks at `vars()` of all that all modules hold, and stumbles over
    llvmlite's lazy library, which an earlier step of this process may have loaded with numba."""
    try:
        from vllm.triton_utils import dispatcher
    except ImportError:
        return  # another version, without that search

    def attributes(value: Any) -> Mapping[str, Any]:
        found = value.__dict__
        return found if isinstance(found, Mapping) else {}

    dispatcher.vars = attributes  # type: ignore[attr-defined]


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
