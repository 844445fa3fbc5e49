"""Every method on ten unmodified architectures with random biases and statistics: it runs, or refuses with the reason."""

from contextlib import suppress
from functools import cache
from zlib import crc32

import pytest
import torch
from networks import CLASSES, TEN, images, network_of, torchvision_network, untouched

import convoscope as cs
from convoscope.core.operators import Rewriter
from convoscope.core.record import record
from convoscope.core.run import undisturbed
from convoscope.method import method_of
from convoscope.rules import DECONVNET, EPSILON, EPSILON_PLUS, GUIDED, Composite
from convoscope.testing.laws_trial import with_settings

METHODS = {
    "gradient": cs.Gradient(),
    "input-x-gradient": cs.InputXGradient(),
    "integrated-gradients": cs.IntegratedGradients(steps=2, rule="midpoint"),
    "smooth-grad": cs.SmoothGrad(samples=2),
    "smooth-grad of guided-backprop": cs.SmoothGrad(of=cs.GuidedBackprop(), samples=2),
    "guided-backprop": cs.GuidedBackprop(),
    "deconvnet": cs.Deconvnet(),
    "lrp": cs.LRP(),
    "lrp epsilon": cs.LRP(composite="epsilon"),
    "cam": cs.CAM(),
    "grad-cam": cs.GradCAM(),
    "occlusion": cs.Occlusion(window=64, stride=64),
}
NO_RELU = "calls no ReLU"
NO_HEAD = "needs global average pooling and one linear layer"
REFUSED = {  # everything that is not here has to run
    **{(n, m): NO_RELU for n in ("efficientnet_b0", "convnext_tiny") for m in METHODS if "guided" in m or m == "deconvnet"},
    **{(n, "cam"): NO_HEAD for n in ("squeezenet1_1", "vgg11_bn", "mobilenet_v3_small", "convnext_tiny")},
}
CASES = [(n, m) for n in TEN for m in METHODS]
OTHERS = [m for m in cs.methods() if m not in {v.name for v in METHODS.values()}]
FEW = {"steps": 2, "samples": 2, "masks": 4, "window": 64, "stride": 64, "cells": 2, "segments": 4, "permutations": 1,
       "channels": 2}  # fmt: skip


@cache
def scores(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """What the network itself says of the images, and of the black image."""
    module, x = torchvision_network(name), images(name)
    with torch.no_grad():
        picked = [module(v)[[0, 1], [3, 7]] for v in (x, torch.zeros_like(x))]
    return picked[0], picked[1]


def check_diagnostics(found: cs.Attribution, name: str) -> None:
    """The gap and the loss in the result are those of its map."""
    (score, black), total = scores(name), found.values.flatten(1).sum(1)
    true = {"completeness gap": total - (score - black), "lost relevance": score - total}
    for key in set(true) & set(found.diagnostics):
        reported = torch.tensor(found.diagnostics[key], dtype=torch.float64)
        assert torch.allclose(reported, true[key], rtol=1e-9, atol=1e-9 * float(score.abs().max()))


@pytest.mark.parametrize(("name", "method"), CASES, ids=[f"{n}-{m}" for n, m in CASES])
def test_runs_or_refuses(name: str, method: str) -> None:
    module, x = torchvision_network(name), images(name)
    with untouched(module):
        if (name, method) in REFUSED:
            with pytest.raises(cs.UnsupportedError, match=REFUSED[name, method]):
                cs.explain(network_of(module), x, METHODS[method], cs.Logit((3, 7)))
            return
        found = cs.explain(network_of(module), x, METHODS[method], cs.Logit((3, 7)))
    check_diagnostics(found, name)
    assert bool(found.values.isfinite().all())
    assert bool((found.values.flatten(1).abs().amax(1) > 0).all()) or not found.signed
    if "cam" in method:
        assert min(found.values.shape[2:]) > 1
    else:
        assert found.values.shape[2:] == x.shape[2:]


@pytest.mark.parametrize("method", OTHERS)
def test_other_methods_run_or_refuse(method: str) -> None:
    """Each on one of the ten."""
    name = TEN[crc32(method.encode()) % len(TEN)]
    module, x = torchvision_network(name), images(name)[:1]
    with untouched(module), suppress(cs.UnsupportedError):
        found = cs.explain(network_of(module), x, with_settings(method_of(method), FEW), 3)
        assert bool(found.values.isfinite().all())


RULED = {"guided": GUIDED, "deconvnet": DECONVNET, "epsilon": EPSILON, "epsilon-plus": EPSILON_PLUS}


@pytest.mark.parametrize("composite", RULED.values(), ids=RULED)
@pytest.mark.parametrize("name", TEN)
def test_forward_pass_is_bit_equal(name: str, composite: Composite) -> None:
    module, x = torchvision_network(name), images(name)
    with torch.no_grad():
        plain = module(x)
    assert plain.shape == (2, CLASSES)
    with untouched(module), undisturbed(module), torch.enable_grad():
        ruled = record(module, x.clone().requires_grad_(), ("output",), rewriter=Rewriter(composite))["output"]
    assert ruled.requires_grad
    assert torch.equal(ruled.detach(), plain)
