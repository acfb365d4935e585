"""Train small matrices beside frozen weights (LoRA, arXiv 2106.09685), by the PEFT library.

All linear layers of the model get an adapter; the token table and the norms stay as they are. At
the end adapters are added to the weights, so that the export is a plain model. Adapters cannot be
merged twice without rounding: merge exported models instead.
"""

from typing import Any

from transformers import PreTrainedModel

from datagen.schema import UserError


def add_lora(model: PreTrainedModel, rank: int) -> Any:
    """Put adapters of this rank into the model (in place); gives what `merged` wants."""
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise UserError(
            found="the peft library is not installed",
            expected="it, where adapters are trained",
            do="pip install 'embedmix[lora]', or train all weights (lora 0)",
        ) from error
    config = LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules="all-linear")
    return get_peft_model(model, config)


def merged(adapted: Any) -> PreTrainedModel:
    """The model with its adapters added to the weights."""
    return adapted.merge_and_unload()
