"""Other processes that explain what they are told in a line of JSON each: one alone, and two that share a network.

They import the class of the method by the name of its module, and read nothing but such lines.
"""

import atexit
import base64
import contextlib
import dataclasses
import functools
import importlib
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from convoscope.core.errors import ConvoscopeError
from convoscope.core.spec import Spec
from convoscope.method import Method, explain
from convoscope.targets import Logit
from convoscope.testing.laws_trial import SEED, NotTried
from convoscope.testing.own import own
from convoscope.testing.untouched import OBJECTS, TENSORS, Watch
from convoscope.testing.zoo import Hostile, zoo

SHARED = ("data parallel", "fully sharded")
PATIENCE = 120.0  # seconds without a line: processes that wait for each other


@dataclasses.dataclass(frozen=True)
class Reply:
    """What another process made of it: `right` with the values, `refused`, `crashed` or `not made` with the reason."""

    how: str
    what: str = ""
    values: Tensor | None = None


def answers(form: str, method: Method, hostile: Hostile) -> list[Reply]:
    """What the other process, or each of two that share the network in this form, makes of it. NotTried where none can."""
    asked = json.dumps({"form": form, **_told(method, hostile)})
    workers = _workers(1 if form == "alone" else 2)
    try:
        found = workers.ask(asked)
    except (queue.Empty, OSError) as error:
        workers.close()
        _workers.cache_clear()
        raise AssertionError(f"{form}: the processes ended, or wait for each other for {PATIENCE:g} s") from error
    return [_reply(line) for line in found]


def _told(method: Method, hostile: Hostile) -> dict[str, Any]:
    module = type(method).__module__
    if module == "__main__":
        raise NotTried(f"another process cannot import {type(method).__name__} from __main__; put it into a file and import it")
    if hostile.own and not hostile.source:
        raise NotTried(f"{hostile.name} is not sent to other processes; give a function of a module that builds it instead")
    return {"method": method.to_dict(), "module": module, "network": hostile.source or hostile.name}


def _reply(line: str) -> Reply:
    told = json.loads(line)
    if told["how"] == "not tried":
        raise NotTried(told["what"])
    if told["how"] != "right":
        return Reply(told["how"], told["what"])
    raw = np.frombuffer(bytearray(base64.b64decode(told["values"])), dtype=told["dtype"])
    return Reply("right", values=torch.from_numpy(raw).view(told["shape"]))


class Workers:
    """Processes that live until the end of this one, or `close`. They have another hash seed, and one thread."""

    def __init__(self, count: int) -> None:
        self.meeting = tempfile.TemporaryDirectory()
        path = os.pathsep.join(p for p in sys.path if p)
        environment = {**os.environ, "PYTHONHASHSEED": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
        command = [sys.executable, "-m", "convoscope.testing.workers", str(Path(self.meeting.name, "meeting")), str(count)]
        self.running = [
            subprocess.Popen([*command, str(rank)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
                             stderr=subprocess.DEVNULL)
            for rank in range(count)
        ]  # fmt: skip
        self.lines: list[queue.Queue[str]] = [queue.Queue() for _ in self.running]
        for process, lines in zip(self.running, self.lines, strict=True):
            threading.Thread(target=_listen, args=(process, lines), daemon=True).start()
        atexit.register(self.close)

    def ask(self, line: str) -> list[str]:
        """One line from each. Raises queue.Empty where one ends or says nothing."""
        for process in self.running:
            assert process.stdin is not None
            process.stdin.write(line + "\n")
            process.stdin.flush()
        found = [lines.get(timeout=PATIENCE) for lines in self.lines]
        if not all(found):
            raise queue.Empty
        return found

    def close(self) -> None:
        """Ends them."""
        for process in self.running:
            process.kill()
            process.wait()
        self.meeting.cleanup()


def _listen(process: "subprocess.Popen[str]", lines: "queue.Queue[str]") -> None:
    assert process.stdout is not None
    for line in process.stdout:
        lines.put(line)
    lines.put("")


@functools.cache
def _workers(count: int) -> Workers:
    return Workers(count)


# ---------------------------------------------------------------- in the other process
def _asked(told: dict[str, Any]) -> dict[str, Any]:
    """The answer to one line."""
    try:
        importlib.import_module(told["module"])
        method, hostile = Spec.from_dict(told["method"]), _hostile(told["network"])
    except Exception as error:
        return {"how": "not tried", "what": f"another process cannot make it: {type(error).__name__}: {error}"}
    try:
        module = hostile.module() if told["form"] == "alone" else _shared(told["form"], hostile.module())
    except Exception as error:
        return {"how": "not made", "what": f"{type(error).__name__}: {error}"}
    x = hostile.images()
    if told["form"] != "alone":
        modes = {m: m.training for m in module.modules()}
        with torch.no_grad():
            module.eval()(x.clone())  # what wraps it sets itself up with the first pass
        for part, mode in modes.items():
            part.training = mode
    watch = Watch(module, x)
    if told["form"] == "fully sharded":  # it changes them with every pass of its own
        watch.before = {k: v for k, v in watch.before.items() if k not in (OBJECTS, TENSORS[0])}
    try:
        with warnings.catch_warnings(action="ignore"):
            values = explain(hostile.around(module), x, method, Logit(1), seed=SEED).values.contiguous().numpy()  # type: ignore[arg-type]
        watch.check("afterwards")
    except ConvoscopeError as error:
        return {"how": "refused", "what": str(error)}
    except Exception as error:
        return {"how": "crashed", "what": f"{type(error).__name__}: {error}"}
    raw = base64.b64encode(values.tobytes()).decode()
    return {"how": "right", "values": raw, "dtype": str(values.dtype), "shape": values.shape}


def _hostile(name: str) -> Hostile:
    if ":" not in name:
        return zoo()[name]
    module, function = name.split(":")
    return own(getattr(importlib.import_module(module), function))


def _shared(form: str, module: nn.Module) -> nn.Module:
    if form == "data parallel":
        return nn.parallel.DistributedDataParallel(module)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    return fully_shard(module, mesh=init_device_mesh("cpu", (torch.distributed.get_world_size(),)))


def main(meeting: str, count: int, rank: int) -> None:
    """Answers lines until there are none."""
    told, sys.stdout = sys.stdout, sys.stderr  # whatever prints does not answer
    torch.set_num_threads(1)
    if count > 1:
        torch.distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=count)
    with contextlib.suppress(BrokenPipeError, KeyboardInterrupt):
        for line in sys.stdin:
            print(json.dumps(_asked(json.loads(line))), file=told, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
