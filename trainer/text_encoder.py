"""A sentence-transformers folder as mteb wants a model: texts of a task in, vectors out.

Each text is embedded once per run: the sides of a task share texts, and so do tasks (the English
side of a parallel set). Texts are sorted by length inside a call, so that little is padding.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from datagen.schema import UserError
from trainer.model_folder import refuse_cut

# What counts beside the weights: of the model, pooling, tokenizer and the order of modules.
_SETTINGS = ("config.json", "*/config.json", "tokenizer*.json", "modules.json", "sentence_*.json")
MAX_KEPT_VECTORS = 200_000  # shared between tasks; 384 fp32 values each are 300 MB


def weights_digest(model: str) -> str:
    """sha256 over a model folder's safetensors files; UserError when there are none."""
    files = sorted(Path(model).rglob("*.safetensors"))
    if not files:
        raise UserError(
            found=f"no .safetensors file in {model}",
            expected="the folder of a sentence-transformers model",
            do="check the path given as --model, or make one with: trainer export",
            exit_status=2,
        )
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def settings_digest(model: str) -> str:
    """sha256 over a folder's configuration, pooling and tokenizer: these change vectors, too."""
    digest = hashlib.sha256()
    for file in sorted({file for pattern in _SETTINGS for file in Path(model).glob(pattern)}):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def load_text_encoder(
    path: str, *, max_length: int | None, dtype: str | None, batch_size: int
) -> "TextEncoder":
    if not (Path(path) / "modules.json").is_file():
        raise UserError(
            found=f"no modules.json in {path}",
            expected="the folder of a sentence-transformers model",
            do=f"make one with: trainer export {path} --output DIR",
            exit_status=2,
        )
    refuse_cut(path)
    if dtype not in (None, "float32", "bfloat16", "float16"):
        raise UserError(
            found=f"dtype {dtype!r}",
            expected="float32, bfloat16 or float16",
            do="mend --dtype",
            exit_status=2,
        )
    try:
        import mteb  # noqa: F401
    except ImportError as error:
        raise UserError(
            found="the mteb library is not installed",
            expected="mteb, which computes the scores",
            do="pip install 'embedmix[evaluate]'",
        ) from error
    import torch
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(
        path,
        trust_remote_code=False,
        local_files_only=True,
        model_kwargs={"use_safetensors": True, **({"dtype": dtype} if dtype else {})},
    )
    if max_length is not None:
        model.max_seq_length = max_length
    return TextEncoder(model=model, batch_size=batch_size, threads=torch.get_num_threads())


@dataclass(kw_only=True)
class TextEncoder:
    """What mteb asks vectors of: a sentence-transformers model that embeds each text once.

    With `width`, vectors are cut to their first values and made unit length again: encoders of
    several widths share what was encoded once. `keep_all` then holds the vectors of a task however
    many they are, until `forget`. `mteb_model_meta` is None: the model has no entry in mteb's
    registry, nothing is cached.
    """

    model: Any
    batch_size: int
    threads: int
    prompts: Mapping[str, str] = field(default_factory=dict)
    vectors: dict[tuple[str, str, str], np.ndarray] = field(default_factory=dict)
    width: int | None = None
    keep_all: bool = False
    mteb_model_meta: None = None

    @property
    def dtype(self) -> str:
        return str(next(self.model.parameters()).dtype).removeprefix("torch.")

    @property
    def saved_prompts(self) -> dict[str, str]:
        return {name: prompt for name, prompt in self.model.prompts.items() if prompt}

    def for_task(self, prompts: Mapping[str, str], *, width: int | None = None) -> "TextEncoder":
        """The same model and vectors, with the prompts of one task, cut to `width`."""
        return replace(self, prompts=prompts, width=width)

    def forget(self) -> None:
        """Let vectors go that are more than tasks may share."""
        if len(self.vectors) > MAX_KEPT_VECTORS:
            self.vectors.clear()

    def encode(self, inputs: Any, *, prompt_type: Any = None, **_: Any) -> np.ndarray:
        """Vectors [n, D] in fp32 of the texts of a data loader, for one side of the task."""
        # Where a task has one prompt for all its texts, it may still name their sides.
        side = prompt_type.value if prompt_type and "text" not in self.prompts else "text"
        prompt = self.prompts[side]
        texts = [text for batch in inputs for text in batch["text"]]
        keys = [(side, prompt, text) for text in texts]
        found = {key: self.vectors[key] for key in keys if key in self.vectors}
        new = list(dict.fromkeys(key for key in keys if key not in found))
        if new:
            made = self._embed([text for _, _, text in new], side, prompt)
            found |= zip(new, made, strict=True)
            if self.keep_all or len(self.vectors) + len(new) <= MAX_KEPT_VECTORS:
                self.vectors |= {key: found[key] for key in new}
        return self._cut(np.stack([found[key] for key in keys]))

    def _cut(self, vectors: np.ndarray) -> np.ndarray:
        if self.width is None:
            return vectors
        short = vectors[:, : self.width]
        return short / np.maximum(np.linalg.norm(short, axis=1, keepdims=True), 1e-12)

    def _embed(self, texts: list[str], side: str, prompt: str) -> np.ndarray:
        from threadpoolctl import threadpool_limits

        # A tokenizer without special tokens makes nothing of an empty text, and a pass over nothing
        # fails: such a text gets a zero vector, which is similar to none.
        lost = not prompt and not self.model.tokenizer("")["input_ids"]
        run = {"query": self.model.encode_query, "document": self.model.encode_document}
        with threadpool_limits(limits=self.threads):
            made = run.get(side, self.model.encode)(
                ["-" if lost and not text else text for text in texts],
                prompt=prompt,
                batch_size=self.batch_size,
                show_progress_bar=False,
                convert_to_numpy=True,
            )
        vectors = np.array(made, dtype=np.float32)
        vectors[[lost and not text for text in texts]] = 0.0
        return vectors

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
        return self.model.similarity(embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:
        return self.model.similarity_pairwise(embeddings1, embeddings2)
