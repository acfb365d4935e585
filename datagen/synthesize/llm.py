"""One member of the LLM pool: model, licence, sampling, engine and resources, as data."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from datagen.packaged import PACKAGED, check_model
from datagen.schema import UserError
from datagen.steps import Workers

_RESOURCES = ("replicas", "num_cpus", "num_gpus", "threads", "kv_cache_gib")


@dataclass(frozen=True, kw_only=True)
class LLM:
    """An LLM as a recipe gives it.

    `threads` is 1 because the threads of one matrix product wait for each other: with SmolLM2-135M
    a second thread wins nothing on an idle machine and costs a factor of ten on a busy one. Use
    more `replicas` instead.
    """

    name: str
    model: str  # a folder, a packaged name or a Hub id
    licence: str
    chat: bool = True  # False: a base model, prompted with running text
    languages: tuple[str, ...] = ("eng",)  # ISO 639-3, that it writes
    share: float = 1.0  # of the requests; 2.0 gives it twice as many as its peers
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
    engine: tuple[tuple[str, Any], ...] = ()  # further arguments of vllm.LLM
    replicas: int = 1
    num_cpus: float = 1.0
    num_gpus: float = 0.0
    threads: int = 1  # on CPU
    kv_cache_gib: float = 0.5  # on CPU

    def __post_init__(self) -> None:
        if self.max_tokens >= self.max_model_len or self.replicas < 1 or self.share < 0:
            raise UserError(
                found=f"LLM {self.name}: max_tokens {self.max_tokens}, max_model_len "
                f"{self.max_model_len}, replicas {self.replicas}, share {self.share}",
                expected="max_tokens below max_model_len, one replica or more, no negative share",
                do="mend the LLM in the recipe",
                exit_status=2,
            )

    @property
    def slug(self) -> str:
        """The name as part of request ids and commit files."""
        return "".join(c if c.isalnum() else "-" for c in self.name.lower())

    def requests(self, number: int) -> int:
        """Its part of a number of requests per LLM."""
        return round(number * self.share)

    def sampling(self) -> str:
        """What provenance records of the sampling, as JSON."""
        keys = ("temperature", "top_p", "top_k", "presence_penalty", "max_tokens", "seed")
        return json.dumps({key: getattr(self, key) for key in keys})

    def config(self) -> dict[str, Any]:
        """What decides its text, as JSON; resources are left out."""
        fields = {key: value for key, value in asdict(self).items() if key not in _RESOURCES}
        packaged = PACKAGED.get(self.model)
        return json.loads(json.dumps({**fields, "weights": packaged and packaged.sha256}))

    def workers(self) -> Workers:
        """Actors with the environment that vLLM needs in them."""
        env = {
            "OMP_NUM_THREADS": str(self.threads),
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine ends with its actor
            "VLLM_LOGGING_LEVEL": "ERROR",
            "VLLM_NO_USAGE_STATS": "1",
            "TQDM_DISABLE": "1",
        }
        return Workers(
            actors=self.replicas, num_cpus=self.num_cpus, num_gpus=self.num_gpus, env=env
        )


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
        check_model(llm.model)


def from_model(model: str) -> LLM:
    """An LLM with defaults for a model given on the command line."""
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
