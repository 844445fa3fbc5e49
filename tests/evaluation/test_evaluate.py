"""An evaluation that is interrupted, resumed, bounded, refused or damaged; what is folded gives the same values."""

import math

import pytest
import torch
from torch import nn

import convoscope as cs
from convoscope.core.errors import UnsupportedError, UsageError
from convoscope.evaluation.base import Case, ranks
from convoscope.evaluation.budget import budget, bytes_of, bytes_of_image, bytes_of_row, bytes_of_weights
from convoscope.evaluation.evaluate import evaluate, metric_of
from convoscope.evaluation.folding import Folded
from convoscope.evaluation.kept import Kept, Part
from convoscope.evaluation.subsets import asked, subsets
from convoscope.evaluation.sweeps import removal
from convoscope.targets import Logit
from convoscope.testing.untouched import unchanged

METRICS = ["deletion:steps=6", "insertion:steps=6", "faithfulness-correlation:count=9", "max-sensitivity:count=2"]


def normed(seed: int = 0) -> nn.Module:
    """Convolutions with batch norms whose statistics are not trivial, one of them also read by something else."""
    torch.manual_seed(seed)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm = nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
            self.second, self.other = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6)
            self.last = nn.Linear(6, 4)

        def forward(self, x):
            x = torch.relu(self.norm(self.first(x)))
            y = self.second(x)
            return self.last((torch.relu(self.other(y)) + y.mean((1, 2, 3), keepdim=True)).mean((2, 3)))

    net = Net()
    for m in (net.norm, net.other):
        nn.init.normal_(m.running_mean, std=0.3)
        nn.init.uniform_(m.running_var, 0.3, 2.0)
        nn.init.normal_(m.weight)
        nn.init.normal_(m.bias)
    return net.eval()


def network(dtype: torch.dtype = torch.float64) -> cs.Network:
    return cs.Network(normed().to(dtype), size=16, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25))


def images(count: int = 11, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(dtype)


# ---------------------------------------------------------------- going on
@pytest.mark.parametrize("after", [1, 200, 400])
def test_what_was_stopped_goes_on_to_the_same_bits(tmp_path, after) -> None:
    net, x = network(), images()
    whole = evaluate(net, x, ["gradient", "grad-cam"], METRICS)
    for error in (KeyboardInterrupt, RuntimeError):

        def stop(done: int, most: int, error: type[BaseException] = error) -> None:
            assert 0 < done <= most
            if done >= after:
                raise error

        with unchanged(net.module, x, "after it was stopped"), pytest.raises(error):
            evaluate(net, x, ["gradient", "grad-cam"], METRICS, store=tmp_path, progress=stop)
    again = evaluate(net, x, ["gradient", "grad-cam"], METRICS, store=tmp_path)
    assert torch.equal(again.scores.nan_to_num(-7), whole.scores.nan_to_num(-7))
    assert (again.units, again.left_out) == (whole.units, whole.left_out)


def test_what_is_done_is_not_computed_again_and_what_changed_is(tmp_path) -> None:
    net, x, passes = network(), images(), []
    count = net.module.register_forward_pre_hook(lambda m, args: passes.append(len(args[0])))

    def run(**changes):
        settings = {"methods": ["gradient", "grad-cam"], "metrics": METRICS, "store": tmp_path, **changes}
        passes.clear()
        return evaluate(changes.pop("network", net), changes.pop("x", x), **{k: v for k, v in settings.items() if k != "x"})

    first = run()
    again = run()
    assert sum(passes) <= 1  # the trace, where there is none yet
    assert torch.equal(again.scores.nan_to_num(-7), first.scores.nan_to_num(-7))
    assert (again.passes, again.explained) == (first.passes, first.explained)
    for changes in ({"seed": 1}, {"target": 2}, {"nulls": ["random"]}, {"x": images(12)}, {"batch_size": 3},
                    {"metrics": ["deletion:steps=7"]}, {"methods": ["gradient"]}):  # fmt: skip
        run(**changes)
        assert passes, f"nothing was computed for {changes}"
    with torch.no_grad():
        net.module.last.bias[1] += 1e-3
    run()
    assert passes
    count.remove()


def test_a_damaged_part_is_computed_again(tmp_path) -> None:
    kept = Kept(tmp_path)
    part = Part(torch.tensor([[1.0, math.nan]], dtype=torch.float64), "logit", 3, 4, {"a": "b"})
    path = kept.path("x", 1)
    kept.keep(path, part)
    whole = path.read_bytes()
    found = kept.find(path)
    assert found is not None
    assert torch.equal(found.scores.nan_to_num(7), part.scores.nan_to_num(7))
    assert (found.unit, found.passes, found.explained, found.left_out) == ("logit", 3, 4, {"a": "b"})
    for k in range(len(whole)):
        path.write_bytes(whole[:k] + bytes([whole[k] ^ 1]) + whole[k + 1 :])
        found = kept.find(path)
        assert found is None or (found.unit == "logit" and torch.equal(found.scores.nan_to_num(7), part.scores.nan_to_num(7)))
    for data in (b"", whole[:-1], whole[: len(whole) // 2]):
        path.write_bytes(data)
        assert kept.find(path) is None
    assert kept.find(kept.path("x", 2)) is None
    kept.clear()
    assert not tmp_path.exists()


# ---------------------------------------------------------------- within bounds
def test_memory_bounds_what_is_held() -> None:
    net, x = network(), images()
    asked_for = [metric_of(m) for m in METRICS]
    row, image, fixed = bytes_of_row(net, x), bytes_of_image(x, asked_for, 5), bytes_of_weights(net)
    assert fixed == 5 * 8 * sum(p.numel() for p in net.module.parameters()) // 2
    floats = (3 + 6 + 6 + 6 + 6 + 6 + 6) * 256 * 8  # of two convolutions, norms and rectifiers, at least
    assert row > floats
    for memory in (fixed + 20 * max(row, image), fixed + 3 * max(row, image), 10**12):
        found = budget(memory, net, x, asked_for, 5, "auto")
        assert fixed + found.images * image + found.rows * row + found.masks <= memory
        assert found.images >= 1 <= found.rows
    assert (found.images, found.rows) == (8, budget(None, net, x, asked_for, 5, "auto").rows)
    assert budget(None, net, x, asked_for, 5, 3).rows == 3
    with pytest.raises(UsageError, match=r"one image of 3 x 16 x 16 with 5 maps; give at least"):
        budget(1000, net, x, asked_for, 5, "auto")
    least = fixed + max(2 * max(row, image) * 8 // 7 + 16, 144 * 256)
    assert budget(least, net, x, asked_for, 5, "auto").images == 1
    with pytest.raises(UsageError, match=f"give at least {-(-least // 10**6)} MB"):
        budget(least - 100, net, x, asked_for, 5, "auto")


@pytest.mark.parametrize(("given", "count"), [(5, 5), ("2 GB", 2 * 10**9), ("500MiB", 500 << 20), ("1.5kb", 1500), ("7", 7)])
def test_sizes_are_read(given, count) -> None:
    assert bytes_of(given) == count


@pytest.mark.parametrize("given", ["", "GB", "-1", "0", "2 apples", "1.2.3 MB", True, 0.2])
def test_sizes_that_are_none(given) -> None:
    with pytest.raises(UsageError, match="expected a number of bytes, or a text such as '2 GB'"):
        evaluate(network(), images(1), ["gradient"], METRICS[:1], memory=given)


def test_little_memory_gives_the_same_scores() -> None:
    net, x = network(), images()
    names = [*METRICS, "infidelity:count=50"]
    least = 20 * max(bytes_of_row(net, x), bytes_of_image(x, [metric_of(m) for m in names], 4))
    plain = evaluate(net, x, ["gradient", "grad-cam"], names)
    bound = evaluate(net, x, ["gradient", "grad-cam"], names, memory=least)
    assert torch.allclose(bound.scores, plain.scores, rtol=1e-9, atol=1e-12, equal_nan=True)


def test_masks_without_room_are_drawn_again() -> None:
    net, x = network(), images(3)
    maps = torch.rand(2, 3, 16, 16, dtype=torch.float64)
    given = {"network": net, "x": x, "target": Logit(1), "maps": maps, "names": ("a", "b"), "batch_size": 4}
    wide, tight = Case(**given), Case(**given, room=18 * 256)
    a, b = (asked(case, 13, 10, "pixels", "mean", Logit(1)) for case in (wide, tight))
    assert all(torch.allclose(s, t, atol=1e-12) for s, t in zip(a, b, strict=True))
    held = [sum(t.numel() for k, t in case.kept.items() if k[0] == "subsets") for case in (wide, tight)]
    assert held == [10 * 256, 9 * 256]
    assert torch.equal(subsets(wide, 13, 10)[4:7], subsets(wide, 13, 99, some=range(4, 7)))
    assert (subsets(wide, 13, 10).sum(1) == 13).all()
    assert not torch.equal(subsets(wide, 13, 10), subsets(Case(**given, seed=1), 13, 10))


# ---------------------------------------------------------------- what is shared
def test_four_curves_take_two_sweeps() -> None:
    case = Case(network(), images(3), Logit(1), torch.rand(2, 3, 16, 16, dtype=torch.float64), ("a", "b"), batch_size=5)
    for name in ("deletion", "morf", "insertion", "lerf"):
        metric_of(f"{name}:steps=7,fill=0.0").score(case)
    assert case.passes == 3 + 3 + 2 * (2 * 3 * 6)  # clean, blank, two orders of six pictures between them


def test_equal_rankings_are_run_once_and_random_subsets_for_all() -> None:
    maps = torch.rand(1, 3, 16, 16, dtype=torch.float64)
    for count in (1, 3):
        same = torch.cat([maps, 2 * maps, maps**3])[:count]
        case = Case(network(), images(3), Logit(1), same, tuple("abc"[:count]), batch_size=5)
        metric_of("deletion:steps=7").score(case)
        assert case.passes == 3 + 3 + 3 * 6
        metric_of("faithfulness-correlation:count=9").score(case)
        metric_of("infidelity:count=9,shape=pixels").score(case)
        assert case.passes == 3 + 3 + 3 * 6 + 3 + 3 * 9  # the probability and the logit have a clean pass each


def test_rows_of_all_images_fill_the_batches() -> None:
    net, sizes = network(), []
    handle = net.module.register_forward_pre_hook(lambda m, args: sizes.append(len(args[0])))
    case = Case(net, images(3), Logit(1), torch.rand(2, 3, 16, 16, dtype=torch.float64), ("a", "b"), batch_size=8)
    case.clean(), case.fill(0.0)
    sizes.clear()
    removal(case, True, 0.0, 4, Logit(1))
    handle.remove()
    assert [s for s in sizes if s > 1] == [3, 8, 8, 2]  # the blank pictures; 18 between, in one queue


def test_ranks_are_those_of_a_stable_sort() -> None:
    maps = torch.randint(4, (2, 3, 5, 7), generator=torch.Generator().manual_seed(0)).double()
    found = ranks(maps)
    for m in range(2):
        for i in range(3):
            values = maps[m, i].flatten().tolist()
            order = sorted(range(35), key=lambda k: (-values[k], k))
            assert [order.index(k) for k in range(35)] == found[m, i].tolist()


# ---------------------------------------------------------------- what cannot be had
def test_a_method_that_refuses_is_left_out_with_its_reason() -> None:
    class Refuses(cs.Method, name="refuses-for-a-test"):
        """Refuses."""

        def attribute(self, probe, x):
            raise UnsupportedError("not for this network")

        def evaluations(self, x):
            return 1

    found = evaluate(network(), images(3), ["gradient", Refuses()], METRICS)
    number = found.names.index("refuses-for-a-test")
    assert found.scores[:, number].isnan().all()
    assert not found.scores[:, 0].isnan().any()
    assert {found.left_out[m.name, "refuses-for-a-test"] for m in found.metrics} == {"not for this network"}
    assert found.left_out["max-sensitivity", "random"].startswith("it is given as maps alone")


# ---------------------------------------------------------------- folding
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_folded_networks_give_the_same_values(dtype) -> None:
    module, x = normed().to(dtype), images(4, dtype)
    with torch.no_grad(), unchanged(module, x, "after folding"):
        folded = Folded(module, x)
        assert len(folded._plan) == 1  # the second convolution is read by something else
        error = (folded(x) - module(x)).abs().max() / module(x).abs().max()
    assert error < (1e-5 if dtype == torch.float32 else 1e-13)


def test_nothing_is_folded_where_it_could_be_seen() -> None:
    module, x = normed(), images(2, torch.float32)
    handle = module.norm.register_forward_pre_hook(lambda m, args: None)
    assert not Folded(module, x)._plan
    handle.remove()
    assert not Folded(module.train(), x)._plan


def test_a_pass_that_goes_another_way_is_run_as_it_is() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
            nn.init.constant_(self.norm.running_mean, 2.0)

        def forward(self, x):
            y = self.conv(x)
            return (self.norm(y) if x.mean() < 5 else y.relu()).mean((2, 3))

    module, x = Branches().eval(), images(2, torch.float32)
    with torch.no_grad():
        folded = Folded(module, x)
        assert len(folded._plan) == 1
        for given in (x, x + 100):
            assert torch.allclose(folded(given), module(given), atol=1e-4)
        module.norm.running_mean += 1  # other statistics than those that were folded
        assert torch.allclose(folded(x), module(x), atol=1e-5)
        module.conv.weight.mul_(2)
        assert torch.allclose(folded(x), module(x), atol=1e-5)
