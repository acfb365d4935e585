"""Bidirectional loading, pooling over real tokens, padding that changes nothing, and the check."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from tiny_encoder import tiny_export, tiny_model, tiny_tokenizer

from datagen.schema import UserError
from trainer import encoder
from trainer.encoder import (
    embed,
    load_encoder,
    mean_pool,
    self_check,
    tokenize,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_export(tmp_path_factory.mktemp("models") / "tiny")


def test_a_loaded_model_is_bidirectional_and_keeps_no_cache(folder):
    model, tokenizer = load_encoder(folder)
    assert model.config.is_causal is False
    assert model.config.use_cache is False
    assert tokenizer.padding_side == "right"
    self_check(model, tokenizer)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_check_passes_on_both_kernels(folder, attention):
    model, tokenizer = load_encoder(folder, attn_implementation=attention)
    self_check(model, tokenizer)


@pytest.mark.parametrize("family", ["Llama", "Qwen2", "Qwen3", "Mistral"])
def test_the_check_passes_on_other_decoders(family):
    make = getattr(transformers, f"{family}Config")
    config = make(
        vocab_size=400, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, is_causal=False, use_cache=False,
    )  # fmt: skip
    self_check(getattr(transformers, f"{family}Model")(config), tiny_tokenizer())


def test_a_causal_model_is_refused_and_accepted_when_asked_for(folder):
    model, tokenizer = load_encoder(folder, causal=True)
    self_check(model, tokenizer, causal=True)
    with pytest.raises(UserError, match="later token moves the first state by 0.0e"):
        self_check(model, tokenizer)


def test_only_the_attention_flag_of_the_layers_is_not_enough():
    # The trick of older trainers: bidirectional without padding, causal with it.
    model, tokenizer = tiny_model(), tiny_tokenizer()
    model.config.is_causal = True
    for layer in model.layers:
        layer.self_attn.is_causal = False
    with pytest.raises(UserError, match="bidirectional"):
        self_check(model, tokenizer)


def test_a_kernel_that_sees_padding_is_refused(monkeypatch):
    model, tokenizer = tiny_model(), tiny_tokenizer()
    forward = model.forward
    monkeypatch.setattr(
        model, "forward", lambda input_ids, attention_mask: forward(input_ids=input_ids)
    )
    with pytest.raises(UserError, match="padding moves a state"):
        self_check(model, tokenizer)


def test_a_tokenizer_of_another_model_is_refused():
    with pytest.raises(UserError, match="400 tokens with a table of 100"):
        config = transformers.LlamaConfig(
            vocab_size=100, hidden_size=32, intermediate_size=64, num_hidden_layers=1,
            num_attention_heads=4, num_key_value_heads=4,
        )  # fmt: skip
        tokenizer = tiny_tokenizer()
        tokenizer.add_tokens([f"word{i}" for i in range(400 - len(tokenizer))])
        self_check(transformers.LlamaModel(config), tokenizer)


def test_an_old_transformers_is_refused(folder, monkeypatch):
    monkeypatch.setattr(encoder.transformers, "__version__", "4.57.6")
    with pytest.raises(UserError, match="transformers 4.57.6"):
        load_encoder(folder)


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(UserError, match="no config.json"):
        load_encoder(str(tmp_path))


def test_missing_weights_are_refused_not_drawn_at_random(folder, tmp_path):
    from safetensors.torch import load_file, save_file

    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes(Path(folder, name).read_bytes())
    weights = load_file(Path(folder) / "model.safetensors")
    del weights["norm.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="lacks 1 weights"):
        load_encoder(str(tmp_path))


def test_the_first_layers_are_the_same_layers(folder):
    whole, _ = load_encoder(folder)
    first, _ = load_encoder(folder, layers=1)
    assert first.config.num_hidden_layers == len(first.layers) == 1
    assert torch.equal(first.layers[0].mlp.up_proj.weight, whole.layers[0].mlp.up_proj.weight)
    with pytest.raises(UserError, match="1 to 2"):
        load_encoder(folder, layers=3)


def test_mean_pool_counts_real_tokens_only():
    hidden = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [9.0, 9.0]]])
    mask = torch.tensor([[1, 1, 0]])
    assert mean_pool(hidden, mask).tolist() == [[2.0, 3.0]]


def test_texts_are_cut_and_never_empty():
    tokenizer = tiny_tokenizer()
    ids = tokenize(tokenizer, ["the dog barks at the cat", ""], max_length=4)
    assert [len(row) for row in ids] == [4, 1]
    assert ids[1] == [tokenizer.pad_token_id]


def test_an_embedding_does_not_depend_on_its_neighbours(folder):
    model, tokenizer = load_encoder(folder)
    texts = ["cat", "the dog barks", "Mars has two moons; der Mond der Erde"]
    ids = tokenize(tokenizer, texts, max_length=64)
    pad = tokenizer.pad_token_id
    together = embed(model, ids, pad_id=pad)
    alone = torch.cat([embed(model, [row], pad_id=pad) for row in ids])
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=1e-5)


def test_the_saved_configuration_says_bidirectional(folder):
    assert json.loads(Path(folder, "config.json").read_text())["is_causal"] is False


@pytest.mark.parametrize(
    ("file", "content", "found"),
    [
        ("config.json", b"{", "config.json: .*valid JSON"),
        ("config.json", b'{"model_type": "new"}', "config.json: .*`new`"),
        ("tokenizer.json", b"{", "no tokenizer in"),
        ("tokenizer.json", None, "no tokenizer in"),
        ("model.safetensors", None, "does not load"),
        ("model.safetensors", b"x" * 100, "does not load"),
    ],
)
def test_a_folder_with_a_file_that_is_cut_or_absent(folder, tmp_path, file, content, found):
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    if content is None:
        (broken / file).unlink()
    else:
        (broken / file).write_bytes(content)
    with pytest.raises(UserError, match=found):
        load_encoder(str(broken))
