r"""DDPM and DDIM are solvers of the reverse SDE: the chain as the paper writes it, beside the solver, and the difference.

With abar_i = prod_{j <= i} (1 - beta_j), Ho et al. 2020 (Alg. 2, posterior variance) and Song et al. 2021a (eq. 12, eta = 0) go down by

    DDPM:  x <- (x - beta_i/sqrt(1 - abar_i) eps)/sqrt(1 - beta_i) + sqrt(beta_i (1 - abar_{i-1})/(1 - abar_i)) xi,    xi = 0 at i = 0,
    DDIM:  x <- sqrt(abar_{i-1}) (x - sqrt(1 - abar_i) eps)/sqrt(abar_i) + sqrt(1 - abar_{i-1}) eps,

where on a sub-sequence of timesteps i - 1 is the one before i in it, and beta_i = 1 - abar_i/abar_{i-1}. The same steps are the first-order
exponential integrator of dx = [f x - (1 + eta^2)/2 g^2 score] dt + eta g dW, which solves the linear part exactly and freezes x0 over a
step: eta = 1 is DDPM, eta = 0 DDIM. Nothing is learned here and nothing agrees by approximation. Expect differences of some 1e-14, 1e-13 at
most, on any spacing: 1000 steps, 50 of the 1000, and 37, which does not divide it. |.| is the norm over all 256 samples. Runs in seconds.
"""
import torch

import sdediff
from sdediff.random import WhiteNoise
from sdediff.solvers import Exponential

N, SHAPE, F64 = 1000, (256, 2), torch.float64
betas = torch.linspace(1e-4, 0.02, N, dtype=F64)
abar = torch.cumprod(1 - betas, 0)

torch.manual_seed(0)
mlp = torch.nn.Sequential(torch.nn.Linear(3, 64), torch.nn.Tanh(), torch.nn.Linear(64, 2)).double().requires_grad_(False)


def network(x, index):
    """eps(x, i) for the integer timestep i (B,): the right answer for data N(0, I), disturbed by a random network."""
    features = torch.cat([x, index[:, None] / N], 1)
    return torch.sqrt(1 - abar[index])[:, None] * x + mlp(features)


def chain(timesteps, x, noise, stochastic):
    """The paper's loop over decreasing integer timesteps: every state, the start included."""
    states = [x]
    for k, i in enumerate(timesteps):
        eps = network(x, torch.full((len(x),), i))
        before = abar[timesteps[k + 1]] if k + 1 < len(timesteps) else torch.ones((), dtype=F64)
        beta = 1 - abar[i] / before
        if stochastic:
            x = (x - beta / torch.sqrt(1 - abar[i]) * eps) / torch.sqrt(1 - beta)
            if k + 1 < len(timesteps):
                x = x + torch.sqrt(beta * (1 - before) / (1 - abar[i])) * noise.at(k).normal(0)
        else:
            x = torch.sqrt(before) * (x - torch.sqrt(1 - abar[i]) * eps) / torch.sqrt(abar[i]) + torch.sqrt(1 - before) * eps
        states.append(x)
    return states


sde = sdediff.VPSDE.from_betas(betas)
score = sdediff.from_network(network, predicts="eps", time_input="index")
noise = WhiteNoise(0, SHAPE, dtype=F64)            # what step k draws is a function of (seed, sample, k): both sides ask for the same
start = noise.initial()

for method, eta in (("ddpm", 1.0), ("ddim", 0.0)):
    for steps, spacing in ((N, "trailing"), (50, "trailing"), (50, "leading"), (37, "linspace")):
        times = sdediff.grids.DDPM(spacing)(sde, steps)                  # index i is the time i + 1, the clean level is 0
        paper = chain([round(t) - 1 for t in times[:-1]], start, noise, stochastic=eta == 1)
        ours = sdediff.sample_info(sde, score, x_init=start, method=method, grid=times, noise=noise, record=True).trajectory
        equation = sdediff.ReverseSDE(sde, score, eta=eta)
        solver = [state.x for state in sdediff.iterate(equation, Exponential(nodes=1), start, sde.levels(times), noise)]
        print(f"\n{method}, {steps} of {N} timesteps, {spacing}")
        print(f"{'step':>6} {'|chain|':>12} {'|sample|':>12} {'|solver|':>12} {'max difference':>15}")
        for k in range(0, steps + 1, 200) if steps == N else (0, steps):
            gap = max(float((other[k] - paper[k]).abs().max()) for other in (ours, solver))
            print(f"{k:>6} {paper[k].norm():>12.6f} {ours[k].norm():>12.6f} {solver[k].norm():>12.6f} {gap:>15.1e}")
