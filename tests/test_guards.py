"""Warnings: each fires where it should, names cause, number and remedy at the caller's line, and stays silent on legitimate use."""
import math
import warnings

import numpy as np
import pytest
import torch

import sdediff
from sdediff import EDMSDE, VESDE, VPSDE, CosineVPSDE, NumericalWarning, RectifiedFlow, SubVPSDE, from_network, guards, nets, targets
from sdediff.training import TrainingConfig, train

LAW = targets.Gaussian([0.3, -0.2], torch.tensor([0.9, 1.1]))
DDPM300 = VPSDE.from_betas(np.linspace(1e-4, 0.04, 300))
USUAL = [VPSDE(), SubVPSDE(), CosineVPSDE(), VESDE(), EDMSDE(), RectifiedFlow(), DDPM300, VPSDE.from_betas(np.linspace(1e-4, 0.02, 1000)),
         VESDE.from_sigmas(np.geomspace(50, 0.01, 100))]
SHAPE = (64, 2)


def zeros(x, c):
    return 0 * x


def draw(sde, score=LAW.score, **how):
    return sdediff.sample(sde, score, **{"method": "ddim", "steps": 4, "seed": 0} | ({} if "x_init" in how else {"shape": SHAPE}) | how)


@pytest.mark.parametrize("sde", USUAL, ids=lambda sde: type(sde).__name__)
def test_what_is_usual_is_silent(sde):
    """pytest turns warnings into errors."""
    draw(sde), draw(sde, from_network(zeros, "v"))
    z = sdediff.encode(sde, LAW.score, LAW.sample(64, seed=0, dtype=torch.float32), method="ddim", steps=4, t_end=0.01 * sde.t_max)
    draw(sde, x_init=z)
    middle = 0.5 * sde.t_max
    x = sdediff.renoise(sde, LAW.sample(64, seed=0, dtype=torch.float32), middle, seed=1)
    draw(sde, x_init=x, t_start=middle), draw(sde, x_init=torch.zeros(SHAPE)), draw(sde, x_init=0.7 * sde.prior(SHAPE, seed=2))


def test_the_bound_is_that_of_two_gaussians_of_a_point():
    """E KL(N(alpha x0, sigma^2) || N(0, s^2)) by quadrature over x0, and its numbers for the tables in use."""
    m, s, c = VPSDE(beta_max=3.0).at(0.6), 1.0, 0.8
    x0, w = np.polynomial.hermite_e.hermegauss(20)
    each = 0.5 * ((m.sigma**2 + (m.alpha * math.sqrt(c) * x0)**2) / s**2 - 1 - math.log(m.sigma**2 / s**2))
    assert guards.prior_kl(m, s, c) == pytest.approx(float(w @ each / w.sum()), rel=1e-12)
    assert guards.prior_kl(DDPM300.at(300), 1.0) == pytest.approx(1.126e-3, rel=1e-3)
    assert max(guards.prior_kl(sde.at(sde.t_max), sde.prior_std()) for sde in USUAL) < guards.START / 10
    assert guards.prior_kl(VPSDE(t_min=0.0).at(0.0), 1.0) == guards.prior_kl(EDMSDE().at(0.0), 0.0) == math.inf


@pytest.mark.parametrize("sde, how, words", [
    (VPSDE.from_betas(np.linspace(1e-4, 0.02, 100)), {}, r"alpha = 0.603 .*greater betas"), (VPSDE(beta_max=4.0), {}, "0.069 nats"),
    (VPSDE(), {"t_start": 0.3}, r"t=0.3, .*leave t_start out"), (VPSDE(), {"grid": [0.2, 0.1]}, "t=0.2"),
    (VESDE(sigma_max=2.0), {}, "sigma_max"), (EDMSDE(), {"t_start": 1.0}, "N\\(0, 1\\^2 I\\)")])
def test_a_start_that_still_shows_the_data(sde, how, words):
    with pytest.warns(NumericalWarning, match=words) as seen:
        draw(sde, from_network(zeros), **{"steps": None if "grid" in how else 4} | how)
    assert len(seen) == 1 and seen[0].filename == __file__ and "unit variance" in str(seen[0].message) and "sigma_data=" in str(seen[0].message)
    with pytest.warns(NumericalWarning):
        sdediff.sample(sde, from_network(zeros), shape=(9, 2), chunk=4, method="ddim", seed=0, **{"steps": None if "grid" in how else 4} | how)


def test_what_is_known_of_the_data_counts():
    """Narrow data hide in little noise, wide ones do not in much."""
    narrow = EDMSDE(sigma_max=1.0)
    draw(narrow, targets.Gaussian([0.0, 0.0], 1e-3).score), draw(narrow, from_network(zeros, sigma_data=0.03))
    draw(narrow, from_network(zeros, "edm", sigma_data=0.05))
    with pytest.warns(NumericalWarning, match="root mean square 2"):
        draw(EDMSDE(sigma_max=4.0), targets.Gaussian([0.0, 0.0], 4.0).score)


def test_a_state_that_is_none_of_its_level():
    """N(0, I) where N(0, 80^2 I) was meant; not where it is a state, and not where it is too little to judge."""
    z = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    with pytest.warns(NumericalWarning, match=r"root mean square 1.* sigma = 80.*prior_std\(\) \* noise"):
        draw(EDMSDE(), x_init=z)
    draw(EDMSDE(), x_init=80 * z), draw(EDMSDE(), x_init=z[:8]), draw(EDMSDE(), x_init=z, t_start=1.0), draw(VPSDE(), x_init=z)


def test_data_that_want_scaling():
    score, brief = from_network(nets.MLP(2, 8, 1), "v"), TrainingConfig(steps=1, batch=4)
    x = LAW.sample(50, seed=0, dtype=torch.float32)
    for sde in (*USUAL, VESDE(sigma_max=0.1)):                                   # a denoiser of little noise is no sampler
        train(score, sde, x, brief, progress=False)
    with pytest.warns(NumericalWarning, match=r"root mean square 1\d\d .*data / data.std\(\)") as seen:
        train(score, VPSDE(), 128 * x, brief, progress=False)
    assert len(seen) == 1 and seen[0].filename == __file__
    train(score, EDMSDE(), 5 * x, brief, progress=False)
    with pytest.warns(NumericalWarning, match="are still seen at t_max=80"):
        train(score, EDMSDE(), 50 * x, brief, progress=False)


class Half(torch.nn.Module):
    def __init__(self, dtype):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1, dtype=dtype))

    def forward(self, x, c):
        return self.weight * x


def test_half_precision():
    """What float16 cannot hold, what bfloat16 cannot tell apart, and what is as it should be."""
    wide, bf16, f16 = EDMSDE(sigma_max=1.7e4), Half(torch.bfloat16), Half(torch.float16)
    draw(VPSDE(), from_network(f16)), draw(VPSDE(), from_network(bf16), steps=50), draw(wide, from_network(bf16))
    draw(wide, from_network(f16, "edm"))
    with pytest.warns(NumericalWarning, match="given states of size 1.7e\\+04, and float16 ends at 65504"):
        draw(wide, from_network(f16, "x0"))
    with pytest.warns(NumericalWarning, match="says scores of size"):
        draw(EDMSDE(sigma_min=1e-6), from_network(f16, "score"), steps=40, grid="karras")
    with pytest.warns(NumericalWarning, match=r"is told \d\d+ of 1000 levels as it was told the level before: time_input='t' in torch.bfloat16"):
        draw(VPSDE(), from_network(bf16), steps=1000, grid="uniform")
    chain = VPSDE.from_betas(np.linspace(1e-4, 0.02, 1000))
    draw(chain, from_network(bf16, time_input="index"), steps=1000)              # an integer is told apart


def test_the_result_in_half_precision():
    with pytest.warns(NumericalWarning, match=r"128 numbers became infinite, of 128 up to .*torch.float32 or bfloat16"):
        y = guards.cast(torch.full(SHAPE, 7e4), torch.float16)
    assert bool(y.isinf().all())
    with pytest.warns(NumericalWarning, match="128 numbers became 0"):
        guards.cast(torch.full(SHAPE, 1e-9), torch.float16)
    x = torch.linspace(-6e4, 6e4, 128).view(SHAPE)
    assert torch.equal(guards.cast(x, torch.float16), x.half()) and guards.cast(x, torch.float32) is x
    with pytest.warns(NumericalWarning, match="became infinite"):
        draw(EDMSDE(sigma_max=3e4, sigma_min=2e4), targets.Gaussian([0.0, 0.0], 1.0).score, dtype=torch.float16, t_end=2.9e4)


def test_they_are_silenced_by_their_category():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NumericalWarning)
        draw(VPSDE(beta_max=4.0), from_network(zeros))
    assert issubclass(NumericalWarning, UserWarning)
