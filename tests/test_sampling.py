"""The front door: what a call means, what is refused before the first network call, and faults of the network by name."""
import functools
import math
import re

import numpy as np
import pytest
import torch
from scipy import stats

import sdediff
from sdediff import (
    EDMSDE,
    VESDE,
    VPSDE,
    Prediction,
    RectifiedFlow,
    encode,
    from_network,
    from_score,
    grids,
    method,
    methods,
    random,
    sample,
    sample_info,
    simulate,
)
from sdediff.targets import Gaussian
from sdediff.testing import gaussian_problem, mixture_problem

F64 = torch.float64
SDE = VPSDE()
SCORE = from_score(lambda x, t: -x)                     # data N(0, I): the marginal is N(0, I) at every t
PLAIN = [name for name in methods() if name != "mala"]           # mala needs the target's density: test_families.py
FIXED = [name for name in PLAIN if not name.startswith(("scipy", "torchdiffeq"))]


class Counted:
    """A network that counts its calls."""

    def __init__(self):
        self.calls = 0

    def __call__(self, x, c, **conditions):
        self.calls += 1
        return torch.tanh(x)


# -- what a call means ----------------------------------------------------------------------------------------------
@functools.cache
def _exact():
    return mixture_problem().target.sample(20_000, seed=5, dtype=F64)


@pytest.mark.parametrize("name", PLAIN)
def test_every_method_samples_the_mixture(name):
    problem, solver = mixture_problem(), method(name).solver
    by_tolerance = solver.adaptive and solver.order is None
    converges = solver.order is not None or by_tolerance
    # 100 evaluations a step; the tolerance's own steps; a large error constant, slow mixing
    steps = {"annealed-langevin": 12, "rosenbrock-1": 200, "langevin": 200}.get(name, 10 if by_tolerance else 100)
    x = sample(problem.sde, problem.target.score, shape=(2000, 2), method=name, steps=steps, seed=3, dtype=F64)
    exact = _exact()
    assert x.shape == (2000, 2) and x.dtype == F64
    slack = 5 * math.sqrt(2 / 2000) if converges else 0.4       # a corrector mixes slowly, and to its own fixed point
    for direction in ([1.0, -0.5], [0.0, 1.0]):
        a, b = (y @ torch.tensor(direction, dtype=F64) for y in (x, exact))
        assert abs(a.mean() - b.mean()) < 5 * b.std() / math.sqrt(2000) + slack / 5
        assert abs(a.var() / b.var() - 1) < slack


@pytest.mark.parametrize("name", FIXED)
def test_a_sample_belongs_to_its_seed_and_not_to_its_batch(name):
    full = sample(SDE, SCORE, shape=(8, 2), method=name, steps=6, seed=7)
    assert torch.equal(full, sample(SDE, SCORE, shape=(8, 2), method=name, steps=6, seed=7))
    assert torch.equal(full[:3], sample(SDE, SCORE, shape=(3, 2), method=name, steps=6, seed=7))
    assert not torch.equal(full, sample(SDE, SCORE, shape=(8, 2), method=name, steps=6, seed=8))


def test_one_seed_a_sample():
    a = sample(SDE, SCORE, shape=(3, 2), method="ddpm", steps=5, seed=[4, 9, 4])
    b = sample(SDE, SCORE, shape=(1, 2), method="ddpm", steps=5, seed=[9])
    assert torch.equal(a[1:2], b) and torch.equal(a[0], a[2])


@pytest.mark.parametrize("name", FIXED)
def test_global_random_state_is_untouched_by_a_seed_and_followed_without_one(name):
    before = torch.random.get_rng_state()
    x = sample(SDE, SCORE, shape=(4, 2), method=name, steps=3, seed=1)
    if method(name).solver.noise == "never":
        sample(SDE, SCORE, x_init=x, method=name, steps=3)
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(5)
    a = sample(SDE, SCORE, shape=(4, 2), method=name, steps=3)
    torch.manual_seed(5)
    info = sample_info(SDE, SCORE, shape=(4, 2), method=name, steps=3)
    assert torch.equal(a, info.x)
    assert torch.equal(a, sample(SDE, SCORE, shape=(4, 2), method=name, steps=3, seed=info.seed))


def test_a_generator_of_the_callers():
    draw = lambda: sample(SDE, SCORE, shape=(4, 2), method="ddpm", steps=3, seed=torch.Generator().manual_seed(3))
    assert torch.equal(draw(), draw())


def test_one_brownian_path_for_all_step_sizes_and_black_box_methods():
    run = lambda name, n: sample(SDE, gaussian_problem().target.score, x_init=gaussian_problem().start(1.0), method=name, steps=n, seed=3,
                                 noise="brownian", grid="uniform")
    fine = run("euler-maruyama", 256)
    for name in ("euler-maruyama", "sde-heun", "torchsde-euler", "reverse-diffusion", "dpm++2m-sde"):
        near, far = ((run(name, n) - fine).abs().mean() for n in (128, 8))
        assert near < 0.2 * far
    other = sample(SDE, gaussian_problem().target.score, x_init=gaussian_problem().start(1.0), method="euler-maruyama", steps=256, seed=4,
                   noise="brownian", grid="uniform")
    assert (other - fine).abs().mean() > 0.1


@pytest.mark.parametrize("shape", [(5,), (5, 2), (2, 3, 4), (2, 1, 4, 4), (2, 1, 2, 3, 2), (0, 2), (1, 2)])
@pytest.mark.parametrize("name", ["ddim", "euler-maruyama", "dpm++2m", "eab-3", "pc"])
def test_states_of_any_rank(shape, name):
    assert sample(SDE, SCORE, shape=shape, method=name, steps=3, seed=0).shape == shape


def _of_dtype(name, dtype):
    options = {"steps_per_level": 10} if name == "annealed-langevin" else {}        # 100 by default
    return sample(SDE, gaussian_problem().target.score, shape=(64, 3), method=name, steps=20, seed=2, dtype=dtype, **options)


_in_float64 = functools.lru_cache(maxsize=8)(lambda name: _of_dtype(name, F64))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", FIXED)
def test_dtypes_share_their_noise_and_differ_by_rounding(dtype, name):
    exact, x = _in_float64(name), _of_dtype(name, dtype)
    assert x.dtype == dtype
    bound = {torch.float64: 0.0, torch.float32: 2e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}[dtype]
    assert (x.double() - exact).abs().max() <= bound * exact.abs().max()


@pytest.mark.parametrize("name", ["ddim", "dpm++2m", "eab-3", "ddpm", "euler-maruyama"])
def test_float32_stays_close_over_a_thousand_steps(name):
    problem = mixture_problem()
    a, b = (sample(SDE, problem.target.score, x_init=problem.start(1.0).to(d), method=name, steps=1000, seed=2) for d in (F64, torch.float32))
    assert (a - b).square().mean().sqrt() < 2e-5 * a.square().mean().sqrt()


def test_the_default_dtype_is_left_alone_and_followed_for_a_shape():
    try:
        torch.set_default_dtype(F64)
        assert sample(SDE, SCORE, shape=(2, 2), steps=2, seed=0).dtype == F64
        assert sample(SDE, SCORE, x_init=torch.zeros(2, 2, dtype=torch.float32), steps=2).dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)
    for dtype in (torch.bfloat16, F64):
        assert sample(SDE, from_network(_Timed().to(dtype)), shape=(2, 2), steps=2, seed=0).dtype == dtype


class _Timed(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = torch.nn.Linear(2, 2)

    def forward(self, x, c, y=None, scale=1.0):
        return self.inner(x) * scale * (1.0 if y is None else y[:, None])


def test_networks_conditions_and_their_checks():
    net = _Timed()
    y = torch.linspace(0, 1, 4)
    score = from_network(net, predicts="eps")
    x = sample(SDE, score, shape=(4, 2), steps=3, seed=0, conditions={"y": y, "scale": 0.5})
    assert torch.equal(x, sample(SDE, from_network(net, conditions={"y": y, "scale": 0.5}), shape=(4, 2), steps=3, seed=0))
    assert not torch.equal(x, sample(SDE, score, shape=(4, 2), steps=3, seed=0))
    with pytest.raises(ValueError, match=r"conditions\['y'\] has 4 rows for a batch of 5"):
        sample(SDE, score, shape=(5, 2), steps=3, seed=0, conditions={"y": y})
    with pytest.raises(TypeError, match="takes none"):
        sample(SDE, SCORE, shape=(4, 2), steps=3, conditions={"y": y})


def test_the_result_shares_no_storage_and_the_start_is_unchanged():
    x = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
    for start in (x, x.t().contiguous().t(), torch.zeros(1, 2).expand(4, 2), x.clone().requires_grad_()):
        kept = start.detach().clone()
        out = sample(SDE, SCORE, x_init=start, method="ddim", steps=2)
        assert torch.equal(start.detach(), kept) and out.data_ptr() != start.data_ptr() and not out.requires_grad
    with torch.inference_mode():
        assert torch.isfinite(sample(SDE, SCORE, shape=(2, 2), method="heun", steps=3, seed=0)).all()


# -- budget, grid and span ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", [n for n in FIXED if not method(n).solver.adaptive])
@pytest.mark.parametrize("nfe", [8, 9, 13])
def test_a_budget_of_calls_is_filled_and_never_exceeded(name, nfe):
    net, options = Counted(), {"steps_per_level": 3} if name == "annealed-langevin" else {}
    info = sample_info(SDE, from_network(net), shape=(2, 2), method=name, nfe=nfe, seed=0, **options)
    assert net.calls == info.nfe <= nfe
    net.calls = 0
    more = sample_info(SDE, from_network(net), shape=(2, 2), method=name, steps=len(info.times), seed=0, **options)
    assert net.calls == more.nfe > nfe


def test_grids_by_name_instance_and_list():
    run = lambda **kw: sample_info(SDE, SCORE, shape=(2, 2), seed=0, **kw)
    assert run(steps=4, grid="karras").times == run(steps=4, grid=grids.Karras()).times
    assert run(grid=[0.9, 0.5, 0.1]).times == (0.9, 0.5, 0.1) == run(grid=torch.tensor([0.9, 0.5, 0.1], dtype=F64), steps=2).times
    assert run(steps=4, t_start=0.8, t_end=0.2).times[::4] == (0.8, 0.2)
    chain = VPSDE.from_betas(np.linspace(1e-3, 0.2, 100))
    assert sample_info(chain, SCORE, shape=(2, 2), method="ddim", steps=4, seed=0).times == (100.0, 75.0, 50.0, 25.0, 0.0)


def test_the_prior_is_the_marginal_at_the_noisy_end():
    for sde, std in ((VPSDE(), 1.0), (VESDE(), 50.0), (EDMSDE(), 80.0), (RectifiedFlow(), 1.0)):
        score = lambda x, level: Prediction(x, level, x0=torch.zeros_like(x))
        info = sample_info(sde, score, shape=(4000, 2), steps=1, method="euler", seed=0, record=True, t_end=0.9 * sde.t_max)
        assert stats.kstest((info.trajectory[0] / std).flatten().numpy(), "norm").pvalue > 1e-5
        assert stats.kstest((sde.prior((4000, 2), seed=1) / std).flatten().numpy(), "norm").pvalue > 1e-5


def test_sample_info_tells_what_ran():
    info = sample_info(SDE, SCORE, shape=(3, 2), method="heun", steps=5, seed=4, record=True)
    assert info.nfe == 10 and len(info.times) == 6 and info.trajectory.shape == (6, 3, 2) and info.seed == 4
    assert torch.equal(info.trajectory[-1], info.x)
    assert "heun" in info.explain and "VPSDE" in info.explain and "10 network calls" in info.explain


@pytest.mark.parametrize("name", [n for n in FIXED if method(n).solver.remembers])
@pytest.mark.parametrize("sde", [SDE, RectifiedFlow(), EDMSDE()], ids=["vp", "flow", "edm"])
def test_multistep_methods_stay_bounded_in_few_steps(name, sde):
    """Data and prior lie within 6 standard deviations: steps over decades of sigma must not extrapolate out of them. Three nodes with
    noise do so a little: the kernel at eta = 1 sits at the far end of a step, and the parabola goes through noisy evaluations."""
    target, bound = mixture_problem().target, 8 if name == "dpm++3m-sde" else 6
    for steps in (1, 2, 3, 4, 6):
        assert sample(sde, target.score, shape=(200, 2), method=name, steps=steps, seed=0, dtype=F64).abs().max() < bound


def test_too_few_steps_for_an_order_are_said_to_be_so():
    with pytest.warns(UserWarning, match=r"steps=2: eab-4 has its order from 4 steps on.*at lower order"):
        info = sample_info(SDE, SCORE, shape=(2, 2), method="eab-4", steps=2, seed=0)
    assert "too few steps" in info.explain
    assert "too few steps" not in sample_info(SDE, SCORE, shape=(2, 2), method="eab-4", steps=4, seed=0).explain


# -- encode ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name, order", [("heun", 2), ("ddim", 1), ("dpm++2m", 2), ("rk4", 4)])
def test_the_round_trip_error_falls_at_the_order(name, order):
    problem = mixture_problem()
    x = problem.target.sample(64, seed=0, dtype=F64)
    errors = []
    for n in (64, 128):
        z = encode(SDE, problem.target.score, x, method=name, steps=n, grid="logsnr")
        back = sample(SDE, problem.target.score, x_init=z, method=name, steps=n, grid="logsnr")
        errors.append((back - x).square().mean().sqrt())
    assert math.log2(errors[0] / errors[1]) > order - 0.25 and errors[1] < 0.05


def test_codes_of_a_gaussian_are_its_exact_flow():
    problem = gaussian_problem()
    x = problem.start(1e-3)
    z = encode(SDE, problem.target.score, x, method="rk4", steps=400, grid="logsnr")
    assert (z - problem.target.flow(x, SDE.at(1e-3), SDE.at(1.0))).abs().max() < 1e-6


def test_encoding_by_a_stochastic_method_is_refused():
    for name in ("ddpm", "euler-maruyama", "pc"):
        with pytest.raises(ValueError, match="probability-flow ODE"):
            encode(SDE, SCORE, torch.zeros(2, 2), method=name, steps=3)


# -- simulate -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("how, tolerance", [("exact", 0.0), ("euler-maruyama", 0.02)])
def test_the_forward_process_reaches_its_marginals(how, tolerance):
    x0 = torch.full((20_000, 1), 1.5, dtype=F64)
    path = simulate(SDE, x0, steps=200, seed=0, method=how)
    assert path.x.shape == (201, 20_000, 1) and torch.equal(path.x[0], x0) and path.times[-1] == 1.0
    for k in (1, 50, 200) if how == "exact" else (50, 200):
        mean, std = SDE.marginal(x0[:1], float(path.times[k]))
        assert abs(path.x[k].mean() - mean) < 5 * std / math.sqrt(20_000) + tolerance
        assert abs(path.x[k].std() / std - 1) < 5 / math.sqrt(40_000) + 2 * tolerance
    assert stats.kstest(path.x[-1].flatten().numpy(), "norm").pvalue > 1e-5


def test_simulating_any_sde_given_as_two_callables():
    """Geometric Brownian motion against its strong solution on the same path: strong order 1/2."""
    x0, a, b, errors = torch.ones(2000, 1, dtype=F64), 0.5, 0.8, []
    for n in (16, 64, 256):
        noise = random.BrownianPath(0, (2000, 1), span=(0.0, 1.0), dtype=F64)
        path = simulate(x0=x0, steps=n, noise=noise, drift=lambda x, t: a * x, diffusion=lambda x, t: b * x)
        exact = torch.exp((a - b**2 / 2) + b * noise.value(1.0))
        errors.append((path.x[-1] - exact).abs().mean())
    slopes = [math.log(e / f) / math.log(4) for e, f in zip(errors, errors[1:])]
    assert all(abs(s - 0.5) < 0.15 for s in slopes), slopes


def test_simulate_refuses_what_it_cannot_mean():
    x0 = torch.zeros(2, 1)
    for kwargs, error, message in (
            ({"sde": SDE, "x0": x0}, ValueError, "steps=None"), ({"sde": SDE, "x0": x0, "steps": 0}, ValueError, "steps=0"),
            ({"sde": SDE, "x0": None, "steps": 2}, ValueError, "x0=None"), ({"x0": x0, "steps": 2}, ValueError, "expected a process"),
            ({"x0": x0, "steps": 2, "drift": 1.0, "diffusion": 2.0}, TypeError, "drift=1.0: expected a function"),
            ({"sde": SDE, "x0": x0.long(), "steps": 2}, TypeError, "floating dtype"), ({"sde": "vp", "x0": x0, "steps": 2}, TypeError, "forward process"),
            ({"x0": x0, "steps": 2, "drift": lambda x, t: x * NAN, "diffusion": lambda x, t: 1.0}, ValueError, "finite"),
            ({"x0": x0, "steps": 2, "drift": lambda x, t: x, "diffusion": lambda x, t: x.new_ones(3)}, ValueError, "diffusion"),
            ({"sde": SDE, "x0": x0, "times": [0.0, 0.5, 0.4]}, ValueError, "strictly increasing"),
            ({"sde": SDE, "x0": x0, "times": [0.0, 2.0]}, ValueError, r"times\[1\]=2.0"),
            ({"sde": SDE, "x0": x0, "steps": 2, "method": "milstein"}, ValueError, "milstein"),
            ({"x0": x0, "steps": 2, "drift": lambda x, t: x[:1], "diffusion": lambda x, t: 1.0}, ValueError, "drift")):
        with pytest.raises(error, match=message):
            simulate(**kwargs)


# -- wrong calls ----------------------------------------------------------------------------------------------------
NAN, INF = math.nan, math.inf
WRONG = [
    ({"steps": 0}, ValueError, "steps=0"), ({"steps": -1}, ValueError, "steps=-1"), ({"steps": 2.5}, TypeError, "steps=2.5"),
    ({"steps": 10.0}, TypeError, "steps=10.0"), ({"steps": True}, TypeError, "steps=True"), ({"steps": "3"}, TypeError, "steps='3'"),
    ({"steps": None}, ValueError, "steps=None, nfe=None"), ({"nfe": 3}, ValueError, "steps=3, nfe=3"), ({"steps": None, "nfe": 0}, ValueError, "nfe=0"),
    ({"steps": None, "nfe": 1, "method": "heun"}, ValueError, "nfe >= 2"), ({"steps": None, "nfe": 9, "method": "scipy-rk45"}, ValueError, "scipy-rk45"),
    ({"method": "dpm+2m"}, ValueError, r"nearest: dpm\+\+2m"), ({"method": "xyz"}, ValueError, "Expected one of"), ({"method": 3}, TypeError, "method=3"),
    ({"method": "ddim", "eta": 1.5}, ValueError, "eta=1.5"), ({"method": "ddim", "eta": -0.1}, ValueError, "eta=-0.1"),
    ({"method": "euler-maruyama", "eta": -1.0}, ValueError, "eta=-1.0"), ({"method": "ddim", "churn": 1}, TypeError, "churn=1.*eta=0.0"),
    ({"method": "pc", "snr": 0.0}, ValueError, "snr=0.0"), ({"method": "pc", "corrector": "mala"}, ValueError, "mala"),
    ({"method": "scipy-rk45", "rtol": 0.0, "atol": 0.0}, ValueError, "rtol=0, atol=0"), ({"method": "ddpm", "variance": "learned"}, ValueError, "learned"),
    ({"grid": "cosine"}, ValueError, "cosine"), ({"grid": [0.1, 0.5]}, ValueError, r"times\[0\]=0.1, times\[1\]=0.5"), ({"grid": [0.5, 0.5]}, ValueError, "strictly"),
    ({"grid": [0.9, NAN, 0.1]}, ValueError, r"times\[1\]=nan"), ({"grid": [INF, 0.5]}, ValueError, r"times\[0\]=inf"), ({"grid": [1.5, 0.5]}, ValueError, "1.5"),
    ({"grid": [0.9]}, ValueError, "two or more times"), ({"grid": [0.9, 0.5]}, ValueError, "steps=3"), ({"grid": "ddpm"}, ValueError, "not a discrete chain"),
    ({"grid": 3.0}, TypeError, "grid=3.0"), ({"t_start": 0.1, "t_end": 0.5}, ValueError, "t_start=0.1"), ({"t_start": 2.0}, ValueError, "t_start=2.0"),
    ({"t_end": NAN}, ValueError, "t_end=nan"), ({"shape": None}, ValueError, "give exactly one"), ({"shape": (2.5, 2)}, TypeError, r"shape\[0\]=2.5"),
    ({"shape": ()}, ValueError, "batch axis"), ({"shape": (-1, 2)}, ValueError, r"shape\[0\]=-1"), ({"x_init": torch.zeros(2, 2)}, ValueError, "give exactly one"),
    ({"shape": None, "x_init": torch.zeros(2, 2, dtype=torch.int64)}, TypeError, "int64"), ({"shape": None, "x_init": torch.full((2, 2), NAN)}, ValueError, "NaN"),
    ({"shape": None, "x_init": torch.tensor(1.0)}, ValueError, "batch axis"), ({"shape": None, "x_init": np.zeros((2, 2))}, TypeError, "ndarray"),
    ({"dtype": torch.int32}, TypeError, "int32"), ({"seed": 1.5}, TypeError, "seed=1.5"), ({"seed": -1}, ValueError, "seed=-1"), ({"seed": [1, 2, 3]}, ValueError, "3 seeds"),
    ({"shape": None, "x_init": torch.zeros(2, 2), "dtype": torch.int64}, TypeError, "int64"), ({"device": "cudaa"}, ValueError, "cudaa"),
    ({"shape": None, "x_init": torch.zeros(2, 2), "seed": "x"}, TypeError, "seed='x'"), ({"noise": random.WhiteNoise(0, (2, 2), dtype=F64)}, ValueError, "float64"),
    ({"method": "ancestral", "inner": "euler-maruyama"}, ValueError, "solves an SDE, eta=1.0; expected a one-step method"), ({"method": "eab-3", "start": "no"}, TypeError, "start='no'"),
    ({"method": "ancestral", "inner": "scipy-rk45", "steps": None, "nfe": 9}, ValueError, "chooses its own"),
    ({"method": "euler-maruyama", "eta": lambda level: -1.0}, ValueError, "eta"),
    ({"noise": "pink"}, ValueError, "pink"), ({"noise": "clock"}, ValueError, "eta > 0"), ({"noise": random.WhiteNoise(0, (3, 2))}, ValueError, "bound to shape"),
]


@pytest.mark.parametrize("wrong, error, message", WRONG, ids=lambda v: str(v)[:40] if isinstance(v, dict) else "")
def test_wrong_calls_are_refused_before_the_first_network_call(wrong, error, message):
    net = Counted()
    call = {"shape": (2, 2), "steps": 3, "seed": 0, "method": "dpm++2m"} | wrong
    if isinstance(wrong.get("noise"), random.Noise):
        call["seed"] = None
    with pytest.raises(error, match=message):
        sample(SDE, from_network(net), **call)
    assert net.calls == 0


def test_black_box_sde_steps_from_alpha_zero_are_refused_before_the_network_is_called():
    net = Counted()
    for name in ("euler-maruyama", "sde-heun", "torchsde-euler"):
        with pytest.raises(ValueError, match="alpha = 0"):
            sample(RectifiedFlow(), from_network(net, predicts="x0"), shape=(2, 2), method=name, steps=4, seed=0)
    assert net.calls == 0


def test_a_budget_on_part_of_a_chain_is_capped_by_its_knots():
    chain = VPSDE.from_betas(np.linspace(1e-4, 0.02, 100))
    info = sample_info(chain, SCORE, x_init=torch.zeros(2, 2), method="ddpm", nfe=90, t_start=50.0, seed=0)
    assert info.nfe == 50


def test_conditions_of_the_network_itself_are_checked():
    with pytest.raises(ValueError, match="3 rows for a batch of 2"):
        sample(SDE, from_network(_Timed(), conditions={"y": torch.zeros(3)}), shape=(2, 2), steps=2, seed=0)


def test_wrong_processes_and_scores_are_refused():
    with pytest.raises(TypeError, match="forward process"):
        sample("vp", SCORE, shape=(2, 2), steps=3)
    for score in (torch.nn.Linear(2, 2), None, 3):
        with pytest.raises(TypeError, match="from_network"):
            sample(SDE, score, shape=(2, 2), steps=3)
    with pytest.raises(TypeError, match=r"Tensor.*call 1, step 0"):
        sample(SDE, lambda x, level: -x, shape=(2, 2), steps=3, seed=0)
    with pytest.raises(ValueError, match="belongs to a discrete chain"):
        sample(SDE, from_network(Counted(), time_input="index"), shape=(2, 2), steps=3)
    with pytest.raises(TypeError, match="finished Method"):
        sample(SDE, SCORE, shape=(2, 2), steps=3, method=method("ddim"), eta=0.5)


@pytest.mark.parametrize("fault, message", [
    (lambda x: x[:, :1], r"shape \(2, 1\)"), (lambda x: x[:1], r"shape \(1, 2\)"), (lambda x: x.sum(), r"shape \(\)"), (lambda x: None, "NoneType"),
    (lambda x: (x, x), "tuple"), (lambda x: x.to(torch.complex64), "complex64"), (lambda x: x.long(), "int64"), (lambda x: x.add_(1.0), "in place"),
    (lambda x: x * NAN, "NaN or inf"), (lambda x: torch.where(x == x[1, 0], INF, x), "1 of 2 samples, first sample 1")])
def test_faults_of_the_network_are_named_at_the_call(fault, message):
    given = []

    def net(x, c):
        given.append(c)
        return fault(x) if torch.equal(c, given[min(2, len(given) - 1)]) and len(given) > 2 else 0.1 * x

    with pytest.raises(sdediff.NetworkError, match=message) as caught:
        sample(SDE, from_network(net), shape=(2, 2), method="dpm++2m", steps=5, seed=0)
    assert re.search(r"net.*call 3, step 2, t=0\.\d+", str(caught.value))
    assert len(given) == (5 + 3 if "NaN" in str(caught.value) else 3)           # a run that lost its way is made again


def test_a_nan_row_of_a_target_is_not_spread_to_its_neighbours():
    target = Gaussian(torch.zeros(2), torch.eye(2))
    levels = SDE.levels([0.9, 0.5, 0.1])
    x = torch.ones(3, 2)
    x[1] = NAN
    for name in FIXED:
        recipe = method(name)
        *_, state = sdediff.iterate(sdediff.ReverseSDE(SDE, target.score, recipe.eta), recipe.solver, x, levels, random.WhiteNoise(0, (3, 2)))
        assert torch.isfinite(state.x[[0, 2]]).all()


def test_the_users_own_exceptions_pass_unchanged():
    class Mine(Exception):
        pass

    def net(x, c):
        raise Mine

    with pytest.raises(Mine):
        sample(SDE, from_network(net), shape=(2, 2), steps=2, seed=0)
    assert torch.is_grad_enabled()


def test_the_level_is_a_view_of_the_prediction_not_of_the_batch():
    out = sample(SDE, lambda x, level: Prediction(x, level, eps=x), shape=(2, 2), method="ddim", steps=2, seed=0)
    assert torch.isfinite(out).all()


@pytest.mark.gpu
def test_the_same_code_runs_on_cuda():
    net = torch.nn.Linear(2, 2).cuda()
    for name in FIXED:
        x = sample(SDE, from_network(lambda x, c: 0.1 * net(x)), shape=(300, 2), method=name, steps=5, seed=0, device="cuda")
        assert x.device.type == "cuda" and torch.isfinite(x).all()
        part = sample(SDE, SCORE, shape=(4, 2), method=name, steps=5, seed=0, device="cuda")
        assert torch.equal(part[:2], sample(SDE, SCORE, shape=(2, 2), method=name, steps=5, seed=0, device="cuda"))
    calls = iter(range(9))
    with pytest.raises(sdediff.NetworkError, match="call 2"):
        sample(SDE, from_network(lambda x, c: x * (NAN if next(calls) == 1 else 0.1)), shape=(2, 2), method="ddim", steps=4, seed=0, device="cuda")


@pytest.mark.parametrize("good, bad", [({"steps": 1}, {"steps": True}), ({"steps": 2}, {"steps": 2.0}), ({"nfe": 1}, {"nfe": True}),
                                       ({"steps": 2, "eta": 1}, {"steps": 2, "eta": True}), ({"steps": 2, "t_end": 0.0}, {"steps": 2, "t_end": False})])
def test_a_call_that_is_known_does_not_stand_for_one_of_equal_numbers(good, bad):
    run = lambda given: sample(VPSDE(), from_network(lambda x, c: 0.1 * x), shape=(2, 2), method="ddim", seed=0, **given)
    assert torch.equal(run(good), run(good))
    with pytest.raises(TypeError, match="expected"):
        run(bad)
