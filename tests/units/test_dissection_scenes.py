"""The network that ships with the package, against the exact labels of the scenes."""

import convoscope as cs


def test_units_stand_for_concepts_of_five_categories_beyond_chance_and_shifted_units_for_none() -> None:
    d = cs.dissect(cs.load("scenes"), "scenes:300", ["stem", "layer3"], nulls="shifted", draws=100)
    units = [u for layer in d.layers.values() for u in layer.units]
    beyond = {c: sum(m.p is not None and m.p < 0.01 for u in units for m in u.best_of if m.category == c) for c in d.categories}
    assert len(d.categories) == 6
    assert sum(count > 0.1 * len(units) for count in beyond.values()) >= 5, beyond  # by chance it would be 0.01 of them
    for layer in d.layers.values():
        assert layer.by_chance["shifted"] <= 0.01 * len(layer.units)
        assert sum(u.iou > 0.04 for u in layer.units) > 0.25 * len(layer.units)
