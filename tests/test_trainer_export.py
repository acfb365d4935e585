"""An exported folder loads in sentence-transformers without custom code, with our own vectors."""

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from tiny_encoder import tiny_export, tiny_model, tiny_tokenizer

from datagen.schema import UserError, format_query
from trainer.export import export_folder, export_model, new_folder
from trainer.golden import GOLDEN, check_golden
from trainer.prompts import PROMPTS, RETRIEVAL

TEXTS = ["the dog barks", "Mars has two moons; der Mond der Erde", " a blank in front ", "x"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_export(tmp_path_factory.mktemp("export") / "model")


def our_vectors(texts: list[str]) -> np.ndarray:
    """Mean pooling of one text at a time, written out here: no padding, no batch."""
    import torch

    model, tokenizer = tiny_model(), tiny_tokenizer()
    rows = []
    for text in texts:
        with torch.no_grad():
            ids = torch.tensor([tokenizer(text)["input_ids"][:64]])
            mean = model(input_ids=ids).last_hidden_state[0].mean(0).numpy()
        rows.append(mean / np.linalg.norm(mean))
    return np.stack(rows)


def load(folder: str):
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(folder, trust_remote_code=False)


def test_sentence_transformers_gives_our_vectors_padded_and_batched(folder: str) -> None:
    found = load(folder).encode(TEXTS, batch_size=4)
    assert np.abs(found - our_vectors(TEXTS)).max() < 1e-5


def test_encode_query_is_the_training_template(folder: str) -> None:
    """The prompt keeps its last blank: prompt + text is the very string that training tokenised."""
    model = load(folder)
    queries = [format_query(RETRIEVAL, text) for text in TEXTS]
    assert np.abs(model.encode_query(TEXTS) - our_vectors(queries)).max() < 1e-5
    assert np.abs(model.encode_document(TEXTS) - our_vectors(TEXTS)).max() < 1e-5


def test_a_prompt_without_its_blank_is_another_text() -> None:
    """Why the blank stays: `Query:dog` and `Query: dog` are different tokens."""
    tokenizer = tiny_tokenizer()
    with_blank = tokenizer("Query: " + "dog")["input_ids"]
    assert tokenizer("Query:" + "dog")["input_ids"] != with_blank


def test_files_say_what_each_loader_reads(folder: str) -> None:
    def read(name: str) -> dict:
        return json.loads((Path(folder) / name).read_text())

    config = read("config.json")
    assert config["architectures"] == ["LlamaModel"]
    assert (config["is_causal"], config["use_cache"]) == (False, False)
    assert config["use_bidirectional_attention"] is True
    assert read("tokenizer_config.json")["model_max_length"] == 64
    assert read("config_sentence_transformers.json")["prompts"] == PROMPTS
    assert read("config_sentence_transformers.json")["similarity_fn_name"] == "cosine"
    assert [m["path"] for m in read("modules.json")] == ["", "1_Pooling", "2_Normalize"]
    assert load(folder).max_seq_length == 64
    assert not list(Path(folder).rglob("*.py"))


def test_long_texts_are_cut_at_the_same_token(folder: str) -> None:
    text = "the dog barks at the cat " * 40
    assert np.abs(load(folder).encode([text, "x"]) - our_vectors([text, "x"])).max() < 1e-5


def test_the_same_model_exports_to_the_same_bytes(folder: str, tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer(["used before"], truncation=True, max_length=3, padding=True)
    export_model(tiny_model(), tokenizer, str(tmp_path / "again"), max_length=64, prompts=PROMPTS)
    names = sorted(p.relative_to(folder) for p in Path(folder).rglob("*") if p.is_file())
    assert names
    for name in names:
        assert (tmp_path / "again" / name).read_bytes() == (Path(folder) / name).read_bytes(), name


def test_bf16_weights_stay_bf16(tmp_path: Path) -> None:
    from safetensors import safe_open

    path = tiny_export(tmp_path / "half", dtype="bfloat16")
    with safe_open(Path(path) / "model.safetensors", "pt") as tensors:
        assert {str(tensors.get_tensor(n).dtype) for n in tensors.keys()} == {"torch.bfloat16"}  # noqa: SIM118
    assert check_golden(path) < 1e-2


def test_golden_vectors_catch_a_model_that_became_causal(folder: str, tmp_path: Path) -> None:
    import shutil

    assert check_golden(folder) < 1e-5
    broken = tmp_path / "causal"
    shutil.copytree(folder, broken)
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps({**config, "is_causal": True}))
    with pytest.raises(UserError, match="golden vector differs"):
        check_golden(str(broken))
    (broken / GOLDEN).unlink()
    with pytest.raises(UserError, match="no golden.json"):
        check_golden(str(broken))


def test_a_failed_export_leaves_the_old_folder_and_nothing_else(
    folder: str, tmp_path: Path
) -> None:
    target = tmp_path / "model"
    tiny_export(target, seed=1)
    before = (target / "model.safetensors").read_bytes()
    with pytest.raises(RuntimeError), new_folder(str(target)) as place:
        (place / "model.safetensors").write_text("half")
        raise RuntimeError("the disk is full")
    assert (target / "model.safetensors").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_files_of_others_are_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "thesis.txt").write_text("ten years of work")
    with pytest.raises(UserError, match="not a model that was exported here"):
        tiny_export(tmp_path / "notes")
    assert (tmp_path / "notes" / "thesis.txt").read_text() == "ten years of work"


def test_prompts_must_name_both_sides(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="prompts without document"):
        tiny_export(tmp_path / "model", prompts={"query": ""})


def test_a_plain_transformers_folder_becomes_a_bidirectional_encoder(tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=400, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path / "plain")
    tiny_tokenizer().save_pretrained(tmp_path / "plain")
    output = str(tmp_path / "exported")
    assert export_folder(str(tmp_path / "plain"), output, max_length=64) < 1e-5
    model = load(output)
    short, long = model.encode(["the dog", "the dog barks"], output_value="token_embeddings")
    assert not np.allclose(short[0], long[0], atol=1e-4)  # the first token sees the last one
    with pytest.raises(UserError, match="exists"):
        export_folder(str(tmp_path / "plain"), output, max_length=64)
    with pytest.raises(UserError, match=r"no config\.json"):
        export_folder(str(tmp_path / "absent"), str(tmp_path / "x"), max_length=64)


@pytest.mark.slow
def test_onnx_gives_the_golden_vectors(folder: str, tmp_path: Path) -> None:
    output = str(tmp_path / "with-onnx")
    missing = [n for n in ("onnx", "onnxscript", "onnxruntime") if find_spec(n) is None]
    if missing:
        with pytest.raises(UserError, match=f"{missing[0]}.* not installed"):
            export_folder(folder, output, max_length=64, onnx=True)
        assert not Path(output).exists()
        pytest.skip(f"{', '.join(missing)} not installed (extra onnx)")
    assert export_folder(folder, output, max_length=64, onnx=True) < 1e-5
    assert (Path(output) / "onnx" / "model.onnx").is_file()


@pytest.mark.parametrize("pool_instruction", [True, False])
def test_instructions_in_or_out_of_the_mean_as_sentence_transformers_has_it(
    pool_instruction: bool, tmp_path: Path
) -> None:
    """The packed pass of training, the padded one, and the exported folder give one vector."""
    import torch

    from trainer.encoder import embed, marked, tokenize
    from trainer.packed import PackedEncoder

    how = {"max_length": 64, "prompts": PROMPTS}
    model, tokenizer, output = tiny_model(), tiny_tokenizer(), str(tmp_path / "model")
    export_model(model, tokenizer, output, pool_instruction=pool_instruction, **how)
    assert check_golden(output) == pytest.approx(0.0, abs=1e-6)
    theirs = load(output)
    texts = [PROMPTS["query"] + text for text in TEXTS]
    ids = tokenize(tokenizer, texts, max_length=64)
    if not pool_instruction:
        ids = marked(tokenizer, texts, ids, max_length=64)
        assert {-row[0] for row in ids} == {len(tokenizer(PROMPTS["query"])["input_ids"])}
    with torch.no_grad():
        padded = [embed(model, [row], pad_id=tokenizer.pad_token_id) for row in ids]
        ours = torch.nn.functional.normalize(torch.cat(padded), dim=-1).numpy()
        packed = PackedEncoder(model)(ids)
    found = np.stack([theirs.encode_query(text) for text in TEXTS])
    assert np.abs(found - ours).max() == 0.0
    assert np.abs(torch.nn.functional.normalize(packed, dim=-1).numpy() - ours).max() < 1e-5


def test_an_export_of_an_export_keeps_its_pooling_and_attention(tmp_path: Path) -> None:
    first, second = str(tmp_path / "first"), str(tmp_path / "second")
    model = tiny_model()
    model.config.is_causal = True
    how = {"max_length": 64, "prompts": PROMPTS, "pooling": "last"}
    export_model(model, tiny_tokenizer(), first, **how)
    export_folder(first, second, max_length=64)
    golden = [(Path(place) / GOLDEN).read_text() for place in (first, second)]
    assert golden[0] == golden[1]
