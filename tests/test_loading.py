"""Networks by name: files of weights as they come, libraries through their own caches, and one line where it fails."""

import argparse
import os
import pickle
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import convoscope as cs
from convoscope.loading import load_state, read_state, unreachable, unwrapped, without_wrappers

ARCH = "torchvision:shufflenet_v2_x0_5"


@pytest.fixture(scope="module")
def made(torchvision: ModuleType) -> nn.Module:
    """A small network of a library, with ten classes and weights of its own."""
    torch.manual_seed(0)
    net = torchvision.models.shufflenet_v2_x0_5(weights=None, num_classes=10).eval()
    for buffer in net.buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 1.5)
    return net


def lines() -> tuple[list[str], Callable[[str], None]]:
    said: list[str] = []
    return said, said.append


# ---- files of weights
LAYOUTS: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "plain": lambda s: s,
    "data parallel": lambda s: {f"module.{k}": v for k, v in s.items()},
    "compiled": lambda s: {f"_orig_mod.{k}": v for k, v in s.items()},
    "both": lambda s: {f"module._orig_mod.{k}": v for k, v in s.items()},
    "compiled part": lambda s: {k.replace("stage2.", "stage2._orig_mod."): v for k, v in s.items()},
    "lightning": lambda s: {"epoch": 3, "state_dict": {f"model.{k}": v for k, v in s.items()}, "optimizer_states": [{}]},
    "nested": lambda s: {"epoch": torch.tensor(3), "state_dict": s, "best": 0.5, "arch": "shufflenet"},
    "nested twice": lambda s: {"model": {"state_dict": {f"module.{k}": v for k, v in s.items()}}, "step": 3},
    "own key": lambda s: {"classifier": s, "optimizer": {"state": {}, "param_groups": []}},
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("old", [False, True], ids=["zip", "legacy"])
def test_checkpoints_of_every_layout_load(layout: str, old: bool, made: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "net.pth"
    torch.save(LAYOUTS[layout](made.state_dict()), path, _use_new_zipfile_serialization=not old)
    said, progress = lines()
    net = cs.load(str(path), arch=ARCH, progress=progress)
    total = len(made.state_dict())
    assert said == [f"net.pth: {total} matched, 0 missing, 0 unexpected, 0 of another shape"]
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(net.module(x), made(x))
    assert net.name == f"net.pth ({ARCH})"
    assert not net.module.training


def test_safetensors_load_whatever_the_name(made: nn.Module, tmp_path: Path) -> None:
    save_file(made.state_dict(), tmp_path / "net.safetensors")
    (tmp_path / "net.bin").write_bytes((tmp_path / "net.safetensors").read_bytes())
    first, second = (cs.load(str(tmp_path / n), arch=ARCH, progress=print) for n in ("net.safetensors", "net.bin"))
    assert first.hash == second.hash == cs.Network(made).hash


def test_the_number_of_classes_comes_from_the_file(made: nn.Module, tmp_path: Path) -> None:
    torch.save(made.state_dict(), tmp_path / "net.pth")
    names = [f"kind {i}" for i in range(10)]
    net = cs.load(str(tmp_path / "net.pth"), arch=ARCH, categories=names, progress=print)
    assert [p.index for p in net.predict(torch.zeros(1, 3, 64, 64), top=20)[0]].__len__() == 10
    assert net.categories == tuple(names)


def test_counts_are_shown_on_stderr_by_default(made: nn.Module, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(made.state_dict(), tmp_path / "net.pth")
    cs.load(str(tmp_path / "net.pth"), arch=ARCH)
    out, err = capsys.readouterr()
    assert "0 missing, 0 unexpected" in err
    assert not out


def test_less_than_all_needs_permission(made: nn.Module, tmp_path: Path) -> None:
    state = made.state_dict()
    del state["conv1.0.weight"], state["fc.bias"]
    state["extra"] = torch.zeros(1)
    torch.save(state, tmp_path / "net.pth")
    counts = r"2 missing \(conv1.0.weight, fc.bias\), 1 unexpected \(extra\), 0 of another shape"
    with pytest.raises(cs.LoadError, match=counts + ".*allow_partial=True"):
        cs.load(str(tmp_path / "net.pth"), arch=ARCH, progress=print)
    said, progress = lines()
    net = cs.load(str(tmp_path / "net.pth"), arch=ARCH, allow_partial=True, progress=progress)
    assert f"{len(state) - 1} matched, 2 missing" in said[0]
    assert "partly random weights" in net.name
    assert torch.equal(net.module.get_parameter("fc.weight"), state["fc.weight"])


def test_counters_of_batches_may_lack(made: nn.Module, tmp_path: Path) -> None:
    state = {k: v for k, v in made.state_dict().items() if not k.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "net.pth")
    assert cs.load(str(tmp_path / "net.pth"), arch=ARCH, progress=print).module.get_parameter("fc.bias").shape == (10,)


def test_another_architecture_is_refused_with_the_counts(made: nn.Module, tmp_path: Path) -> None:
    torch.save(made.state_dict(), tmp_path / "net.pth")
    with pytest.raises(cs.LoadError, match=r"net.pth does not fit .*x1_0: \d+ matched.*of another shape"):
        cs.load(str(tmp_path / "net.pth"), arch="torchvision:shufflenet_v2_x1_0", progress=print)
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(cs.LoadError, match="0 matched"):  # permission for less than all is none for nothing
        cs.load(str(tmp_path / "other.pth"), arch=ARCH, allow_partial=True, progress=print)


class Evil:
    def __reduce__(self) -> Any:
        return os.system, ("touch evil-was-here",)


def _script(path: Path) -> None:
    torch.jit.script(nn.Linear(2, 2)).save(str(path))


UNREADABLE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a module": (lambda p: torch.save(nn.Linear(2, 2), p), r"pickled Python objects \(torch.nn.*Linear\).*would run code"),
    "a legacy module": (
        lambda p: torch.save(nn.Linear(2, 2), p, _use_new_zipfile_serialization=False), r"pickled .*\(torch.nn.*Linear\)"
    ),
    "settings": (lambda p: torch.save({"args": argparse.Namespace()}, p), r"\(argparse.Namespace\).*safetensors"),
    "evil": (lambda p: torch.save({"state_dict": Evil()}, p), "pickled Python objects .*would run code"),
    "a pickle": (lambda p: p.write_bytes(pickle.dumps(Evil())), "pickled Python objects.*would run code"),
    "TorchScript": (_script, "TorchScript program.*state_dict"),
    "text": (lambda p: p.write_text("# How to train\n"), "not a file of weights: it starts with b'# How to train"),
    "a web page": (lambda p: p.write_text("<!DOCTYPE html><html>"), "not a file of weights: it starts with b'<!DOCTYPE"),
    "nothing": (lambda p: p.write_bytes(b""), "is empty"),
    "half": (lambda p: (torch.save({"a": torch.zeros(999)}, p), p.write_bytes(p.read_bytes()[:900])), "is damaged or"),
    "a list": (lambda p: torch.save([torch.zeros(1)], p), "holds a list, not tensors by name"),
    "numbers": (lambda p: torch.save({"loss": 0.5, "epoch": 3}, p), "no tensors by name; its entries are loss, epoch"),
}  # fmt: skip


@pytest.mark.parametrize("kind", UNREADABLE)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_is_no_file_of_weights_is_refused_with_the_reason(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, reason = UNREADABLE[kind]
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "net.pth"
    write(path)
    with pytest.raises(cs.LoadError, match=reason) as caught:
        cs.load(str(path), arch=ARCH, progress=print)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("net.pth ")
    assert not (tmp_path / "evil-was-here").exists()


def test_a_damaged_safetensors_file_is_refused(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(99)}, tmp_path / "net.safetensors")
    whole = (tmp_path / "net.safetensors").read_bytes()
    (tmp_path / "net.safetensors").write_bytes(whole[:-50])
    with pytest.raises(cs.LoadError, match=r"net.safetensors is (damaged|not a file of weights)"):
        read_state(tmp_path / "net.safetensors")


def test_files_need_an_architecture_and_have_to_exist(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / "net.pth")
    with pytest.raises(cs.UsageError, match=r"which network they are for with arch="):
        cs.load(str(tmp_path / "net.pth"))
    with pytest.raises(cs.UsageError, match=r"no file '.*nett.pth'; did you mean 'net.pth'"):
        cs.load(str(tmp_path / "nett.pth"), arch=ARCH)
    with pytest.raises(cs.UsageError, match=r"no architecture 'resnet'"):
        cs.load(str(tmp_path / "net.pth"), arch="resnet")
    with pytest.raises(cs.UsageError, match=r"torchvision has no network 'resnet81'; did you mean"):
        cs.load(str(tmp_path / "net.pth"), arch="torchvision:resnet81")


def test_prefixes_go_only_where_more_names_match() -> None:
    own = {"model.a": 0, "b": 0}
    state = {"model.a": torch.zeros(1), "b": torch.zeros(1)}
    assert set(without_wrappers(state, own)) == set(own)
    assert set(without_wrappers({f"module.{k}": v for k, v in state.items()}, own)) == set(own)
    averaged = {"n_averaged": torch.zeros(()), **{f"module.{k}": v for k, v in state.items()}}
    assert set(without_wrappers(averaged, own)) == {*own, "n_averaged"}
    assert set(without_wrappers({"module.x": state["b"]}, own)) == {"module.x"}


def test_load_state_counts_and_copies() -> None:
    net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4))
    match = load_state(net, {"module.0.weight": torch.ones(3, 2), "module.1.bias": torch.ones(5), "module.x": torch.ones(1)})
    assert (match.matched, match.missing, match.unexpected) == (1, ("0.bias", "1.weight"), ("x",))
    assert match.reshaped == ("1.bias: (5,) for (4,)",)
    assert not match.complete
    assert net[0].weight.detach().eq(1).all()


def test_unwrapped_takes_tensors_where_they_are() -> None:
    tensors = {"a": torch.zeros(1)}
    assert unwrapped({**tensors, "note": "text"}) == tensors
    with pytest.raises(cs.LoadError, match="entries are generator, discriminator"):
        unwrapped({"generator": 1, "discriminator": {}})


# ---- names
def test_names_that_do_not_exist() -> None:
    for name, reason in {
        "scene": "did you mean 'scenes'",
        "resnet18": "write torchvision:resnet18 or timm:resnet18",
        "torchvision:resnet81": "torchvision has no network 'resnet81'; did you mean 'resnet18'",
        "torchvision:": "known: scenes",
        "torchvision:fasterrcnn_resnet50_fpn": "detects objects",
        "torchvision:r3d_18": "takes videos",
        "torchvision:raft_small": "pairs of pictures",
        "torchvision:quantized_resnet18": "no gradients",
    }.items():
        with pytest.raises(cs.UsageError, match=reason):
            cs.load(name)
    with pytest.raises(cs.UsageError, match=r"wrap a module with convoscope.Network"):
        cs.load(nn.Linear(2, 2))  # type: ignore[arg-type]


def test_settings_that_do_not_go_together() -> None:
    with pytest.raises(cs.UsageError, match="is a network itself"):
        cs.load("torchvision:resnet18", arch="torchvision:resnet18")
    with pytest.raises(cs.UsageError, match="weights=None"):
        cs.load("torchvision:resnet18", classes=10)
    with pytest.raises(cs.UsageError, match=r"no weights 'IMAGENET1K_V7'; did you mean .*known: IMAGENET1K_V1"):
        cs.load("torchvision:resnet18", weights="IMAGENET1K_V7")


def test_random_weights_say_so() -> None:
    net = cs.load("torchvision:shufflenet_v2_x0_5", weights=None, classes=7)
    assert net.name == "torchvision:shufflenet_v2_x0_5 (random weights)"
    assert (net.size, net.categories, net.module.training) == ((224, 224), (), False)
    assert net.module(torch.zeros(1, 3, 64, 64)).shape == (1, 7)


def test_segmentation_networks_load_without_any_download(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda *a, **k: pytest.fail("downloads"))
    net = cs.load("torchvision:lraspp_mobilenet_v3_large", weights=None)
    x = torch.rand(1, 3, 64, 64)
    assert cs.explain(net, x, "gradient", cs.Channel("output", 3)).values.shape == x.shape
    with pytest.raises(cs.UsageError, match="nothing to rank"):
        net.predict(x)


def test_the_shipped_networks() -> None:
    net = cs.load("scenes")
    assert (net.name, net.size, len(net.categories)) == ("scenes", (96, 96), 10)
    assert cs.load("scenes").hash == net.hash != cs.load("scenes-watermark").hash
    with pytest.raises(cs.UsageError, match="its own weights"):
        cs.load("scenes", weights=None)


def test_a_file_of_the_scenes_architecture(tmp_path: Path) -> None:
    net = cs.load("scenes")
    torch.save({"state_dict": net.module.state_dict()}, tmp_path / "mine.pt")
    mine = cs.load(str(tmp_path / "mine.pt"), arch="scenes", progress=print)
    assert mine.hash == net.hash
    assert mine.categories == net.categories


# ---- the libraries' own caches
def test_weights_come_from_torch_home_with_transform_and_categories(
    torchvision: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = torchvision.models
    weights = models.ShuffleNet_V2_X0_5_Weights.DEFAULT
    torch.manual_seed(1)
    theirs = models.shufflenet_v2_x0_5(weights=None).eval()
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save(theirs.state_dict(), folder / Path(weights.url).name)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    net = cs.load("torchvision:shufflenet_v2_x0_5")
    assert net.name == "torchvision:shufflenet_v2_x0_5"
    assert net.hash == cs.Network(theirs).hash
    assert list(net.categories) == weights.meta["categories"]
    assert net.target("tabby") == cs.Logit(281)
    file = cs.load(str(folder / Path(weights.url).name), arch="torchvision:shufflenet_v2_x0_5", progress=print)
    assert file.categories == net.categories  # the file is known by its name
    (folder / Path(weights.url).name).write_bytes(b"PK\x03\x04 half a file")
    with pytest.raises(cs.LoadError, match=r"could not be loaded .*delete it"):
        cs.load("torchvision:shufflenet_v2_x0_5")


def test_other_weights_that_are_in_the_cache_are_named(
    torchvision: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = torchvision.models
    first = models.MobileNet_V2_Weights.IMAGENET1K_V1
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save(models.mobilenet_v2(weights=None).state_dict(), folder / Path(first.url).name)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    net = cs.load("torchvision:mobilenet_v2")
    assert net.name == "torchvision:mobilenet_v2 (IMAGENET1K_V1)"  # the best are IMAGENET1K_V2
    assert repr(net.transform) == repr(first.transforms())


def test_torchvisions_inception_networks_keep_their_input_transform(torchvision: ModuleType, tmp_path: Path) -> None:
    made = torchvision.models.googlenet(weights=None, init_weights=False).eval()
    name = Path(torchvision.models.GoogLeNet_Weights.DEFAULT.url).name
    for file, expected in ((name, True), ("mine.pth", False)):
        torch.save(made.state_dict(), tmp_path / file)
        assert cs.load(str(tmp_path / file), arch="torchvision:googlenet", progress=print).module.transform_input is expected


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No cache and no network: what leaves the machine goes to a port that is taken, and that nobody listens on."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{taken.getsockname()[1]}")
        for name in ("no_proxy", "NO_PROXY", "HF_HUB_OFFLINE"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("TORCH_HOME", str(tmp_path))
        monkeypatch.setattr(pytest.importorskip("huggingface_hub.constants"), "HF_HUB_CACHE", str(tmp_path / "hub"))
        yield


@pytest.mark.usefixtures("offline")
def test_without_cache_and_network_one_line_says_what_to_do(torchvision: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(cs.LoadError, match=r"cannot be downloaded .*alexnet-owt.*TORCH_HOME.*weights=None") as caught:
        cs.load("torchvision:alexnet")
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("offline")
def test_timm_without_cache_and_network_does_not_hang() -> None:
    pytest.importorskip("timm")
    with pytest.raises(cs.LoadError, match=r"timm:resnet18 .*cannot be downloaded .*HF_HOME.*weights=None") as caught:
        cs.load("timm:resnet18")
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("offline")
def test_timm_weights_come_from_the_hubs_cache_without_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    timm = pytest.importorskip("timm")
    monkeypatch.setattr("timm.models._hub.hf_hub_download", lambda *a, **k: pytest.fail("asks the hub for what is there"))
    module = timm.create_model("resnet10t", pretrained=False).eval()
    folder = tmp_path / "hub" / "models--timm--resnet10t.c3_in1k"
    (folder / "snapshots" / "abc").mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("abc")
    save_file(module.state_dict(), folder / "snapshots" / "abc" / "model.safetensors")
    net = cs.load("timm:resnet10t")
    assert net.hash == cs.Network(module).hash
    assert net.name == "timm:resnet10t"
    assert len(net.categories) == 1000
    assert net.target("tabby") == cs.Logit(281)


def test_a_silent_server_is_given_up_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("convoscope.loading._PATIENCE", 0.2)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        assert unreachable(f"http://127.0.0.1:{server.getsockname()[1]}/file")  # or this never comes back


def test_timm_networks_bring_their_input_space() -> None:
    timm = pytest.importorskip("timm")
    net = cs.load("timm:resnet10t", weights=None)
    config = timm.data.resolve_model_data_config(net.module)
    assert (net.size, net.mean, net.std) == (config["input_size"][1:], config["mean"], config["std"])
    assert net.name == "timm:resnet10t (random weights)"
    with pytest.raises(cs.UsageError, match="timm has no network 'resnet10tt'; did you mean 'resnet10t'"):
        cs.load("timm:resnet10tt")
    with pytest.raises(cs.UsageError, match=r"timm:resnet10t has no weights 'nope'.*known: c3_in1k"):
        cs.load("timm:resnet10t.nope")


def test_the_libraries_are_imported_only_when_a_name_asks_for_them() -> None:
    code = "import sys, convoscope as cs; cs.load('scenes'); print('torchvision' in sys.modules, 'timm' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


# ---- real files
def test_the_real_resnet18(torch_home: Path) -> None:
    net = cs.load("torchvision:resnet18")
    assert len(net.categories) == 1000
    files = list((torch_home / "hub" / "checkpoints").glob("resnet18-*.pth"))
    said, progress = lines()
    assert cs.load(str(files[0]), arch="torchvision:resnet18", progress=progress).hash == net.hash
    assert "matched, 0 missing, 0 unexpected" in said[0]


def test_real_nested_checkpoints_with_prefixes(testdata: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(testdata)
    loaders = pytest.importorskip("loaders")
    state = read_state(testdata / "cifar_resnets" / "resnet20-12fca82f.th")
    assert all(k.startswith("module.") for k in state)
    net = loaders.CifarResNet(3)
    match = load_state(net, state)
    assert match.complete
    assert str(match) == "97 matched, 0 missing, 0 unexpected, 0 of another shape"
    assert cs.Network(net).hash == cs.Network(loaders.cifar_resnet(20)).hash
