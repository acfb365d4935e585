import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from datagen.tiles import _above

PRECISIONS = (torch.bfloat16, torch.float16, torch.float32)


def test_a_group_is_looked_at_when_one_of_its_scores_is_above_the_bound() -> None:
    scores = torch.tensor(
        [
            [[0.5, -0.5], [0.25, -0.25]],  # the scores of a group of two documents, two queries
            [[0.5, 0.125], [0.75, 0.125]],
        ]
    )
    bounds = torch.tensor([0.5, 0.0])
    for precision in PRECISIONS:
        found = _above(scores.to(precision), bounds)
        assert found.tolist() == [[False, False], [True, True]]


SCORES = st.floats(-1, 1, width=32)


@pytest.mark.parametrize("precision", PRECISIONS)
@given(scores=st.lists(SCORES, min_size=1, max_size=9), bound=st.floats(0, 1, width=32))
def test_no_score_above_a_bound_of_any_precision_is_missed(
    precision: torch.dtype, scores: list[float], bound: float
) -> None:
    group = torch.tensor(scores).to(precision)[None, :, None]
    expected = bool((group.float() > bound).any())
    assert _above(group, torch.tensor([bound])).item() is expected
