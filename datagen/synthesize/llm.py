"""One member of the LLM pool: model, licence, sampling, engine and resources, as data."""

import functools
import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from datagen.packaged import PACKAGED, check_model
from datagen.schema import UserError

log = logging.getLogger("embedmix")
# What decides neither a text nor which texts are asked for.
_RESOURCES = (
    "replicas", "num_cpus", "num_gpus", "threads", "kv_cache_gib", "max_num_seqs",
    "tensor_parallel_size", "pipeline_parallel_size", "endpoint", "key_variable",
    "max_concurrency", "endpoint_timeout_s", "gpu_hour_price", "prompt_price", "output_price",
)  # fmt: skip
_BEGINNING = 1 << 22  # bytes of a file of weights: its header and some tensors
# What decides who is asked for what, but not the response to a given request.
_CHOICES = ("name", "licence", "languages", "share")


@dataclass(frozen=True, kw_only=True)
class LLM:
    """An LLM as a recipe gives it: vLLM in actors of the cluster, or a server behind `endpoint`.

    `threads` is 1 because the threads of one matrix product wait for each other: with SmolLM2-135M
    a second thread wins nothing to 1.7 times on an idle machine, and costs a factor of ten on a
    busy one. On a cluster use more `replicas` instead.
    """

    name: str
    model: str  # a folder, a packaged name, a Hub id, or the name that the endpoint serves
    licence: str
    revision: str = ""  # of a Hub id: the commit; without it the same recipe may load other weights
    chat: bool = True  # False: a base model, prompted with running text
    answer_prefix: str = ""  # what the prompt ends with, e.g. to skip a channel of thoughts
    languages: tuple[str, ...] = ("eng",)  # ISO 639-3, that it writes
    share: float = 1.0  # of the rows; 2.0 gives it twice as many as its peers
    # For LLMs below a billion parameters, which wander off at 0.7; large ones vary more there.
    temperature: float = 0.4
    top_p: float = 1.0  # below 1 every step sorts the vocabulary: slow on a CPU
    top_k: int = 20
    presence_penalty: float = 1.0  # of tokens that the answer has already: labels differ
    max_tokens: int = 56
    seed: int = 0
    max_model_len: int = 1024  # tokens, prompt and answer
    max_num_seqs: int = 32
    dtype: str = "bfloat16"
    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    engine: tuple[tuple[str, Any], ...] = ()  # further arguments of vllm.LLM
    # Those that the cluster has no room for wait for it; (1, 4): one, and up to three more while
    # there is room that nobody waits for, which are let go when its queue is empty.
    replicas: int | tuple[int, int] = 1
    num_cpus: float = 1.0
    num_gpus: float = 0.0  # of a replica
    threads: int = 1  # on CPU
    kv_cache_gib: float = 0.5  # on CPU
    endpoint: str = ""  # base URL of an OpenAI-compatible server
    key_variable: str = ""  # the environment variable with its key
    structured: Literal["json_schema", "structured_outputs", "none"] = "json_schema"
    max_concurrency: int = 256  # requests in flight to an endpoint, at most
    endpoint_timeout_s: float = 120.0
    gpu_hour_price: float = 0.0  # money for one GPU and hour
    prompt_price: float = 0.0  # money for a million tokens of an endpoint
    output_price: float = 0.0

    def __post_init__(self) -> None:
        fewest, most = self.replica_range
        right = self.max_tokens < self.max_model_len and 1 <= fewest <= most and self.threads >= 1
        if not right or self.share < 0:
            raise UserError(
                found=f"LLM {self.name}: max_tokens {self.max_tokens}, max_model_len "
                f"{self.max_model_len}, replicas {self.replicas}, threads {self.threads}, "
                f"share {self.share}",
                expected="max_tokens below max_model_len, one replica and thread or more, no "
                "negative share",
                do="mend the LLM in the recipe",
                exit_status=2,
            )

    @property
    def slug(self) -> str:
        """The name as part of request ids and files."""
        return "".join(c if c.isalnum() else "-" for c in self.name.lower())

    @property
    def replica_range(self) -> tuple[int, int]:
        """The fewest and the most replicas."""
        several = isinstance(self.replicas, int)
        return (self.replicas, self.replicas) if several else self.replicas  # type: ignore[return-value]

    def sampling(self, max_tokens: Sequence[int]) -> str:
        """What provenance records of the sampling, as JSON; `max_tokens` are those of each call."""
        keys = ("temperature", "top_p", "top_k", "presence_penalty")
        drawn = {key: getattr(self, key) for key in keys}
        return json.dumps({**drawn, "max_tokens": list(max_tokens), "seed": self.seed})

    def config(self) -> dict[str, Any]:
        """What decides its text and its part of the work, as JSON; resources are left out."""
        fields = {key: value for key, value in asdict(self).items() if key not in _RESOURCES}
        if not self.revision:
            del fields["revision"]
        return json.loads(json.dumps({**fields, "weights": _weights(self.model)}))

    def fingerprint(self) -> str:
        """sha256 over what decides the response to a request."""
        fields = {key: value for key, value in self.config().items() if key not in _CHOICES}
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()

    def environment(self) -> dict[str, str]:
        """Environment variables that vLLM needs."""
        return {
            "OMP_NUM_THREADS": str(self.threads),
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine ends with its actor
            "VLLM_LOGGING_LEVEL": "ERROR",
            "VLLM_NO_USAGE_STATS": "1",
            "TQDM_DISABLE": "1",
        }


@functools.lru_cache(maxsize=256)
def _weights(model: str) -> str | None:
    """What tells a model's weights from others: their recorded digest, or for a folder one over its
    configuration and the size and beginning of every file of weights; None for a Hub id."""
    if model in PACKAGED:
        return PACKAGED[model].sha256
    if not Path(model).is_dir():
        return None
    digest = hashlib.sha256()
    for file in sorted(Path(model).iterdir()):
        if file.suffix == ".safetensors" or file.name in ("config.json", "tokenizer.json"):
            digest.update(f"{file.name}:{file.stat().st_size}:".encode())
            with file.open("rb") as stream:
                digest.update(stream.read(_BEGINNING))
    return digest.hexdigest()


def refuse_bad_pool(llms: tuple[LLM, ...]) -> None:
    """Raise UserError before anything loads: no LLM, two of one name, or a model that is not."""
    if not llms or len({llm.slug for llm in llms}) != len(llms):
        raise UserError(
            found="LLMs " + (", ".join(llm.name for llm in llms) or "none"),
            expected="at least one LLM, each with its own name",
            do="name every LLM of the pool differently",
            exit_status=2,
        )
    for llm in llms:
        if not llm.endpoint:
            check_model(llm.model)
            _check_revision(llm)


def _check_revision(llm: LLM) -> None:
    on_hub = llm.model not in PACKAGED and not Path(llm.model).is_dir()
    if on_hub and not llm.revision:
        log.warning(
            "LLM %s: %s without a revision; its weights may change between runs: pin `revision`",
            llm.name,
            llm.model,
        )
    if llm.revision and not on_hub:
        raise UserError(
            found=f"LLM {llm.name}: revision {llm.revision} of {llm.model}, which is here",
            expected="a revision for a Hub id only; files here are told apart by their content",
            do="take the revision out",
            exit_status=2,
        )


def from_model(model: str, *, key_variable: str = "", threads: int = 1) -> LLM:
    """An LLM with defaults for a model given on the command line: a folder, a packaged name, a Hub
    id, or `URL#NAME` for what an OpenAI-compatible server calls NAME."""
    if "://" in model:
        return _served(model, key_variable)
    licence = check_model(model)
    known = PACKAGED.get(model)
    if known is not None and known.kind == "encoder":
        raise UserError(
            found=f"{model} is an {known.kind}",
            expected="an LLM: " + ", ".join(n for n, m in PACKAGED.items() if m.kind != "encoder"),
            do="name an LLM with --models",
            exit_status=2,
        )
    return LLM(
        name=model.rstrip("/").split("/")[-1],
        model=model,
        licence=licence or "unknown",
        chat=has_chat_template(model),
        threads=threads,
        num_cpus=threads,
    )


def _served(model: str, key_variable: str) -> LLM:
    url, _, name = model.partition("#")
    if not name:
        raise UserError(
            found=f"endpoint {model}",
            expected="URL#NAME, e.g. http://host:8000/v1#Qwen/Qwen3-8B",
            do="add the name by which the server knows the model",
            exit_status=2,
        )
    return LLM(
        name=name.rstrip("/").split("/")[-1],
        model=name,
        licence="unknown",
        endpoint=url,
        key_variable=key_variable,
        num_cpus=0,
    )


def has_chat_template(model: str) -> bool:
    """Whether a model is prompted as a chat; a Hub id is taken for an instruction-tuned one."""
    if model in PACKAGED:
        return PACKAGED[model].kind == "chat"
    folder = Path(model)
    if not folder.is_dir() or (folder / "chat_template.jinja").is_file():
        return True
    config = folder / "tokenizer_config.json"
    return config.is_file() and "chat_template" in json.loads(config.read_text())
