"""Sparse autoencoders: planted dictionaries are found, files come back, features are units for every tool."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

import convoscope as cs
from convoscope.core.statistic import ChannelMoments
from convoscope.units.feature_sheet import ranked_features
from convoscope.units.sparse_autoencoder import (
    SparseAutoencoder,
    _fit,
    _largest,
    _Model,
    _Plan,
    train_sparse_autoencoder,
)

FEATURES, CHANNELS = 24, 16


def dictionary() -> Tensor:
    return F.normalize(torch.randn(FEATURES, CHANNELS, generator=torch.Generator().manual_seed(1)), dim=1)


def activations(count: int, seed: int = 0) -> Tensor:
    """Two of the planted features in each row, shifted."""
    draw = torch.Generator().manual_seed(seed)
    chosen = torch.rand(count, FEATURES, generator=draw).topk(2, 1).indices
    amounts = torch.zeros(count, FEATURES).scatter_(1, chosen, 1 + torch.rand(count, 2, generator=draw))
    return 3 + 10 * amounts @ dictionary()


@pytest.fixture(scope="module")
def trained() -> SparseAutoencoder:
    return train_sparse_autoencoder(activations(6000), latents=32, k=2, epochs=60, layer="layer")


def test_a_planted_dictionary_is_recovered(trained: SparseAutoencoder) -> None:
    best = (dictionary() @ trained.decoder.T).amax(1)
    assert float((best > 0.95).double().mean()) >= 0.9
    assert trained.report.explained > 0.95
    assert trained.report.active <= 2
    assert torch.allclose(trained.decoder.norm(dim=1), torch.ones(32))


def test_the_report_is_what_a_plain_loop_finds(trained: SparseAutoencoder) -> None:
    x = activations(50, seed=3)
    found = trained.measure(x)
    latents = torch.stack([trained.encode(row[None])[0] for row in x])
    error = sum(float((trained.decode(z[None])[0] - row).square().sum()) for z, row in zip(latents, x, strict=True))
    assert abs(found.explained - (1 - error / float((x - x.mean(0)).square().sum()))) < 1e-5
    assert found.active == float((latents > 0).sum()) / 50
    assert found.dead == float(((latents > 0).sum(0) == 0).double().mean())


def test_dead_latents_are_revived() -> None:
    """Latents that start far below zero get no gradient but from the auxiliary loss."""
    x = (activations(2000) - 3) / 15
    used = []
    for auxiliary in (0.0, 1 / 4):
        model = _Model(CHANNELS, 40, 2, torch.Generator().manual_seed(0))
        model.bias.data[20:] = -5
        _fit(model, x, _Plan(20, 100, 1e-2, auxiliary, 1, 0), None)
        used.append(int((model(x)[1] > 0).any(0)[20:].sum()))
    assert used[0] == 0
    assert used[1] > 5


def test_the_same_seed_gives_the_same_bits() -> None:
    x = activations(500)
    a, b, c = (train_sparse_autoencoder(x, latents=20, k=3, epochs=2, seed=s) for s in (1, 1, 2))
    assert all(torch.equal(getattr(a, n), getattr(b, n)) for n in ("encoder", "bias", "decoder", "center"))
    assert not torch.equal(a.encoder, c.encoder)


def test_top_k_is_a_sort_and_maps_are_rows(trained: SparseAutoencoder) -> None:
    values = torch.randn(5, 9, generator=torch.Generator().manual_seed(0))
    expected = torch.zeros(5, 9)
    for row, out in zip(values, expected, strict=True):
        for i in row.argsort(descending=True)[:4]:
            out[i] = max(row[i], 0)
    assert torch.equal(_largest(values, 4), expected)
    maps = activations(12).view(2, 2, 3, CHANNELS).permute(0, 3, 1, 2)
    latents = trained.encode(maps)
    assert latents.shape == (2, 32, 2, 3)
    assert torch.allclose(latents[1, :, 1, 2], trained.encode(maps[1:, :, 1, 2])[0], atol=1e-6)
    assert trained.decode(latents).shape == maps.shape
    assert int((latents > 0).sum(1).max()) <= 2


def test_a_file_comes_back(trained: SparseAutoencoder, tmp_path: Path) -> None:
    again = SparseAutoencoder.load(trained.save(tmp_path / "features.safetensors"))
    for f in dataclasses.fields(SparseAutoencoder):
        a, b = getattr(trained, f.name), getattr(again, f.name)
        assert torch.equal(a, b) if isinstance(a, Tensor) else a == b, f.name
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(cs.LoadError, match="holds no sparse autoencoder"):
        SparseAutoencoder.load(tmp_path / "other.safetensors")
    with pytest.raises(cs.LoadError, match="cannot read"):
        SparseAutoencoder.load(tmp_path / "none.safetensors")


# ---- features as units


def network() -> cs.Network:
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, CHANNELS, 3), nn.ReLU())
    head = nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(CHANNELS, 2)
    return cs.Network(nn.Sequential(body, *head), size=8)


def of(net: cs.Network, layer: str) -> SparseAutoencoder:
    x = torch.randn(40, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        rows = net.module.get_submodule(layer)(x) if layer == "0" else net.module[:4](x)
    rows = rows.movedim(1, -1).reshape(-1, CHANNELS)
    return train_sparse_autoencoder(rows, latents=20, k=3, epochs=2, layer=layer, network_hash=net.hash)


def test_attached_features_are_channels_for_every_tool() -> None:
    net = network()
    sae = of(net, "0")
    hooks = len(net.module[0]._forward_hooks)
    more = sae.attached(net)
    x = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(5))
    assert torch.equal(more.module(x), net.module(x))
    assert len(net.module[0]._forward_hooks) == hooks
    assert "sparse_features" not in [layer.address for layer in net.layers()]
    table = {layer.address: layer for layer in more.layers()}
    assert table["sparse_features"].shape == (20, 6, 6)
    assert table["sparse_features"].receptive_field == table["0"].receptive_field == (3, 3)
    gradient = cs.explain(more, x, "gradient", cs.Channel("sparse_features", 4)).values
    leaf = x.clone().requires_grad_()
    sae.encode(net.module[0](leaf))[:, 4].mean((1, 2)).sum().backward()
    assert torch.allclose(gradient, leaf.grad, atol=1e-6)
    swept = cs.sweep(more, torch.rand(6, 3, 8, 8), ChannelMoments(), ["sparse_features"])
    assert len(swept["sparse_features", "channel-moments"].value()[0]) == 20


def test_layers_without_positions_and_wrong_ones() -> None:
    net = network()
    sae = of(net, "3")
    x = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(5))
    found = cs.explain(sae.attached(net, "words"), x, "gradient", cs.Channel("words", 1), at="3").values
    assert found.shape == (3, CHANNELS)
    operator = dataclasses.replace(sae, layer="0.add")
    with pytest.raises(cs.UnsupportedError, match="behind modules only"):
        operator.attached(net)
    with pytest.raises(cs.UsageError, match="no free name"):
        sae.attached(net, "0")
    with pytest.raises(cs.UsageError, match="these features are of network"):
        sae.attached(cs.Network(nn.Sequential(nn.Conv2d(3, 2, 1)), size=8))


def test_directions_have_the_gradient_of_an_active_feature() -> None:
    net = network()
    sae = of(net, "0")
    x = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(5))
    maps = net.module[0](x).detach().requires_grad_()
    latents = sae.encode(maps)
    feature = int(latents.amax((0, 2, 3)).argmax())
    place = (latents[0, feature] > 0).nonzero()[0].tolist()
    latents[0, feature, place[0], place[1]].backward()
    assert torch.allclose(maps.grad[0, :, place[0], place[1]], sae.direction(feature).vector, atol=1e-6)
    assert torch.equal(sae.direction(feature, "decoder").vector, sae.decoder[feature])
    with pytest.raises(cs.UsageError, match="no feature 20"):
        sae.direction(20)


def test_what_cannot_be_trained_is_said() -> None:
    with pytest.raises(cs.UsageError, match="expected finite activations"):
        train_sparse_autoencoder(torch.full((9, 2), torch.nan))
    with pytest.raises(cs.UsageError, match="1 <= k <= 8 latents"):
        train_sparse_autoencoder(torch.zeros(9, 2), k=9)


def test_features_are_shown_that_are_rare_but_not_of_one_picture() -> None:
    latents = torch.zeros(40, 5)
    image = torch.arange(40) // 2
    latents[:4, 0] = 1  # two pictures
    latents[::2, 1] = 1  # twenty
    latents[:24:2, 2] = 1  # twelve
    latents[:, 4] = 1
    assert ranked_features(latents, image, 3).tolist() == [2, 1, 4]
    assert ranked_features(latents, image, 9).tolist() == [2, 1, 4, 0]


def test_features_by_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from convoscope.cli.run import run

    words = ["concepts", "scenes", "scenes:12", "--layer", "layer3", "--method", "sparse-autoencoder", "--samples", "400"]
    files = ["--save", str(tmp_path / "f.safetensors"), "--out", str(tmp_path / "f.png")]
    assert run([*words, *files, "--epochs", "2", "--latents", "40", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["features"], found["channels"]) == (40, 64)
    made = SparseAutoencoder.load(tmp_path / "f.safetensors")
    assert made.report.explained == found["report"]["explained"]
    assert Image.open(tmp_path / "f.png").width > 400
    plain = cs.load("scenes")
    new = {a.address for a in made.attached(plain).layers()} - {a.address for a in plain.layers()}
    assert "sparse_features" in new
    assert all(a.startswith("sparse_features") for a in new)
