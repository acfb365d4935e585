"""The cache of vectors: the same bits as encoding anew, and nothing encoded twice."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny_encoder import tiny_export

from datagen.cached_encoder import CachedEncoder
from datagen.embedding_cache import EmbeddingCache
from datagen.encode import Encoder
from datagen.schema import UserError
from datagen.store import Folder

TEXTS = [f"the {thing} of {place}" * (1 + i % 3) for i, (thing, place) in enumerate(
    (thing, place) for thing in ("moon", "cat", "lune", "mat") for place in ("Mars", "Erde")
)]  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return tiny_export(tmp_path_factory.mktemp("models") / "a")


def encoder(model, root, **options) -> CachedEncoder:
    return CachedEncoder(model, root=str(root), device="cpu", **options)


@pytest.mark.parametrize("stored", ["float16", "float32"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_cached_vector_has_the_bits_of_a_fresh_one_whatever_was_encoded_with_it(
    tmp_path, model, stored, dtype
):
    fresh = Encoder(model, device="cpu", dtype=dtype).encode(TEXTS, stored=stored)
    some = encoder(model, tmp_path, dtype=dtype, threads=2)
    some.encode(TEXTS[1::3], stored=stored)
    found = some.encode(TEXTS, stored=stored)
    assert (some.found, some.encoded) == (3, len(TEXTS))
    assert found.tobytes() == fresh.tobytes()
    again = encoder(model, tmp_path, dtype=dtype)
    assert again.encode(TEXTS[::-1], stored=stored).tobytes() == fresh[::-1].tobytes()
    assert again.encoded == 0 and again._encoder is None  # the model was not even loaded


def test_one_changed_document_is_encoded_and_no_other(tmp_path, model):
    encoder(model, tmp_path).encode(TEXTS, stored="float16")
    later = encoder(model, tmp_path)
    later.encode([*TEXTS[:5], "another text", *TEXTS[6:], TEXTS[0]], stored="float16")
    assert later.encoded == 1


def test_a_prompt_other_weights_a_length_or_a_precision_share_nothing(tmp_path, model):
    encoder(model, tmp_path).encode(TEXTS, stored="float16")
    other = tiny_export(tmp_path / "b", seed=1)
    others = [
        (encoder(model, tmp_path), {"prompt": "query: ", "stored": "float16"}),
        (encoder(other, tmp_path), {"stored": "float16"}),
        (encoder(model, tmp_path, max_length=32), {"stored": "float16"}),
        (encoder(model, tmp_path, dtype="bfloat16"), {"stored": "float16"}),
        (encoder(model, tmp_path), {"stored": "float32"}),
    ]
    for one, options in others:
        one.encode(TEXTS, **options)
        assert one.encoded == len(TEXTS)
    # The same model elsewhere is the same model.
    moved = tmp_path / "moved"
    os.rename(other, moved)
    again = encoder(str(moved), tmp_path)
    again.encode(TEXTS, stored="float16")
    assert again.encoded == 0


def cache_of(root, rows, *, width=4, seed=0):
    space = EmbeddingCache(str(root), {"stored": "float16"})
    vectors = np.random.default_rng(seed).standard_normal((len(rows), width)).astype(np.float16)
    space.add(rows, vectors)
    return space, dict(zip(rows, vectors.tolist(), strict=True))


def test_segments_are_merged_in_order_and_equal_texts_stay_once(tmp_path):
    known = {}
    for number in range(5):
        rows = [f"{number}-{i}" for i in range(700)]
        space, vectors = cache_of(tmp_path, rows, seed=number)
        known |= vectors
    space.add(["0-0"], np.zeros((1, 4)))  # another process was encoding it, too
    assert space.rows() == 3501
    reader = EmbeddingCache(str(tmp_path), {"stored": "float16"})
    assert reader.find(["3-3"])[0].all()  # it has the old segments open
    space.merge()
    assert space.rows() == 3500
    assert len([n for n in space.folder.names() if n.startswith("segment")]) == 1
    for one in (space, reader):
        there, vectors = one.find(["4-699", "absent", "0-0", "2-5"])
        assert there.tolist() == [True, False, True, True]
        assert vectors.tolist() == [known["4-699"], known["0-0"], known["2-5"]]


def test_who_asks_for_few_texts_at_a_time_leaves_few_segments(tmp_path):
    space, known = cache_of(tmp_path, ["first"])
    for number in range(300):
        vectors = np.full((1, 4), number, np.float16)
        space.add([f"text {number}"], vectors)
    segments = [name for name in space.folder.names() if name.startswith("segment")]
    assert len(segments) <= 1 + 2 + 15  # of 256 texts, of 16 each, and of one each
    assert space.rows() == 301
    there, vectors = EmbeddingCache(str(tmp_path), {"stored": "float16"}).find(
        ["text 299", "text 7", "first"]
    )
    assert there.all()
    assert vectors.tolist() == [[299.0] * 4, [7.0] * 4, known["first"]]


def test_the_cache_on_an_object_store(tmp_path):
    space, known = cache_of(f"memory://{tmp_path.name}", [str(i) for i in range(3000)])
    there, vectors = space.find(["2999", "7", "absent"])
    assert there.tolist() == [True, True, False]
    assert vectors.tolist() == [known["2999"], known["7"]]
    assert not Folder(str(tmp_path)).names()


def test_vectors_of_another_width_are_refused(tmp_path):
    space, _ = cache_of(tmp_path, ["a", "b"])
    space.find(["a"])
    with pytest.raises(UserError, match="holds vectors of width 4, the encoder gives 8"):
        space.add(["c"], np.zeros((1, 8)))


def test_vectors_that_are_not_numbers_are_refused_with_the_text(tmp_path, model):
    from safetensors.torch import load_file, save_file

    broken = Path(tiny_export(tmp_path / "broken", seed=2))
    weights = load_file(next(broken.glob("*.safetensors")))
    weights = {name: value * float("nan") for name, value in weights.items()}
    save_file(weights, next(broken.glob("*.safetensors")), metadata={"format": "pt"})
    one = encoder(str(broken), tmp_path / "cache")
    with pytest.raises(UserError, match="not finite for 1 texts, the first: 'Mars'"):
        one.encode(["Mars"], stored="float16")
    assert one.space("", "float16").rows() == 0


DRIVER = """
import sys
from datagen.cached_encoder import CachedEncoder
texts = [f"text {i} " * (1 + i % 60) for i in range(20_000)]
print("ready", flush=True)
CachedEncoder(sys.argv[1], root=sys.argv[2], device="cpu", flush_s=0.05).encode(
    texts, stored="float16")
"""


@pytest.mark.slow
def test_a_kill_costs_only_what_was_in_flight(tmp_path, model):
    root = tmp_path / "cache"
    run = subprocess.Popen([sys.executable, "-c", DRIVER, model, str(root)])
    while run.poll() is None and len(list(root.rglob("segment-*.arrow"))) < 4:
        os.sched_yield()
    run.send_signal(signal.SIGKILL)
    run.wait()
    texts = [f"text {i} " * (1 + i % 60) for i in range(20_000)]
    resumed = encoder(model, root)
    kept = resumed.space("", "float16").rows()
    there, _ = resumed.space("", "float16").find(texts)
    assert 0 < there.sum() < len(texts)
    assert kept >= there.sum()  # more: killed between putting segments together and deleting them
    some = [texts[i] for i in np.flatnonzero(there)[:50]] + ["one more"]
    fresh = Encoder(model, device="cpu").encode(some, stored="float16")
    assert resumed.encode(some, stored="float16").tobytes() == fresh.tobytes()
    assert resumed.encoded == 1
