"""Texts packed in one row give what each gives alone, for every family, kernel and pooling."""

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from packaging.version import Version
from tiny_encoder import tiny_export, tiny_model, tiny_tokenizer

from datagen.packaged import resolve_model
from datagen.schema import UserError
from trainer.encoder import check_packed, embed, load_encoder, tokenize
from trainer.packed import PACKED, PackedEncoder, pool, segments

COMMON = {
    "vocab_size": 400, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 256, "pad_token_id": 1,
    "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip
DECODER = {**COMMON, "num_key_value_heads": 2, "use_cache": False, "is_causal": False}
GEMMA = {**COMMON, "num_key_value_heads": 2, "use_cache": False, "sliding_window": 8, "head_dim": 8}
FAMILIES = {
    "Llama": DECODER,
    "Llama (causal)": {**DECODER, "is_causal": True},
    "Qwen2": DECODER,
    "Qwen3": DECODER,
    "Mistral": {**DECODER, "sliding_window": 4},
    "Mistral (causal)": {**DECODER, "sliding_window": 4, "is_causal": True},
    "Gemma3Text": {**GEMMA, "use_bidirectional_attention": True},
    "Gemma3Text (causal)": GEMMA,
    "Bert": COMMON,
    "XLMRoberta": COMMON,
    "ModernBert": {**COMMON, "local_attention": 8, "cls_token_id": 0, "sep_token_id": 0},
}
LENGTHS = (3, 5, 5, 17, 70, 3)


def family(name: str) -> transformers.PreTrainedModel:
    if name == "ModernBert" and Version(transformers.__version__) < Version("5.3"):
        pytest.skip("ModernBERT has no attention interface before transformers 5.3")
    torch.manual_seed(0)
    config = getattr(transformers, f"{name.split()[0]}Config")(**FAMILIES[name])
    return getattr(transformers, f"{name.split()[0]}Model")(config).eval()


@pytest.mark.parametrize("math_length", [0, 600], ids=["fused", "products"])
@pytest.mark.parametrize("name", FAMILIES)
def test_packed_texts_are_what_they_are_alone(monkeypatch, name, math_length):
    monkeypatch.setattr("trainer.packed.MATH_LENGTH", math_length)
    model = family(name)
    ids = [torch.randint(2, 400, (length,)).tolist() for length in LENGTHS]
    for pooling in ("mean", "last", "cls"):
        model.set_attn_implementation("sdpa")
        padded = embed(model, ids, pad_id=1, pooling=pooling)
        packed = PackedEncoder(model, pooling=pooling)(ids)
        torch.testing.assert_close(packed, padded, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["Qwen3", "ModernBert"])
def test_packed_texts_have_the_gradient_of_padded_ones(name):
    ids = [torch.randint(2, 400, (length,)).tolist() for length in LENGTHS]
    gradients = []
    for packed in (True, False):
        model = family(name)
        found = PackedEncoder(model)(ids) if packed else embed(model, ids, pad_id=1)
        (found * torch.arange(32)).sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert (gradients[0] - gradients[1]).norm() <= 1e-5 * gradients[1].norm()


@settings(max_examples=30)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=12))
def test_any_lengths_in_any_order(lengths):
    model = tiny_model()
    ids = [list(range(2, 2 + length)) for length in lengths]
    packed = PackedEncoder(model)
    with torch.no_grad():
        alone = torch.cat([packed([row]) for row in ids])
        torch.testing.assert_close(packed(ids), alone, atol=1e-5, rtol=1e-5)


def test_runs_are_neighbours_of_equal_length():
    parts = segments([3, 3, 5, 3], torch.device("cpu"))
    assert parts.runs == [(2, 3), (1, 5), (1, 3)]
    assert parts.borders.tolist() == [0, 3, 6, 11, 14]


def test_pooling_by_hand():
    states = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    parts = segments([2, 1], torch.device("cpu"))
    assert pool(states, parts, "mean").tolist() == [[2.0, 3.0], [5.0, 6.0]]
    assert pool(states, parts, "last").tolist() == [[3.0, 4.0], [5.0, 6.0]]
    assert pool(states, parts, "cls").tolist() == [[1.0, 2.0], [5.0, 6.0]]


@pytest.mark.parametrize("options", ["checkpointing", "compile"])
def test_training_options_change_no_gradient(options):
    ids = [torch.randint(2, 400, (length,)).tolist() for length in LENGTHS]
    gradients = []
    for with_option in (False, True):
        model = tiny_model().train()
        encoder = PackedEncoder(model)
        if with_option and options == "checkpointing":
            model.gradient_checkpointing_enable({"use_reentrant": False})
        if with_option and options == "compile":
            model.compile(backend="eager", dynamic=True)
        encoder(ids).square().sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    torch.testing.assert_close(*gradients)


def test_other_lengths_are_not_compiled_again():
    stats = torch._dynamo.utils.counters["stats"]
    model = tiny_model().train()
    encoder = PackedEncoder(model)
    model.compile(backend="eager", dynamic=True)
    seen = []
    for lengths in ((3, 4), (9, 2, 5), (7, 7, 7, 30), (40,)):
        encoder([list(range(2, 2 + length)) for length in lengths]).sum().backward()
        seen.append(stats["unique_graphs"])
    assert seen[-1] == seen[1]


def test_a_model_whose_attention_is_its_own_is_refused(tmp_path):
    model, tokenizer = load_encoder(tiny_export(tmp_path / "tiny"))
    assert check_packed(model, tokenizer).model.config._attn_implementation == PACKED
    other = tiny_model()
    other.set_attn_implementation = lambda _: None  # keeps its kernel, as an older class would
    with pytest.raises(UserError, match="packed texts differ from padded ones"):
        check_packed(other, tiny_tokenizer())


@pytest.mark.slow
def test_the_packaged_base(model_cache):
    folder, _ = resolve_model("smollm2-135m-instruct", model_cache)
    model, tokenizer = load_encoder(folder, layers=6)
    texts = ["Mars has two moons.", "Phobos", "der Mond " * 40, "Mars has two moons."]
    ids = tokenize(tokenizer, texts, max_length=128)
    with torch.no_grad():
        padded = embed(model.eval(), ids, pad_id=tokenizer.pad_token_id)
        packed = PackedEncoder(model)(ids)
    error = (packed - padded).norm() / padded.norm()
    assert error <= 1e-5


@pytest.mark.gpu
def test_the_kernel_of_the_gpu():
    model = family("Qwen3")
    ids = [torch.randint(2, 400, (length,)).tolist() for length in LENGTHS]
    expected = PackedEncoder(model)(ids)
    found = PackedEncoder(model.cuda(), mixed=True)(ids).cpu()
    torch.testing.assert_close(found, expected, atol=5e-2, rtol=5e-2)
