"""Codes of generators: pictures of codes, where codes are kept, specs to JSON and back, ascent in closed form."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import convoscope as cs
from convoscope.core.spec import Spec
from convoscope.images.base import Draws, Space
from convoscope.images.code import Code
from convoscope.images.generator import Generator, Upconvolution, load_generator

CPU = torch.device("cpu")
SPACE = Space(3, (8, 8), CPU, torch.float64)


class Shaped(nn.Module):
    """A linear generator: its picture is the code times a matrix."""

    def __init__(self, code: tuple[int, ...], channels: int = 3, side: int = 8) -> None:
        super().__init__()
        numbers = torch.Size(code).numel()
        draw = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(0.02 * torch.randn(numbers, channels * side * side, generator=draw))
        self.shape, self.code = (channels, side, side), code

    def forward(self, code: torch.Tensor) -> torch.Tensor:
        assert code.shape[1:] == self.code
        return (code.flatten(1) @ self.weight).view(-1, *self.shape)


def draws(rows: int, space: Space = SPACE) -> Draws:
    return Draws(0, tuple((k,) for k in range(rows)), space)


def features(code: tuple[int, ...] = (2, 3, 3)) -> Generator:
    mean = torch.linspace(0.1, 1, torch.Size(code).numel()).view(code)
    return Generator(Shaped(code), code, (-1, 1), prior="features", mean=mean, deviation=mean / 2)


@pytest.mark.parametrize("code", [(5,), (5, 1, 1), (2, 3, 3)])
def test_any_shape_of_code_makes_pictures_and_its_range_is_read(code: tuple[int, ...]) -> None:
    module = Shaped(code)
    generator = Generator(module, code, (-1, 1))
    codes = torch.randn(4, *code, dtype=torch.float64)
    expected = (module.double()(codes) + 1) / 2
    assert torch.allclose(generator(codes), expected.clamp(0, 1), atol=1e-6)
    assert generator(codes).dtype == torch.float64


def test_trailing_axes_of_one_may_be_left_out_and_other_shapes_are_refused() -> None:
    generator = Generator(Shaped((5, 1, 1)), (5, 1, 1), (-1, 1))
    codes = torch.randn(2, 5)
    assert torch.equal(generator(codes), generator(codes[:, :, None, None]))
    with pytest.raises(cs.UsageError, match=r"expected codes \(rows, 5, 1, 1\)"):
        generator(torch.zeros(2, 6))


def test_rows_of_numbers_are_pictures_of_the_shape_given() -> None:
    module = nn.Sequential(nn.Linear(4, 12), nn.Tanh())
    pictures = Generator(module, 4, (-1, 1), shape=(1, 3, 4))(torch.randn(2, 4))
    assert pictures.shape == (2, 1, 3, 4)
    with pytest.raises(cs.UsageError, match="shape="):
        Generator(module, 4, (-1, 1))(torch.randn(2, 4))


def test_the_module_is_left_alone() -> None:
    module = nn.Sequential(nn.Linear(4, 12), nn.BatchNorm1d(12)).train()
    generator = Generator(module, 4, shape=(1, 3, 4))
    generator(torch.randn(5, 4, dtype=torch.float64))
    assert module.training
    assert all(p.requires_grad and p.dtype == torch.float32 for p in module.parameters())
    assert int(module[1].num_batches_tracked) == 0


def test_codes_of_a_gan_stay_on_their_shell() -> None:
    image = Code(Generator(Shaped((6,)), 6, (-1, 1)))
    parameters = image.begin(SPACE, draws(3))
    root = torch.full((3,), 6**0.5, dtype=torch.float64)
    assert torch.allclose(parameters["code"].norm(dim=1), root)
    direction = parameters["code"] / parameters["code"].norm(dim=1, keepdim=True)
    parameters["code"].mul_(7)
    image.settle(parameters, SPACE, 0)
    assert torch.allclose(parameters["code"], direction * root[:, None])


def test_codes_of_features_decay_and_stay_within_three_deviations() -> None:
    generator = features()
    image = Code(generator, decay=0.9)
    code = torch.randn(4, 2, 3, 3, dtype=torch.float64) * 3
    parameters = {"code": code.clone()}
    image.settle(parameters, SPACE, 0)
    high = (generator.mean + 3 * generator.deviation).double()
    assert torch.equal(parameters["code"], torch.minimum((0.9 * code).clamp(min=0), high))
    assert bool((image.begin(SPACE, draws(50))["code"] >= 0).all())


def test_features_that_can_be_negative_are_bounded_on_both_sides() -> None:
    mean = torch.zeros(3)
    generator = Generator(Shaped((3,)), 3, prior="features", mean=mean, deviation=mean + 1, made={"rectified": False})
    parameters = {"code": torch.tensor([[-9.0, 0.5, 9.0]], dtype=torch.float64)}
    Code(generator, decay=1.0).settle(parameters, SPACE, 0)
    assert parameters["code"].tolist() == [[-3.0, 0.5, 3.0]]


def test_a_start_of_features_has_their_mean_and_deviation() -> None:
    generator = Generator(Shaped((2,)), 2, prior="features", mean=torch.tensor([5.0, 9.0]), deviation=torch.tensor([0.5, 1.0]))
    code = Code(generator).begin(SPACE, draws(2000))["code"]
    assert torch.allclose(code.mean(0), generator.mean.double(), atol=0.1)
    assert torch.allclose(code.std(0), generator.deviation.double(), atol=0.1)


def test_pictures_are_resized_to_cover_and_gray_becomes_color() -> None:
    generator = Generator(Shaped((4,), channels=1, side=6), 4, (-1, 1))
    image = Code(generator)
    pixels = image.pixels(image.begin(SPACE, draws(2)), SPACE)
    assert pixels.shape == (2, 3, 8, 8)
    assert torch.equal(pixels[:, 0], pixels[:, 2])
    with pytest.raises(cs.UsageError, match="network takes 4"):
        image.pixels(image.begin(SPACE, draws(2)), Space(4, (8, 8), CPU, torch.float64))


def test_encoding_finds_the_code_of_a_picture_the_generator_made() -> None:
    image = Code(Generator(Shaped((6,)), 6, (-1, 1)))
    code = image.begin(SPACE, draws(2))["code"]
    aim = image.pixels({"code": code}, SPACE)
    found = image.encode(aim, SPACE)
    assert float((image.pixels(found, SPACE) - aim).abs().max()) < 1e-3
    assert torch.allclose(found["code"], code, atol=0.05)


def test_a_spec_names_its_generator_and_its_weights(tmp_path: Path) -> None:
    module = Upconvolution((3,), (8, 8), 3, 4)
    path = Generator(module, 3).save(tmp_path / "g.safetensors")
    image = Code(str(path), decay=0.5)
    told = json.loads(json.dumps(image.to_dict()))
    again = Spec.from_dict(told)
    assert again == image
    assert told["generator"] == {"reference": str(path), "hash": image.generator.hash}
    assert image != Code(Generator(Upconvolution((3,), (8, 8), 3, 4), 3), decay=0.5)


def test_a_spec_of_a_generator_that_is_not_here_is_refused(tmp_path: Path) -> None:
    path = Generator(Upconvolution((3,), (8, 8), 3, 4), 3).save(tmp_path / "g.safetensors")
    told = Code(str(path)).to_dict()
    told["generator"] = {"reference": str(path), "hash": "0" * 16}
    with pytest.raises(cs.UsageError, match="was made with 0000"):
        Spec.from_dict(told)
    told["generator"]["reference"] = "gone.safetensors"
    with pytest.raises(cs.UsageError, match="is not here"):
        Spec.from_dict(told)


def test_a_file_gives_the_same_pictures(tmp_path: Path) -> None:
    module = Upconvolution((2, 2, 2), (16, 8), 2, 4)
    mean = torch.rand(2, 2, 2)
    generator = Generator(module, (2, 2, 2), prior="features", mean=mean, deviation=mean, made={"layer": "conv"})
    again = load_generator(generator.save(tmp_path / "g.safetensors"))
    codes = torch.rand(3, 2, 2, 2)
    assert torch.equal(again(codes), generator(codes))
    assert again.code == generator.code
    assert torch.equal(again.mean, mean)
    assert again.made == {"layer": "conv"}
    assert again.hash == generator.hash


def test_what_is_no_generator_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"junk")
    with pytest.raises(cs.LoadError, match=r"x\.safetensors"):
        load_generator(tmp_path / "x.safetensors")
    with pytest.raises(cs.UsageError, match="did you mean 'scenes'"):
        load_generator("scene")
    with pytest.raises(cs.UsageError, match="cannot be written"):
        Generator(Shaped((4,)), 4).save(tmp_path / "y.safetensors")
    with pytest.raises(cs.UsageError, match="mean and deviation"):
        Generator(Shaped((4,)), 4, prior="features")
    with pytest.raises(cs.UsageError, match="has no bounds"):
        Code(Generator(Shaped((4,)), 4), keep="bounds")


def test_ascent_on_the_shell_reaches_the_best_direction() -> None:
    """A linear network of a linear generator: the best code of length sqrt(d) points along the gradient."""
    torch.manual_seed(0)
    module = Shaped((6,)).double()
    linear = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 2)).double()
    image = Code(Generator(module, 6, (-1, 1)))
    found = cs.ascend(cs.Network(linear, 8), [cs.Logit(0), cs.Logit(1)], image, steps=300, rate=(0.05, 1e-4))
    for index in (0, 1):
        slope = (module.weight.double() / 2) @ linear[1].weight[index]
        best = 6**0.5 * slope / slope.norm()
        expected = linear((module(best[None]) + 1) / 2)[0, index]
        assert abs(found.scores[index] - float(expected.detach())) < 1e-3
