"""Sweeps in one process: against a plain loop, for any batch and shard size, with pictures of all sorts."""

import re
import threading
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from sweeping import LAYERS, Counts, Drawn, Loud, Net, Top, all_of, network, same, states
from torch import Tensor, nn

import convoscope as cs
from convoscope.core.statistic import Samples


def plain(data: Drawn, layer: str) -> list[tuple[int, Tensor]]:
    """What a layer makes of each image, one at a time."""
    net = Net().eval()
    kept: list[Tensor] = []
    if layer != "input":
        net.get_submodule(layer).register_forward_hook(lambda m, a, out: kept.append(out.detach().clone()))
    found = []
    for i in range(len(data)):
        if i not in data.broken:
            x = (data.picture(i)[None].double() - 0.5) / 0.25
            net(x)
            found.append((i, x if layer == "input" else kept.pop()))
    return found


@pytest.mark.parametrize("layer", LAYERS)
def test_a_sweep_is_a_plain_loop(layer: str) -> None:
    data = Drawn(23, broken=(3, 17))
    found = cs.sweep(network(), data, all_of(), LAYERS, batch_size=4, shard_size=9)
    rows = plain(data, layer)
    maps = torch.cat([m.flatten(2) if m.dim() == 4 else m[:, :, None] for _, m in rows])
    for c in range(maps.shape[1]):
        ranked = sorted((-float(v), i, p) for (i, _), m in zip(rows, maps, strict=True) for p, v in enumerate(m[c].tolist()))[
            :4
        ]
        values, places = found[layer, "top"].value()
        assert values[c].tolist() == [-v for v, _, _ in ranked]
        assert places[c].tolist() == [i * 10_000 + p for _, i, p in ranked]
    counts = found[layer, "counts"]
    assert counts.largest.tolist() == maps.amax((0, 2)).tolist()
    assert counts.classes.tolist() == [sum(i % 3 == k for i, _ in rows) for k in range(3)]
    assert found[layer]["loud"].value() == float(maps.max())


@pytest.mark.parametrize("shard_size", [1, 7, 50, 1000])
@pytest.mark.parametrize("batch_size", [1, 3, 50])
def test_any_batch_and_shard_size_gives_the_same_bits(shard_size: int, batch_size: int) -> None:
    one = cs.sweep(network(), Drawn(broken=(8,)), all_of(), LAYERS, batch_size=1000, shard_size=1000)
    other = cs.sweep(network(), Drawn(broken=(8,)), all_of(), LAYERS, batch_size=batch_size, shard_size=shard_size)
    assert same(one, other)
    assert len(states(one)) == 4 * 6


def test_pictures_of_different_sizes() -> None:
    data, net = Drawn(20, sizes=(12, 12, 16)), network(size=None)
    one = cs.sweep(net, data, all_of(), LAYERS, batch_size=1)
    assert same(one, cs.sweep(net, data, all_of(), LAYERS, batch_size=8, shard_size=6))


def test_who_is_asked_and_how() -> None:
    found = cs.sweep(network(), Drawn(), {"few": Top(k=2), "many": Top(k=6)}, "head")
    assert found["head", "few"].value()[0].shape == (3, 2)
    assert set(found["head"]) == {"few", "many"}
    assert (found.network_name, found.dataset_name, found.images, found.layers) == ("Net", "drawn", 50, ("head",))
    assert found.network_hash == network().hash
    assert cs.sweep(Net().float(), Drawn(), Top(), ["head"])["head", "top"].begun
    with pytest.raises(cs.UsageError, match=r"no layer 'heads'; did you mean 'head'"):
        found["heads"]
    with pytest.raises(cs.UsageError, match=r"no statistic 'fews'; did you mean 'few'"):
        found["head", "fews"]


def test_layers_by_pattern() -> None:
    def layers(*asked: str) -> tuple[str, ...]:
        return cs.sweep(network(), Drawn(2), Top(), asked).layers

    assert layers("*") == ("first", "relu", "relu_1", "amax", "head")
    assert layers("part.*") == ("part.last",)
    assert layers("head", "**st") == ("head", "first", "part.last")
    assert layers("relu") == ("relu",)
    assert layers("input", "output") == ("input", "output")
    assert layers("fir?t") == ("first",)
    with pytest.raises(cs.AddressError, match=r"layer 'frist' does not exist; did you mean 'first'"):
        layers("frist")
    with pytest.raises(cs.AddressError, match="layer 'unused' was not called"):
        layers("unused")
    with pytest.raises(cs.AddressError, match="no layer matches 'conv"):
        layers("conv*")
    with pytest.raises(cs.UsageError, match="layers are addresses"):
        layers()


class Sequences(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.tokens = nn.Conv2d(3, 4, 4, 4), nn.Flatten(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.tokens(self.conv(x)).mean(2)


def test_layers_without_channels_are_refused_by_name_and_left_out_of_patterns() -> None:
    net = cs.Network(Sequences(), 12)
    assert "tokens" not in cs.sweep(net, Drawn(2), Counts(), ["*"]).layers
    with pytest.raises(cs.UnsupportedError, match=r"layer 'tokens' makes a tensor \(1, 4, 9\)"):
        cs.sweep(net, Drawn(2), Counts(), ["conv", "tokens"])


def test_pictures_that_cannot_be_read_are_named() -> None:
    found = cs.sweep(network(), Drawn(9, broken=(0, 4)), Counts(), "head", shard_size=2)
    assert found.failed == {0: "picture 0 is damaged", 4: "picture 4 is damaged"}
    assert int(found["head", "counts"].classes.sum()) == 7
    with pytest.raises(cs.ImageError, match="none of the 3 pictures of drawn can be read; the first: picture 0 is damaged"):
        cs.sweep(network(), Drawn(3, broken=(0, 1, 2)), Counts(), "head")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"shard_size": 1.5}, "shard_size is 1.5"),
        ({"workers": True}, "workers is True"),
        ({"engine": "spark"}, "no engine 'spark'"),
        ({"shard": "4/4", "store": "."}, "from 0 to n - 1"),
        ({"shard": "0/4"}, "say where it goes with store"),
        ({"dataset": Drawn(0)}, "drawn has no pictures"),
        ({"statistics": [Top(), Top(k=2)]}, "several statistics of one kind need names"),
        ({"statistics": []}, "no statistic to compute"),
        ({"statistics": "top"}, "statistics are Statistic objects"),
    ],
)
def test_what_makes_no_sense(change: dict[str, Any], reason: str) -> None:
    settings: dict[str, Any] = {"network": network(), "dataset": Drawn(3), "statistics": Top(), "layers": "head"}
    with pytest.raises(cs.UsageError, match=reason):
        cs.sweep(**{**settings, **change})


def test_data_is_opened() -> None:
    pixels = torch.stack([Drawn().picture(i) for i in range(4)])
    one = cs.sweep(network(), list(pixels), Top(), "head")
    assert same(one, cs.sweep(network(), Drawn(4), Top(), "head"))


def test_what_is_spilled_stays_in_its_shard_and_hints_save_some_of_it() -> None:
    found = cs.sweep(network(), Drawn(), [Loud(), Top()], ["head", "first"], shard_size=10)
    whole = found["head", "loud"]
    assert len(whole.rows) == 0
    shards = list(found.shards("head", "loud"))
    assert len(shards) == 5
    rows = dict(plain(Drawn(), "head"))
    kept = {int(i): float(v) for s in shards for i, v in zip(s.where, s.rows, strict=True)}
    assert all(kept[i] == float(rows[i].max()) for i in kept)
    assert set(range(10)) <= set(kept)
    assert len(kept) < 50
    assert max(kept.values()) == whole.value()
    assert list(found.shards("head", "top")) == []


@dataclass(kw_only=True, eq=False)
class Held(Top):
    """Notes how many of its kind that have seen something there are at once."""

    alive: ClassVar[weakref.WeakSet[Any]] = weakref.WeakSet()
    most: ClassVar[int] = 0
    __hash__ = object.__hash__

    def update(self, batch: Tensor, samples: Samples | None = None) -> None:
        super().update(batch, samples)
        Held.alive.add(self)
        Held.most = max(Held.most, len(Held.alive))


@pytest.mark.parametrize("stored", [False, True])
def test_a_sweep_holds_one_shard_at_a_time(tmp_path: Path, stored: bool) -> None:
    """Beside what the others were merged to, which no update has seen: memory does not grow with the number of images."""
    Held.alive.clear()
    Held.most = 0
    cs.sweep(network(), Drawn(), Held(), "head", shard_size=4, batch_size=2, store=tmp_path / "store" if stored else None)
    assert Held.most == 1


def test_progress_counts_every_image_once() -> None:
    told: list[tuple[int, int]] = []
    cs.sweep(network(), Drawn(20, broken=(3,)), Top(), "head", batch_size=4, shard_size=8, progress=lambda *t: told.append(t))
    assert [d for d, _ in told] == sorted({d for d, _ in told} | {20})
    assert told[-1] == (20, 20)


class Hungry(nn.Module):
    """Needs memory that is not there for more than `most` images."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.net, self.most = Net(), most

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > self.most:
            torch.empty(1 << 60)
        return self.net(x)


def test_auto_halves_the_batch_where_memory_does_not_suffice() -> None:
    net = cs.Network(Hungry(3), 12, 0.5, 0.25)
    told: list[int] = []
    found = cs.sweep(net, Drawn(), Top(), "net.head", batch_size="auto", shard_size=20, progress=lambda d, _: told.append(d))
    reference = cs.sweep(network(), Drawn(), Top(), "head")
    assert torch.equal(found["net.head", "top"].values, reference["head", "top"].values)
    assert told[-1] == 50
    with pytest.raises(RuntimeError, match="memory"):
        cs.sweep(net, Drawn(), Top(), "net.head", batch_size=32)
    with pytest.raises(RuntimeError, match="memory"):
        cs.sweep(cs.Network(Hungry(0), 12), Drawn(), Top(), "net.head", batch_size="auto")


class Stops(Counts):
    """Stops in the third batch."""

    seen = 0

    def update(self, batch: Tensor, samples: Any = None) -> None:
        Stops.seen += 1
        if Stops.seen > 2:
            raise KeyboardInterrupt


def test_an_interrupted_sweep_leaves_nothing_behind() -> None:
    net, before = network(), set(threading.enumerate())
    net.module.train()
    net.module.first.eval()
    for p in net.module.head.parameters():
        p.requires_grad_(False)
    flags = [m.training for m in net.module.modules()], [p.requires_grad for p in net.module.parameters()]
    Stops.seen = 0
    with pytest.raises(KeyboardInterrupt):
        cs.sweep(net, Drawn(), Stops(), "head", batch_size=2)
    assert set(threading.enumerate()) <= before
    assert flags == ([m.training for m in net.module.modules()], [p.requires_grad for p in net.module.parameters()])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.module.modules())


class Stop(nn.Module):
    """Notes that it ran."""

    ran = 0

    def forward(self, x: Tensor) -> Tensor:
        Stop.ran += 1
        return x


@pytest.mark.parametrize(("layer", "runs"), [("0", 0), ("input", 0), ("1", 5)])
def test_the_run_stops_after_the_last_layer_asked_for(layer: str, runs: int) -> None:
    net = cs.Network(nn.Sequential(nn.Conv2d(3, 2, 3), Stop()), 12)
    Stop.ran = 0
    cs.sweep(net, Drawn(10), Top(), layer, batch_size=2)
    assert Stop.ran - 1 == runs  # one pass finds the layers


def test_reading_runs_ahead_but_not_far() -> None:
    class Watched(Drawn):
        asked = 0
        furthest: list[int] = []

        def picture(self, i: int) -> Tensor:
            self.asked = max(self.asked, i)
            return super().picture(i)

    class Slow(Counts):
        def update(self, batch: Tensor, samples: Any = None) -> None:
            Watched.furthest.append(data.asked - int(samples.index.max()))
            super().update(batch, samples)

    data = Watched(60)
    cs.sweep(network(), data, Slow(), "head", batch_size=5, shard_size=10)
    assert 0 < max(Watched.furthest) <= 11


def test_the_how_to_runs() -> None:
    text = (Path(__file__).parents[2] / "docs" / "how-to" / "sweep.md").read_text(encoding="utf-8")
    blocks = [b for b in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "photographs/" not in b]
    assert len(blocks) == 2
    names: dict[str, Any] = {"__name__": "how_to"}
    exec(compile("\n".join(blocks).replace("scenes:64", "scenes:8"), "sweep.md", "exec"), names)
    assert names["found"]["layer4", "alive"].value().max() == 8


def test_statistics_get_as_many_rows_as_stay_near(monkeypatch: pytest.MonkeyPatch) -> None:
    one = cs.sweep(network(), Drawn(), all_of(), LAYERS)
    monkeypatch.setattr("convoscope.engine.shards.CACHED", 1 << 12)
    assert same(one, cs.sweep(network(), Drawn(), all_of(), LAYERS))
