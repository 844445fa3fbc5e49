"""What a sweep costs: throughput beside a bare loop, memory, and a cost curve with what it says of Broden and ImageNet.

    python -m benchmarks.scan [--images 512] [--rounds 3] [--only throughput,memory,curve] [--threads 1] [--write docs/cost.md]

The network is ResNet-18 at 224 pixels with the weights of ImageNet if `TORCH_HOME` holds them, else random ones; the pictures
are those of `CONVOSCOPE_TESTDATA`, else scenes of the package as JPEG files. A round runs the bare loop and the sweep over the
same pictures one after the other, in turns; a share is the median over rounds of the ratio within a round. Every statistic of
the package is on: exemplars of four sorts, histograms, activity, classes, correlations, the exact tail of dissection with its
spilled maps, and a reservoir, on all four stages. Peak memory is that of a process of its own for each number of images.
"""

import argparse
import json
import os
import platform
import re
import statistics as stats
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="throughput,memory,curve", help="with commas")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--write", default="", help="a file for the page in Markdown")
    parser.add_argument("--save", default="", help="a file for the numbers as JSON")
    parser.add_argument("--peak", nargs=2, default=None, metavar=("IMAGES", "STATISTICS"), help=argparse.SUPPRESS)
    return parser.parse_args()


def seconds(run: Callable[[], Any]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# ---- throughput
def loop(net: Any, data: Any, ready: list[Any] | None = None) -> None:
    """The bare loop: read pictures, run the network, keep nothing."""
    import torch

    with torch.no_grad():
        for start in range(0, len(data), 32):
            places = range(start, min(start + 32, len(data)))
            net.module(torch.cat([net.read(data.picture(i)) if ready is None else ready[i % len(ready)] for i in places]))


def throughput(name: str, count: int, rounds: int) -> dict[str, Any]:
    """Milliseconds per image of the loop and of the sweep of all statistics, of photographs and of tensors."""
    import torch

    import convoscope as cs
    from benchmarks.scan_data import LAYERS, Photographs, Ready, net, photographs, statistics, temporary

    network, weights = net(name)
    with temporary() as folder:
        files, source = photographs(128, Path(folder))
        inputs = [network.read(f) for f in files[:32]]
        ready = Ready(network.picture(torch.cat(inputs)), count)
        makes = statistics(ready)

        def runs(images: int) -> dict[str, Callable[[], Any]]:
            data, pixels = Photographs(files, images), Ready(ready.pixels, images)
            return {
                "loop": lambda: loop(network, data),
                "sweep": lambda: cs.sweep(network, data, makes, LAYERS),
                "network": lambda: loop(network, pixels, inputs),
                "sweep of tensors": lambda: cs.sweep(network, pixels, makes, LAYERS),
                "without tail": lambda: cs.sweep(network, data, {n: s for n, s in makes.items() if n != "tail"}, LAYERS),
            }

        for run in runs(32).values():  # warms up
            run()
        times: dict[str, list[float]] = {n: [] for n in runs(count)}
        for turn in range(rounds):
            order = list(runs(count).items())
            for n, run in order[turn % 5 :] + order[: turn % 5]:
                times[n].append(seconds(run))
            say(f"throughput of {name}: round {turn + 1} of {rounds}")
    return {
        "network": name, "source": source, "weights": weights, "images": count, "statistics": list(makes),
        "ms": {n: 1000 * stats.median(t) / count for n, t in times.items()},
        "share with reading": stats.median(a / b for a, b in zip(times["loop"], times["sweep"], strict=True)),
        "share without tail": stats.median(a / b for a, b in zip(times["loop"], times["without tail"], strict=True)),
        "share without": stats.median(a / b for a, b in zip(times["network"], times["sweep of tensors"], strict=True)),
    }  # fmt: skip


def each_statistic(name: str, batches: int = 3, rows: int = 16) -> dict[str, Any]:
    """Milliseconds per image of the network, and of every statistic on every stage."""
    import torch

    from benchmarks.scan_data import LAYERS, Ready, net, photographs, statistics, temporary
    from convoscope.core.record import record
    from convoscope.core.run import undisturbed
    from convoscope.core.statistic import Samples

    network, _ = net(name)
    with temporary() as folder:
        files, _ = photographs(batches * rows, Path(folder))
        x = torch.cat([network.read(f) for f in files])
    data = Ready(network.picture(x[:1]), 16 * len(x))
    total, spent, values, units = 0.0, {}, {}, {}
    makes = {(a, n): s for a in LAYERS for n, s in statistics(data).items()}
    for k, batch in enumerate(x.split(rows)):
        with undisturbed(network.plain), torch.no_grad():
            found: dict[str, Any] = {}
            begun = seconds(lambda b=batch, f=found: f.update(record(network.plain, b, LAYERS)))
            samples = Samples(torch.arange(k * rows, k * rows + len(batch)), batch, torch.arange(len(batch)) % 10, len(data))
            for (address, label), statistic in makes.items():
                took = seconds(lambda s=statistic, a=address, f=found, w=samples: s.update(f[a], w))
                if k:  # the first batch begins
                    spent[address, label] = spent.get((address, label), 0.0) + took
            total += begun if k else 0.0
        values |= {a: found[a][0].numel() for a in LAYERS}
        units |= {a: found[a].shape[1] for a in LAYERS}
    images = len(x) - rows
    by_layer = {a: 1000 * sum(t for (b, _), t in spent.items() if a == b) / images for a in LAYERS}
    by_name = {n: 1000 * sum(t for (_, m), t in spent.items() if n == m) / images for n in {n for _, n in makes}}
    state = {a: sum(t.numel() * t.element_size() for (b, _), s in makes.items() if a == b for k, t in s.state_dict().items()
                    if k not in s.spilled) for a in LAYERS}  # fmt: skip
    ms = 1000 * total / images
    return {"network": ms, "layers": by_layer, "names": by_name, "values": values, "units": units, "state": state}


# ---- memory
def peak(count: int, which: str) -> None:
    """Print the peak memory, in MB, of a sweep of so many images in this process."""
    import convoscope as cs
    from benchmarks.scan_data import LAYERS, Photographs, net, photographs, statistics, temporary

    network, _ = net("resnet18")
    with temporary() as folder:
        files, _ = photographs(32, Path(folder))
        data = Photographs(files, count)
        makes = {n: s for n, s in statistics(data).items() if which == "all" or n != "tail"}
        cs.sweep(network, data, makes, LAYERS, store=Path(folder, "store"), shard_size=32)
        shards = sum(p.stat().st_size for p in Path(folder, "store", "shards").rglob("*") if p.is_file())
    print(json.dumps([most_memory() / 1e6, shards / 1e6]))


def most_memory() -> float:
    """Bytes this process held at most. `getrusage` would count what the process held that started it."""
    import resource

    status = Path("/proc/self/status")
    found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.is_file() else None
    return 1024.0 * (int(found[1]) if found else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def memory(count: int) -> dict[str, list[tuple[int, float, float]]]:
    found: dict[str, list[tuple[int, float, float]]] = {}
    for which in ("all", "all but the tail"):
        for n in (count, 2 * count, 4 * count):
            command = [sys.executable, "-m", "benchmarks.scan", "--peak", str(n), which]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found.setdefault(which, []).append((n, *json.loads(done.stdout.splitlines()[-1])))
            say(f"memory: {which}, {n} images: {found[which][-1][1]:.0f} MB")
    return found


# ---- the curve
def curve(count: int) -> dict[str, Any]:
    """Seconds of sweeps of different numbers of images and stages, of labels for different numbers of concepts, of merging."""
    import torch

    import convoscope as cs
    from benchmarks.scan_data import LAYERS, Photographs, Ready, net, photographs, statistics, temporary

    network, _ = net("resnet18")
    rows, labels = [], []
    with temporary() as folder:
        files, _ = photographs(64, Path(folder))
        pixels = network.picture(torch.cat([network.read(f) for f in files]))
        shapes = {r.address: r.shape for r in network.layers()}
        values = {a: int(torch.tensor(shapes[a]).prod()) for a in LAYERS}
        for images in (count // 2, count):
            for stages in (LAYERS[3:], LAYERS[2:], LAYERS[1:], LAYERS):
                data = Photographs(files, images)
                run = seconds(lambda d=data, s=stages: cs.sweep(network, d, statistics(d), s))
                units = sum(shapes[a][0] for a in stages)
                rows.append([images, sum(values[a] for a in stages), units, run])
                say(f"curve: {images} images, {units} units: {run:.1f} s")
        cs.dissect(network, Ready(pixels, 32), "layer4", draws=0)  # warms up
        for concepts in (10, 100, 1000):
            data = Ready(pixels, count // 2, concepts=concepts)
            store = Path(folder, f"store {concepts}")
            cs.dissect(network, data, "layer4", draws=0, store=store)
            run = seconds(lambda d=data, s=store: cs.dissect(network, d, "layer4", draws=0, store=s))
            labels.append([concepts, run / len(data)])
            say(f"curve: {concepts} concepts: {1000 * run / len(data):.1f} ms per image")
        data, store = Photographs(files, count), Path(folder, "store")
        settings = {"store": store, "shard_size": 8}
        cs.sweep(network, data, statistics(data), LAYERS, **settings)
        merging = seconds(lambda: cs.sweep(network, data, statistics(data), LAYERS, **settings)) / (count / 8)
    big, small = each_statistic("resnet50"), each_statistic("resnet18")
    return {"rows": rows, "labels": labels, "merging": merging, "big": big, "small": small}


def machine() -> str:
    import torch

    name = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").is_file():
        lines = [x for x in Path("/proc/cpuinfo").read_text().splitlines() if x.startswith("model name")]
        name = lines[0].partition(":")[2].strip() if lines else name
    return f"{name}, {torch.get_num_threads()} thread, Python {platform.python_version()}, PyTorch {torch.__version__}"


def main() -> None:
    options = arguments()
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    import torch

    torch.set_num_threads(options.threads)
    if options.peak:
        peak(int(options.peak[0]), options.peak[1])
        return
    parts = options.only.split(",")
    found: dict[str, Any] = {"machine": machine()}
    if "throughput" in parts:
        found["throughput"] = [
            throughput("resnet18", options.images, options.rounds),
            throughput("resnet50", options.images // 2, max(1, options.rounds // 2)),
        ]
    if "memory" in parts:
        found["memory"] = memory(options.images // 2)
    if "curve" in parts:
        found["curve"] = curve(options.images // 4)
    if options.save:
        Path(options.save).write_text(json.dumps(found, indent=1), encoding="utf-8")
    from benchmarks.scan_report import page

    text = page(found)
    print(text)
    if options.write:
        Path(options.write).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
