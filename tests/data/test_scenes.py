"""The renderer: what it draws is fixed to the last bit, its labels are exact, its interventions local."""

import hashlib
import json
import pickle
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from convoscope.core.errors import UsageError
from convoscope.data.scenes import (
    CATEGORIES,
    COLORS,
    MAPS,
    MATERIALS,
    NAMES,
    SCENES,
    TEXTURES,
    Factors,
    Faults,
    Sample,
    draw_factors,
    part_shapes,
    render,
)
from convoscope.data.scenes.counter import hashed, mix, table
from convoscope.data.scenes.species import SPECIES

GOLDEN = "452812f133170d1279f7574f81502bdcb11a9fd1295008b8825660ca24df5cc9"


def changed(a: Sample, b: Sample) -> np.ndarray:
    return (a.picture != b.picture).any(2)


def with_distractors(count: int) -> list[Factors]:
    return [f for k in range(400) if len((f := draw_factors(5, k)).distractors) == 2][:count]


def test_pictures_and_label_maps_are_the_same_everywhere() -> None:
    digest = hashlib.sha256()
    for k in range(48):
        faults = Faults(watermark=dict.fromkeys(CATEGORIES, 0.5))
        sample = render(draw_factors(2026, k, faults), (64, 96, 128)[k % 3])
        digest.update(sample.factors.to_json().encode())
        digest.update(sample.picture.tobytes())
        for name in MAPS:
            digest.update(sample.maps[name].tobytes())
    assert digest.hexdigest() == GOLDEN


def test_random_bits_are_those_of_splitmix64() -> None:
    # The first outputs of the reference implementation for seed 0.
    golden, state, found = 0x9E3779B97F4A7C15, 0, []
    for _ in range(3):
        state += golden
        found.append(mix(state))
    assert found == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert table(3, 7).tolist() == [(mix(mix(7) + golden * (k + 1)) >> 40) / 2**24 for k in range(3)]
    assert hashed(1, 2) != hashed(2, 1)


@pytest.mark.parametrize("size", [64, 96, 128])
def test_label_maps_agree_with_factors_and_masks(size: int) -> None:
    for k in range(30):
        s = render(draw_factors(1, k, Faults(watermark=dict.fromkeys(CATEGORIES, 0.5))), size)
        f, maps = s.factors, s.maps
        assert s.picture.shape == (size, size, 3)
        assert s.picture.dtype == np.uint8
        assert all(m.dtype == np.uint8 and m.shape == (size, size) and m.max() < len(NAMES[n]) for n, m in maps.items())
        things = np.zeros((size, size), int)
        for mask in s.masks.values():
            things += mask
        assert things.max() == 1, "masks do not overlap"
        assert (maps["scene"] == np.where(things, 0, NAMES["scene"].index(f.scene))).all()
        mine = s.masks["object"]
        assert mine.any()
        assert (mine == (maps["object"] == NAMES["object"].index(f.species))).all()
        assert {NAMES["part"][v] for v in np.unique(maps["part"][mine])} <= {part for part, _ in f.parts}
        assert {NAMES["color"][v] for v in np.unique(maps["color"][mine])} <= {f.color, f.accent, f.detail}
        assert {NAMES["material"][v] for v in np.unique(maps["material"][mine])} == {f.material}
        assert {NAMES["texture"][v] for v in np.unique(maps["texture"][mine])} <= {f.texture, "plain"}
        assert (maps["color"][s.where(instance="object", role="color")] == NAMES["color"].index(f.color)).all()
        assert (maps["texture"][s.where(instance="object", role="color")] == NAMES["texture"].index(f.texture)).all()
        assert bool(f.watermark) == ("watermark" in s.masks)
        assert (maps["object"] > 0).all()
        assert (maps["material"] > 0).all()
        assert (maps["color"] > 0).all()
        assert (maps["texture"] > 0).all()


def test_shares_of_a_pixel_add_up() -> None:
    for k in range(10):
        s = render(draw_factors(4, k))
        total = sum(s.share(instance=name) for name in ("scene", *s.instances))
        np.testing.assert_allclose(total, 1, atol=1e-5)
        for name, mask in s.masks.items():
            assert (s.share(instance=name)[mask] > 0.25).all()  # half of what a rim of under a half leaves


@pytest.mark.parametrize("factor", ["color", "accent", "detail", "texture", "material", "scene", "horizon"])
def test_an_intervention_changes_its_own_pixels_only(factor: str) -> None:
    values: dict[str, tuple] = {
        "color": COLORS, "accent": COLORS, "detail": COLORS, "texture": TEXTURES, "material": MATERIALS, "scene": SCENES,
        "horizon": (0.5, 0.625),
    }
    belongs = {
        "texture": {"instance": "object", "role": "color"}, "material": {"instance": "object"}, "scene": {"instance": "scene"},
        "horizon": {"instance": "scene"},
    }
    seen = 0
    for f in with_distractors(4):
        before = render(f)
        allowed = before.share(**belongs.get(factor, {"instance": "object", "role": factor})) > 0
        for value in values[factor]:
            after = render(replace(f, **{factor: value}))
            touched = changed(before, after)
            assert not (touched & ~allowed).any(), f"{factor}={value} changed pixels of something else"
            assert touched.any() or value == getattr(f, factor) or not allowed.any()
            if factor not in ("scene", "horizon"):
                assert (before.ids == after.ids).all()
            seen += int(touched.sum())
    assert seen > 1000


def test_moving_the_object_leaves_the_rest_alone() -> None:
    for f in with_distractors(6):
        for pose in ({"x": f.x + 0.0625}, {"mirror": not f.mirror}, {"angle": -f.angle}, {"scale": f.scale - 0.0625}):
            a, b = render(f), render(replace(f, **pose))
            allowed = (a.share(instance="object") > 0) | (b.share(instance="object") > 0)
            assert not (changed(a, b) & ~allowed).any()


def test_distractors_and_watermarks_touch_their_own_pixels() -> None:
    for f in with_distractors(6):
        a, b = render(f), render(replace(f, distractors=f.distractors[:1]))
        assert not (changed(a, b) & ~(a.share(instance="distractor 2") > 0)).any()
        c = render(replace(f, watermark="top left"))
        assert not (changed(a, c) & ~(c.share(instance="watermark") > 0)).any()
        assert c.masks["watermark"].sum() > 60
        assert not c.masks["watermark"][20:, 20:].any()


@pytest.mark.parametrize("species", CATEGORIES)
def test_every_part_shows_and_can_be_taken_away(species: str) -> None:
    f = next(g for k in range(400) if (g := draw_factors(0, k)).species == species)
    f = replace(f, distractors=(), scale=0.36, x=0.5, y=0.5)
    for part in SPECIES[species]:
        f = f.having(part.name)
    for part in SPECIES[species]:
        shapes = part_shapes(species, part.name)
        pictures = [render(f.having(part.name, shape)) for shape in shapes]
        gone = render(f.without(part.name))
        assert part.name not in dict(gone.factors.parts)
        for a in pictures:
            assert not (changed(a, gone) & ~(a.share(instance="object", part=part.name) > 0)).any()
            assert a.where(instance="object", part=part.name).sum() >= 8
        assert len({p.picture.tobytes() for p in (*pictures, gone)}) == len(shapes) + 1
    assert not render(f.without(*[p.name for p in SPECIES[species]])).masks.get("object", np.zeros(1)).any()


def test_factors_are_independent_of_the_class() -> None:
    factors = [draw_factors(7, k) for k in range(6000)]
    counts = Counter(f.species for f in factors)
    assert min(counts.values()) > 500
    for name in ("scene", "light", "color", "accent", "detail", "texture", "material", "mirror"):
        table = Counter((f.species, getattr(f, name)) for f in factors)
        values = Counter(getattr(f, name) for f in factors)
        chi = sum((table[s, v] - (e := counts[s] * values[v] / len(factors))) ** 2 / e for s in counts for v in values)
        freedom = (len(counts) - 1) * (len(values) - 1)
        assert abs(chi - freedom) < 4 * (2 * freedom) ** 0.5, f"{name} tells the class"
    for name in ("x", "y", "scale", "angle", "horizon"):
        spread = np.std([getattr(f, name) for f in factors])
        for species in CATEGORIES:
            mean = np.mean([getattr(f, name) for f in factors if f.species == species])
            assert abs(mean - np.mean([getattr(f, name) for f in factors])) < 4.5 * spread / counts[species] ** 0.5


def test_factors_round_trip_through_json() -> None:
    for k in range(50):
        f = draw_factors(3, k, Faults(watermark=1.0))
        again = Factors.from_json(f.to_json())
        assert again == f
        assert hash(again) == hash(f)
        assert pickle.loads(pickle.dumps(f)) == f
    assert json.loads(f.to_json())["parts"] == dict(f.parts)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"color": "crimson"}, "crimson"),
        ({"scene": "meadows"}, "did you mean 'meadow'"),
        ({"species": "cat"}, "no species 'cat'"),
        ({"watermark": "middle"}, "corner"),
        ({"parts": (("antenna", "long"),)}, "antenna"),
    ],
)
def test_unknown_values_are_refused_by_name(values: dict, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        replace(draw_factors(0, 0), **values)


def test_wrong_sizes_and_broken_json_are_refused() -> None:
    with pytest.raises(UsageError, match="64 to 128"):
        render(draw_factors(0, 0), 32)
    with pytest.raises(UsageError, match="one line of JSON"):
        Factors.from_json("{nope")
    with pytest.raises(UsageError, match="not the factors"):
        Factors.from_dict({"species": "car"})
    with pytest.raises(UsageError, match="between 0 and 1"):
        Faults(wrong_labels=1.5)


def test_no_pixel_is_drawn_by_itself() -> None:
    """Four times the pixels in as many calls: what makes a picture in about a millisecond."""

    def calls(size: int) -> int:
        found: list[str] = []
        sys.setprofile(lambda frame, event, argument: found.append(event))
        try:
            for f in factors:
                assert render(f, size).maps
        finally:
            sys.setprofile(None)
        return sum(event in ("call", "c_call") for event in found)

    factors = [draw_factors(0, k) for k in range(20)]
    assert calls(128) < 1.5 * calls(64)


def test_drawing_needs_no_torch() -> None:
    code = (
        "import sys; from convoscope.data.scenes import render, draw_factors\n"
        "render(draw_factors(0, 0)); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
