"""All indexes of a layer's units side by side."""

from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor

from convoscope.core.errors import UsageError, did_you_mean
from convoscope.core.statistic import Statistic
from convoscope.network import Network
from convoscope.units import color, orientation
from convoscope.units.duplicates import UnitCorrelation, nearest
from convoscope.units.exemplars import TopPatches
from convoscope.units.histograms import ActivationHistogram, UnitActivity
from convoscope.units.neuron_feature import neuron_features
from convoscope.units.selectivity import ClassActivity, class_entropy, class_index, class_shares, classes_of

ALTERED = ("color", "orientation", "symmetry")  # families of indexes that run the network on changed pictures


def statistics(k: int = 9) -> list[Statistic]:
    """What a sweep has to gather for every column that `unit_table` can give; `k` is how many patches count."""
    return [TopPatches(k=k), ActivationHistogram(), UnitActivity(), ClassActivity(), UnitCorrelation()]


def unit_table(
    network: Network, dataset: Any, address: str, found: Mapping[str, Statistic], *,
    altered: Collection[str] = (), batch_size: int = 32,
) -> dict[str, Tensor]:  # fmt: skip
    """Columns over the units of a layer, each (C,), by name, from its statistics in a sweep: `found = sweep[address]`.

    There is what the statistics give, whatever their names: see docs/how-to/selectivity.md for each column. `altered` adds
    indexes that take further runs of the strongest pictures: "color", "orientation", "symmetry". NaN says that a unit has no
    such number, -1 that it has no such class, unit or axis. Raises UsageError for other families of indexes.
    """
    for name in altered:
        if name not in ALTERED:
            raise UsageError(f"no indexes {name!r}{did_you_mean(name, ALTERED)}; there are {', '.join(ALTERED)}")
    table: dict[str, Tensor] = {}
    for statistic in found.values():
        if statistic.begun:
            table |= _of(statistic, dataset)
    patches = next((s.value() for s in found.values() if type(s) is TopPatches and s.begun), None)
    if altered and patches is None:
        raise UsageError("indexes of changed pictures need the strongest patches; sweep TopPatches as well")
    settings = {"batch_size": batch_size}
    if "color" in altered:
        table |= _color(network, dataset, address, patches, settings)
    if "orientation" in altered:
        table["orientation-index"], _ = orientation.orientation_index(network, dataset, address, patches, **settings)
    if "symmetry" in altered:
        mirrored = orientation.symmetry_index(network, dataset, address, patches, **settings)
        table |= {f"symmetry-{name}": mirrored[:, k] for k, name in enumerate(orientation.MIRRORS)}
    return table


def _of(statistic: Statistic, dataset: Any) -> dict[str, Tensor]:
    if isinstance(statistic, UnitActivity):
        return statistic.value()
    if isinstance(statistic, ActivationHistogram):
        return {"zero-share": statistic.zero_share(), "near-zero-share": statistic.near_zero_share()}
    if isinstance(statistic, UnitCorrelation):
        value, which = nearest(statistic.value())
        return {"nearest-correlation": value, "nearest-unit": which}
    if isinstance(statistic, ClassActivity) and len(statistic.images) > 1:
        value, which = statistic.selectivity()
        return {"class-selectivity": value, "preferred-class": which}
    if type(statistic) is TopPatches and getattr(dataset, "classes", ()):
        patches = statistic.value()
        classes = classes_of(dataset, patches.images)
        share, which = class_shares(patches.values, classes)
        index, entropy = class_index(patches.values, classes), class_entropy(patches.values, classes)
        return {"class-index": index, "class-entropy": entropy, "top-class-share": share[:, 0], "top-class": which[:, 0]}
    return {}


def _color(network: Network, dataset: Any, address: str, patches: Any, settings: dict[str, Any]) -> dict[str, Tensor]:
    features = neuron_features(network, dataset, address, patches, resolution=64)
    hue, one, two = color.hue_of(features)
    return {
        "color-index": color.color_index(network, dataset, address, patches, **settings),
        "hue": hue,
        "hue-strength": one,
        "opponent-strength": two,
        "color-axis": color.axis_of(features),
    }
