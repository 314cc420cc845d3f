"""Asserts that initial parameters have the distribution that the authors' code specifies."""

from collections.abc import Collection, Sequence

import torch
from torch import Tensor, nn


def assert_normal(weight: Tensor, std: float) -> None:
    """Drawn from N(0, std^2): mean, spread and shape agree within four standard errors."""
    count = weight.numel()
    assert abs(weight.mean().item()) < 4 * std / count**0.5
    assert abs(weight.std().item() / std - 1) < 4 / (2 * count) ** 0.5
    quantiles = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    drawn = torch.special.ndtr(weight.detach().double().flatten().sort().values / std)
    assert (drawn - quantiles).abs().max() < 2 / count**0.5


def assert_uniform(weight: Tensor, bound: float) -> None:
    """Uniform over [-bound, bound]: ends, mean and spread agree within four standard errors."""
    count = weight.numel()
    assert bound * (1 - 10 / count) < weight.abs().max().item() <= bound * (1 + 1e-6)
    assert abs(weight.mean().item()) < 4 * bound / (3 * count) ** 0.5
    assert abs(weight.square().mean().item() / bound**2 - 1 / 3) < 4 * (4 / 45 / count) ** 0.5
    quantiles = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    drawn = (weight.detach().double().flatten().sort().values / bound + 1) / 2
    assert (drawn - quantiles).abs().max() < 2 / count**0.5


def assert_default(blocks: Sequence[nn.Module], but: Collection[str] = ()) -> None:
    """Every layer has torch's default initialization, except for the parameters in `but`.

    Linear layers and convolutions are uniform over [-b, b], where b is the inverse square root of
    the fan-in; norms have weights of one and biases of zero. `blocks` are several instances of the
    same configuration, since the parameters of one small layer are too few for a test.
    """
    for key in {key for key, _ in blocks[0].named_parameters()} - set(but):
        name, _, kind = key.rpartition(".")
        layer = blocks[0].get_submodule(name)
        values = torch.cat([b.get_parameter(key).detach().flatten() for b in blocks])
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            assert_uniform(values, layer.weight[0].numel() ** -0.5)
        else:
            assert isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)), f"{key} of {layer}"
            assert (values == (kind == "weight")).all()
