"""Parallel in time: Picard's window gives the serial run to its tolerance, in fewer calls one after the other."""
import dataclasses
import math

import numpy as np
import pytest
import torch

from sdediff import (
    EDMSDE,
    VPSDE,
    NetworkError,
    RectifiedFlow,
    ReverseSDE,
    encode,
    from_network,
    iterate,
    method,
    random,
    sample,
    sample_info,
)
from sdediff.solvers import DDIM, HEUN, Chain, Exploded, Exponential, Picard, Rosenbrock, State, table
from sdediff.solvers.parallel import Window
from sdediff.solvers.tracing import linear_step
from sdediff.testing import mixture_problem

F64 = torch.float64
VP, MIX = VPSDE(), mixture_problem().target

# Every kind of step: one call and several, noise in the end or in the stages, the area of the path, correctors, raised levels.
INNER = {"ddim": 100, "heun": 50, "dpm-solver-2": 50, "euler-maruyama": 100, "ddpm": 100, "ancestral": 50, "sra1": 50, "dpm++sde": 50,
         "edm-stochastic": 50, "pc": 50}


def _start(rows=8, d=2, std=1.0, seed=4):
    return std * random.WhiteNoise(seed, (rows, d), dtype=F64).normal()


def _run(recipe, steps=50, x=None, sde=VP, score=MIX.score, seed=3, **options):
    return sample_info(sde, score, x_init=_start() if x is None else x, method=recipe, steps=steps, seed=seed, **options)


def _draws(inner):
    return method(inner).solver.noise == "always" or method(inner).eta != 0


def _gap(a, b):
    return float((a - b).abs().max())


# -- the serial run -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("inner, steps", INNER.items())
def test_it_is_the_serial_run_to_the_tolerance(inner, steps):
    serial = _run(inner, steps, record=True)
    calls = []
    for tol, bound in ((1e-3, 1e-2), (1e-6, 1e-5), (1e-10, 1e-9), (0.0, 1e-12)):
        info = _run(method("picard", inner=inner, tol=tol), steps, record=True)
        assert _gap(info.trajectory, serial.trajectory) < bound, tol
        calls.append(info.nfe)
    assert sorted(calls) == calls and calls[1] < 0.5 * serial.nfe and calls[3] < serial.nfe
    assert _gap(_run(inner, steps, seed=4).x, serial.x) > 0.1 or not _draws(inner)


@pytest.mark.parametrize("inner", [name for name in INNER if _draws(name)])
def test_it_follows_the_brownian_path_of_the_serial_run(inner):
    x = _start(4)
    serial = _run(inner, 16, x, noise="brownian")
    assert _gap(_run(method("picard", inner=inner, tol=0.0, window=6), 16, x, noise="brownian").x, serial.x) < 1e-12
    assert _gap(_run(inner, 16, x).x, serial.x) > 0.1                           # white noise of the same seed is another one


def test_calls_one_after_the_other():
    """Measured, and bounded here a little above: 11, 14 and 22 calls for the 100, 100 and 200 of the serial run."""
    x = _start(64)
    for inner, serial, most in (("ddim", 100, 13), ("ddpm", 100, 17), ("heun", 200, 26)):
        wide = {"inner": inner, "window": 32, "tol": 1e-4}
        assert _run(inner, 100, x).nfe == serial
        secant, plain = (_run(method("picard", **wide, secant=which), 100, x).nfe for which in (True, False))
        assert secant <= most and secant < plain < 0.3 * serial, (inner, secant, plain)


def test_both_kinds_of_calls_are_reported():
    rows = []
    net = from_network(lambda x, c: rows.append(len(x)) or 0.1 * torch.tanh(x))
    info = sample_info(VP, net, shape=(6, 2), method="picard", steps=30, seed=0)
    assert info.nfe == len(rows) < 30 and all(n % 6 == 0 and n <= 16 * 6 for n in rows) and max(rows) == 16 * 6
    assert f"{len(rows)} network calls in sequence, {sum(rows) / 6:g} evaluations per sample" in info.explain
    assert "in sequence" not in sample_info(VP, net, shape=(6, 2), method="ddim", steps=5, seed=0).explain


@pytest.mark.parametrize("inner", ["ddpm", "dpm++sde"])
def test_a_generator_is_asked_in_the_order_of_the_serial_run(inner):
    seed = lambda: torch.Generator().manual_seed(7)
    assert _gap(_run(method("picard", inner=inner, tol=0.0), seed=seed()).x, _run(inner, seed=seed()).x) < 1e-12


@pytest.mark.parametrize("window, calls", [(1, 50), (2, 50), (7, 32), (1000, 15)])
def test_any_window(window, calls):
    info = _run(method("picard", inner="ddpm", window=window, tol=1e-9))
    assert _gap(info.x, _run("ddpm").x) < 1e-8 and info.nfe <= calls


def test_it_takes_over_the_equation_and_the_grid_of_the_method_inside():
    inner = method("euler-maruyama", eta=0.5)
    recipe = method("picard", inner=inner, tol=0.0)
    assert recipe.eta == 0.5 and method("picard", inner="edm-heun").grid == method("edm-heun").grid
    assert _gap(_run(recipe).x, _run(inner).x) < 1e-12
    falling = method("euler-maruyama", eta=lambda level: 1 / (1 + level.sigma))
    assert _gap(_run(method("picard", inner=falling, tol=0.0)).x, _run(falling).x) < 1e-12
    for name in ("ddim", "heun", "ddpm", "sra1", "pc", "edm-heun"):
        solver, within = method("picard", inner=name).solver, method(name).solver
        assert (solver.order, solver.weak_order, solver.strong_order, solver.noise) == (within.order, within.weak_order, within.strong_order,
                                                                                        within.noise)


def test_upwards():
    x = MIX.sample(8, seed=1, dtype=F64)
    for inner in ("ddim", "heun"):
        serial = encode(VP, MIX.score, x, method=inner, steps=60)
        assert _gap(encode(VP, MIX.score, x, method="picard", inner=inner, steps=60, tol=1e-8), serial) < 1e-7


def test_float32():
    x = _start(16).float()
    for inner in ("ddim", "heun", "ddpm"):
        serial, info = _run(inner, 100, x), _run(method("picard", inner=inner), 100, x)
        assert info.x.dtype == torch.float32 and _gap(info.x, serial.x) < 1e-5 and info.nfe < 0.4 * serial.nfe


def test_its_table_is_that_of_the_solver_inside():
    levels = VP.levels([1.0, 0.6, 0.3, 0.1])
    assert table(method("picard", inner="heun").solver, VP, levels) == table(HEUN, VP, levels)


# -- samples --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("inner", ["ddim", "ddpm"])
def test_a_sample_does_not_depend_on_its_neighbours(inner):
    recipe, x = method("picard", inner=inner, tol=1e-3, window=8), _start(12)
    batch = _run(recipe, 60, x, seed=list(range(12)))
    alone = [_run(recipe, 60, x[i:i + 1], seed=[i]) for i in range(12)]
    assert max(_gap(one.x[0], batch.x[i]) for i, one in enumerate(alone)) < 1e-13
    slowest = max(one.nfe for one in alone)
    assert min(one.nfe for one in alone) < slowest <= batch.nfe <= slowest + 1          # nobody waits for more than the slowest


def test_a_sample_of_nan_ends_and_harms_nobody():
    x, calls = _start(4), 0

    def score(x, level):
        nonlocal calls
        calls += 1
        return MIX.score(x, level)

    def run(x):
        *_, state = iterate(ReverseSDE(VP, score), Picard(DDIM()), x, VP.levels(np.linspace(1, 1e-3, 31)))
        return state.x

    whole, poisoned = run(x), x.clone()
    poisoned[1] = math.nan
    calls = 0
    out = run(poisoned)
    assert calls == 30 and out[1].isnan().all()
    assert _gap(out[[0, 2, 3]], whole[[0, 2, 3]]) < 1e-13


def test_conditions_are_repeated_for_the_states_of_each_sample():
    labels, shift, seen = torch.tensor([0, 1, 2, 1, 2]), torch.linspace(-1, 1, 5, dtype=F64)[:, None].repeat(1, 2), []

    def net(x, c, y, shift, scale):
        seen.append((len(x), len(y), tuple(shift.shape)))
        return scale * torch.tanh(x + shift + torch.eye(3, 2, dtype=x.dtype)[y])

    given = {"conditions": {"y": labels, "shift": shift, "scale": torch.tensor(0.3)}, "score": from_network(net, "x0")}
    x = _start(5)
    serial = _run("ddpm", x=x, **given)
    assert _gap(_run(method("picard", inner="ddpm", tol=1e-9), x=x, **given).x, serial.x) < 1e-8
    assert {rows // 5 for rows, *_ in seen} > {1, 16} and all(rows == labels_ == shifts[0] for rows, labels_, shifts in seen)
    other = given | {"conditions": given["conditions"] | {"y": labels.flip(0)}}
    assert _gap(_run("ddpm", x=x, **other).x, serial.x) > 0.1


def test_only_whole_multiples_of_the_conditions_are_repeated():
    net = lambda x, c, y, w: y[:, None] * x if len(y) == len(x) else torch.full_like(x, len(y))
    score = from_network(net, "x0", conditions={"y": torch.tensor([1.0, 2.0, 3.0]), "w": torch.tensor(2.0)})
    x = torch.ones(6, 2)
    level = VP.at(torch.full((6, 1), 0.5, dtype=F64))
    assert score(x, level).x0[:, 0].tolist() == [1, 2, 3, 1, 2, 3]              # blocks of the batch
    assert score(torch.ones(5, 2), VP.at(0.5)).x0[0, 0] == 3                    # neither 5 nor 2 rows of 3 conditions: as they are
    assert score(torch.ones(2, 2), VP.at(0.5)).x0[0, 0] == 3


def test_a_fault_names_samples_not_rows():
    def net(x, c):
        return torch.where((x == x[1, 0]) & (net.calls.append(1) is None) & (len(net.calls) == 2), math.nan, 0.1 * x)
    net.calls = []
    with pytest.raises(NetworkError, match=r"in 1 of 3 samples, first sample 1; call 2, step 1, t=0\.\d+\.\.0\.\d+"):
        sample(VP, from_network(net), shape=(3, 2), method="picard", steps=20, seed=0)


# -- processes and ends ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("inner", ["ddim", "edm-heun", "ddpm", "dpm++2s"])
@pytest.mark.parametrize("sde, times", [
    (VP, np.linspace(1.0, 0.0, 41)), (EDMSDE(), [*np.geomspace(80, 0.002, 40), 0.0]), (RectifiedFlow(), np.linspace(1.0, 0.0, 41)),
    (RectifiedFlow(), np.linspace(1.0, 0.1, 41)), (VPSDE.from_betas(np.linspace(1e-4, 0.2, 60)), np.arange(60, -1, -1.0)),
    (VPSDE.from_betas([*np.linspace(1e-4, 0.2, 40), 1.0]), np.arange(41, -1, -1.0))],
    ids=["vp", "edm", "flow", "flow-early", "chain", "chain-zero-snr"])
def test_processes_from_alpha_zero_and_to_sigma_zero(sde, times, inner):
    """Steps of infinite length are the solver's own."""
    times = [float(t) for t in times]
    x = _start(std=sde.at(times[0]).sigma)
    serial = _run(inner, None, x, sde, grid=times)
    info = _run(method("picard", inner=inner, tol=0.0), None, x, sde, grid=times)
    assert bool(torch.isfinite(serial.x).all()) and _gap(info.x, serial.x) < 1e-12
    quick = _run(method("picard", inner=inner), None, x, sde, grid=times)
    assert _gap(quick.x, serial.x) < 1e-5 and quick.nfe < 0.75 * serial.nfe


def test_steps_of_zero_length_and_steps_with_more_calls_than_others():
    levels = VP.levels([1.0, 1.0, 0.8, 0.6, 0.6, 0.6, 0.4, 0.3, 0.2, 0.1, 0.05, 0.05])
    for inner in (DDIM(), Exploded(HEUN), HEUN, DDIM(1.0)):
        source = random.WhiteNoise(5, (8, 2), dtype=F64)
        ends = [list(iterate(ReverseSDE(VP, MIX.score), solver, _start(), levels, source)) for solver in (inner, Picard(inner, 4, 0.0))]
        assert max(_gap(a.x, b.x) for a, b in zip(*ends)) < 1e-12
    serial = _run("restart", 40)
    info = _run(method("picard", inner="restart"), 40)
    assert _gap(info.x, serial.x) < 1e-5 and info.nfe < 0.6 * serial.nfe


def test_a_state_that_was_moved_starts_the_window_anew():
    """A corrector moves the state between two steps, and is to be found inside rather than outside."""
    outside, inside, serial = (_run(method("pc", predictor=method("picard", inner="ddim", tol=0.0))),
                               _run(method("picard", inner=method("pc", predictor="ddim"), tol=0.0)), _run(method("pc", predictor="ddim")))
    assert _gap(outside.x, serial.x) < 1e-12 and _gap(inside.x, serial.x) < 1e-12
    assert outside.nfe == serial.nfe > inside.nfe


def test_a_single_step_is_the_solver_s_own():
    t, s = VP.at(0.5), VP.at(0.4)
    eq, x = ReverseSDE(VP, MIX.score), _start()
    one = DDIM().step(eq, State(x), t, s, None).x
    assert torch.equal(Picard(DDIM()).step(eq, State(x), t, s, None).x, one)
    elsewhere = Picard(DDIM()).over(VP.levels([1.0, 0.9, 0.8]))
    assert torch.equal(elsewhere.step(eq, State(x), t, s, None).x, one)


# -- what is held, and what is refused ------------------------------------------------------------------------------
def test_memory_is_bounded_by_the_window():
    def held(n, window):
        *_, kept = zip(*[(state, _size(state)) for state in
                         iterate(ReverseSDE(VP, MIX.score), Picard(DDIM(1.0), window), _start(), VP.levels(np.linspace(1, 1e-3, n + 1)),
                                 random.WhiteNoise(1, (8, 2), dtype=F64))])
        return max(kept)

    assert held(120, 8) <= 3 * 17 + 18 + 2 and held(120, 8) < 0.6 * held(120, 16)       # states, evaluations; noise; the newest of each


def _size(state):
    """Tensors (B, *D) in a state's memory, in units of a state."""
    if not state.memory:
        return 0
    (_, window), = state.memory
    assert isinstance(window, Window) and len(window.ends) <= 2 * 16 + 2
    parts = [window.x, window.at, window.value, window.handed, window.held, *window.noise]
    return sum(v.numel() for v in parts if v is not None) / state.x.numel()


@pytest.mark.parametrize("inner, error, text", [
    ("dpm++2m", ValueError, "inner=.*Exponential.*remembers"), ("eab-3", ValueError, "inner=.*remembers"),
    ("scipy-rk45", ValueError, "inner=.*SciPy.*chooses its own"), ("picard", ValueError, "inner=.*Picard.*chooses its own"),
    ("rosenbrock-1", TypeError, "inner=.*Rosenbrock.*not linear"), (method("ddpm", variance="optimal"), TypeError, "inner=.*optimal.*not linear"),
    (method("langevin", rule="norm"), TypeError, "inner=.*norm.*not linear"), ("torchsde-euler", TypeError, "inner=.*TorchSDE.*not linear"),
    ("no such", ValueError, "no such")])
def test_what_is_inside_is_refused_by_name(inner, error, text):
    calls = []
    with pytest.raises(error, match=text):
        sample(VP, from_network(lambda x, c: calls.append(1) or x), shape=(2, 2), method="picard", inner=inner, steps=5)
    assert not calls


def test_wrong_arguments_are_refused():
    for wrong, error in (({"window": 0}, ValueError), ({"window": 2.5}, TypeError), ({"tol": -1.0}, ValueError), ({"tol": math.inf}, ValueError),
                         ({"secant": 1}, TypeError)):
        with pytest.raises(error, match=next(iter(wrong))):
            method("picard", **wrong)
    with pytest.raises(TypeError, match="inner='ddim'"):
        Picard("ddim")
    for bare in (Exponential(2), Rosenbrock(2)):
        with pytest.raises(ValueError, match=r"inner=.*remembers"):
            Picard(bare)
    with pytest.raises(ValueError, match="nfe=9: picard chooses its own number"):
        sample(VP, MIX.score, shape=(2, 2), method="picard", nfe=9)
    with pytest.raises(ValueError, match="eta=1"):
        _run(dataclasses.replace(method("picard"), eta=1.0))


# -- a step read off ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("predicts", ["x0", "eps", "v"])
@pytest.mark.parametrize("name", ["ddim", "heun", "euler-maruyama", "ddpm", "ancestral", "sra1", "seeds-3", "edm-stochastic", "restart", "pc"])
def test_a_step_is_read_off_with_the_draws_of_a_real_source(name, predicts):
    recipe = method(name)
    t, s = VP.level_of(2.5), VP.level_of(2.9)
    solver, eq, x = recipe.solver.over([t, s]), ReverseSDE(VP, MIX.score, recipe.eta), _start()
    for source in (random.WhiteNoise(3, x.shape, dtype=F64), random.BrownianPath(3, x.shape, dtype=F64)):
        step = linear_step(solver, eq, t, s, predicts=predicts)
        vectors = {("x",): x} | {("noise", i): draw(source.at(2)) for i, draw in enumerate(step.draws)}
        value = lambda form, known=vectors: sum(v * known[term] for term, v in form.items())
        for i, (form, level) in enumerate(zip(step.inputs, step.levels)):
            vectors["D", i] = getattr(MIX.score(value(form), level), predicts)
        assert _gap(value(step.end), solver.step(eq, State(x), t, s, source.at(2)).x) < 1e-12


def test_a_step_that_is_not_linear_has_no_form():
    with pytest.raises(TypeError, match="table"):
        linear_step(Rosenbrock(1), ReverseSDE(VP, MIX.score), VP.at(0.5), VP.at(0.4))
    assert linear_step(Chain(DDIM(), DDIM()), ReverseSDE(VP, MIX.score), VP.at(0.5), VP.at(0.4)).end.keys() == {("x",), ("D", 0)}
