"""The merge is the plain weighted mean of the weights, and a folder that loads and remembers."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_encoder import tiny_export

from datagen.schema import UserError
from trainer.golden import check_golden
from trainer.merge import METHODS, _first_difference, merge
from trainer.merge_methods import slerp, spherical, task_arithmetic, ties
from trainer.soup import greedy_soup


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    place = tmp_path_factory.mktemp("models")
    return [tiny_export(place / f"run-{seed}", seed=seed) for seed in (1, 2, 3)]


def tensors(folder: str | Path) -> dict:
    from safetensors.torch import load_file

    return load_file(Path(folder) / "model.safetensors")


def copy(model: str, to: Path, **config: object) -> str:
    shutil.copytree(model, to)
    path = to / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    return str(to)


def test_equal_weights_are_the_plain_average(models: list[str], tmp_path: Path) -> None:
    import torch

    merge(models, str(tmp_path / "merged"))
    found, inputs = tensors(tmp_path / "merged"), [tensors(m) for m in models]
    assert found.keys() == inputs[0].keys()
    for name, tensor in found.items():
        plain = torch.stack([t[name] for t in inputs]).mean(0)
        torch.testing.assert_close(tensor, plain, rtol=1e-6, atol=1e-7)


def test_weights_are_scaled_to_one(models: list[str], tmp_path: Path) -> None:
    recipe = merge(models[:2], str(tmp_path / "merged"), weights=[3, 1])
    assert [m["weight"] for m in recipe["models"]] == [0.75, 0.25]
    one, two, found = (tensors(m) for m in (*models[:2], tmp_path / "merged"))
    for name, tensor in found.items():
        np.testing.assert_allclose(tensor, 0.75 * one[name] + 0.25 * two[name], atol=1e-7)


def test_a_model_merged_with_itself_is_itself(models: list[str], tmp_path: Path) -> None:
    merge([models[0]] * 3, str(tmp_path / "merged"))
    path = tmp_path / "merged" / "model.safetensors"
    assert path.read_bytes() == (Path(models[0]) / "model.safetensors").read_bytes()


def test_the_merged_folder_loads_with_new_golden_vectors(models: list[str], tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    output = str(tmp_path / "merged")
    recipe = merge(models, output)
    assert check_golden(output) < 1e-5
    ours = [SentenceTransformer(m).encode_query("the dog") for m in (output, models[0])]
    assert not np.allclose(*ours, atol=1e-3)
    assert json.loads((tmp_path / "merged" / "merge.json").read_text()) == recipe
    assert [len(m["sha256"]) for m in recipe["models"]] == [64, 64, 64]
    assert "run-1, weight 0.3333" in (tmp_path / "merged" / "README.md").read_text()
    assert [p.name for p in tmp_path.iterdir()] == ["merged"]


def test_records_of_a_run_are_not_carried(models: list[str], tmp_path: Path) -> None:
    first = tmp_path / "first"
    shutil.copytree(models[0], first)
    (first / "scores").mkdir()
    for record in ("result.json", "scores/results.json"):
        (first / record).write_text("{}")
    merge([str(first), models[1]], str(tmp_path / "merged"))
    names = {path.name for path in (tmp_path / "merged").iterdir()}
    assert "config.json" in names and not names & {"result.json", "scores"}


def test_the_same_merge_is_made_once_and_another_is_refused(
    models: list[str], tmp_path: Path
) -> None:
    output = tmp_path / "merged"
    merge(models, str(output))
    before = (output / "model.safetensors").stat().st_mtime_ns
    merge(models, str(output))
    assert (output / "model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(UserError, match="another merge"):
        merge(models[:2], str(output))
    with pytest.raises(UserError, match="something else"):
        merge(models, models[0])


def test_dtypes_stay_or_widen(models: list[str], tmp_path: Path) -> None:
    halves = [tiny_export(tmp_path / f"h{n}", seed=n, dtype="bfloat16") for n in (1, 2)]
    for name, inputs, dtype in (
        ("half", halves, "bfloat16"),
        ("mixed", [halves[0], models[0]], "float32"),
    ):
        merge(inputs, str(tmp_path / name))
        assert {str(t.dtype) for t in tensors(tmp_path / name).values()} == {f"torch.{dtype}"}
        assert json.loads((tmp_path / name / "config.json").read_text())["dtype"] == dtype


def test_bf16_is_summed_in_high_precision(tmp_path: Path) -> None:
    """Summed in bf16, 256 + 1 is 256; the mean of 256, 1 and 1 would come out as 85.5, not 86."""
    import torch
    from safetensors.torch import save_file

    paths = [tiny_export(tmp_path / f"m{n}", dtype="bfloat16") for n in range(3)]
    for path, value in zip(paths, (256.0, 1.0, 1.0), strict=True):
        changed = {**tensors(path), "norm.weight": torch.full((32,), value, dtype=torch.bfloat16)}
        save_file(changed, Path(path) / "model.safetensors", metadata={"format": "pt"})
    merge(paths, str(tmp_path / "merged"))
    assert tensors(tmp_path / "merged")["norm.weight"].unique().tolist() == [86.0]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("rms_norm_eps", 0.1, r"config\.json: rms_norm_eps \(1e-06 and 0\.1\) differs"),
        ("is_causal", True, r"config\.json: is_causal \(False and True\) differs"),
        ("new_key", 1, r"config\.json: new_key differs"),
    ],
)
def test_other_configurations_are_refused_by_name(
    models: list[str], tmp_path: Path, key: str, value: object, message: str
) -> None:
    other = copy(models[1], tmp_path / "other", **{key: value})
    with pytest.raises(UserError, match=message):
        merge([models[0], other], str(tmp_path / "merged"))
    assert not (tmp_path / "merged").exists()


def test_other_tokenizers_are_refused_by_name(models: list[str], tmp_path: Path) -> None:
    other = copy(models[1], tmp_path / "other")
    path = tmp_path / "other" / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["model"]["vocab"]["Ġdog"] = 7
    path.write_text(json.dumps(tokenizer))
    with pytest.raises(UserError, match=r"tokenizer\.json: model\.vocab\.Ġdog"):
        merge([models[0], other], str(tmp_path / "merged"))


def test_other_shapes_and_tensors_are_refused(models: list[str], tmp_path: Path) -> None:
    from safetensors.torch import save_file

    other = copy(models[1], tmp_path / "other")
    weights = tensors(other)
    cut = {**weights, "norm.weight": weights["norm.weight"][:16].clone()}
    save_file(cut, Path(other) / "model.safetensors")
    with pytest.raises(UserError, match=r"'norm\.weight' .* differs in shape"):
        merge([models[0], other], str(tmp_path / "merged"))
    del cut["norm.weight"]
    save_file(cut, Path(other) / "model.safetensors")
    with pytest.raises(UserError, match=r"'norm\.weight' is only in .*run-1"):
        merge([models[0], other], str(tmp_path / "merged"))
    assert [p.name for p in tmp_path.iterdir()] == ["other"]


@pytest.mark.parametrize("weights", [[1.0], [1.0, -1.0], [0.0, 0.0], [1.0, float("nan")]])
def test_unusable_weights(models: list[str], tmp_path: Path, weights: list[float]) -> None:
    with pytest.raises(UserError) as error:
        merge(models[:2], str(tmp_path / "merged"), weights=weights)
    assert error.value.exit_status == 2


def test_a_folder_that_is_no_model(models: list[str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no modules\.json"):
        merge([models[0], str(tmp_path)], str(tmp_path / "merged"))


def test_files_may_be_cut_differently(models: list[str], tmp_path: Path) -> None:
    """The tensors of the second model lie in two files; they are found by name."""
    from safetensors.torch import save_file

    other = copy(models[1], tmp_path / "other")
    weights = tensors(other)
    names = sorted(weights)
    (Path(other) / "model.safetensors").unlink()
    for part, chosen in (("1", names[:5]), ("2", names[5:])):
        file = Path(other) / f"model-0000{part}-of-00002.safetensors"
        save_file({n: weights[n] for n in chosen}, file, metadata={"format": "pt"})
    merge([models[0], other], str(tmp_path / "cut"))
    merge(models[:2], str(tmp_path / "whole"))
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("cut", "whole")]
    assert files[0] == files[1]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner),
    max_leaves=8,
)


@given(a=json_values, b=json_values)
def test_a_difference_is_found_exactly_where_there_is_one(a: object, b: object) -> None:
    assert (_first_difference(a, b) is None) == (a == b)


def test_slerp_keeps_the_length_that_a_mean_loses() -> None:
    one, other = torch.tensor([2.0, 0.0]).double(), torch.tensor([0.0, 2.0]).double()
    middle = slerp([one, other], [0.5, 0.5])
    assert middle.tolist() == pytest.approx([2**0.5, 2**0.5])  # the mean is [1, 1]
    third = slerp([one, other], [2 / 3, 1 / 3])
    assert third.tolist() == pytest.approx([3**0.5, 1.0])  # 30 degrees on the way
    assert slerp([one, one], [0.5, 0.5]).tolist() == [2.0, 0.0]


def test_the_spherical_barycentre_is_in_the_middle_of_all() -> None:
    corners = [row.clone() for row in torch.eye(3).double() * 2]
    found = spherical(corners, [1 / 3] * 3)
    assert found.tolist() == pytest.approx([2 / 3**0.5] * 3)
    two = spherical(corners[:2], [0.75, 0.25])
    assert two.tolist() == pytest.approx(slerp(corners[:2], [0.75, 0.25]).tolist())


def test_task_arithmetic_adds_the_changes_to_the_base() -> None:
    base = torch.tensor([1.0, 1.0]).double()
    runs = [torch.tensor([3.0, 1.0]).double(), torch.tensor([1.0, 0.0]).double()]
    assert task_arithmetic(base, scale=2.0)(runs, [0.5, 0.5]).tolist() == [3.0, 0.0]


def test_ties_trims_elects_a_sign_and_averages_those_that_agree() -> None:
    base = torch.zeros(4).double()
    runs = [
        torch.tensor([4.0, 1.0, 3.0, 0.1]).double(),  # of half: 4 and 3
        torch.tensor([2.0, -5.0, -1.0, 0.1]).double(),  # 2 and -5
    ]
    merged = ties(base, scale=1.0, density=0.5)(runs, [0.5, 0.5])
    assert merged.tolist() == [3.0, -5.0, 3.0, 0.0]


@pytest.mark.parametrize("method", ["spherical", "task-arithmetic", "ties", "slerp"])
def test_each_method_writes_a_model_that_says_how(
    models: list[str], tmp_path: Path, method: str
) -> None:
    based = method in ("task-arithmetic", "ties")
    chosen = models[:2]
    options = {"base": models[2], "scale": 0.5} if based else {}
    recipe = merge(chosen, str(tmp_path / "merged"), method=method, **options)
    assert check_golden(str(tmp_path / "merged")) < 1e-5
    assert recipe["method"] == METHODS[method] and ("base" in recipe) == based
    assert merge(chosen, str(tmp_path / "merged"), method=method, **options) == recipe
    with pytest.raises(UserError, match="another merge"):
        merge(chosen, str(tmp_path / "merged"))
    found, plain = tensors(tmp_path / "merged"), [tensors(m) for m in chosen]
    assert any(not np.allclose(t, (plain[0][n] + plain[1][n]) / 2) for n, t in found.items())


@pytest.mark.parametrize(
    ("count", "options", "found"),
    [
        (2, {"method": "median"}, "method 'median'"),
        (3, {"method": "slerp"}, "slerp of 3 models"),
        (2, {"method": "ties"}, "ties without a base"),
        (2, {"method": "mean", "base": "x"}, "mean with a base"),
        (2, {"method": "ties", "base": "x", "density": 0.0}, "density 0.0"),
    ],
)
def test_methods_that_do_not_fit_are_refused(models, tmp_path, count, options, found) -> None:
    with pytest.raises(UserError, match=found) as refused:
        merge(models[:count], str(tmp_path / "merged"), **options)
    assert refused.value.exit_status == 2


def test_the_greedy_soup_leaves_out_what_does_not_help(models: list[str], tmp_path: Path) -> None:
    """The score is nearness to the mean of the first two runs."""
    wanted = {n: (t + tensors(models[1])[n]) / 2 for n, t in tensors(models[0]).items()}

    def score(model: str) -> float:
        return -float(sum(((t - wanted[n]) ** 2).sum() for n, t in tensors(model).items()))

    found = greedy_soup(models, str(tmp_path / "soup"), score=score)
    assert sorted(m["path"] for m in found["models"]) == sorted(models[:2])
    assert found["soup"]["score"] > max(found["soup"]["alone"].values())
    assert [tried["kept"] for tried in found["soup"]["tried"]].count(True) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["soup"]


@pytest.mark.parametrize("saved_again", [False, True], ids=["as packaged", "as saved today"])
def test_models_that_were_not_exported_here(minilm: str, tmp_path: Path, saved_again: bool) -> None:
    """Other libraries write other files; what they leave out is found elsewhere, or not stated."""
    from sentence_transformers import SentenceTransformer

    model = minilm
    if saved_again:
        model = str(tmp_path / "model")
        SentenceTransformer(minilm, device="cpu").save_pretrained(model)
    merge([model, model], str(tmp_path / "merged"))
    found, expected = (
        SentenceTransformer(place, device="cpu").encode(["two moons"])
        for place in (str(tmp_path / "merged"), model)
    )
    np.testing.assert_allclose(found, expected, atol=1e-6)
    meta = json.loads((tmp_path / "merged" / "mteb_model_meta.json").read_text())
    assert (meta["embed_dim"], meta["training_datasets"]) == (384, None)
    assert meta["max_tokens"] in (256, 512)
    assert "mean pooling" in (tmp_path / "merged" / "README.md").read_text()
