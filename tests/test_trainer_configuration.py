"""Attention as it is asked for, in families with a window, and kept by what is exported."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from sentence_transformers import SentenceTransformer
from tiny_encoder import tiny_tokenizer

from datagen.schema import UserError
from trainer.configuration import is_causal, read_configuration, window_reach
from trainer.encoder import check_packed, embed, load_encoder, self_check
from trainer.export import export_folder
from trainer.model_folder import saved_causal

SHAPE = {
    "vocab_size": 400, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 7,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 8,
    "max_position_embeddings": 256, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip
IDS = [list(range(10, 10 + length)) for length in (3, 50, 21)]  # most are longer than the window


@pytest.fixture(params=["Gemma3Text", "Gemma", "Mistral"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A decoder with a sliding window as its makers save it: nothing says that it is an encoder."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{request.param}Config")(**SHAPE)
    getattr(transformers, f"{request.param}Model")(config).save_pretrained(tmp_path / "raw")
    tiny_tokenizer().save_pretrained(tmp_path / "raw")
    return str(tmp_path / "raw")


def vectors(model: transformers.PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        return embed(model.eval(), IDS, pad_id=1)


def test_exports_of_exports_attend_as_the_model_that_was_trained(folder, tmp_path):
    """A window that each reading halves would move these vectors by their whole length."""
    model, tokenizer = load_encoder(folder)
    self_check(model, tokenizer)
    assert not is_causal(model.config)
    expected = vectors(model)
    for name, source in (("first", folder), ("second", str(tmp_path / "first"))):
        export_folder(source, str(tmp_path / name), max_length=64)
        again, _ = load_encoder(str(tmp_path / name))
        torch.testing.assert_close(vectors(again), expected, atol=1e-6, rtol=0)
        theirs = SentenceTransformer(str(tmp_path / name), device="cpu")[0].auto_model
        torch.testing.assert_close(vectors(theirs), expected, atol=1e-6, rtol=0)
    packed = check_packed(model, tokenizer)
    with torch.no_grad():
        torch.testing.assert_close(packed(IDS), expected, atol=1e-5, rtol=1e-5)


def test_causal_is_causal_in_every_family(folder):
    model, tokenizer = load_encoder(folder, causal=True)
    self_check(model, tokenizer, causal=True)
    expected = vectors(model)
    packed = check_packed(model, tokenizer)
    with torch.no_grad():
        torch.testing.assert_close(packed(IDS), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("folder", ["Gemma3Text"], indirect=True)
def test_gemma_3_is_bidirectional_by_its_own_key(folder, tmp_path):
    """A window of eight becomes four tokens to each side."""
    assert window_reach(read_configuration(folder, causal=True), causal=True) == 7
    config = read_configuration(folder)
    assert (config.sliding_window, window_reach(config, causal=False)) == (5, 4)
    assert not hasattr(config, "is_causal")
    export_folder(folder, str(tmp_path / "export"), max_length=64)
    saved = json.loads((tmp_path / "export" / "config.json").read_text())
    assert (saved["use_bidirectional_attention"], saved["sliding_window"]) == (True, 8)
    assert not saved_causal(str(tmp_path / "export"))


@pytest.mark.parametrize("folder", ["Gemma2"], indirect=True)
def test_scores_that_are_capped_are_refused(folder):
    """No kernel that packs has the cap; some transformers drop it without a word, some refuse."""
    with pytest.raises(UserError, match="caps its scores|does not load"):
        check_packed(*load_encoder(folder))


@pytest.mark.parametrize("layers", [0, 8])
@pytest.mark.parametrize("folder", ["Mistral"], indirect=True)
def test_layers_that_are_not_there(folder, layers):
    with pytest.raises(UserError, match=f"{layers} layers asked for\nexpected: 1 to 7"):
        read_configuration(folder, layers=layers)
