"""What is sent to an OpenAI-compatible server, and what is read of its answer.

Answers are read from their bytes, not through the client's models, which take any JSON: a body that
is cut, or is the error page of a proxy, has to be told from a completion.
"""

import json
from collections.abc import Mapping
from typing import Any

from datagen.synthesize.call import Response
from datagen.synthesize.endpoint_faults import Fault
from datagen.synthesize.llm import LLM
from datagen.synthesize.parse import strip_reasoning

_PROBE = 'Answer with this JSON: {"text": "ok"}'
_PROBE_TOKENS = 16
_PROBE_SCHEMA = {
    "type": "object",
    "properties": {"text": {"type": "string"}},
    "required": ["text"],
    "additionalProperties": False,
}


def request_body(
    llm: LLM, prompt: Any, *, schema: Mapping[str, Any] | None, max_tokens: int
) -> dict[str, Any]:
    """The body of a request; `prompt` is messages for a chat, text otherwise."""
    body: dict[str, Any] = {"model": llm.model, "max_tokens": max_tokens}
    body |= {"temperature": llm.temperature, "top_p": llm.top_p}
    body |= {key: getattr(llm, key) for key in ("presence_penalty", "seed") if getattr(llm, key)}
    body["messages" if llm.chat else "prompt"] = prompt
    if llm.top_k > 0:
        body["top_k"] = llm.top_k
    if schema is not None and llm.structured == "structured_outputs":
        body["structured_outputs"] = {"json": dict(schema)}
    elif schema is not None and llm.structured == "json_schema":
        answer = {"name": "answer", "strict": True, "schema": dict(schema)}
        body["response_format"] = {"type": "json_schema", "json_schema": answer}
    return body | dict(llm.engine)


def probe_body(llm: LLM) -> dict[str, Any]:
    """A request of a few tokens that uses all the fields of the others."""
    prompt = [{"role": "user", "content": _PROBE}] if llm.chat else _PROBE
    return request_body(llm, prompt, schema=_PROBE_SCHEMA, max_tokens=_PROBE_TOKENS)


def read_response(content: bytes, *, chat: bool) -> Response:
    """The response in the body of an answer; Fault where there is none."""
    try:
        body = json.loads(content)
        choice = body["choices"][0]
        text = choice["message"]["content"] if chat else choice["text"]
        reason, usage = choice["finish_reason"], body.get("usage") or {}
        tokens = [int(usage.get(f"{kind}_tokens") or 0) for kind in ("prompt", "completion")]
        refusal = chat and choice["message"].get("refusal")
    except (ValueError, TypeError, KeyError, IndexError, AttributeError):
        raise Fault("broken", "an answer that is no completion") from None
    if reason not in ("stop", "length", "content_filter") or not isinstance(text, str | None):
        raise Fault("broken", f"a completion that ended with {reason!r:.40}")
    refused = bool(refusal) or reason == "content_filter"
    return Response(
        text=strip_reasoning(text or ""),
        finished=reason == "stop",
        prompt_tokens=tokens[0],
        output_tokens=tokens[1],
        problem="refused_by_server" if refused else "",
    )
