"""The reservoir: a uniform sample, the same for any split."""

import itertools

import pytest
import torch
from torch import Tensor

import convoscope as cs
from convoscope.core.statistic import Samples
from convoscope.units.reservoir import GAMMA, Reservoir, hashes, mixed

IMAGES, CHANNELS, HEIGHT, WIDTH = 12, 3, 4, 5
DATA = torch.arange(IMAGES * CHANNELS * HEIGHT * WIDTH, dtype=torch.float64).view(IMAGES, CHANNELS, HEIGHT, WIDTH)


def samples(index: range) -> Samples:
    return Samples(torch.tensor(list(index)), torch.zeros(len(index), 1, 1, 1), torch.tensor([i % 3 for i in index]), IMAGES)


def over(*parts: range, data: Tensor = DATA, **settings: int) -> Reservoir:
    made = Reservoir(**settings)
    for part in parts:
        made.update(data[part.start : part.stop], samples(part))
    return made


def plain_hash(image: int, row: int, column: int, seed: int) -> int:
    """The same with Python's whole numbers."""
    mask = (1 << 64) - 1

    def mix(z: int) -> int:
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        return z ^ (z >> 31)

    h = mix((seed + 0x9E3779B97F4A7C15) & mask)
    for part in (image, row, column):
        h = mix((h + (part + 1) * 0x9E3779B97F4A7C15) & mask)
    return h - (1 << 64) if h >> 63 else h


def same(a: Reservoir, b: Reservoir) -> bool:
    return all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())


def test_the_mix_is_splitmix64() -> None:
    state = torch.arange(1, 4) * GAMMA
    expected = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert [v % (1 << 64) for v in mixed(state).tolist()] == expected


@pytest.mark.parametrize("seed", [0, 7, 2**63 + 5, -1])
def test_hashes_are_those_of_plain_whole_numbers(seed: int) -> None:
    found = hashes(torch.tensor([0, 5, 1_280_000])[:, None, None], torch.arange(2)[:, None], torch.arange(3), seed)
    for (i, image), r, c in itertools.product(enumerate((0, 5, 1_280_000)), range(2), range(3)):
        assert int(found[i, r, c]) == plain_hash(image, r, c, seed)


@pytest.mark.parametrize("per_image", [0, 1, 7])
@pytest.mark.parametrize("count", [1, 10, 500])
def test_it_keeps_what_a_plain_sort_of_the_hashes_keeps(count: int, per_image: int) -> None:
    places = []
    for i in range(IMAGES):
        each = sorted((plain_hash(i, r, c, 3), i, r, c) for r in range(HEIGHT) for c in range(WIDTH))
        places += each[: per_image or None]
    expected = sorted(places)[:count]
    found = over(range(0, 5), range(5, 12), count=count, per_image=per_image, seed=3).value()
    assert list(zip(found.image.tolist(), found.row.tolist(), found.column.tolist(), strict=True)) == [p[1:] for p in expected]
    assert torch.equal(found.values, torch.stack([DATA[i, :, r, c] for _, i, r, c in expected]))
    assert torch.equal(found.category, found.image % 3)
    assert found.seen == IMAGES * HEIGHT * WIDTH


@pytest.mark.parametrize("cuts", list(itertools.combinations(range(13), 2)))
def test_any_split_merged_in_any_order_is_one_pass_bit_for_bit(cuts: tuple[int, int]) -> None:
    parts = [range(0, cuts[0]), range(cuts[0], cuts[1]), range(cuts[1], 12)]
    one = over(range(12), count=20)
    for order in itertools.permutations(parts):
        a, b, c = (over(p, count=20) if len(p) else Reservoir(count=20) for p in order)
        assert same(a.merge(b).merge(c), one)
    assert same(over(*(p for p in parts if len(p)), count=20), one)
    assert same(Reservoir(count=20).load_state_dict(one.state_dict()), one)


def test_the_first_of_a_sample_are_a_smaller_sample() -> None:
    large, small = over(range(12), count=40).value(), over(range(12), count=9).value()
    assert all(torch.equal(getattr(large[:9], name), getattr(small, name)) for name in ("values", "image", "row", "column"))


def test_every_position_is_as_likely_as_any_other() -> None:
    draws, kept, positions = 600, 24, 240
    data = torch.zeros(IMAGES, 1, HEIGHT, WIDTH)
    counts = torch.zeros(IMAGES, HEIGHT, WIDTH)
    pairs = torch.zeros(2)
    for seed in range(draws):
        found = over(range(12), data=data, count=kept, seed=seed).value()
        counts.index_put_((found.image, found.row, found.column), torch.ones(kept), accumulate=True)
        first = set(zip(found.row.tolist(), found.column.tolist(), strict=True))
        pairs += torch.tensor([float((0, 0) in first), float((3, 4) in first)])
    expected = draws * kept / positions
    chi = float(((counts - expected) ** 2).sum()) / (expected * (1 - kept / positions))
    # chi-square of 239 degrees of freedom: mean 239, deviation 22
    assert abs(chi - 239) < 4 * 22
    assert abs(float(pairs[0] - pairs[1])) < 4 * (draws * 2 * 0.72 * 0.28) ** 0.5


def test_layers_without_positions_and_a_limit_for_each_image() -> None:
    made = Reservoir(count=5)
    made.update(DATA[..., 0, 0], samples(range(12)))
    found = made.value()
    assert found.values.shape == (5, CHANNELS)
    assert found.row.tolist() == found.column.tolist() == [-1] * 5
    counts = over(range(12), count=500, per_image=2).value().image.bincount()
    assert counts.tolist() == [2] * 12


def test_what_it_cannot_take_is_said() -> None:
    with pytest.raises(cs.UsageError, match=r"\(B, C\) or \(B, C, h, w\); got shape \(12, 3, 4\)"):
        Reservoir().update(DATA[..., 0], samples(range(12)))
    with pytest.raises(cs.UsageError, match="which images"):
        Reservoir().update(DATA)
    with pytest.raises(cs.UsageError, match="1 or more"):
        Reservoir(count=0)
    with pytest.raises(cs.UsageError, match="nothing was seen"):
        Reservoir().value()
    with pytest.raises(cs.UsageError, match="3 channels"):
        over(range(12)).update(DATA[:, :2], samples(range(12)))
    with pytest.raises(cs.UsageError, match="cannot merge"):
        over(range(12)).merge(over(range(12), seed=1))
