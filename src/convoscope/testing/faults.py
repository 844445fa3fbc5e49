"""The faults that explanation software has, by number: which laws look for each, and what to do where one is broken."""

from typing import NamedTuple


class Fault(NamedTuple):
    """A fault: the words of its laws, and what to do about a method that has it."""

    title: str
    laws: tuple[str, ...]
    advice: str


_PROBE = "go through `probe` (`score`, `grad`, `activations`), and change nothing of `probe.session.module`"
FAULTS: dict[str, Fault] = {
    "F1": Fault(
        "network, input or process changed, after success or an exception anywhere",
        (
            "leaves the network untouched", "leaves the network untouched when interrupted",
            "leaves the network untouched when a layer raises", "leaves the network untouched when a callback raises",
        ),
        f"{_PROBE}; set nothing that is not set back in `finally`, and catch no BaseException",
    ),
    "F2": Fault(
        "hooks left behind, the network not freed",
        ("leaves nothing in memory", "leaves nothing after many calls"),
        "keep no tensor, module or probe in the method, in a cache or in a global; remove hooks in `finally`",
    ),
    "F3": Fault(
        "in-place, shared and functional activations",
        ("gives what its plain twin gives",),
        "look at operators through `probe`, not at modules: the same function may be written as either",
    ),
    "F4": Fault(
        "scripted, traced, exported, parallel, sharded, quantized networks",
        ("takes other forms or refuses", "follows networks that processes share"),
        "raise UnsupportedError where operators cannot be seen; never fall back to something simpler without a word",
    ),
    "F5": Fault(
        "train mode, dropout, statistics of batch norm",
        ("works in train mode",),
        f"{_PROBE}: it runs the network in evaluation mode",
    ),
    "F6": Fault(
        "inside no_grad, inference mode, autocast",
        ("works in every mode",),
        "make gradients through `probe.grad`; clone inputs before they get a gradient",
    ),
    "F7": Fault(
        "frozen parameters", ("works with frozen parameters",), "ask for gradients of inputs and activations, not of parameters"
    ),
    "F8": Fault(
        "NaN and infinity without a word",
        ("names what is not finite",),
        "let errors of `probe` through, and do not replace NaN (nan_to_num, clamp, max)",
    ),
    "F9": Fault(
        "bad calls accepted",
        ("refuses bad calls with the reason",),
        f"{_PROBE}: it refuses them before the work begins; let its errors through",
    ),
    "F10": Fault(
        "one pixel, one row, odd sides",
        ("takes any size",),
        "take sizes from `x.shape`, or raise UsageError saying what size is needed",
    ),
    "F11": Fault(
        "types, and the defaults of the process",
        ("keeps shape dtype device", "takes any float", "works with other defaults"),
        "make tensors like `x` (torch.zeros_like(x), x.new_zeros, dtype=x.dtype, device=x.device), not by default",
    ),
    "F12": Fault(
        "memory layouts, views, tensor subclasses",
        ("takes any layout",),
        "use reshape instead of view, and never write to the input",
    ),
    "F13": Fault(
        "other numbers the next time",
        (
            "repeats with a seed", "takes any batch size", "works in deterministic mode",
            "gives the same numbers with two threads", "gives the same numbers in another process",
        ),
        "draw through `probe.normal`, `uniform` and `bernoulli` alone; let no order of sets, or of rows in a batch, count",
    ),
    "F14": Fault(
        "images beside it count", ("keeps images apart",), "reduce over (1, 2, 3), never over the first axis"
    ),
    "F15": Fault(
        "several threads",
        ("works in two threads", "works in eight threads"),
        "keep what a call needs in local variables, not in the method, the network or a global",
    ),
    "F16": Fault(
        "memory ends",
        ("halves batches where memory ends",),
        f"{_PROBE}: it halves batches; hand many changed pictures to it in one call, and let its errors through",
    ),
    "F34": Fault(
        "memory grows with every call",
        ("leaves nothing in memory", "leaves nothing after many calls"),
        "keep no tensor, module or probe in the method, in a cache or in a global",
    ),
    "F35": Fault(
        "arrays and tensors of the caller changed",
        ("leaves the network untouched", "leaves tensors in its settings alone", "only reads arrays"),
        "write to nothing that came in: `x + y` instead of `x += y`, or clone first",
    ),
    "F36": Fault(
        "zeros, constants, ties, denormal and huge numbers",
        ("survives extreme values",),
        "divide by nothing that may be zero; choose what a constant image gets, and document it",
    ),
}  # fmt: skip
PROMISES = "a promise of the method"


def faults_of(law: str) -> tuple[str, ...]:
    """The numbers of the faults that a law looks for; none for what the method promises of itself."""
    return tuple(number for number, fault in FAULTS.items() if law in fault.laws)


def advice(law: str) -> str:
    """The faults that a broken law shows, and what to do: "F12: reshape instead of view"; nothing for promises."""
    found = faults_of(law)
    return f"{', '.join(found)}: {FAULTS[found[0]].advice}" if found else ""
