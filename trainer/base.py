"""Prepare the model that training starts from: the first layers of a decoder, as an encoder.

Depth pruning by keeping the first layers is what F2LLM-v2 found best (arXiv 2603.19223, section 3).
The language head goes, attention becomes bidirectional through `is_causal=False`, and the folder is
exported like every trained model, so that the untrained base can be evaluated beside them.
"""

import json
import logging
from pathlib import Path
from typing import Any

from datagen.schema import UserError
from trainer.export import export_model
from trainer.train import model_digest

log = logging.getLogger("embedmix")


def prepare_base(
    model: str,
    output: str,
    *,
    layers: int | None = None,
    max_length: int = 512,
    licence: str | None = None,
) -> str:
    """Export the first `layers` layers (None: all) of the decoder in folder `model`, untrained.

    The folder is written once and returned; `licence` is for its card. UserError when `output` was
    made from other weights, another depth or another length, and when the model has fewer layers.
    """
    made = {"weights": model_digest(model), "layers": layers, "max_length": max_length}
    record = Path(output) / "base.json"
    if record.is_file():
        _refuse_other(record, made)
        log.info("%s: up to date", output)
        return output
    from trainer.encoder import load_encoder, self_check
    from trainer.prompts import PROMPTS

    encoder, tokenizer = load_encoder(model, layers=layers)
    self_check(encoder, tokenizer)
    kept = encoder.config.num_hidden_layers
    about = f"untrained, the first {kept} layers"
    card = {"base_model": Path(model).name, "about": about, "licence": licence}
    export_model(encoder, tokenizer, output, max_length=max_length, prompts=PROMPTS, card=card)
    record.write_text(json.dumps(made, indent=1) + "\n")
    log.info("base: the first %d layers of %s in %s", kept, Path(model).name, output)
    return output


def _refuse_other(record: Path, made: dict[str, Any]) -> None:
    before = json.loads(record.read_text())
    changed = [key for key in made if before.get(key) != made[key]]
    if changed:
        raise UserError(
            found=f"{record.parent} was made with other "
            + ", ".join(f"{key} ({before.get(key)}, not {made[key]})" for key in changed),
            expected="the same model and depth",
            do="choose another output, or delete that folder",
        )
