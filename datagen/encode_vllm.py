"""vLLM as the engine of an encoder: its pooling runner, fed with our own tokens.

Worth it for large decoders on GPUs: sequences are packed, attention is paged, weights may lie on
several GPUs (`options=(("tensor_parallel_size", 2),)`). Texts are cut and tokenized as
sentence-transformers does it, pooling is what the folder or the user says, and unit length is
given here, so that the vectors are those of the other engine up to rounding: 1e-6 in float32 with
MiniLM (cosine distance below 1e-5). A vector's last bits depend on what was encoded beside it.
Modules that vLLM might leave out (a projection, prompts excluded from pooling) are refused.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from datagen.encoder_model import EncoderModel, has_modules, read_json
from datagen.schema import UserError
from datagen.threads import set_openmp_threads

KV_CACHE_BYTES = 1 << 28  # on a CPU; encoders keep little or nothing between steps
_CALL_BATCHES = 4  # batches of one call: enough to keep the engine full, soon enough to be kept
_POOLING = {"mean": "MEAN", "cls": "CLS", "last": "LAST", "lasttoken": "LAST"}
_SIMPLE = {"Transformer", "Pooling", "Normalize"}


class VllmEngine:
    """vLLM's pooling runner with one model."""

    def __init__(
        self,
        model: EncoderModel,
        folder: Path,
        *,
        max_length: int | None,
        dtype: str,
        threads: int,
        batch_tokens: int,
        device: str | None,
    ):
        pooling = model.pooling or folder_pooling(folder)
        environment = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR"}
        for key, value in {**environment, "VLLM_NO_USAGE_STATS": "1"}.items():
            os.environ.setdefault(key, value)
        import torch

        self._unit, self._batch_tokens = model.normalise is not False, batch_tokens
        self._threads = threads if device == "cpu" or not torch.cuda.is_available() else 0
        options: dict[str, Any] = {"dtype": dtype, "load_format": "safetensors"}
        if self._threads:
            set_openmp_threads(threads)
            options |= {"enforce_eager": True, "kv_cache_memory_bytes": KV_CACHE_BYTES}
        try:
            self._load(folder, _POOLING[pooling], max_length, {**options, **dict(model.options)})
        except (OSError, ValueError, RuntimeError) as error:
            raise UserError(
                found=f"vLLM does not load {model.place}: {error}",
                expected="a model that its pooling runner knows, and room for it",
                do="encode it with the engine torch, or mend the options",
            ) from error

    def _load(
        self, folder: Path, pooling: str, max_length: int | None, options: Mapping[str, Any]
    ) -> None:
        import vllm
        from transformers import AutoTokenizer

        from datagen.synthesize.engine import let_numba_be

        let_numba_be()
        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self._max_length = max_length or folder_length(folder, self._tokenizer)
        # Unit length is given in float32 here.
        how: dict[str, Any] = {"seq_pooling_type": pooling, "use_activation": False}
        self._vllm = vllm.LLM(
            model=str(folder),
            runner="pooling",
            convert="embed",
            pooler_config=vllm.config.PoolerConfig(**how),
            **{"max_model_len": self._max_length, **options},
        )

    def batches(self, texts: Sequence[str]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(row numbers, float32 vectors) of the texts, some batches at a time."""
        from datagen.encode import token_batches

        if self._threads:  # this may be another thread than that which loaded the model
            set_openmp_threads(self._threads)
        tokens = self._tokenizer(list(texts), truncation=True, max_length=self._max_length)
        ids = tokens["input_ids"]
        size = _CALL_BATCHES * self._batch_tokens
        for rows in token_batches([len(one) for one in ids], size):
            prompts: Any = [{"prompt_token_ids": ids[i]} for i in rows]
            found = self._vllm.embed(prompts, use_tqdm=False)
            vectors = np.array([one.outputs.embedding for one in found], np.float32)
            if self._unit:
                vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
            yield rows, vectors


def folder_pooling(folder: Path) -> str:
    """How a Sentence Transformers folder pools; UserError for what vLLM would do otherwise."""
    modules = {m["type"].rsplit(".", 1)[-1]: m["path"] for m in read_json(folder / "modules.json")}
    config = read_json(folder / modules.get("Pooling", "1_Pooling") / "config.json")
    old = [name for name, value in config.items() if name.startswith("pooling_mode_") and value]
    named = config.get("pooling_mode") or [
        name.removeprefix("pooling_mode_").removesuffix("_tokens").removesuffix("_token")
        for name in old
    ]
    modes = [named] if isinstance(named, str) else list(named)
    lower = read_json(folder / "sentence_bert_config.json").get("do_lower_case", False)
    whole = set(modules) <= _SIMPLE and modules.get("Transformer") == ""
    simple = whole and config.get("include_prompt", True) and not lower
    if not simple or len(modes) != 1 or modes[0] not in _POOLING:
        raise UserError(
            found=f"{folder}: modules {', '.join(modules)}; pooling {', '.join(modes) or 'none'}",
            expected=f"for vLLM only {', '.join(sorted(_SIMPLE))}, and one pooling out of "
            + ", ".join(_POOLING),
            do="encode it with the engine torch",
            exit_status=2,
        )
    return modes[0]


def folder_length(folder: Path, tokenizer: Any) -> int:
    """The longest text in tokens, as sentence-transformers has it: what the folder says, else what
    both tokenizer and model can take."""
    said = read_json(folder / "sentence_bert_config.json").get("max_seq_length")
    config = read_json(folder / "config.json")
    positions = config.get("max_position_embeddings", -1)
    limits = [tokenizer.model_max_length, *([positions] if positions > 0 else [])]
    return int(said or min(limits)) if has_modules(folder) else int(min(limits))
