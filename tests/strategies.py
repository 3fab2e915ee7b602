"""What the tests draw from: one instance of every process, with its coefficients, written down independently; and what
``sdediff.testing.strategies`` draws."""
import math

import numpy as np
import torch
from hypothesis import strategies as st

from sdediff.sde import EDMSDE, SDE, VESDE, VPSDE, CosineVPSDE, LinearSDE, RectifiedFlow, SubVPSDE
from sdediff.testing.strategies import betas, levels, processes, seeds, shapes, times

__all__ = ["BETAS", "LARGE", "PROCESSES", "SIGMAS", "betas", "coefficients", "levels", "names", "processes", "seeds", "shapes", "times"]

BETAS = (0.02, 0.3, 0.1, 0.55, 0.2)
SIGMAS = (0.05, 0.3, 1.0, 7.0)


def _beta(t):
    return 0.1 + 19.9 * t


PROCESSES: dict[str, SDE] = {
    "vp": VPSDE(),
    "vp-constant": VPSDE(beta_min=2.0, beta_max=2.0),
    "sub-vp": SubVPSDE(),
    "cosine": CosineVPSDE(),
    "cosine-full": CosineVPSDE(offset=0.0722, t_max=1.0),
    "ve": VESDE(),
    "ve-from-point": VESDE(sigma_min=0.02, sigma_max=30.0, subtract_min=True),
    "edm": EDMSDE(),
    "flow": RectifiedFlow(),
    "chain": VPSDE.from_betas(BETAS),
    "chain-zero": VPSDE.from_betas((*BETAS, 1.0)),
    "ladder": VESDE.from_sigmas(SIGMAS),
    "linear-vp": LinearSDE(f=lambda t: -_beta(t) / 2, g=lambda t: torch.sqrt(_beta(t))),
    "linear-waves": LinearSDE(f=lambda t: torch.sin(3 * t) - 0.2, g=lambda t: 1 + t**2 / 2, t_max=2.0),
}
LARGE = {"ve": 2 * math.log(5000.0), "ve-from-point": 2 * math.log(1500.0)}       # 2 log(sigma_max/sigma_min)


def coefficients(name: str):
    """f(t) and g^2(t) as functions of a float, from the papers and not from the library; and where they jump."""
    w, u0 = math.pi / 2 / 1.008, math.pi / 2 * 0.008 / 1.008
    w1, u1 = math.pi / 2 / 1.0722, math.pi / 2 * 0.0722 / 1.0722
    rates = [-math.log(1 - b) for b in BETAS]
    steps = np.diff(np.square((0.0, *SIGMAS)))
    cell = lambda t, n: min(max(math.ceil(t) - 1, 0), n - 1)

    def chain_zero(t):
        return (-rates[cell(t, 5)] / 2, rates[cell(t, 5)]) if t <= 5 else (-1 / (6 - t), 2 / (6 - t))

    table = {
        "vp": (lambda t: (-_beta(t) / 2, _beta(t)), []),
        "vp-constant": (lambda t: (-1.0, 2.0), []),
        "sub-vp": (lambda t: (-_beta(t) / 2, -_beta(t) * math.expm1(-2 * (0.1 * t + 9.95 * t * t))), []),
        "cosine": (lambda t: (-w * math.tan(u0 + w * t), 2 * w * math.tan(u0 + w * t)), []),
        "cosine-full": (lambda t: (-w1 * math.tan(u1 + w1 * t), 2 * w1 * math.tan(u1 + w1 * t)), []),
        "ve": (lambda t: (0.0, LARGE["ve"] * 0.01**2 * math.exp(LARGE["ve"] * t)), []),
        "ve-from-point": (lambda t: (0.0, LARGE["ve-from-point"] * 0.02**2 * math.exp(LARGE["ve-from-point"] * t)), []),
        "edm": (lambda t: (0.0, 2 * t), []),
        "flow": (lambda t: (-1 / (1 - t), 2 * t / (1 - t)), []),
        "chain": (lambda t: (-rates[cell(t, 5)] / 2, rates[cell(t, 5)]), [1, 2, 3, 4]),
        "chain-zero": (chain_zero, [1, 2, 3, 4, 5]),
        "ladder": (lambda t: (0.0, float(steps[cell(t, 4)])), [1, 2, 3]),
        "linear-vp": (lambda t: (-_beta(t) / 2, _beta(t)), []),
        "linear-waves": (lambda t: (math.sin(3 * t) - 0.2, (1 + t**2 / 2)**2), []),
    }
    return table[name]


names = st.sampled_from(list(PROCESSES))
