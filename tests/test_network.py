"""Networks: input space, pictures in and out, predictions, layers, the hash."""

import io
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import convoscope as cs

PIXELS = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
AS_TENSOR = torch.from_numpy(PIXELS).permute(2, 0, 1)
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def module(channels: int = 3, classes: int = 4) -> nn.Module:
    torch.manual_seed(0)
    parts = [nn.Conv2d(channels, 5, 3, padding=1), nn.BatchNorm2d(5), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*parts, nn.Linear(5, classes)).eval()


def network(channels: int = 3, **settings: Any) -> cs.Network:
    known = {"size": 32, "mean": MEAN, "std": STD} if channels == 3 else {"size": 32}
    return cs.Network(module(channels), **{**known, **settings})


class Returns(nn.Module):
    """A network that returns what it was given to return."""

    def __init__(self, make: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.conv, self.make = nn.Conv2d(3, 4, 1), make

    def forward(self, x: Tensor) -> Any:
        return self.make(self.conv(x).mean((2, 3)))


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


# ---- what it is
def test_a_network_is_the_users_module_and_its_input_space() -> None:
    own = module()
    net = cs.Network(own, 32, MEAN, STD, ["a", "b", "c", "d"], name="mine")
    assert net.module is own
    assert (net.size, net.mean, net.std, net.categories, net.channels) == ((32, 32), MEAN, STD, ("a", "b", "c", "d"), 3)
    assert repr(net) == "Network(mine: 3 channels, 32 x 32, 4 categories, 174 parameters)"
    assert repr(cs.Network(own)) == "Network(Sequential: 3 channels, any size, unnamed categories, 174 parameters)"


def test_defaults_and_short_forms() -> None:
    net = cs.Network(module(2))
    assert (net.size, net.mean, net.std, net.channels) == (None, (0, 0), (1, 1), 2)
    assert cs.Network(module(2), (24, 32), 0.5, 0.25).mean == (0.5, 0.5)
    assert cs.Network(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), mean=(0.5,) * 3).channels == 3
    assert cs.Network(nn.Sequential(nn.Flatten(), nn.Linear(20, 2)), channels=5).channels == 5


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"size": 0}, "a size is a number of pixels"),
        ({"size": 32.0}, "a size is a number of pixels"),
        ({"size": (32,)}, "a size is a number of pixels"),
        ({"mean": (0.5,)}, "takes 3 channels; mean and std need as many numbers"),
        ({"std": (0.5, 0, 0.5)}, "std above 0"),
        ({"mean": (123, 116, 103), "std": (58, 57, 57)}, "those of pixels 0..1"),
        ({"categories": "cat"}, "categories are a list of names"),
    ],
)
def test_input_spaces_that_make_no_sense(settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(cs.UsageError, match=reason):
        cs.Network(module(), **settings)


def test_what_is_no_module_is_refused() -> None:
    for given in (nn.ReLU, lambda x: x, None):
        with pytest.raises(cs.UsageError, match=r"a network is a torch.nn.Module; got"):
            cs.Network(given)  # type: ignore[arg-type]


def test_parameters_without_values_are_refused() -> None:
    for empty in (nn.LazyConv2d(4, 3), nn.Conv2d(3, 4, 3, device="meta")):
        with pytest.raises(cs.UsageError, match="parameters without values"):
            cs.Network(nn.Sequential(empty))


# ---- the hash
def test_the_hash_changes_with_any_weight_or_buffer() -> None:
    net = network()
    seen = [net.hash]
    assert net.hash == network().hash == cs.Network(net.module).hash
    assert len(net.hash) == 16

    def changes() -> None:
        with torch.no_grad():
            net.module[0].weight[0, 0, 0, 0] += 1e-6
        seen.append(net.hash)
        net.module[0].bias.data[2] += 1e-6  # raises no version
        seen.append(net.hash)
        net.module[1].running_var[1] += 1
        seen.append(net.hash)
        net.module[1].num_batches_tracked += 1
        seen.append(net.hash)
        net.module[5].weight = nn.Parameter(net.module[5].weight.detach().flip(0))
        seen.append(net.hash)
        net.module[5].weight.data.neg_().neg_()
        assert net.hash == seen[-1]

    changes()
    assert len(set(seen)) == len(seen)


def test_the_hash_takes_every_type_of_tensor() -> None:
    odd = nn.Module()
    for i, dtype in enumerate((torch.bool, torch.int8, torch.int64, torch.bfloat16, torch.float64, torch.complex64)):
        odd.register_buffer(f"b{i}", torch.ones(3).to(dtype)[1:])
    odd.register_buffer("empty", torch.zeros(0, 3))
    odd.register_buffer("scalar", torch.tensor(1.5))
    net = cs.Network(odd)
    before = net.hash
    odd.scalar += 1
    assert net.hash != before
    with torch.inference_mode():
        made = module()
    assert cs.Network(made).hash == network().hash


# ---- reading
def test_a_picture_is_read_alike_from_anywhere(tmp_path: Path) -> None:
    net = network()
    expected = ((AS_TENSOR.double() / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1))[None]
    picture = Image.fromarray(PIXELS)
    picture.save(tmp_path / "p.png")
    raw = (tmp_path / "p.png").read_bytes()
    assert torch.equal(net.read(io.BytesIO(raw)), net.read(raw))
    sources = [tmp_path / "p.png", str(tmp_path / "p.png"), raw, picture]
    sources += [PIXELS, PIXELS.astype(np.uint16) * 257, PIXELS / 255]
    sources += [AS_TENSOR, AS_TENSOR[None], AS_TENSOR.long(), AS_TENSOR.double() / 255]
    sources += [(AS_TENSOR.int() * 257).to(torch.uint16)]
    for source in sources:
        x = net.read(source)
        assert x.shape == (1, 3, 32, 32)
        assert x.dtype == torch.float32
        assert torch.allclose(x.double(), expected, atol=1e-5)
    assert torch.allclose(net.read(sources).double(), expected.expand(len(sources), -1, -1, -1), atol=1e-5)
    assert torch.equal(net.read([[picture], [PIXELS, AS_TENSOR]]), net.read([picture] * 3))


def test_picture_inverts_reading() -> None:
    shown = network().picture(network().read(PIXELS))
    assert torch.allclose(shown, AS_TENSOR[None] / 255, atol=1e-6)
    assert (shown.dtype, shown.device.type) == (torch.float32, "cpu")
    wild = network().picture(torch.full((1, 3, 4, 4), 99.0))
    assert wild.max() == 1  # clipped, for showing


def test_networks_of_one_and_of_five_channels() -> None:
    gray = np.asarray(Image.fromarray(PIXELS).convert("L"))
    one = network(1)
    assert torch.allclose(one.read(PIXELS)[0, 0], torch.from_numpy(gray.copy()) / 255, atol=1e-6)
    assert torch.equal(one.read(gray), one.read(PIXELS))
    shown = one.picture(one.read(gray))
    assert shown.shape == (1, 3, 32, 32)
    assert torch.equal(shown[:, 0], shown[:, 2])
    five = network(5)
    with pytest.raises(cs.ImageError, match=r"takes 5 channels, which no picture file has; give a tensor \(images, 5"):
        five.read(PIXELS)
    x = five.read(torch.rand(2, 5, 32, 32))
    assert x.shape == (2, 5, 32, 32)
    assert five.picture(x).shape == (2, 3, 32, 32)
    assert five.predict(x)[0][0].probability > 0


def test_networks_of_any_size_take_pictures_as_they_are() -> None:
    net = cs.Network(module())
    wide = PIXELS[:20]
    assert net.read(wide).shape == (1, 3, 20, 32)
    assert net.read([wide, wide]).shape == (2, 3, 20, 32)
    with pytest.raises(cs.ImageError, match=r"different sizes .*one by one"):
        net.read([PIXELS, wide])
    with pytest.raises(cs.UsageError, match=r"any size; say for which: net.layers\(224\)"):
        net.layers()
    assert net.layers((20, 32))[0].shape == (5, 20, 32)


def test_pictures_are_resized_to_cover_and_cropped_in_the_middle() -> None:
    net = cs.Network(module(), size=(16, 24))
    half = np.zeros((60, 200, 3), np.uint8)
    half[:, 100:] = 255
    x = net.read(half)
    assert x.shape == (1, 3, 16, 24)
    assert x[0, 0, :, :11].max() == 0
    assert x[0, 0, :, 13:].min() == 1


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (torch.zeros(32, 32, 3), r"expected a tensor \(3, height, width\)"),
        (torch.zeros(1, 1, 32, 32), r"got shape \(1, 1, 32, 32\)"),
        (torch.zeros(0, 3, 32, 32), r"got shape \(0, 3, 32, 32\)"),
        (torch.full((3, 4, 4), 1.5), r"float pixels are 0..1; got 1.5..1.5.* needs no reading"),
        (torch.full((3, 4, 4), torch.nan), "float pixels are 0..1"),
        (torch.full((3, 4, 4), 300), "integer pixels are 0..255"),
        (torch.full((3, 4, 4), -1), "integer pixels are 0..255"),
        (PIXELS[None], "one by one, as a list"),
        (None, "NoneType"),
        (7, "int"),
    ],
)
def test_what_cannot_be_read(source: Any, reason: str) -> None:
    with pytest.raises(cs.ImageError, match=reason):
        network().read(source)


def test_missing_files_and_empty_lists(tmp_path: Path) -> None:
    with pytest.raises(cs.UsageError, match="no file"):
        network().read(tmp_path / "nope.png")
    with pytest.raises(cs.UsageError, match="no pictures to read"):
        network().read([])


def photo(height: int = 240, width: int = 300) -> Image.Image:
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / 9 + k) * np.cos(y / (7 + k)) for k in range(3)]
    return Image.fromarray(np.uint8(np.stack(waves, -1) * 127 + 128))


def test_reading_is_torchvisions_own_transform(torchvision: ModuleType) -> None:
    weights = torchvision.models.ShuffleNet_V2_X0_5_Weights.DEFAULT
    net = cs.load("torchvision:shufflenet_v2_x0_5", weights=None)
    expected = weights.transforms()(photo())[None]
    assert torch.equal(net.read(photo()), expected)
    array = np.asarray(photo())
    assert torch.equal(net.read(array), expected)
    assert torch.equal(net.read(torch.from_numpy(array.copy()).permute(2, 0, 1)), expected)
    assert torch.equal(net.read([photo(), photo(300, 240)])[:1], expected)
    ready = torch.rand(3, 224, 224)
    assert torch.allclose(net.picture(net.read(ready))[0], ready, atol=1e-6)  # only normalized


def test_reading_is_timms_own_transform() -> None:
    timm = pytest.importorskip("timm")
    net = cs.load("timm:resnet10t", weights=None)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(net.module), is_training=False)
    assert torch.equal(net.read(photo()), transform(photo())[None])


def test_reading_for_segmentation_keeps_the_whole_picture(torchvision: ModuleType) -> None:
    weights = torchvision.models.segmentation.LRASPP_MobileNet_V3_Large_Weights.DEFAULT
    net = cs.load("torchvision:lraspp_mobilenet_v3_large", weights=None)
    x = net.read(photo())
    assert torch.equal(x, weights.transforms()(photo())[None])
    assert x.shape == (1, 3, 520, 650)


def test_a_transform_has_to_make_a_tensor() -> None:
    with pytest.raises(cs.UsageError, match=r"makes a tensor \(channels, height, width\) of a picture; got Image"):
        network(transform=lambda p: p.resize((32, 32))).read(PIXELS)


def test_reading_follows_the_modules_type() -> None:
    net = cs.Network(module().double(), 32, MEAN, STD)
    assert net.read(PIXELS).dtype == torch.float64
    assert net.check(torch.zeros(1, 3, 32, 32)).dtype == torch.float64


@pytest.mark.parametrize(
    ("x", "reason"),
    [
        (torch.zeros(3, 32, 32), r"got shape \(3, 32, 32\)"),
        (torch.zeros(0, 3, 32, 32), r"got shape \(0, 3, 32, 32\)"),
        (torch.zeros(1, 4, 32, 32), r"takes 3 channels; got shape"),
        (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), r"net.read\(\) makes them of pixels; got torch.uint8"),
        ([1, 2], r"got list; net.read\(\) makes one"),
    ],
)
def test_inputs_are_checked(x: Any, reason: str) -> None:
    with pytest.raises(cs.UsageError, match=reason):
        network().check(x)


def test_explicit_channels_count_more_than_the_first_convolution() -> None:
    two = nn.ModuleDict({"side": nn.Conv2d(1, 1, 1), "main": nn.Conv2d(3, 1, 1)})
    two.forward = lambda x: two["main"](x).mean((2, 3))  # type: ignore[method-assign]
    assert cs.Network(two, channels=3).check(torch.zeros(1, 3, 4, 4)).shape == (1, 3, 4, 4)


# ---- predictions
def test_predictions_are_sorted_softmax_with_names() -> None:
    net = network(categories=["a", "b", "c", "d"])
    x = net.read([PIXELS, PIXELS[::-1].copy(), np.zeros_like(PIXELS)])
    found = net.predict(x, top=3)
    expected = net.module(x).double().softmax(1).topk(3)
    assert [[p.index for p in row] for row in found] == expected.indices.tolist()
    assert torch.allclose(torch.tensor([[p.probability for p in r] for r in found]).double(), expected.values.detach())
    assert found[0][0].category == "abcd"[found[0][0].index]
    assert net.predict(x, top=99)[0].__len__() == 4
    assert net.predict(PIXELS)[0][0].index == found[0][0].index
    assert [r[0].index for r in net.predict(x, batch_size=2)] == [r[0].index for r in found]
    with pytest.raises(cs.UsageError, match="top is 0"):
        net.predict(x, top=0)


def test_outputs_that_are_probabilities_stay_as_they_are() -> None:
    x = torch.randn(2, 3, 4, 4)
    logits = Returns(lambda z: z)
    for make in (lambda z: z.softmax(1), lambda z: z.log_softmax(1)):
        same = Returns(make)
        same.load_state_dict(logits.state_dict())
        for a, b in zip(cs.Network(same).predict(x), cs.Network(logits).predict(x), strict=True):
            assert [p.index for p in a] == [p.index for p in b]
            assert [p.probability for p in a] == pytest.approx([p.probability for p in b], rel=1e-5)


def test_a_single_output_is_a_sigmoid() -> None:
    single = Returns(lambda z: z[:, :1])
    x = torch.randn(2, 3, 4, 4)
    found = cs.Network(single, categories=["ill"]).predict(x)
    assert [r[0].probability for r in found] == pytest.approx(single(x)[:, 0].sigmoid().tolist())
    assert found[0][0].category == "ill"


def test_predicting_leaves_the_module_as_it_was() -> None:
    net = network()
    net.module.train()
    before = {k: v.clone() for k, v in net.module.state_dict().items()}
    net.predict(PIXELS)
    assert all(torch.equal(v, before[k]) for k, v in net.module.state_dict().items())
    assert all(m.training for m in net.module.modules())
    assert all(p.requires_grad for p in net.module.parameters())


OUTPUTS: dict[str, tuple[Callable[[Tensor], Any], str | int | None]] = {
    "dict of one": (lambda z: {"whatever": z}, None),
    "dict with logits": (lambda z: {"features": z * 2, "logits": z}, None),
    "dict with out": (lambda z: {"out": z, "aux": z * 2}, None),
    "dict by name": (lambda z: {"a": z * 2, "b": z}, "b"),
    "tuple by number": (lambda z: (z * 2, z), 1),
    "tuple of one": (lambda z: (z,), None),
    "object": (lambda z: type("Found", (), {"__init__": lambda s: s.__dict__.update(logits=z, extra=None)})(), None),
}


@pytest.mark.parametrize("kind", OUTPUTS)
def test_outputs_of_every_form(kind: str) -> None:
    make, output = OUTPUTS[kind]
    net = cs.Network(Returns(make), output=output)
    x = torch.randn(2, 3, 4, 4)
    expected = net.module.conv(x).mean((2, 3)).argmax(1)
    assert [r[0].index for r in net.predict(x)] == expected.tolist()


def test_an_open_choice_of_outputs_is_named() -> None:
    net = cs.Network(Returns(lambda z: {"a": z, "b": z}))
    with pytest.raises(cs.UsageError, match=r"returns several tensors \('a', 'b'\); choose one with Network\(module, output="):
        net.predict(torch.zeros(1, 3, 4, 4))
    with pytest.raises(cs.UsageError, match="choose one"):
        cs.Network(Returns(lambda z: {"a": z, "b": z}), output="c").predict(torch.zeros(1, 3, 4, 4))


def test_no_tensor_at_all_says_so() -> None:
    with pytest.raises(cs.UsageError, match="returns no tensor but a NoneType"):
        cs.Network(Returns(lambda z: None)).predict(torch.zeros(1, 3, 4, 4))


# ---- targets by name
def test_targets_by_number_name_and_word() -> None:
    names = ["tench, Tinca tinca", "crane", "crane", "tabby, tabby cat", "tiger cat"]
    net = cs.Network(module(classes=5), categories=names)
    assert net.target(None) == net.target("top") == cs.Logit()
    assert net.target(3) == net.target("3") == net.target("Tabby, Tabby Cat") == net.target("tabby") == cs.Logit(3)
    assert net.target(np.int64(3)) == net.target(torch.tensor(3)) == cs.Logit(3)
    assert net.target([3, "tabby"]) == net.target(torch.tensor([3, 3])) == cs.Logit((3, 3))
    assert net.target(cs.Margin("tabby", "tiger cat") - cs.Logit("tench")) == cs.Margin(3, 4) - cs.Logit(0)
    with pytest.raises(cs.UsageError, match=r"no category 'taby'; did you mean 'tabby'"):
        net.target("taby")
    with pytest.raises(cs.UsageError, match=r"2 categories are called 'crane': 1, 2; give the number"):
        net.target("crane")
    for wrong in (True, 1.5, object()):
        with pytest.raises(cs.UsageError, match="a target is a class number"):
            net.target(wrong)


def test_names_without_categories() -> None:
    net = network()
    assert net.target("2") == cs.Logit(2)
    with pytest.raises(cs.UsageError, match=r"has no category names, so 'tabby' is unknown.*0 to 3"):
        cs.explain(net, net.read(PIXELS), "gradient", "tabby")
    assert (net.category(2), net.category(-1)) == ("class 2", "class -1")


# ---- layers
def test_layers_are_a_table() -> None:
    table = network().layers()
    assert [r.address for r in table] == ["0", "1", "2", "3", "4", "5"]
    first = table[0]
    assert (first.operator, first.shape, first.receptive_field, first.stride) == ("Conv2d", (5, 32, 32), (3, 3), (1, 1))
    assert first.parameters == 5 * 3 * 9 + 5
    assert table[3].receptive_field is None
    lines = str(table).splitlines()
    assert lines[0].split() == ["layer", "operator", "shape", "receptive", "field", "stride", "parameters"]
    assert "whole image" in lines[4]
    assert len(lines) == 7
    assert "<table" in table._repr_html_()


def test_layers_of_another_size() -> None:
    assert network().layers(48)[0].shape == (5, 48, 48)
    with pytest.raises(cs.UsageError, match="a size is"):
        network().layers(0)


def test_every_address_of_the_table_can_be_explained() -> None:
    net = network()
    x = net.read(PIXELS)
    for row in net.layers():
        assert cs.explain(net, x, "gradient", 0, at=row.address).values.shape == (1, *row.shape), row.address


# ---- baselines
def test_baselines_are_in_input_space() -> None:
    net = network()
    x = net.read(PIXELS)
    assert net.picture(net.baseline("black", x)).max() == 0
    assert net.picture(net.baseline("white", x)).min() == 1
    assert torch.allclose(net.baseline("mean", x).amax((2, 3)), x.mean((2, 3)), atol=1e-6)
    blurred = net.baseline("blur", x)
    assert blurred.std() < x.std() / 3
    assert torch.allclose(net.baseline("blur", torch.ones(1, 3, 9, 12)), torch.ones(1, 3, 9, 12))
    assert net.baseline(0.5, x).unique().tolist() == [0.5]
    assert net.baseline(torch.ones(1, 3, 1, 1), x).shape == x.shape
    for wrong in ("grey", torch.ones(3, 32, 32), torch.ones(2, 3, 32, 32)):
        with pytest.raises(cs.UsageError, match="baseline"):
            net.baseline(wrong, x)
