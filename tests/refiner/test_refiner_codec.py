"""Label codes: what is written can be read."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from idgbr.errors import BadRequest
from idgbr.refiner.codec import AnalogCodec, colour_codes, corner_codes


@settings(max_examples=40, deadline=None)
@given(n_classes=st.integers(2, 256), block=st.integers(1, 8), seed=st.integers(0, 9), scale=st.sampled_from([0.3, 1.0]))
def test_analog_round_trip_is_exact_for_up_to_256_classes(n_classes: int, block: int, seed: int, scale: float) -> None:
    codec = AnalogCodec(n_classes, block, scale)
    index = torch.randint(0, n_classes, (1, 2 * block, 3 * block), generator=torch.Generator().manual_seed(seed))
    index[0, 0, 0] = n_classes - 1
    latent = codec.encode_index(index)
    assert latent.shape == (1, codec.latent_channels, 2, 3)
    assert latent.abs().max() == pytest.approx(scale)
    assert torch.equal(codec.decode(latent).argmax(1), index)
    assert torch.equal(codec.encode(F.one_hot(index, n_classes).movedim(-1, 1).float()), latent)


def test_decoding_is_nearest_code_where_all_corners_are_taken() -> None:
    for n_classes in (2, 4, 8, 64):
        codec = AnalogCodec(n_classes, 2)
        code = (torch.rand(2, codec.codes.shape[1], 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1) * 0.99
        nearest = (code[:, None] - codec.codes[None, :, :, None, None]).square().sum(2).argmin(1)
        probabilities = codec.decode(codec.to_latent(code))
        assert torch.equal(probabilities.argmax(1), nearest)
        assert torch.allclose(probabilities.sum(1), torch.ones(2, 8, 8))


def test_two_classes_keep_their_probabilities_through_the_expected_code() -> None:
    codec = AnalogCodec(2, 4)
    p = torch.rand(3, 1, 8, 8) * 0.98 + 0.01
    p = torch.cat([p, 1 - p], 1)
    assert torch.allclose(codec.decode(codec.encode(p)), p, atol=1e-6)


def test_codes_are_as_far_apart_as_stated() -> None:
    assert torch.cdist(corner_codes(2), corner_codes(2)).max() == 2  # antipodal in one channel: the largest distance there is
    for n in range(2, 257):
        for codes in (corner_codes(n), colour_codes(n)):
            assert codes.shape[0] == n
            assert codes.abs().max() <= 1
            distance = torch.cdist(codes, codes) + 9 * torch.eye(n)
            assert distance.min() >= (2 if n <= 8 else 1 / 3) - 1e-5


def test_sizes_off_the_block_and_too_many_classes_are_refused() -> None:
    with pytest.raises(BadRequest, match="12 x 8"):
        AnalogCodec(2, 4).encode_index(torch.zeros(1, 9, 8, dtype=torch.long))
    for n in (1, 257):
        with pytest.raises(BadRequest, match="2 to 256"):
            AnalogCodec(n, 4)
