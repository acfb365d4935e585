"""What an exported model says of itself: README.md for people, mteb's ModelMeta as JSON for boards.

Both are made of `card.json`, which is what training knew (base, licence, mixes with their sources,
stages, merges), and of the folder's own files (size, width, attention, pooling), so that they can
be made again wherever a model is merged, exported again or published. Names of sources and models
come from files that anyone may have written: in the metadata they pass through a YAML writer, in
the text every character that Markdown acts on is escaped.
"""

import json
import re
from collections.abc import Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import jinja2
import yaml
from markupsafe import Markup

from datagen.escape import inline
from trainer.model_folder import read_settings

CARD, README, META = "card.json", "README.md", "mteb_model_meta.json"
SHOWN = 8  # names in one cell of a table
_TABLES = ("embed_tokens.weight", "word_embeddings.weight", "tok_embeddings.weight")
_POOLING = {"mean_tokens": "mean", "lasttoken": "last token", "cls_token": "first token"}
# Those of mteb's list that models and data usually have; it takes no others.
_LICENCES = """
apache-2.0 bsd-3-clause cc-by-2.0 cc-by-3.0 cc-by-4.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-4.0
cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 gemma gpl-3.0 lgpl
lgpl-3.0 mit mpl-2.0 odc-by openrail
"""
# Programming languages and texts without words have no script of their own (Zyyy, Zxxx, Zzzz).
_SPOKEN = re.compile(r"[a-z]{3}_(?!Z[xyz]{3})[A-Z][a-z]{3}")
MTEB_LICENCES = frozenset(_LICENCES.split())


def write_card(folder: Path, card: Mapping[str, Any]) -> None:
    """Write the three files into a finished model folder.

    `card` has any of: base_model, licence, about (a line), mixes (see `training_data`), stages
    (figures of each), merged (a line for each model), matryoshka (widths).
    """
    facts = _facts(folder)
    texts = {
        CARD: _json(card),
        META: _json(model_meta(card, facts)),
        README: _readme(card, facts),
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")


def read_card(model: str) -> dict[str, Any]:
    """What training knew of a model folder; nothing of one that was not made here."""
    return read_settings(model, CARD)


def merged_mixes(cards: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The mixes of several cards, each once."""
    found = [mix for card in cards for mix in card.get("mixes", ())]
    return list({json.dumps(mix, sort_keys=True): mix for mix in found}.values())


def model_meta(card: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `mteb.ModelMeta` but for its loader; null is what nobody has said.

    Publishing fills in the name.
    """
    licence = str(card.get("licence") or "").lower()
    sources = [source for mix in card.get("mixes", ()) for source in mix["sources"]]
    spoken = (c for source in sources for c in source["languages"] if _SPOKEN.fullmatch(c))
    languages = {code.replace("_", "-") for code in spoken}
    public = {source["source"] for source in sources if source["origin"] == "public"}
    return {
        "name": None,
        "revision": None,  # the commit: not known before the upload that it is of
        "release_date": None,
        "languages": sorted(languages) or None,
        "n_parameters": facts["parameters"],
        "n_embedding_parameters": facts["embedding_parameters"],
        "memory_usage_mb": round(facts["bytes"] / 2**20),
        "max_tokens": facts["longest"],
        "embed_dim": sorted(card["matryoshka"]) if card.get("matryoshka") else facts["width"],
        "license": licence if licence in MTEB_LICENCES else None,
        "open_weights": None,
        "public_training_code": None,
        "public_training_data": None,
        "framework": ["Sentence Transformers", "PyTorch", "safetensors"],
        "similarity_fn_name": "cosine",
        "use_instructions": True,
        "training_datasets": sorted(public) or None,
        "adapted_from": card.get("base_model"),
    }


def _facts(folder: Path) -> dict[str, Any]:
    """Size, shape and pooling, as the folder's files say; a model of others may lack some."""
    read = partial(read_settings, folder)
    config, pooling = read("config.json"), read("1_Pooling/config.json")
    named = (word for name, word in _POOLING.items() if pooling.get(f"pooling_mode_{name}"))
    how = next(named, str(pooling.get("pooling_mode", "not stated")))
    whole = pooling.get("include_prompt", True)
    widths = ("word_embedding_dimension", "embedding_dimension")
    width = next((pooling[name] for name in widths if name in pooling), config.get("hidden_size"))
    longest = (
        read("sentence_bert_config.json").get("max_seq_length")
        or read("tokenizer_config.json").get("model_max_length")
        or config.get("max_position_embeddings")
    )
    bidirectional = config.get("use_bidirectional_attention", not config.get("is_causal", False))
    return {
        **_weights(folder),
        "width": width,
        "longest": longest,
        "attention": "bidirectional" if bidirectional else "causal",
        "pooling": how + ("" if whole else " (without the instruction's tokens)"),
    }


def _weights(folder: Path) -> dict[str, int]:
    from safetensors import safe_open

    parameters = embedding = size = 0
    for file in sorted(folder.rglob("*.safetensors")):
        size += file.stat().st_size
        with safe_open(file, "np") as tensors:
            for name in list(tensors.keys()):
                count = 1
                for length in tensors.get_slice(name).get_shape():
                    count *= length
                parameters += count
                embedding += count if name.endswith(_TABLES) else 0
    return {"parameters": parameters, "embedding_parameters": embedding, "bytes": size}


def _readme(card: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    header: dict[str, Any] = {
        "library_name": "sentence-transformers",
        "pipeline_tag": "sentence-similarity",
    }
    if card.get("licence"):
        header["license"] = str(card["licence"]).lower()
    return _template().render(
        header=Markup(yaml.safe_dump(header, sort_keys=False, allow_unicode=True, width=100)),
        card=card,
        facts=facts,
        mixes=card.get("mixes", ()),
        stages=card.get("stages", ()),
        merged=card.get("merged", ()),
    )


@cache
def _template() -> jinja2.Template:
    made = jinja2.Environment(
        loader=jinja2.PackageLoader("trainer"),
        autoescape=True,
        undefined=jinja2.ChainableUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=inline,
    )
    made.filters |= {"number": lambda value: f"{value:,}", "some": _some}
    return made.get_template("model_card.md.jinja")


def _some(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    shown = ", ".join(names[:SHOWN])
    return shown if len(names) <= SHOWN else f"{shown} and {len(names) - SHOWN} more"


def _json(value: Any) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"
