"""Grids span what they promise, strictly downwards, uniform in their own variable; the chain's spacings are the papers'."""
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from strategies import PROCESSES, processes

from sdediff.grids import DDPM, GRIDS, Grid, Karras, LogSNR, Quadratic, Sech, Uniform, checked, grid
from sdediff.sde import EDMSDE, VESDE, VPSDE, RectifiedFlow, process

CONTINUOUS = {"uniform": Uniform(), "quadratic": Quadratic(), "cubic": Quadratic(power=3.0), "logsnr": LogSNR(), "karras": Karras(),
              "karras-3": Karras(rho=3.0), "sech": Sech(), "sech-angle": Sech(0.0, 1.0, 1.0, 1e-12)}
# the function of the level in which each grid's steps are equal
VARIABLE = {"uniform": lambda m: m.t, "quadratic": lambda m: math.sqrt(m.t), "cubic": lambda m: m.t**(1 / 3), "logsnr": lambda m: m.lam,
            "karras": lambda m: (m.sigma / m.alpha)**(1 / 7), "karras-3": lambda m: (m.sigma / m.alpha)**(1 / 3), "sech": lambda m: sech_mass(m.lam, Sech()),
            "sech-angle": lambda m: math.atan2(m.sigma, m.alpha)}


def sech_mass(lam, g):
    """The density's integral, by quadrature."""
    from scipy.integrate import quad
    density = lambda v: g.floor + 1 / math.cosh((v - g.centre) / (g.noisy if v < g.centre else g.clean))
    return quad(density, g.centre, lam, epsabs=0, epsrel=1e-12)[0]


@given(st.sampled_from(list(CONTINUOUS)), processes(), st.integers(1, 120), st.data())
def test_length_ends_and_order(name, sde, steps, data):
    start = data.draw(st.sampled_from([None, sde.t_max, 0.7 * sde.t_max]))
    end = data.draw(st.sampled_from([None, 0.0, 0.05 * sde.t_max]))
    first, last = (sde.t_max if start is None else start), (sde.t_min if end is None else end)
    assume(steps == 1 or first - last > 1.0 or sde.knots is None)
    if sde.knots and name in ("logsnr", "karras", "karras-3", "sech", "sech-angle"):
        assume(steps == 1 or (first - (sde.at(first).alpha == 0)) > (1.0 if sde.at(last).sigma == 0 else last))
    times = CONTINUOUS[name](sde, steps, start, end)
    assert len(times) == steps + 1
    assert (times[0], times[-1]) == (first, last)
    assert all(isinstance(t, float) for t in times)
    assert all(s < t for t, s in itertools.pairwise(times))


@pytest.mark.parametrize("name", CONTINUOUS)
@pytest.mark.parametrize("process_name", PROCESSES)
@pytest.mark.parametrize("steps", [2, 17])
def test_steps_are_equal_in_the_grids_own_variable(name, process_name, steps):
    sde = PROCESSES[process_name]
    times = CONTINUOUS[name](sde, steps, 0.9 * sde.t_max, 0.1 * sde.t_max)
    u = np.array([VARIABLE[name](sde.at(t)) for t in times])
    assert np.allclose(np.diff(u), (u[-1] - u[0]) / steps, rtol=1e-8, atol=1e-11 * np.abs(u).max())


@pytest.mark.parametrize("name", ["sech", "sech-angle"])
def test_a_sech_grid_moves_with_the_scale_of_the_data(name):
    """Data half as wide want every lambda greater by log 2."""
    sde, g = VESDE(), CONTINUOUS[name]
    one = [sde.at(t).lam for t in g(sde, 9, sde.time_of(torch.tensor([-2.0])).item(), sde.time_of(torch.tensor([3.0])).item())]
    a, b = (float(sde.time_of(torch.tensor([lam + math.log(2)], dtype=torch.float64))) for lam in (one[0], one[-1]))
    half = [sde.at(t).lam for t in g.at_scale(0.5)(sde, 9, a, b)]
    assert np.allclose(half, np.array(one) + math.log(2), atol=1e-9)


def test_karras_is_the_papers_formula():
    """sigma_i = (sigma_max^(1/rho) + i/(N - 1) (sigma_min^(1/rho) - sigma_max^(1/rho)))^rho, eq. 5."""
    sde, n, rho = EDMSDE(sigma_min=0.002, sigma_max=80.0), 18, 7.0
    expected = [(80.0**(1 / rho) + i / (n - 1) * (0.002**(1 / rho) - 80.0**(1 / rho)))**rho for i in range(n)]
    assert np.allclose(Karras()(sde, n - 1), expected, rtol=1e-12)
    assert np.allclose(Karras()(sde, n, t_end=0.0), [*expected, 0.0], rtol=1e-12)


@pytest.mark.parametrize("name", ["logsnr", "karras", "sech"])
@pytest.mark.parametrize("process_name", ["vp", "cosine", "flow", "ve-from-point", "edm", "linear-vp"])
def test_a_clean_end_is_reached_from_t_min(name, process_name):
    """sigma = 0 at the end: the last interval goes there from t_min, the others are the grid that ends at t_min."""
    sde = PROCESSES[process_name]
    start = 0.9 * sde.t_max
    times = CONTINUOUS[name](sde, 12, start, 0.0)
    assert times[-1] == 0.0
    assert times[:-1] == CONTINUOUS[name](sde, 11, start)
    assert times[-2] == sde.t_min > 0


@pytest.mark.parametrize("name", ["logsnr", "karras", "sech"])
def test_alpha_zero_at_the_start(name):
    sde = RectifiedFlow()
    times = CONTINUOUS[name](sde, 12)
    assert times[0] == 1.0 and times[-1] == sde.t_min
    assert sde.at(times[1]).lam == pytest.approx(-sde.at(sde.t_min).lam, rel=1e-9)
    both = CONTINUOUS[name](sde, 13, t_end=0.0)
    assert both[:-1] == times
    for steps in (1, 2, 3):
        assert len(CONTINUOUS[name](sde, steps, t_end=0.0)) == steps + 1
    assert CONTINUOUS[name](sde, 1, t_end=0.0) == [1.0, 0.0]
    chain = PROCESSES["chain-zero"]
    times = CONTINUOUS[name](chain, 5)
    assert times[:2] == [6.0, 5.0] and times[-2:] == [1.0, 0.0]


@pytest.mark.parametrize("name", ["logsnr", "karras", "sech"])
@pytest.mark.parametrize("sde", [VPSDE.from_betas([0.5]), VPSDE.from_betas([1.0]), VESDE.from_sigmas([2.0]), RectifiedFlow()])
def test_one_step_is_the_span(name, sde):
    assert CONTINUOUS[name](sde, 1, t_end=0.0) == [sde.t_max, 0.0]


def test_defaults_are_the_processes_own_ends():
    for sde in PROCESSES.values():
        assert Uniform()(sde, 4)[0] == sde.t_max
        assert Uniform()(sde, 4)[-1] == sde.t_min


# -- the chain's own spacings -------------------------------------------------------------------------------------

def spaced(kind, n, steps):
    """Lin et al. 2024, Table 2, counting timesteps 1..n from the clean side; ties rounded to even as numpy does."""
    if kind == "leading":
        return [1 + k * (n // steps) for k in range(steps)]
    if kind == "trailing":
        return sorted(round(n - k * n / steps) for k in range(steps))
    return [1 + round(k * (n - 1) / (steps - 1)) for k in range(steps)]


@pytest.mark.parametrize("kind", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("steps", [2, 7, 10, 30, 50, 999, 1000])
def test_spacings_of_the_chain(kind, steps):
    sde = process("ddpm")
    times = DDPM(spacing=kind)(sde, steps)
    expected = spaced(kind, 1000, steps)
    assert times == [*map(float, reversed(expected)), 0.0]
    if kind != "leading":
        assert times[0] == 1000.0                   # the last timestep is used
    if kind != "trailing" or steps == 1000:
        assert times[-2] == 1.0                     # index 0 is used
    if steps == 1000:
        assert times == [float(t) for t in range(1000, -1, -1)]


def test_the_papers_example():
    """1000 timesteps, 10 steps: leading ends (starts) at 901 of 1000, trailing at 1000, linspace at both ends."""
    sde = process("ddpm")
    assert DDPM("leading")(sde, 10)[:-1] == [901.0, 801.0, 701.0, 601.0, 501.0, 401.0, 301.0, 201.0, 101.0, 1.0]
    assert DDPM("trailing")(sde, 10)[:-1] == [1000.0, 900.0, 800.0, 700.0, 600.0, 500.0, 400.0, 300.0, 200.0, 100.0]
    assert DDPM("linspace")(sde, 10)[:-1] == [1000.0, 889.0, 778.0, 667.0, 556.0, 445.0, 334.0, 223.0, 112.0, 1.0]


@given(st.integers(1, 60), st.integers(1, 60), st.sampled_from(["leading", "trailing", "linspace"]))
def test_every_step_count_of_every_chain(n, steps, kind):
    sde = VPSDE.from_betas([0.1] * n)
    if steps > n:
        with pytest.raises(ValueError, match=rf"steps={steps}.*{n} timesteps"):
            DDPM(kind)(sde, steps)
        return
    times = DDPM(kind)(sde, steps)
    assert len(times) == steps + 1 == len(set(times))
    assert times[-1] == 0.0 and times[-2] >= 1.0 and times[0] <= n
    assert all(t == round(t) for t in times)
    gaps = -np.diff(times[:-1])
    assert steps == 1 or gaps.max() - gaps.min() <= 1          # as even as integers allow


@pytest.mark.parametrize("kind", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("start, end, knots", [(8.0, 0.0, 8), (10.0, 3.0, 7), (7.5, 2.5, 5), (10.0, 0.5, 10), (6.0, 0.9, 6)])
def test_chain_grid_on_a_span_holds_all_its_knots(kind, start, end, knots):
    """Every index inside (end, start] can be used, and then the end itself."""
    sde = VPSDE.from_betas([0.1] * 10)
    times = DDPM(kind)(sde, knots, start, end)
    assert times == [float(t) for t in range(10, 0, -1) if end < t <= start] + [end]
    with pytest.raises(ValueError, match=f"{knots} timesteps"):
        DDPM(kind)(sde, knots + 1, start, end)


@pytest.mark.parametrize("name", ["vp", "edm", "flow", "cosine", "linear-vp"])
def test_chain_grid_needs_a_chain(name):
    with pytest.raises(ValueError, match="not a discrete chain"):
        DDPM()(PROCESSES[name], 10)


def test_chain_grid_on_a_ladder():
    assert DDPM()(PROCESSES["ladder"], 4) == [4.0, 3.0, 2.0, 1.0, 0.0]


# -- refusals -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("times", [[], [0.5], [0.1, 0.5], [0.9, 0.5, 0.5, 0.1], [0.9, 0.1, 0.5], [0.9, math.nan, 0.1], [math.inf, 0.5],
                                   [1.1, 0.5], [0.5, -0.1], [0.5, math.nan]])
def test_bad_lists_of_times_are_refused(times):
    with pytest.raises(ValueError, match="times"):
        checked(VPSDE(), times)


@pytest.mark.parametrize("times", [[0.9, "0.5"], [0.9, None], [True, 0.5], [0.9, 1j]])
def test_times_that_are_not_numbers_are_refused(times):
    with pytest.raises(TypeError, match="times"):
        checked(VPSDE(), times)


@pytest.mark.parametrize("times", [[0.9, 0.5, 0.0], np.array([0.9, 0.5, 0.0]), (0.9, 0.5, 0),
                                   torch.tensor([0.9, 0.5, 0.0], dtype=torch.float64)])
def test_good_lists_come_back_as_floats(times):
    out = checked(VPSDE(), times)
    assert out == [0.9, 0.5, 0.0]
    assert all(type(t) is float for t in out)


@pytest.mark.parametrize("name", [*CONTINUOUS, "ddpm"])
@pytest.mark.parametrize("steps, error", [(0, ValueError), (-1, ValueError), (2.0, TypeError), (True, TypeError), ("3", TypeError),
                                          (None, TypeError)])
def test_bad_step_counts_are_refused(name, steps, error):
    with pytest.raises(error, match="steps"):
        {**CONTINUOUS, "ddpm": DDPM()}[name](PROCESSES["chain"], steps)


@pytest.mark.parametrize("name", CONTINUOUS)
@pytest.mark.parametrize("start, end", [(0.2, 0.5), (0.5, 0.5), (1.1, 0.0), (0.5, -0.1), (math.nan, 0.0), (0.5, math.nan), (math.inf, 0.0)])
def test_bad_spans_are_refused(name, start, end):
    with pytest.raises(ValueError, match=r"t_start|t_end"):
        CONTINUOUS[name](VPSDE(), 5, start, end)


@pytest.mark.parametrize("make, error, match", [
    (lambda: Quadratic(power=0.0), ValueError, "power"), (lambda: Karras(rho=-1.0), ValueError, "rho"),
    (lambda: Karras(rho="7"), TypeError, "rho"), (lambda: Sech(floor=0.0), ValueError, "floor=0.0"), (lambda: Sech(noisy=0.0), ValueError, "noisy"),
    (lambda: Sech(clean=-1.0), ValueError, "clean=-1.0"), (lambda: Sech(centre=math.inf), ValueError, "centre"), (lambda: Sech(floor="1"), TypeError, "floor"), (lambda: DDPM(spacing="trailin"), ValueError, "nearest: trailing"),
    (lambda: grid("karas"), ValueError, "nearest: karras"), (lambda: grid(3), TypeError, "grid=3"),
    (lambda: grid(None), TypeError, "grid=None")])
def test_bad_grids_are_refused_by_name(make, error, match):
    with pytest.raises(error, match=match):
        make()


def test_grids_by_name_by_class_and_by_instance():
    assert {name: type(grid(name)) for name in GRIDS} == GRIDS
    assert grid(Karras) == Karras() == grid("karras")
    mine = Karras(rho=5.0)
    assert grid(mine) is mine
    assert all(isinstance(grid(name), Grid) for name in GRIDS)


def test_a_users_grid_is_checked():
    class Broken(Grid):
        def times(self, sde, steps, start, end):
            return [start, end, end]

    with pytest.raises(ValueError, match=r"times\[1\]"):
        Broken()(VPSDE(), 2)
