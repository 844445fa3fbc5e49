"""One flipped bit anywhere in a file that is read again: one line says that it is damaged, or all is as it was written."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

import convoscope as cs
from convoscope.core.errors import ConvoscopeError, LoadError, UsageError
from convoscope.images.generator import Perceptron
from convoscope.synthesis.experts import load_expert
from convoscope.synthesis.experts_gaussian import GaussianExpert
from convoscope.units.book_files import load_numbers, save_numbers

FLIPS = 200


def network() -> cs.Network:
    torch.manual_seed(0)
    return cs.Network(nn.Sequential(nn.Flatten(), nn.Linear(48, 3)).double(), 4)


class Kind(NamedTuple):
    """How a file is written, and what is read of it as text and tensors."""

    write: Callable[[Path], Any]
    read: Callable[[Path], Any]
    error: type[ConvoscopeError] = LoadError


def attack(path: Path) -> None:
    cs.attack(network(), torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)).double(), "fgsm").save(path)


def read_attack(path: Path) -> Any:
    found = cs.Attack.load(path, network())
    return [found.to_dict(), found.tensors()]


def generator(path: Path) -> None:
    torch.manual_seed(0)
    cs.Generator(Perceptron(2, (4, 4), 3, width=3), (2,), (0.0, 1.0), made={"steps": 3}).save(path)


def read_generator(path: Path) -> Any:
    found = cs.load_generator(path)
    return [found.module.state_dict(), found.code, found.range, found.made]


def expert(path: Path) -> None:
    variances = torch.arange(1.0, 13).diag()
    GaussianExpert.fitted(torch.zeros(12), variances, (3, 2, 2), noise=0.1).save(path)


def autoencoder(path: Path) -> None:
    torch.manual_seed(0)
    encoder, decoder = torch.rand(5, 3), torch.rand(3, 5)
    cs.SparseAutoencoder(encoder, torch.rand(5), decoder, torch.rand(3), scale=2.0, k=2, layer="1").save(path)


KINDS = {
    "attack": Kind(attack, read_attack),
    "sparse autoencoder": Kind(autoencoder, lambda p: vars(cs.SparseAutoencoder.load(p))),
    "expert": Kind(expert, lambda p: vars(load_expert(p))),
    "generator": Kind(generator, read_generator),
    "numbers of a book": Kind(
        lambda p: save_numbers(p, {"a": torch.arange(6.0), "b": torch.arange(3)}), load_numbers, UsageError
    ),
}


def told(value: Any) -> str:
    """Everything in a value, to the bit."""
    if isinstance(value, torch.Tensor):
        return f"{value.dtype}{tuple(value.shape)}{value.reshape(-1).view(torch.uint8).tolist()}"
    if isinstance(value, dict):
        return repr([(k, told(v)) for k, v in sorted(value.items())])
    return repr([told(v) for v in value]) if isinstance(value, list | tuple) else repr(value)


@pytest.mark.parametrize("name", KINDS)
def test_a_flipped_bit_is_said_or_changes_nothing(name: str, tmp_path: Path) -> None:
    kind, path, draw = KINDS[name], tmp_path / "x.safetensors", random.Random(0)
    kind.write(path)
    whole, right, noticed = path.read_bytes(), told(kind.read(path)), 0
    for at in sorted(draw.sample(range(len(whole)), min(FLIPS, len(whole)))):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :])
        try:
            found = told(kind.read(path))
        except kind.error:
            noticed += 1
        else:
            assert found == right, at
    assert noticed > 0.8 * min(FLIPS, len(whole))  # a blank in the header may be another kind of blank
    for cut in (0, 7, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(kind.error, match="damaged"):
            kind.read(path)
