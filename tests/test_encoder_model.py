"""Encoders of every kind: what must be stated, what decides a vector, and the Hub over HTTP."""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub_server import HubState, Repository
from hub_server import upload_hub as upload_hub

from datagen import hub_models
from datagen.cached_encoder import CachedEncoder
from datagen.cli import main
from datagen.encode import Encoder
from datagen.encode_vllm import VllmEngine, folder_pooling
from datagen.encoder_model import (
    EncoderModel,
    encoder_model,
    inspect_encoder,
    inspect_unit_encoder,
    stated_models,
)
from datagen.schema import UserError

TEXTS = ["the dog barks", "Mars has two moons; der Mond der Erde", "la lune"]


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> str:
    """A BERT of two layers with random weights, as transformers itself saves it."""
    import torch
    from tiny_encoder import tiny_tokenizer
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models") / "plain"
    config = BertConfig(
        vocab_size=400, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=64,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


def states(folder: str) -> list[np.ndarray]:
    """The last hidden states of each text alone, by transformers."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder)
    with torch.no_grad():
        return [
            model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].numpy()
            for text in TEXTS
        ]


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize(
    ("pooling", "pooled"),
    [
        ("mean", lambda rows: rows.mean(axis=0)),
        ("cls", lambda rows: rows[0]),
        ("last", lambda rows: rows[-1]),
    ],
)
def test_a_plain_model_pools_as_stated(plain, pooling, pooled, normalise):
    expected = np.stack([pooled(rows) for rows in states(plain)])
    if normalise:
        expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    model = EncoderModel(place=plain, pooling=pooling, normalise=normalise)
    found = Encoder(model, device="cpu").encode(TEXTS, stored="float32")
    np.testing.assert_allclose(found, expected, atol=2e-6)


@pytest.mark.parametrize("stated", [{}, {"pooling": "mean"}, {"normalise": True}])
def test_a_plain_model_of_which_too_little_is_stated_is_refused(plain, stated):
    model = EncoderModel(place=plain, **stated)
    for use in (inspect_encoder, Encoder):
        with pytest.raises(UserError, match=r"(?s)no modules\.json.*normalise") as caught:
            use(model)
        assert "--pooling" in caught.value.do and caught.value.exit_status == 2


def test_a_model_that_says_how_it_pools_is_not_told(minilm):
    with pytest.raises(UserError, match=r"which has a modules\.json of its own"):
        inspect_encoder(EncoderModel(place=minilm, pooling="cls", normalise=True))


def test_who_compares_cosines_refuses_other_lengths(plain):
    with pytest.raises(UserError, match="unit length"):
        inspect_unit_encoder(EncoderModel(place=plain, pooling="mean", normalise=False))


def test_what_cannot_be_an_encoder_is_named():
    with pytest.raises(UserError, match="pooling 'max'"):
        EncoderModel(place="m", pooling="max")
    with pytest.raises(UserError, match="for vllm only"):
        EncoderModel(place="m", options=(("tensor_parallel_size", 2),))


def test_two_engines_poolings_or_lengths_of_one_model_share_no_vectors(plain, minilm):
    stated = [
        {"pooling": "mean", "normalise": True},
        {"pooling": "cls", "normalise": True},
        {"pooling": "mean", "normalise": False},
        {"pooling": "mean", "normalise": True, "engine": "vllm"},
        {"pooling": "mean", "normalise": True, "engine": "vllm", "options": (("seed", 1),)},
    ]
    models = [EncoderModel(place=plain, **one) for one in stated]
    models += [EncoderModel(place=minilm), EncoderModel(place=minilm, engine="vllm")]
    assert len({inspect_encoder(model).digest for model in models}) == len(models)
    assert inspect_encoder(minilm) == inspect_encoder(EncoderModel(place=minilm))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("modules.json", lambda text: text.replace("Normalize", "Dense")),
        ("1_Pooling/config.json", lambda text: text.replace("false", "true")),
        ("1_Pooling/config.json", lambda text: text.replace("{", '{"include_prompt": false,')),
        ("sentence_bert_config.json", lambda text: text.replace("false", "true")),
    ],
)
def test_what_vllm_might_leave_out_is_refused_before_it_loads(minilm, tmp_path, name, change):
    folder = Path(shutil.copytree(minilm, tmp_path / "m"))
    assert folder_pooling(folder) == "mean"
    (folder / name).write_text(change((folder / name).read_text()))
    with pytest.raises(UserError, match="engine torch"):
        Encoder(EncoderModel(place=str(folder), engine="vllm"))


def test_what_the_command_line_states_is_of_the_plain_encoders(plain, minilm):
    both = stated_models([minilm, plain], pooling="last", normalise=True)
    assert both == [
        EncoderModel(place=minilm),
        EncoderModel(place=plain, pooling="last", normalise=True),
    ]
    with pytest.raises(UserError, match=r"a modules\.json of its own"):
        stated_models([minilm], pooling="last", normalise=True)
    (fast,) = stated_models([minilm], engine="vllm")
    assert fast == EncoderModel(place=minilm, engine="vllm")


def test_the_command_mines_with_a_plain_encoder_and_prompts(plain, tmp_path, capsys):
    documents = [{"doc_id": i, "text": f"{text} {i}"} for i, text in enumerate(TEXTS)]
    queries = [{"query_id": i, "query": text, "positives": [i]} for i, text in enumerate(TEXTS)]
    for name, rows in (("queries", queries), ("documents", documents)):
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"{name}.parquet")
    command = ["mine", "--encoder", plain, "--margin", "1", "--output", str(tmp_path / "out")]
    command += ["--cache", str(tmp_path / "cache")]
    for name in ("queries", "documents"):
        command += [f"--{name}", str(tmp_path / f"{name}.parquet")]
    assert main(command) == 2
    assert "--pooling mean --normalise" in capsys.readouterr().err
    stated = ["--pooling", "mean", "--normalise", "--query-prompt", "q: "]
    assert main([*command, *stated]) == 0
    mined = pq.read_table(tmp_path / "out" / "mined.parquet").to_pylist()
    model = EncoderModel(place=plain, pooling="mean", normalise=True)
    encoder = Encoder(model, device="cpu")
    asked = encoder.encode(TEXTS, prompt="q: ", stored="float32")
    found = encoder.encode([row["text"] for row in documents], stored="float32")
    scores = [row["positive_scores"][0] for row in mined]
    np.testing.assert_allclose(scores, (asked * found).sum(axis=1), atol=1e-5)


# --- the Hub -----------------------------------------------------------------------------------


@pytest.fixture
def hub(upload_hub: HubState, minilm) -> Iterator[HubState]:
    """A Hub with the packaged encoder, one that is pickled, and a cache of its own."""
    files = {
        path.relative_to(minilm).as_posix(): path.read_bytes()
        for path in Path(minilm).rglob("*")
        if path.is_file()
    }
    pickled = {"config.json": b"{}", "pytorch_model.bin": b"pickle"}
    upload_hub.repositories["org/minilm"] = Repository(
        private=True, files={**files, "pytorch_model.bin": b"pickle", "code.py": b"1/0"}
    )
    upload_hub.repositories["org/pickled"] = Repository(private=False, files=pickled)
    hub_models._commit.cache_clear()
    hub_models.fetch_model.cache_clear()
    yield upload_hub
    hub_models._commit.cache_clear()
    hub_models.fetch_model.cache_clear()


def test_a_model_of_the_hub_is_the_same_as_its_folder(hub, minilm, tmp_path, monkeypatch):
    model = encoder_model("org/minilm")
    assert (model.place, model.revision) == ("org/minilm", "0" * 40)
    assert encoder_model(EncoderModel(place="org/minilm", revision="main")) == model
    assert inspect_encoder(model) == inspect_encoder(minilm)
    names = {path.name for path in Path(model.folder()).rglob("*")}
    assert "model.safetensors" in names and not names & {"pytorch_model.bin", "code.py"}
    cache = str(tmp_path / "vectors")
    CachedEncoder(minilm, root=cache, device="cpu").encode(TEXTS, stored="float16")
    of_hub = CachedEncoder(f"org/minilm@{'0' * 40}", root=cache, device="cpu")
    of_hub.encode([*TEXTS, "one more"], stored="float16")
    assert (of_hub.found, of_hub.encoded) == (3, 1)

    # A commit that is here needs no Hub; a branch does, and says so within seconds.
    hub_models._commit.cache_clear()
    hub_models.fetch_model.cache_clear()
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert inspect_encoder(f"org/minilm@{'0' * 40}").digest == inspect_encoder(minilm).digest
    start = time.monotonic()
    with pytest.raises(UserError, match="gave no answer for model org/minilm at main") as caught:
        inspect_encoder("org/minilm")
    assert time.monotonic() - start < 5 and "HF_ENDPOINT" in caught.value.do


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("org/absent", "does not exist"),
        (f"org/absent@{'1' * 40}", "does not exist"),
        ("org/pickled", r"pytorch_model\.bin and no safetensors"),
    ],
)
def test_what_cannot_be_fetched_is_said_within_seconds(hub, name, found):
    start = time.monotonic()
    with pytest.raises(UserError, match=found) as caught:
        inspect_encoder(name)
    assert time.monotonic() - start < 5
    assert caught.value.do and "hf_" not in str(caught.value)


def test_a_snapshot_that_lacks_a_file_is_completed(hub, minilm):
    model = encoder_model("org/minilm")
    (Path(model.folder()) / "model.safetensors").unlink()  # as after a kill between two files
    hub_models.fetch_model.cache_clear()
    assert inspect_encoder(model) == inspect_encoder(minilm)


def test_a_folder_that_is_not_there_is_no_hub_id(tmp_path, monkeypatch):
    (tmp_path / "models").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="no model folder models/absent"):
        inspect_encoder("models/absent")


# --- vLLM --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_vllm_gives_the_vectors_of_sentence_transformers(minilm, tmp_path):
    """The tolerance that datagen.encode_vllm states: 1e-6 in float32."""
    texts = [*TEXTS, "  blanks  ", "日本の首都", "Oslo is the capital of Norway. " * 60]
    ours = Encoder(minilm, device="cpu").encode(texts, prompt="query: ", stored="float32")
    model = EncoderModel(place=minilm, engine="vllm")
    other = CachedEncoder(model, root=str(tmp_path), device="cpu")
    found = other.encode(texts, prompt="query: ", stored="float32")
    np.testing.assert_allclose(found, ours, atol=1e-6)
    assert isinstance(other._encoder._engine, VllmEngine)
    torch_one = CachedEncoder(minilm, root=str(tmp_path), device="cpu")
    torch_one.encode(texts, prompt="query: ", stored="float32")
    assert torch_one.encoded == len(texts)
