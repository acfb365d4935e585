"""Write an exported model as ONNX as well, and check it: `onnx/model.onnx` beside the weights.

torch's own exporter traces the padded pass with pooling and normalisation inside. Inputs are
`input_ids` and `attention_mask` [batch, tokens]; outputs `token_embeddings` and
`sentence_embedding`, the names that sentence-transformers' and text-embeddings-inference's ONNX
backends look for. The golden vectors of the folder are compared in one padded batch of another
shape than the one that was traced, so a mask or a length that was taken for a constant shows.
"""

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

from datagen.schema import UserError
from trainer.golden import compare_golden, golden_texts

FILE = "onnx/model.onnx"
_LIBRARIES = ("onnx", "onnxscript", "onnxruntime")


def check_onnx_libraries() -> None:
    """Raise UserError where a library is missing."""
    missing = [name for name in _LIBRARIES if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            found=f"{', '.join(missing)} not installed",
            expected="the libraries that write and run ONNX",
            do="pip install 'embedmix[onnx]'",
        )


def export_onnx(folder: str) -> float:
    """Add FILE to an exported folder; returns the golden difference of what it gives.

    UserError when the libraries are missing, when instructions are left out of the mean (a graph
    has no place for their length), and when the golden vectors differ.
    """
    check_onnx_libraries()
    import torch

    from trainer.encoder import load_encoder, pad
    from trainer.model_folder import saved_causal, saved_pooling

    how = saved_pooling(folder)
    if not how["pool_instruction"]:
        raise UserError(
            found=f"{folder} leaves the tokens of instructions out of the mean",
            expected="a model whose graph needs token ids and a mask alone",
            do="leave --onnx out; sentence-transformers runs this model",
        )
    model, tokenizer = load_encoder(folder, causal=saved_causal(folder))
    example = pad([[5, 6, 7], [8, 9, 10, 11, 12]], pad_id=tokenizer.pad_token_id)
    axes = {0: "batch", 1: "tokens"}
    program = torch.onnx.export(
        _whole(model, how["pooling"]).eval(),
        example,
        dynamo=True,
        verbose=False,
        input_names=["input_ids", "attention_mask"],
        output_names=["token_embeddings", "sentence_embedding"],
        dynamic_shapes={"input_ids": axes, "attention_mask": axes},
    )
    assert program is not None
    place = Path(folder) / FILE
    place.parent.mkdir(exist_ok=True)
    program.save(str(place), external_data=sum(p.nbytes for p in model.parameters()) > 2**30)
    try:
        return compare_golden(folder, onnx_vectors(folder, tokenizer))
    except UserError:
        shutil.rmtree(place.parent)
        raise


def onnx_vectors(folder: str, tokenizer: Any) -> Any:
    """Unit vectors [2, D] of the golden texts by onnxruntime, in one padded batch."""
    import onnxruntime

    from trainer.encoder import pad, tokenize

    texts = golden_texts(folder)
    length = json.loads((Path(folder) / "sentence_bert_config.json").read_text())["max_seq_length"]
    ids = tokenize(tokenizer, texts, max_length=length)
    tokens, mask = pad(ids, pad_id=tokenizer.pad_token_id)
    session = onnxruntime.InferenceSession(str(Path(folder) / FILE))
    fed = {"input_ids": tokens.numpy(), "attention_mask": mask.numpy()}
    return session.run(["sentence_embedding"], fed)[0]


def _whole(model: Any, pooling: str) -> Any:
    """Model, pooling and normalisation as one module."""
    import torch

    from trainer.encoder import pooled

    class Whole(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: Any, attention_mask: Any) -> tuple[Any, Any]:
            found = self.model(input_ids=input_ids, attention_mask=attention_mask)
            hidden_BTD = found.last_hidden_state
            vectors_BD = pooled(hidden_BTD, attention_mask, pooling)
            return hidden_BTD, torch.nn.functional.normalize(vectors_BD, dim=-1)

    return Whole()
