"""MAP-Elites and its encodings: genomes against a plain loop, what mutation may and may not do, archives, resume."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from convoscope.synthesis.cppn_genome import INPUTS, Compositional, Genomes
from convoscope.synthesis.evolution import Direct, map_elites, taken
from convoscope.synthesis.fool_state import Live, State

ENCODING = Compositional(3, (5, 7), hidden=6)


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def bred(encoding: Compositional, rows: int = 40, generations: int = 25) -> Genomes:
    generator = draws(7)
    found = encoding.begin(rows, generator)
    for generation in range(1, generations + 1):
        found = encoding.vary(found, found, generation, generator)
    return found


def pixel(genomes: Genomes, row: int, x: float, y: float, encoding: Compositional) -> list[float]:
    """The outputs of one genome at one place, node by node, following connections backwards."""
    weight, link, function = (genomes[name][row] for name in ("weight", "link", "function"))
    given = [x, y, math.hypot(x, y), 1.0]
    apply = (math.sin, lambda v: 2 / (1 + math.exp(-v)) - 1 if v > -700 else -1.0, lambda v: 2 * math.exp(-v * v) - 1, float)

    def value(node: int) -> float:
        if node < INPUTS:
            return given[node]
        total = sum(float(weight[node, j]) * value(j) for j in range(encoding.nodes) if bool(link[node, j]))
        return apply[int(function[node])](total)

    return [value(encoding.nodes - encoding.channels + c) for c in range(encoding.channels)]


def test_pictures_are_those_of_a_plain_loop() -> None:
    genomes = bred(ENCODING, rows=12, generations=8)
    genomes["weight"] = genomes["weight"].double()
    assert int(genomes["count"].max()) > 2
    found = ENCODING.pixels(genomes)
    assert found.shape == (12, 3, 5, 7)
    assert found.dtype == torch.uint8
    for row in (0, 3, 11):
        for i, j in ((0, 0), (2, 3), (4, 6), (1, 5)):
            expected = pixel(genomes, row, (2 * j + 1 - 7) / 7, (2 * i + 1 - 5) / 7, ENCODING)
            for c, value in enumerate(expected):
                wanted = min(max((value + 1) * 127.5, 0.0), 255.0)
                assert abs(float(found[row, c, i, j]) - wanted) <= 0.5 + 1e-6


def test_pictures_do_not_depend_on_what_is_drawn_with_them(monkeypatch: pytest.MonkeyPatch) -> None:
    genomes = bred(ENCODING)
    genomes["weight"] = genomes["weight"].double()
    whole = ENCODING.pixels(genomes)
    monkeypatch.setattr("convoscope.synthesis.cppn_genome.LIMIT", 500)  # a few pixels at once
    parts = [ENCODING.pixels({n: g[i : i + 1] for n, g in genomes.items()}) for i in range(40)]
    assert torch.equal(whole, torch.cat(parts))


def test_after_many_mutations_genomes_are_still_networks_without_loops() -> None:
    genomes = bred(ENCODING, generations=60)
    link, weight, count = genomes["link"], genomes["weight"], genomes["count"]
    assert 0 <= int(count.min()) < int(count.max()) <= ENCODING.hidden
    number = torch.arange(ENCODING.nodes)
    there = (number < INPUTS + count[:, None]) | (number >= INPUTS + ENCODING.hidden)
    r, i, j = link.nonzero(as_tuple=True)
    assert bool((i > j).all())
    assert bool((i >= INPUTS).all())
    assert bool((j < INPUTS + ENCODING.hidden).all())
    assert bool((there[r, i] & there[r, j]).all())
    assert bool((weight[~link] == 0).all())
    assert float(weight.abs().max()) <= ENCODING.span
    assert len(link.flatten(1).sum(1).unique()) > 3


def test_a_linear_node_in_a_connection_changes_no_picture() -> None:
    genomes = bred(ENCODING, generations=6)
    genomes["weight"] = genomes["weight"].double() * 0.999  # none is exactly 1
    before, nodes = ENCODING.pixels(genomes), genomes["count"].clone()
    for seed in range(4):
        grown = {n: g.clone() for n, g in genomes.items()}
        ENCODING._add_node(grown, torch.ones(40, dtype=torch.bool), draws(seed))
        new = (grown["count"] - nodes).bool()
        assert torch.equal(new, (nodes < ENCODING.hidden) & genomes["link"].flatten(1).any(1))
        reads = ((grown["weight"] == 1) & grown["link"]).any(2)
        assert torch.equal(reads.sum(1), new.long())
        grown["function"][reads] = 3
        difference = (ENCODING.pixels(grown).int() - before.int()).abs()
        assert int(difference.max()) <= 1  # products are summed in another order


def test_removing_a_node_that_nothing_reads_changes_no_picture() -> None:
    genomes = bred(Compositional(1, (4, 4), hidden=1), rows=30, generations=10)
    encoding = Compositional(1, (4, 4), hidden=1)
    genomes["link"][:, :, INPUTS] = False
    before = encoding.pixels(genomes)
    encoding._remove_node(genomes, torch.ones(30, dtype=torch.bool), draws())
    assert int(genomes["count"].max()) == 0
    assert not bool(genomes["link"][:, INPUTS].any())
    assert torch.equal(encoding.pixels(genomes), before)


def test_moving_keeps_the_number_of_connections_and_adding_and_removing_change_it_by_one() -> None:
    genomes = bred(ENCODING, generations=10)
    everyone = torch.ones(40, dtype=torch.bool)
    before = genomes["link"].flatten(1).sum(1)
    room = ENCODING.free(genomes).flatten(1).any(1)
    for change, by in (("_move_connection", 0), ("_add_connection", 1), ("_remove_connection", -1)):
        changed = {n: g.clone() for n, g in genomes.items()}
        getattr(ENCODING, change)(changed, everyone, draws())
        able = room if by >= 0 else before > 0
        assert torch.equal(changed["link"].flatten(1).sum(1) - before, by * able.long())
        assert bool((changed["link"] != genomes["link"]).flatten(1).any(1)[able & (before > 0)].all())


def test_direct_genes_mutate_at_a_rate_that_halves_every_thousand_generations() -> None:
    encoding = Direct(1, (200, 200), crossover=0)
    parents = encoding.begin(8, draws())
    assert abs(float(parents["pixels"].float().mean()) - 127.5) < 1
    for generation, rate in ((1, 0.1), (999, 0.1), (1000, 0.05), (3000, 0.0125)):
        child = encoding.vary(parents, parents, generation, draws(generation))
        share = float((child["pixels"] != parents["pixels"]).float().mean())
        # Some steps round to nothing, or go beyond black and white.
        assert 0.8 * rate < share <= rate * 1.05


def test_children_of_two_parents_lie_around_their_mean() -> None:
    encoding = Direct(3, (20, 20), rate=0, crossover=1)
    black = {"pixels": torch.full((4, 3, 20, 20), 100, dtype=torch.uint8)}
    white = {"pixels": torch.full((4, 3, 20, 20), 140, dtype=torch.uint8)}
    child = encoding.vary(black, white, 1, draws())["pixels"].float()
    assert abs(float(child.mean()) - 100) < 3  # children of the first parent: its side of the middle
    assert float(child.std()) > 1
    alone = Direct(3, (20, 20), rate=0, crossover=0).vary(black, white, 1, draws())["pixels"]
    assert torch.equal(alone, black["pixels"])


def test_every_class_takes_its_best_child_if_that_is_better() -> None:
    scores = torch.rand(30, 6, generator=draws(), dtype=torch.float64)
    children = {"genes": torch.arange(30)[:, None], "more": torch.arange(30.0)}
    before = State({"genes": torch.full((6, 1), -1), "more": torch.full((6,), -1.0)}, [torch.linspace(0, 1.2, 6).double()])
    after = taken(before, children, scores)
    for c in range(6):
        best, who = float(before.history[0][c]), -1
        for r in range(30):
            if float(scores[r, c]) > best:
                best, who = float(scores[r, c]), r
        assert float(after.history[-1][c]) == best
        assert int(after.tensors["genes"][c]) == int(after.tensors["more"][c]) == who
    assert -1 in after.tensors["genes"]  # some kept theirs
    assert len(after.history) == 2


def near(genomes: Genomes) -> Tensor:
    """Class c likes a gray of 60 c."""
    means = genomes["pixels"].double().mean((1, 2, 3))
    return torch.stack([1 - (means - 60.0 * c).abs() / 255 for c in range(5)], 1)


def test_elites_of_classes_nobody_aims_at_are_found_on_the_way() -> None:
    made = map_elites(near, Direct(1, (2, 2)), 5, Live(150, goal=2), population=40)
    best = torch.stack(made.history)
    assert best.shape == (151, 5)
    assert bool((best[1:] >= best[:-1]).all())
    assert float(best[-1].min()) > 0.98 > float(best[0].min())
    assert torch.equal(near(made.tensors).diagonal(), made.history[-1])
    assert [s for s, _ in made.frames] == [0, 1, 2, 4, 8, 16, 32, 64, 128]


def test_it_stops_where_every_class_has_reached_the_goal() -> None:
    made = map_elites(near, Direct(1, (2, 2)), 5, Live(1000, goal=0.95), population=40)
    assert float(made.history[-1].min()) >= 0.95 > float(made.history[-2].min())


@pytest.mark.parametrize("encoding", [Direct(2, (4, 3)), Compositional(2, (4, 3), hidden=5)], ids=["direct", "cppn"])
def test_an_interrupted_run_ends_in_the_same_bits(encoding: Direct | Compositional, tmp_path: Path) -> None:
    def judge(genomes: Genomes) -> Tensor:
        pixels = encoding.pixels(genomes).double().flatten(1) / 255
        return torch.stack([pixels.mean(1), pixels.std(1), 1 - pixels.mean(1)], 1)

    def stop(done: int, total: int) -> None:
        if done == 9:
            raise KeyboardInterrupt

    whole = map_elites(judge, encoding, 3, Live(20), population=33, seed=5)
    with pytest.raises(KeyboardInterrupt):
        map_elites(judge, encoding, 3, Live(20, store=tmp_path, progress=stop), population=33, seed=5)
    asked: list[int] = []
    live = Live(20, store=tmp_path, progress=lambda done, total: asked.append(done))
    resumed = map_elites(judge, encoding, 3, live, population=33, seed=5)
    assert asked == list(range(10, 21))
    same(resumed, whole)
    assert [s for s, _ in resumed.frames] == [s for s, _ in whole.frames]
    longer = map_elites(judge, encoding, 3, Live(25, store=tmp_path), population=33, seed=5)
    same(longer, map_elites(judge, encoding, 3, Live(25), population=33, seed=5))
    other = map_elites(judge, encoding, 3, Live(0, store=tmp_path), population=33, seed=6)
    assert len(other.history) == 1  # another run does not take it up
    for path in tmp_path.glob("*"):
        path.write_bytes(path.read_bytes()[:-7])
    same(map_elites(judge, encoding, 3, Live(20, store=tmp_path), population=33, seed=5), whole)  # damaged: from the start


def same(a: State, b: State) -> None:
    assert torch.equal(torch.stack(a.history), torch.stack(b.history))
    assert a.tensors.keys() == b.tensors.keys()
    assert all(torch.equal(a.tensors[n], b.tensors[n]) for n in a.tensors)
