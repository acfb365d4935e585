"""What carries nothing goes without a trace; what is left loads anywhere and is a better start."""

import json
from pathlib import Path

import pytest
import torch
from tiny_encoder import tiny_export, tiny_model, tiny_tokenizer
from tiny_mix import write_tiny_mix

from datagen.schema import UserError
from trainer.cli import main
from trainer.encoder import embed, load_encoder
from trainer.export import export_model
from trainer.golden import check_golden
from trainer.model_folder import saved_causal, saved_length, saved_pooling, saved_prompts
from trainer.prompts import PROMPTS
from trainer.prune import SIZES, calibration_texts, cut, measure, prune

TEXTS = ["the dog barks at the cat", "Mars has two moons", "der Mond der Erde", "the mat"]
DEAD_CHANNELS, DEAD_NEURONS = [3, 17, 30], [0, 5, 63]


def with_dead_parts(model):
    """No token and no layer writes the channels; the neurons of each layer are shut."""
    with torch.no_grad():
        model.embed_tokens.weight *= 50  # beside which the norms' epsilon is nothing
        model.embed_tokens.weight[:, DEAD_CHANNELS] = 0
        for layer in model.layers:
            layer.self_attn.o_proj.weight[DEAD_CHANNELS] = 0
            layer.mlp.down_proj.weight[DEAD_CHANNELS] = 0
            layer.mlp.up_proj.weight[DEAD_NEURONS] = 0
    return model


def ids(count: int = 8) -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(5, 400, (3 + n % 4,), generator=generator).tolist() for n in range(count)]


def test_what_is_dead_goes_without_a_trace():
    model = with_dead_parts(tiny_model())
    energy = measure(model, ids(), pad_id=1)
    pruned, kept = cut(model, energy, hidden=29, mlp=61)
    assert kept == {"hidden": 1.0, "mlp": 1.0}
    assert (pruned.config.hidden_size, pruned.config.intermediate_size) == (29, 61)
    assert pruned.config.head_dim == 8  # heads stay as they are
    alive = [i for i in range(32) if i not in DEAD_CHANNELS]
    before, after = (embed(m, ids(), pad_id=1) for m in (model, pruned))
    torch.testing.assert_close(after, before[:, alive], rtol=0, atol=2e-5)


def test_nothing_cut_is_the_same_model():
    model = tiny_model()
    pruned, _ = cut(model, measure(model, ids(), pad_id=1), hidden=None, mlp=None)
    for name, tensor in pruned.state_dict().items():
        torch.testing.assert_close(tensor, model.state_dict()[name], rtol=1e-6, atol=0)


def test_the_largest_activations_stay_nearer_than_any_others():
    """Against cutting the same number of channels and neurons at random, over ten draws."""
    model = tiny_model(seed=3)
    with torch.no_grad():
        model.embed_tokens.weight *= torch.linspace(0.1, 3, 32)
    energy = measure(model, ids(), pad_id=1)

    def distance(used) -> float:
        pruned, _ = cut(model, used, hidden=24, mlp=48)
        texts = ids(12)[8:]
        old, new = (
            torch.nn.functional.normalize(embed(m, texts, pad_id=1)) for m in (model, pruned)
        )
        return float((old @ old.T - new @ new.T).abs().mean())

    others = []
    for seed in range(10):
        torch.manual_seed(seed)
        random = measure(model, ids(), pad_id=1)
        for sums in (random.norms, random.neurons):
            order = torch.randperm(len(next(iter(sums.values()))))
            sums.update({name: values[order] for name, values in sums.items()})
        others.append(distance(random))
    assert distance(energy) < min(others)


def test_the_folder_loads_and_says_what_was_done(tmp_path: Path):
    from sentence_transformers import SentenceTransformer

    model = tiny_export(tmp_path / "model")
    record = prune(model, str(tmp_path / "small"), texts=TEXTS, hidden=16, mlp=40, layers=1)
    assert json.loads((tmp_path / "small" / "prune.json").read_text()) == record
    assert (record["hidden"], record["mlp"], record["layers"]) == (16, 40, 1)
    assert 0 < record["energy_kept"]["hidden"] < 1
    assert check_golden(str(tmp_path / "small")) < 1e-5
    assert SentenceTransformer(str(tmp_path / "small")).encode("the dog").shape == (16,)
    again, _ = load_encoder(str(tmp_path / "small"))
    assert again.config.num_hidden_layers == 1


def test_the_command_calibrates_on_a_mix(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    mix, model = write_tiny_mix(tmp_path / "mix"), tiny_export(tmp_path / "model")
    texts = calibration_texts(mix, "finetune", rows=5)
    assert len(texts) == 15 and all(isinstance(text, str) for text in texts)
    command = ["prune", model, "--output", str(tmp_path / "small"), "--mix", mix, "--rows", "5"]
    assert main([*command, "--hidden", "24"]) == 0
    assert json.loads(capsys.readouterr().out)["hidden"] == 24
    assert main([*command, "--hidden", "24"]) == 1  # the folder is there
    assert "exists" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"hidden": 64}, "hidden 64"),
        ({"hidden": 30}, "attention heads"),
        ({"mlp": 0}, "mlp 0"),
        ({"layers": 3}, "3 layers"),
    ],
)
def test_sizes_that_the_model_has_not_are_refused(tmp_path: Path, options, found):
    model = tiny_export(tmp_path / "model")
    with pytest.raises(UserError, match=found) as refused:
        prune(model, str(tmp_path / "small"), texts=TEXTS, **options)
    assert refused.value.exit_status == 2 and not (tmp_path / "small").exists()


def test_a_width_wants_texts_and_a_depth_wants_none(tmp_path: Path, capsys):
    model, small = tiny_export(tmp_path / "model"), str(tmp_path / "small")
    command = ["prune", model, "--output", small]
    for options, found in (([], "no size"), (["--mlp", "40"], "no texts to calibrate with")):
        assert main([*command, *options]) == 2
        assert found in capsys.readouterr().err
    assert main([*command, "--layers", "1"]) == 0
    whole, first = (load_encoder(folder)[0] for folder in (model, small))
    assert len(first.layers) == 1
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, whole.state_dict()[name])


def test_an_encoder_with_its_own_pooling_keeps_it(tmp_path: Path):
    """BERT has no SwiGLU to cut, but layers; attention, pooling, prompts and length stay."""
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=400, hidden_size=32, intermediate_size=64, num_hidden_layers=3,
        num_attention_heads=4, pad_token_id=1,
    )  # fmt: skip
    prompts = {"query": "query: ", "document": ""}
    how = {"max_length": 40, "prompts": prompts, "pooling": "cls"}
    export_model(BertModel(config), tiny_tokenizer(), str(tmp_path / "bert"), **how)
    prune(str(tmp_path / "bert"), str(tmp_path / "small"), layers=2)
    assert saved_pooling(str(tmp_path / "small"))["pooling"] == "cls"
    assert saved_prompts(str(tmp_path / "small")) == prompts
    assert saved_length(str(tmp_path / "small")) == 40
    assert check_golden(str(tmp_path / "small")) < 1e-5


def test_a_causal_model_stays_causal(tmp_path: Path):
    model = tiny_model()
    model.config.is_causal = True
    how = {"max_length": 64, "prompts": PROMPTS, "pooling": "last"}
    export_model(model, tiny_tokenizer(), str(tmp_path / "model"), **how)
    prune(str(tmp_path / "model"), str(tmp_path / "small"), texts=TEXTS, hidden=16)
    assert saved_causal(str(tmp_path / "small"))


def test_other_architectures_lose_layers_alone(tmp_path: Path):
    """GPT-2 names its sizes in its own way."""
    from transformers import GPT2Config, GPT2Model

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=400, n_embd=32, n_layer=3, n_head=4, n_positions=128)
    GPT2Model(config).save_pretrained(tmp_path / "gpt2")
    tiny_tokenizer().save_pretrained(tmp_path / "gpt2")
    with pytest.raises(UserError, match="gpt2.*\n.*\ndo: .*--layers"):
        prune(str(tmp_path / "gpt2"), str(tmp_path / "small"), texts=TEXTS, hidden=16)
    assert saved_length(str(tmp_path / "gpt2")) == 128
    record = prune(str(tmp_path / "gpt2"), str(tmp_path / "small"), layers=2)
    assert (record["hidden"], record["layers"]) == (32, 2) and "mlp" not in record
    assert check_golden(str(tmp_path / "small")) < 1e-5


def test_the_papers_sizes_are_there():
    assert (SIZES["330M"].hidden, SIZES["330M"].mlp, SIZES["330M"].layers) == (896, 2560, 16)
