"""Random rounding: as large as a dtype's, and where a kink is, on both of its sides."""

import torch

from attnzoo.testing.rounding import StochasticRounding


def test_results_are_off_by_half_a_digit_at_most_and_slack_scales_it() -> None:
    x = torch.randn(1000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for slack in (1.0, 32.0):
        with StochasticRounding(torch.float32, 0, slack):
            y = x * 3
        off = ((y - 3 * x) / (3 * x)).abs().max() / torch.finfo(torch.float32).eps
        assert 0.45 * slack < off <= 0.5 * slack


def test_views_zeros_and_writes_in_place_are_exact() -> None:
    x = torch.zeros(4, dtype=torch.float64)
    with StochasticRounding(torch.float32, 0):
        assert torch.equal(x.view(2, 2) * 1, torch.zeros(2, 2, dtype=torch.float64))
        y = x.add_(1.0)
    assert torch.equal(y, torch.ones(4, dtype=torch.float64))


def test_infinity_and_nan_stay_what_they_are() -> None:
    x = torch.tensor([torch.inf, -torch.inf, torch.nan], dtype=torch.float64)
    with StochasticRounding(torch.float32, 0):
        y = x * 1
    assert torch.equal(y[:2], x[:2])
    assert y[2].isnan()
