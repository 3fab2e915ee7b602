"""Legitimate but unusual calls are served: layouts, modes, dtypes, gradients, threads, copies, processes. And work is finite for every
finite input."""
import contextlib
import copy
import math
import multiprocessing
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import sdediff
from sdediff import (
    VPSDE,
    from_network,
    from_score,
    grids,
    guidance,
    inverse,
    likelihood,
    method,
    methods,
    operators,
    random,
    sample,
    targets,
)
from sdediff.testing import doors

SDE, F64 = VPSDE(), torch.float64
TARGET = targets.GaussianMixture([[-1.0, 0.5], [1.0, -0.5]], 0.1)
X = torch.tensor([[0.5, -0.25], [1.0, 0.75], [-0.5, 0.125]], dtype=F64)
NAMES = [name for name in methods() if name != "mala"]
QUICK = {"annealed-langevin": {"steps_per_level": 2}}


def tanh(x, c, **conditions):
    """A network that is a function of a module, and so can be pickled."""
    return 0.1 * torch.tanh(x)


SCORE = from_network(tanh)


# -- layouts and modes --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", NAMES)
def test_layouts_are_one_and_the_same_state(name):
    run = lambda x: sample(SDE, SCORE, x_init=x, method=name, steps=3, seed=0, **QUICK.get(name, {}))
    x = random.WhiteNoise(1, (2, 3, 4, 4)).normal()
    want = run(x.clone())
    close = 1e-5 if method(name).solver.adaptive else 1e-6      # its tolerance: a step that rounding makes it take or refuse
    for same in (x.transpose(1, 3).contiguous().transpose(1, 3), x.to(memory_format=torch.channels_last), x.clone().requires_grad_(),
                 torch.stack([x, x], -1)[..., 0], x.flip(0).flip(0)):
        out = run(same)
        assert torch.equal(out, want) or (out - want).abs().max() < close * want.abs().max(), same.stride()
        assert not out.requires_grad
    row = x[:1, :1].contiguous()
    assert torch.allclose(run(row.expand(2, 3, 4, 4)), run(row.repeat(2, 3, 1, 1)), rtol=1e-6)
    with torch.inference_mode():
        assert torch.equal(run(x.clone()), want) or (run(x.clone()) - want).abs().max() < 1e-6 * want.abs().max()


@pytest.mark.parametrize("call", [
    lambda x: sdediff.encode(SDE, SCORE, x, method="heun", steps=2), lambda x: sdediff.log_prob(SDE, SCORE, x, method="heun",
    steps=2).value,
    lambda x: sdediff.elbo(SDE, SCORE, x, draws=4, seed=0).value, lambda x: sdediff.renoise(SDE, x, 0.5, seed=0),
    lambda x: sdediff.denoise_from(SDE, SCORE, x, 0.5, steps=2, seed=0), lambda x: sdediff.round_trip(SDE, SCORE, x, steps=2).back,
    lambda x: sdediff.simulate(SDE, x, steps=2, seed=0).x], ids=["encode", "log_prob", "elbo", "renoise", "denoise_from", "round_trip",
    "simulate"])
@pytest.mark.parametrize("shape", [(0, 2), (1, 2), (3,), (2, 3, 1), (1, 2, 2, 2), (1, 1, 2, 2, 2)])
def test_every_door_takes_states_of_any_rank_and_any_batch(call, shape):
    x = 0.3 * random.WhiteNoise(0, shape).normal()
    out = call(x)
    assert torch.isfinite(out).all() and len(x) in out.shape
    with torch.inference_mode():
        assert torch.equal(call(x.clone()), out)


# -- dtypes -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, F64])
@pytest.mark.parametrize("network", [torch.float16, torch.bfloat16, torch.float32, F64])
def test_state_and_network_have_dtypes_of_their_own(dtype, network):
    net = torch.nn.Linear(2, 2).to(network)
    seen = set()

    class Seeing(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x, c):
            seen.update((x.dtype, c.dtype))
            return 0.1 * self.net(x)

    out = sample(SDE, from_network(Seeing()), shape=(3, 2), dtype=dtype, method="dpm++2m", steps=4, seed=0)
    assert out.dtype == dtype and seen == {network} and torch.isfinite(out).all()
    if dtype == F64 and network == torch.float32:       # the state keeps its digits: a shift of 1e-9 is seen in the result
        x = X[:, :2]
        run = lambda x: sample(SDE, from_network(lambda x, c: 0 * x), x_init=x, method="ddim", steps=4)
        assert ((run(x + 1e-9) - run(x)) / 1e-9 / (run(x + 1.0) - run(x)) - 1).abs().max() < 1e-5


def test_another_default_dtype_changes_no_run_of_a_given_dtype():
    run = lambda: sample(SDE, SCORE, shape=(3, 2), method="ddpm", steps=4, seed=0, dtype=torch.float32)
    want = run()
    try:
        torch.set_default_dtype(F64)
        got, likely = run(), sdediff.log_prob(SDE, SCORE, X.float(), method="heun", steps=2).value
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(got, want) and got.dtype == likely.dtype == torch.float32


# -- gradients ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["ddim", "heun", "dpm++2m", "unipc-3", "ddpm", "euler-maruyama", "edm-stochastic"])
def test_gradients_flow_through_the_loop_where_they_are_asked_for(name):
    recipe, levels = method(name), SDE.levels([0.9, 0.6, 0.3, 0.1])
    noise, weight = random.WhiteNoise(3, X.shape, dtype=F64), torch.linspace(-1, 1, 6, dtype=F64).reshape(3, 2)

    def value(x):
        eq = sdediff.ReverseSDE(SDE, TARGET.score, recipe.eta)
        *_, state = sdediff.iterate(eq, recipe.solver, x, levels, noise)
        return (weight * state.x).sum()

    x = X.clone().requires_grad_()
    gradient, = torch.autograd.grad(value(x), x)
    h, direction = 1e-5, torch.ones_like(X)
    with torch.no_grad():
        slope = (value(X + h * direction) - value(X - h * direction)) / (2 * h)
        assert not value(X).requires_grad
    assert abs((gradient * direction).sum() - slope) < 1e-6 * (1 + abs(slope))


# -- threads, interleaving, copies, processes ----------------------------------------------------------------------------
def test_threads_and_interleaved_loops_do_not_meet():
    jobs = [(name, seed) for name in ("ddpm", "dpm++2m", "heun", "rk45", "unipc-3") for seed in (0, 1)]
    run = lambda job: sample(SDE, SCORE, shape=(5, 2), method=job[0], steps=5, seed=job[1])
    want = [run(job) for job in jobs]
    with ThreadPoolExecutor(4) as pool:
        for got in (list(pool.map(run, jobs)), list(pool.map(run, jobs))):
            assert all(map(torch.equal, got, want))
    levels = SDE.levels([0.9, 0.6, 0.3, 0.1])
    loop = lambda seed: sdediff.iterate(sdediff.ReverseSDE(SDE, SCORE, 1.0), method("sa-solver").solver, X, levels,
        random.WhiteNoise(seed, X.shape, dtype=F64))
    alone, together = [[s.x for s in loop(k)] for k in (0, 1)], list(zip(loop(0), loop(1)))
    assert all(torch.equal(a.x, b) for (a, _), b in zip(together, alone[0])) and all(torch.equal(a.x, b) for (_, a),
        b in zip(together, alone[1]))


KNOWN = operators.Mask(torch.tensor([True, False]))
OBJECTS = {
    **{f"method {name}": method(name) for name in NAMES}, "method mala": method("mala", density=TARGET.log_prob),
    **{name: sdediff.sample_info(SDE, SCORE, shape=(2, 2), method="ddim", steps=2, seed=0) for name in ("sample_info",)},
    **{f"process {type(p).__name__}": p for p in (SDE, sdediff.SubVPSDE(), sdediff.CosineVPSDE(), sdediff.VESDE(), sdediff.EDMSDE(),
    sdediff.RectifiedFlow(),
                                                 VPSDE.from_betas([0.5] * 12), sdediff.VESDE.from_sigmas([0.1, 1.0]))},
    **{f"grid {name}": make() for name, make in grids.GRIDS.items()}, "level": SDE.at(0.5),
    "network score": SCORE, "function score": from_score(torch.neg), "classifier": sdediff.from_classifier(tanh),
    "classifier-free": guidance.classifier_free(SCORE, 2.0, null={"y": 1}), "temperature": guidance.temperature(SCORE, 0.5),
    "guided": guidance.classifier(SCORE, TARGET.log_posterior, 2.0), "observed": inverse.observe(SCORE, KNOWN, 0.1, torch.tensor([0.5])),
    "posterior": inverse.pigdm(SCORE, KNOWN, 0.1, torch.tensor([0.5])), "reverse": sdediff.ReverseSDE(SDE, SCORE),
    **{f"operator {type(o).__name__}": o for o in (KNOWN, operators.Matrix([[1.0, 2.0]]), operators.Downsample((1, 4, 4)),
                                                  operators.Colourise((3, 2, 2)), operators.Blur((1, 4, 4)))},
    "white": random.WhiteNoise(0, (2, 2)), "brownian": random.BrownianPath(0, (2, 2)),
    **{f"target {name}": targets.toy(name) for name in targets.TOYS}, "gaussian": targets.Gaussian([0.0, 1.0]),
    "empirical": targets.Empirical([[0.0], [1.0]]),
    "conditional": TARGET.conditional, "bins": likelihood.Bins(), "prediction": sdediff.Prediction(X, SDE.at(0.5), eps=X),
    "log_prob": sdediff.log_prob(SDE, SCORE, X, method="heun", steps=2), "bound": sdediff.elbo(SDE, SCORE, X, draws=4, seed=0),
    "errors": (sdediff.NetworkError("n"), sdediff.StepBudgetError("s"))}


@pytest.mark.parametrize("name", OBJECTS)
def test_public_objects_are_copied_and_pickled(name):
    one = OBJECTS[name]
    for other in (copy.deepcopy(one), copy.copy(one), pickle.loads(pickle.dumps(one))):
        assert type(other) is type(one)
        assert repr(other).split(" at 0x")[0] == repr(one).split(" at 0x")[0]


@pytest.mark.parametrize("name", ["process VPSDE", "process ChainVPSDE", "method dpm++2m", "network score", "target rings", "white",
    "brownian"])
def test_a_copy_gives_the_same_samples(name):
    one = OBJECTS[name]
    other = pickle.loads(pickle.dumps(one))
    given = {"shape": (2, 2), "method": "ddpm", "steps": 2, "seed": 0}
    if isinstance(one, sdediff.SDE):
        run = lambda v: sample(v, SCORE, **given)
    elif isinstance(one, sdediff.Method):
        run = lambda v: sample(SDE, SCORE, **{**given, "method": v})
    elif isinstance(one, random.Noise):
        run = lambda v: sample(SDE, SCORE, **{**given, "seed": None, "noise": v})
    else:
        run = lambda v: sample(SDE, v.score if hasattr(v, "score") else v, **given)
    assert torch.equal(run(one), run(other))


def job(seed):
    """What a worker draws: bytes, which every start method hands back alike."""
    torch.set_num_threads(1)
    return sample(SDE, SCORE, shape=(4, 2), method="ddpm", steps=3, seed=seed).numpy().tobytes()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_workers_draw_what_this_process_draws(start):
    want = [job(seed) for seed in (0, 1, 2)]
    with multiprocessing.get_context(start).Pool(2) as pool:
        assert pool.map(job, (0, 1, 2)) == want


# -- finite work --------------------------------------------------------------------------------------------------------
ROUGH = {
    "huge": lambda x, t: -1e30 * x, "great": lambda x, t: torch.full_like(x, 1e30), "jump": lambda x, t: torch.where(x > 0.1, -1e3, 1e3),
    "wild": lambda x, t: 1e3 * torch.sign(torch.sin(1e6 * x)), "fine": lambda x, t: 1e4 * torch.sin(1e4 * x) * math.sin(1e5 * t)}
ADAPTIVE = [name for name in NAMES if method(name).solver.adaptive] + ["restart", "picard", "langevin", "pc", "heun", "dpm++2m", "ddpm"]


class Limited:
    """A score that is called so often at most."""

    def __init__(self, function, most):
        self.function, self.most, self.calls = function, most, 0

    def __call__(self, x, t):
        self.calls += 1
        assert self.calls <= self.most, f"more than {self.most} calls"
        return self.function(x, t)


@pytest.mark.parametrize("rough", ROUGH)
@pytest.mark.parametrize("name", ADAPTIVE)
def test_work_is_finite_whatever_the_score(name, rough):
    budget = next(({k: 200} for k in ("max_steps", "max_calls") if k in sdediff.recipes.options(name)), {})
    tight = {"rtol": 1e-12, "atol": 0.0} if "rtol" in sdediff.recipes.options(name) else {}
    score = Limited(ROUGH[rough], 6000)
    named = contextlib.suppress(sdediff.StepBudgetError, sdediff.NetworkError, ValueError)
    with named:
        assert sample(SDE, from_score(score), x_init=X, method=name, steps=3, seed=0, **budget, **tight).shape == X.shape
    assert 1 <= score.calls <= score.most


@pytest.mark.parametrize("name", [name for name in NAMES if "rtol" in sdediff.recipes.options(name)])
def test_a_budget_that_does_not_suffice_is_an_error_that_names_it(name):
    option = next((k for k in ("max_steps", "max_calls") if k in sdediff.recipes.options(name)), None)
    with pytest.raises(sdediff.StepBudgetError, match=rf"{option}=3.*[Ee]xpected"):
        sample(SDE, TARGET.score, x_init=X, method=name, steps=1, seed=0, **{option: 3}, rtol=1e-10, atol=1e-10)


def test_an_adaptive_likelihood_has_a_budget_too():
    for option, name in (("max_steps", "rk45"), ("max_calls", "scipy-rk45")):
        with pytest.raises(sdediff.StepBudgetError, match=option):
            sdediff.log_prob(SDE, TARGET.score, X, method=name, rtol=1e-11, atol=1e-11, **{option: 4})


def test_metropolis_steps_are_as_many_as_asked_for():
    score = Limited(lambda x, t: -1e30 * x, 100)
    sample(SDE, from_score(score), x_init=X, method="mala", density=lambda x, level: -1e30 * x.square().sum(1), steps=4, seed=0)
    assert score.calls <= 12


def test_the_doors_keep_no_work_for_later():
    """A generator of samples checks its arguments where it is made, and draws nothing until it is asked."""
    calls = doors.NETWORK.calls
    stream = sdediff.sample_chunks(SDE, doors.SCORE, shape=(10, 2), chunk=2, method="ddim", steps=2, seed=0)
    assert doors.NETWORK.calls == calls and next(stream).shape == (2, 2) and doors.NETWORK.calls == calls + 2
