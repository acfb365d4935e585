"""Packed layers give what torch's give, and the same bits whatever rows are beside a row."""

import pytest
import torch

from datagen.packed_linear import pack_linears


def layers(dtype: torch.dtype, *, bias: bool) -> tuple[torch.nn.Linear, torch.nn.Linear]:
    torch.manual_seed(3)
    plain = torch.nn.Linear(48, 20, bias=bias, dtype=dtype)
    packed = torch.nn.Linear(48, 20, bias=bias, dtype=dtype)
    packed.load_state_dict(plain.state_dict())
    assert pack_linears(torch.nn.Sequential(packed)) == 1
    return plain, packed


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("dtype", "near"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
def test_the_products_are_torchs(dtype, near, bias):
    plain, packed = layers(dtype, bias=bias)
    for shape in ((5, 48), (2, 3, 48), (1, 48), (1, 1, 48)):
        rows = torch.randn(shape).to(dtype)
        with torch.inference_mode():
            found = packed(rows)
            assert found.shape == (*shape[:-1], 20) and found.dtype == dtype
            torch.testing.assert_close(found, plain(rows), atol=near, rtol=near)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_has_the_same_bits_in_any_company(dtype):
    _, packed = layers(dtype, bias=True)
    rows = torch.randn(130, 48).to(dtype)
    with torch.inference_mode():
        whole = packed(rows)
        for count in (1, 2, 7, 16, 33, 130):
            assert torch.equal(packed(rows[3 : 3 + count]), whole[3 : 3 + count]), count


def test_layers_of_other_kinds_stay_as_they_are():
    half = torch.nn.Linear(4, 4).half()
    assert pack_linears(torch.nn.Sequential(half, torch.nn.Conv1d(1, 1, 1))) == 0
