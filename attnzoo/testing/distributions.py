"""Whether initial parameters look drawn from the distribution that the authors' code names."""

from torch import Tensor


def assert_normal(weight: Tensor, std: float) -> None:
    """From N(0, std^2): mean, spread and shape agree within four standard errors."""
    count = weight.numel()
    assert abs(weight.mean().item()) < 4 * std / count**0.5
    assert abs(weight.std().item() / std - 1) < 4 / (2 * count) ** 0.5
    assert abs((weight.abs() < std).float().mean().item() - 0.6827) < 2 / count**0.5


def assert_uniform(weight: Tensor, bound: float) -> None:
    """Even over [-bound, bound]: ends, mean and spread agree within four standard errors."""
    count = weight.numel()
    assert bound * (1 - 10 / count) < weight.abs().max().item() <= bound * (1 + 1e-6)
    assert abs(weight.mean().item()) < 4 * bound / (3 * count) ** 0.5
    assert abs(weight.square().mean().item() / bound**2 - 1 / 3) < 4 * (4 / 45 / count) ** 0.5
