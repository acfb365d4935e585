"""The teacher's vectors of texts from the cache that mining fills, in place of a teacher's pass.

A vector is found by the digest of the teacher's folder, precision, length and the content of the
text as training has it (datagen.embedding_cache), instruction included and no other prompt: what
`embed_texts(with_instruction=True, query_prompt="")` has encoded. A text that is not there is
encoded once, by the teacher's own tokenizer and pooling, and kept for later epochs and runs. The
cache holds unit vectors in fp16, so what is matched is direction (`distill cosine`).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from datagen.cached_encoder import CachedEncoder
from datagen.encoder_model import inspect_encoder
from datagen.schema import UserError
from datagen.store import Folder

STORED = "float16"
_SETTINGS = ("dtype", "max_length")


class CachedTeacher:
    """A teacher folder in front of the cache at `root`; the model is loaded when a text is new."""

    def __init__(self, folder: str, *, root: str, width: int, device: torch.device):
        self.width, self.device = width, device
        settings = _settings(root, inspect_encoder(folder).digest)
        self.encoder = CachedEncoder(folder, root=root, device=str(device), **settings)

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors [texts, E]."""
        vectors = self.encoder.encode(texts, stored="float16")
        if vectors.shape[1] < self.width:
            raise UserError(
                found=f"a teacher of width {vectors.shape[1]}",
                expected=f"vectors at least as wide as the student's {self.width}",
                do="take a larger teacher, or distill scores: kl, margin",
            )
        return torch.from_numpy(vectors).to(self.device).float()


def _settings(root: str, digest: str) -> dict[str, Any]:
    """Precision and length in which the cache has the teacher's vectors; fp32 where it has none."""
    place = Folder(root)
    keys = [place.folder(name) for name in place.names()]
    found = [folder.read_json("key.json") for folder in keys if folder.exists("key.json")]
    own = [k for k in found if (k["encoder"], k["prompt"], k["stored"]) == (digest, "", STORED)]
    if len(own) > 1:
        raise UserError(
            found=f"vectors of the teacher in {len(own)} settings: "
            + "; ".join(str({name: key[name] for name in _SETTINGS}) for key in own),
            expected="one precision and one length in the cache",
            do="name a cache that has one of them, or a new folder",
        )
    return {name: own[0][name] for name in _SETTINGS} if own else {}
