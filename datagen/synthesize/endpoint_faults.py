"""What a failed request says: whether the server is full, gone or broken, or minds this prompt.

Servers agree on statuses (RFC 9110, RFC 6585) and little else: a prompt that does not fit is a 400
or 413 with words of the server's own. Nothing a server says about a key is repeated, since some
repeat the key; the user is told the name of the variable that it is in.
"""

import email.utils
import math
import os
import re
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal
from urllib.parse import urlsplit

from datagen.schema import UserError
from datagen.synthesize.llm import LLM

BUSY = frozenset({429, 503, 529})
DENIED = frozenset({401, 402, 403, 404, 405})
TIMEOUTS = frozenset({408, 504})
TEMPORARY = frozenset({408, 409, 425})
SHOWN_MODELS = 5
# vLLM, SGLang, llama.cpp, text-generation-inference and the usual services, in this order.
_TOO_LONG = re.compile(
    r"maximum (context|model) length|longer than the model|context (size|window)|context_length"
    r"|inputs` tokens|too (long|large for)|maximum allowed length|prompt_too_long",
    re.IGNORECASE,
)


class Fault(Exception):
    """A request without a response.

    busy: no room at present; unresolved, unreachable: no connection; broken: an answer that is
    none; prompt: this prompt is refused; denied: the key is, or the model or the path is unknown.
    """

    def __init__(
        self,
        kind: Literal["busy", "unresolved", "unreachable", "broken", "prompt", "denied"],
        said: str,
        *,
        full: bool = False,  # the server has too much to do: ask less of it
        wait_s: float = 0.0,
        problem: str = "",  # of the row that the fault costs
        status: int = 0,
    ):
        super().__init__()  # without the words, which are cleaned of secrets later
        self.kind, self.said, self.full, self.wait_s = kind, said, full, wait_s
        self.problem, self.status = problem, status
        self.asked_at = 0.0  # on the monotonic clock

    def __str__(self) -> str:
        return f"{self.kind}: {self.said}"


def fault_of(error: Exception) -> Fault:
    """The fault that an error of the openai client stands for; other errors are raised again."""
    import httpx2
    import openai

    if isinstance(error, openai.APIStatusError):
        return _fault_of_status(error.status_code, error.body, error.response.headers)
    if not isinstance(error, openai.APIConnectionError):
        raise error
    causes = list(_causes(error))
    if any(isinstance(cause, socket.gaierror) for cause in causes):
        return Fault("unresolved", "the name of its host cannot be resolved", full=True)
    if any(isinstance(cause, httpx2.ConnectError | httpx2.ConnectTimeout) for cause in causes):
        said = str(causes[1]) or type(causes[1]).__name__
        return Fault("unreachable", said, full=True)
    if isinstance(error, openai.APITimeoutError):
        return Fault("broken", "no response in time", full=True)
    # The words of a protocol error can contain headers.
    return Fault("broken", f"connection lost ({type(causes[-1]).__name__})")


def _causes(error: BaseException) -> Iterator[BaseException]:
    found: BaseException | None = error
    while found is not None:
        yield found
        found = found.__cause__ or found.__context__


def _fault_of_status(status: int, body: object, headers: Mapping[str, str]) -> Fault:
    details = body if isinstance(body, Mapping) else {}
    said = str(details.get("message") or body or "no reason given")
    said = f"{status}: {' '.join(said.split())}"
    code = str(details.get("code") or details.get("type") or "")
    if status in DENIED or code == "insufficient_quota":
        return Fault("denied", str(status), status=402 if status == 429 else status)
    if status in BUSY:
        return Fault("busy", said, full=True, wait_s=retry_after_s(headers), status=status)
    if status >= 500 or status in TEMPORARY:
        wait_s, full = retry_after_s(headers), status in TIMEOUTS
        return Fault("broken", said, full=full, wait_s=wait_s, status=status)
    too_long = status == 413 or _TOO_LONG.search(f"{code} {said}")
    problem = "prompt_too_long" if too_long else "refused_by_server"
    return Fault("prompt", said, problem=problem, status=status)


def retry_after_s(headers: Mapping[str, str]) -> float:
    """Seconds that a server asks to be left alone; 0 where it does not say, or nothing sensible."""
    text = headers.get("retry-after", "")
    try:
        seconds = float(text)
    except ValueError:
        date = email.utils.parsedate_tz(text)
        seconds = email.utils.mktime_tz(date) - time.time() if date else 0.0
    return seconds if math.isfinite(seconds) and seconds > 0 else 0.0


def secrets_of(llm: LLM) -> tuple[str, list[str]]:
    """The key of an endpoint, and all that must not be shown; UserError where there is none."""
    parts = urlsplit(llm.endpoint)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError(
            found=f"LLM {llm.name}: an endpoint that is no http or https address",
            expected="one like http://host:8000/v1",
            do="mend `endpoint` of the LLM in the recipe",
            exit_status=2,
        )
    more = [parts.password] if parts.password else []
    if not llm.key_variable:
        return "none", more
    key = os.environ.get(llm.key_variable, "").strip()
    if not re.fullmatch("[!-~]+", key):
        raise UserError(
            found=f"LLM {llm.name}: "
            + ("no usable key in" if key else "nothing in")
            + f" the environment variable {llm.key_variable}",
            expected="the key of its endpoint, in printable ASCII without blanks",
            do=f"export {llm.key_variable}=... where replicas start, or mend `key_variable`",
            exit_status=2,
        )
    return key, [key, *more]


def user_error(
    llm: LLM, fault: Fault, *, endpoint: str, served: Sequence[tuple[str, str]]
) -> UserError:
    """What to tell the user about a server that gives no responses."""
    found, expected, do = _words(llm, fault, served)
    return UserError(found=f"LLM {llm.name}: {endpoint} {found}", expected=expected, do=do)


def _words(llm: LLM, fault: Fault, served: Sequence[tuple[str, str]]) -> tuple[str, str, str]:
    again = "run it again: responses that have arrived are kept"
    if fault.kind in ("unresolved", "unreachable"):
        return (
            f"cannot be reached: {fault.said}",
            "a server that takes connections",
            "mend `endpoint`, start the server, or raise `endpoint_timeout_s` where it loads long; "
            + again,
        )
    if fault.status in (401, 403):
        key = f"the key in {llm.key_variable}" if llm.key_variable else "requests without a key"
        return (
            f"refuses {key} ({fault.status})",
            f"a key that may use {llm.model}",
            "put the key into an environment variable and name that in `key_variable`",
        )
    if fault.status in (404, 405):
        names = ", ".join(name for name, _ in served[:SHOWN_MODELS]) or "it does not say what"
        return (
            f"does not serve {llm.model}",
            f"a model that it serves ({names}), and a path such as /v1",
            "mend `model` or `endpoint` of the LLM in the recipe",
        )
    if fault.status == 402:
        return "says that the account is used up", "credit", "top it up, then " + again
    if fault.kind == "prompt":
        return (
            f"refuses a test request: {fault.said}",
            "one that takes the LLM's sampling and schemas",
            'try top_k=0, another `structured` ("json_schema", "structured_outputs", "none"), '
            "and `chat` as the model needs it",
        )
    if fault.kind == "busy":
        return f"refuses all requests: {fault.said}", "room for one", f"wait, then {again}"
    return f"gives no responses: {fault.said}", "completions", f"see its log, then {again}"
