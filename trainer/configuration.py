"""A model's configuration, with the attention that is asked for: bidirectional, or causal.

transformers >= 5.2 takes one key for nearly all decoders, `is_causal`. Gemma 3 has a key of its
own, `use_bidirectional_attention`: it is read when the configuration is made, halves the sliding
window (as many tokens are seen, half of them on each side), and counts it without its last token.
`is_causal` beside it would count that token. A folder keeps the window of before, so that reading
it halves it once; older transformers write the halved one, hence `saved_keys`.
"""

from pathlib import Path
from typing import Any

from transformers import AutoConfig, PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from datagen.schema import UserError

_OWN_KEY = ("gemma3_text",)


def read_configuration(
    path: str, *, causal: bool = False, layers: int | None = None
) -> PretrainedConfig:
    """The configuration of a model folder with this attention and its first `layers` layers.

    Raises UserError for a folder that is no model that transformers knows, and for a number of
    layers that it lacks.
    """
    if not (Path(path) / "config.json").is_file():
        raise UserError(
            found=f"no config.json in {path}",
            expected="the folder of a transformers model",
            do="check the path of the model",
        )
    try:
        told, _ = PretrainedConfig.get_config_dict(path, local_files_only=True)
        config = _made(path, told, causal=causal)
    except (OSError, ValueError) as error:
        raise UserError(
            found=f"{path}/config.json: {first_line(error)}",
            expected="the configuration of a model that transformers knows",
            do="copy the folder again, or take another model",
        ) from error
    config.use_cache = False  # else each forward builds a cache, which shortened models crash in
    return config if layers is None else _shortened(config, layers, path)


def first_line(error: Exception) -> str:
    """What a library says of a file, in short."""
    return (str(error).splitlines() or [type(error).__name__])[0][:300]


def _made(path: str, told: dict[str, Any], *, causal: bool) -> PretrainedConfig:
    if told.get("model_type") in _OWN_KEY:
        told["use_bidirectional_attention"] = not causal
        return CONFIG_MAPPING[told["model_type"]].from_dict(told)
    config = AutoConfig.from_pretrained(path, local_files_only=True)
    config.is_causal = causal
    return config


def _shortened(config: PretrainedConfig, layers: int, path: str) -> PretrainedConfig:
    total = config.num_hidden_layers
    if not 0 < layers <= total:
        raise UserError(
            found=f"{layers} layers asked for",
            expected=f"1 to {total}, the layers of {path}",
            do="change `layers`",
            exit_status=2,
        )
    config.num_hidden_layers = layers
    if getattr(config, "layer_types", None):  # transformers 5 refuses a list of another length
        config.layer_types = config.layer_types[:layers]
    return config


def is_causal(config: Any) -> bool:
    """Whether a model of this configuration sees earlier tokens only."""
    if config.model_type in _OWN_KEY:
        return not config.use_bidirectional_attention
    return bool(getattr(config, "is_causal", False))


def window_reach(config: Any, *, causal: bool) -> int:
    """How many tokens a sliding window reaches to one side, the token itself not counted."""
    counts_itself = causal or config.model_type in _OWN_KEY
    return config.sliding_window - int(counts_itself)


def saved_keys(config: Any) -> dict[str, Any]:
    """Keys of config.json that make every reader see the attention of this configuration."""
    bidirectional = not is_causal(config)
    if config.model_type in _OWN_KEY:
        window = (config.sliding_window - 1) * 2 if bidirectional else config.sliding_window
        return {"use_bidirectional_attention": bidirectional, "sliding_window": window}
    # The second is text-embeddings-inference's.
    return {"is_causal": not bidirectional, "use_bidirectional_attention": bidirectional}
