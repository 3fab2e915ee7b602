"""The closed-form error on Gaussian data: against unit impulses through the black box, runs on rotated Gaussians, quadrature, autograd."""
import decimal
import functools
import math

import numpy as np
import pytest
import scipy.integrate
import scipy.stats
import torch

import sdediff
from sdediff import EDMSDE, VPSDE, RectifiedFlow, ReverseSDE, iterate, targets
from sdediff.analysis import BAND, _above_log, gaussian_error, ranking, spectrum_of
from sdediff.grids import Karras, LogSNR, Uniform
from sdediff.testing import Convergence, affine_law, gaussian_problem

F64 = torch.float64
VP, CHAIN = VPSDE(), VPSDE.from_betas(torch.linspace(1e-4, 0.04, 300, dtype=F64))
SPECTRUM, MEAN = (0.004, 0.25, 3.0), (0.3, -0.5, 1.0)
REFUSED = {"rosenbrock-1": "Jacobian", "rk45": "chooses its own", "scipy-dop853": "chooses its own", "gotta-go-fast": "chooses its own",
           "picard": "chooses its own", "torchsde-euler": "another library", "torchdiffeq-rk4": "another library"}
INFINITE = {"euler-maruyama", "sde-heun", "sra1"}       # black-box SDE steps, whose coefficients are infinite at alpha = 0


def linear(name: str) -> bool:
    return name != "mala" and not name.startswith(("rosenbrock", "torch", "scipy", "picard")) and not sdediff.method(name).solver.adaptive


LINEAR = [name for name in sdediff.methods() if linear(name)]


# -- the law, by another road ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("sde", [VP, EDMSDE(), CHAIN, RectifiedFlow()], ids=lambda sde: type(sde).__name__)
def test_every_linear_method_has_the_law_of_its_impulse_responses(sde):
    for name in LINEAR:
        if isinstance(sde, RectifiedFlow) and name in INFINITE:
            with pytest.raises(ValueError, match="alpha = 0"):
                gaussian_error(name, sde, 7)
            continue
        found = gaussian_error(name, sde, 7, spectrum=SPECTRUM, mean=MEAN)
        for i, (c, m) in enumerate(zip(SPECTRUM, MEAN)):
            probe = affine_law(name, sde, sde.levels(found.times), m, c)
            for ours, theirs in ((found.mean, probe.mean), (found.variance, probe.variance), (found.exact_mean, probe.exact_mean),
                                 (found.exact_variance, probe.exact_variance), (found.w2, probe.w2)):
                assert float(ours[i]) == pytest.approx(theirs, rel=1e-12, abs=1e-12), (name, c)


@pytest.mark.parametrize("name, options", [
    ("ddpm", {"variance": "beta"}), ("ddpm", {"variance": lambda level: 0.1 * level.sigma**2}), ("ddim", {"eta": 0.5}),
    ("euler-maruyama", {"eta": lambda level: level.sigma}), ("pc", {"corrector_steps": 3}), ("annealed-langevin", {"steps_per_level": 20}),
    ("eab-3", {"form": "x0", "start": False}), ("sa-solver", {"predictor": 3, "corrector": 0, "tau": 0.7}),
    ("restart", {"intervals": ((0.1, 1.0, 2, 3),)})])
def test_options_reach_the_law(name, options):
    times = LogSNR()(VP, 8, 0.8, 0.01)
    found = gaussian_error(name, VP, times=times, spectrum=[0.25], mean=0.5, **options)
    probe = affine_law(sdediff.method(name, **options), VP, VP.levels(times))
    assert float(found.variance) == pytest.approx(probe.variance, rel=1e-12) and float(found.mean) == pytest.approx(probe.mean, rel=1e-12)


@pytest.mark.parametrize("name", ["ddim", "heun", "dpm++3m", "unipc-2"])
def test_a_rotated_gaussian_moves_eigenvalue_by_eigenvalue(name):
    problem = gaussian_problem()
    c, q = torch.linalg.eigh(problem.target.cov)
    x, m = problem.start(1.0), problem.target.mean
    found = gaussian_error(name, VP, 9, spectrum=c, mean=q.T @ m)
    *_, end = iterate(ReverseSDE(VP, problem.target.score), sdediff.method(name).solver, x, VP.levels(found.times))
    y = (x - VP.at(1.0).alpha * m) @ q
    assert torch.allclose(end.x @ q, found.mean + found.gain * y, rtol=0, atol=1e-10)
    exact = problem.target.flow(x, VP.at(1.0), VP.at(VP.t_min))
    assert torch.allclose(exact @ q, found.flow_mean + found.flow_gain * y, rtol=0, atol=1e-10)


@pytest.mark.parametrize("sde", [VP, EDMSDE()], ids=lambda sde: type(sde).__name__)
@pytest.mark.parametrize("prior", [False, True])
def test_the_paths_of_either_start(sde, prior):
    """A quadratic of an affine map of N(mu, v) has its mean over the two points mu -+ sqrt(v)."""
    c, m = 0.3, 0.7
    target, (first, last) = targets.Gaussian([m], c), (sde.at(t) for t in (sde.t_max, sde.t_min))
    mu, v = (0.0, sde.prior_std(first)**2) if prior else (first.alpha * m, first.alpha**2 * c + first.sigma**2)
    x = torch.tensor([[mu - v**0.5], [mu + v**0.5], [mu]], dtype=F64)
    found = gaussian_error("heun", sde, 6, spectrum=[c], mean=m, prior=prior)
    *_, end = iterate(ReverseSDE(sde, target.score), sdediff.method("heun").solver, x, sde.levels(found.times))
    assert float(found.mean) == pytest.approx(float(end.x[2]), rel=1e-10)
    assert float(found.variance) == pytest.approx(float(end.x[1] - end.x[0])**2 / 4, rel=1e-10)
    distance = (end.x - target.flow(x, first, last))[:2].square().mean().sqrt()
    assert float(found.path_rmse) == pytest.approx(float(distance), rel=1e-9)


def test_from_the_prior_its_mismatch_is_what_a_fine_grid_leaves():
    exact, prior = (gaussian_error("rk4", VP, 400, grid="logsnr", spectrum=[0.5], mean=2.0, prior=p) for p in (False, True))
    first = VP.at(1.0)
    law = (float(exact.flow_mean - exact.flow_gain * first.alpha * 2.0), float(exact.flow_gain))
    assert (float(prior.mean), float(prior.variance.sqrt())) == pytest.approx(law, rel=1e-7)
    assert float(prior.w2) > 1e3 * float(exact.w2) and float(prior.path_rmse) < 1e-6
    assert float(prior.exact_variance) == float(exact.exact_variance)


def test_a_point_mass_and_the_noisy_end_of_a_flow():
    """c = 0 under RectifiedFlow, from alpha = 0 to sigma = 0: one step of DDIM is exact."""
    found = gaussian_error("ddim", RectifiedFlow(), 1, spectrum=[0.0, 0.2], mean=[0.5, 0.0], t_end=0.0)
    assert found.mean.tolist() == [0.5, 0.0] and found.variance.tolist() == [0.0, 0.0] and float(found.w2[0]) == 0.0


# -- distances ------------------------------------------------------------------------------------------------------
def test_w2_and_kl_are_their_integrals():
    found = gaussian_error("ddpm", VP, 8, spectrum=SPECTRUM, mean=MEAN)
    for i in range(len(SPECTRUM)):
        p, q = (scipy.stats.norm(float(m[i]), math.sqrt(float(v[i]))) for m, v in
                ((found.mean, found.variance), (found.exact_mean, found.exact_variance)))
        kl = scipy.integrate.quad(lambda x, p=p, q=q: p.pdf(x) * (p.logpdf(x) - q.logpdf(x)), p.mean() - 12 * p.std(), p.mean() + 12 * p.std(),
                                  epsabs=0, epsrel=1e-11)[0]
        assert float(found.kl[i]) == pytest.approx(kl, rel=1e-9)
        nodes, weights = np.polynomial.hermite_e.hermegauss(20)       # quantiles of both laws at the same standard normal
        squares = [(p.ppf(u) - q.ppf(u))**2 for u in scipy.stats.norm.cdf(nodes)]
        assert float(found.w2[i])**2 == pytest.approx(np.dot(weights, squares) / math.sqrt(2 * math.pi), rel=1e-7)


@pytest.mark.parametrize("r", [-0.999, -0.26, -0.24, -1e-3, -1e-9, 0.0, 1e-12, 1e-6, 0.2499, 0.2501, 3.0, 1e5])
def test_the_kl_of_near_laws_does_not_cancel(r):
    with decimal.localcontext(decimal.Context(prec=60)):
        exact = float(decimal.Decimal(r) - (1 + decimal.Decimal(r)).ln())
    assert float(_above_log(torch.tensor(r, dtype=F64))) == pytest.approx(exact, rel=1e-15, abs=0)


def test_the_total_counts_multiplicities():
    for name in ("ddim", "ddpm"):
        once = gaussian_error(name, VP, 8, spectrum=[0.1, 0.1, 0.1, 2.0], mean=[0.4, 0.4, 0.4, 0.0]).total
        counted = gaussian_error(name, VP, 8, spectrum=[0.1, 2.0], mean=[0.4, 0.0], multiplicity=[3, 1]).total
        for a, b in zip(once, counted):
            assert a is b is None or float(a) == pytest.approx(float(b), rel=1e-14)


@pytest.mark.parametrize("name", ["ddim", "heun", "dpm++2m", "dpm-solver-2", "eab-3", "dpm++3m", "ab-3", "rk4", "eab-4", "unipc-3", "ddpm",
                                  "euler-maruyama", "dpm++sde", "sra1"])
def test_w2_falls_at_the_declared_order(name):
    recipe = sdediff.method(name)
    order = recipe.solver.weak_order if recipe.stochastic else recipe.solver.order
    steps = (40, 80, 160, 320)
    errors = [float(gaussian_error(name, VP, n, grid="logsnr", spectrum=[0.05, 0.5, 2.0], mean=[0.5, -1.0, 0.25]).total.w2) for n in steps]
    assert Convergence(steps, tuple(errors)).meets(order)


# -- the grid's gradient --------------------------------------------------------------------------------------------
def _closed_form(name, times, c, m):
    """Gain, mean and variance of four methods by hand, differentiable: exact level functions and the textbook step."""
    (a, da), (v, dv) = VP.alpha(times), VP.variance(times)
    sigma = v.sqrt()
    state = torch.stack([torch.ones_like(c), torch.zeros_like(c)])         # coefficients of the start and of m
    noise = torch.zeros_like(c)
    unit = torch.tensor([0.0, 1.0], dtype=F64)[:, None]
    x0 = lambda k, y: (v[k] * unit + a[k] * c * y) / (a[k]**2 * c + v[k])
    score = lambda k, y: -(y - a[k] * unit) / (a[k]**2 * c + v[k])
    velocity = lambda k, y: da[k] * x0(k, y) - dv[k] / 2 * score(k, y)
    for k in range(len(times) - 1):
        h = times[k + 1] - times[k]
        if name == "euler":
            state = state + h * velocity(k, state)
        elif name == "heun":
            slope = velocity(k, state)
            state = state + h / 2 * (slope + velocity(k + 1, state + h * slope))
        else:
            fresh = (1 - v[k + 1] * a[k]**2 / (v[k] * a[k + 1]**2)) if name == "ddpm" else torch.zeros((), dtype=F64)
            kept = sigma[k + 1] * (1 - fresh).sqrt() * sigma[k]
            state = a[k + 1] * x0(k, state) - kept * score(k, state)
            noise = ((a[k + 1] * a[k] * c + kept) / (a[k]**2 * c + v[k]))**2 * noise + v[k + 1] * fresh
    return state[0], (state[0] * a[0] + state[1]) * m, state[0]**2 * (a[0]**2 * c + v[0]) + noise


@pytest.mark.parametrize("name", ["euler", "heun", "ddim", "ddpm"])
@pytest.mark.parametrize("span", [(1.0, 1e-3), (0.7, 0.02)])
def test_the_gradient_in_the_times_is_that_of_the_closed_form(name, span):
    c, m = torch.tensor([0.05, 0.6, 2.0], dtype=F64), torch.tensor([0.5, -1.0, 0.3], dtype=F64)
    grid = Uniform() if name in ("euler", "heun") else Karras()
    times = torch.tensor(grid(VP, 8, *span), dtype=F64, requires_grad=True)
    found = gaussian_error(name, VP, times=times, spectrum=c, mean=m)
    for ours, theirs in zip((found.gain, found.mean, found.variance), _closed_form(name, times, c, m)):
        assert torch.allclose(ours, theirs, rtol=1e-11, atol=1e-13)
        for i in range(len(c)):
            mine, exact = (torch.autograd.grad(v[i], times, retain_graph=True)[0] for v in (ours, theirs))
            assert float((mine - exact).abs().max()) <= 1e-9 * max(1.0, float(exact.abs().max()))       # of values that are about one


@functools.cache
def _slope(name, k):
    """d log(total error) / d times[k] by Richardson's extrapolation of plain central differences, and as the gradient says."""
    times = torch.tensor(LogSNR()(VP, 6), dtype=F64, requires_grad=True)
    value = lambda t: (lambda e: e.total.w2 if e.stochastic else e.total.path_rmse)(gaussian_error(name, VP, times=t)).log()
    at = times.tolist()
    h = 0.05 * (at[k] - at[k + 1])
    moved = lambda u: value([*at[:k], at[k] + u, *at[k + 1:]])
    rows = [[float(moved(h / 2**j) - moved(-h / 2**j)) / (2 * h / 2**j)] for j in range(5)]
    for j in range(1, 5):
        for i in range(1, j + 1):
            rows[j].append(rows[j][i - 1] + (rows[j][i - 1] - rows[j - 1][i - 1]) / (4**i - 1))
    return rows[-1][-1], float(torch.autograd.grad(value(times), times)[0][k])


@pytest.mark.parametrize("name", ["dpm++2m", "eab-4", "unipc-2", "dpm++sde"])
def test_the_gradient_of_an_error_by_richardson(name):
    for k in (1, 4):
        plain, ours = _slope(name, k)
        assert ours == pytest.approx(plain, rel=1e-7)


def test_a_step_down_the_gradient_is_a_better_grid():
    times = torch.tensor(LogSNR()(VP, 8), dtype=F64, requires_grad=True)
    error = gaussian_error("dpm++2m", VP, times=times).total.path_rmse
    slope, = torch.autograd.grad(error, times)
    inner = torch.nn.functional.pad(slope[1:-1], (1, 1))
    moved = gaussian_error("dpm++2m", VP, times=times.detach() - 1e-3 * inner / inner.norm()).total.path_rmse
    assert float(moved) - error.item() == pytest.approx(-1e-3 * float(inner.norm()), rel=0.1)


def test_ends_of_infinite_log_snr_are_held_fixed():
    times = torch.linspace(1.0, 0.0, 7, dtype=F64, requires_grad=True)
    slope, = torch.autograd.grad(gaussian_error("dpm++2m", RectifiedFlow(), times=times).total.w2, times)
    assert slope[0] == slope[-1] == 0 and bool((slope[1:-1] != 0).all()) and bool(torch.isfinite(slope).all())


# -- what is refused ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", REFUSED)
def test_methods_without_a_table_are_refused_by_name(name):
    if name not in sdediff.methods():
        pytest.skip("an optional package")
    with pytest.raises(ValueError, match=f"(?s)method='{name}'.*{REFUSED[name]}.*expected fixed steps.*'ddim'"):
        gaussian_error(name, VP, 5)


@pytest.mark.parametrize("name, options", [("mala", {"density": lambda x, level: x.sum(1)}), ("langevin", {"rule": "norm"}),
                                           ("ddpm", {"variance": "optimal"})])
def test_options_that_leave_the_linear_are_refused(name, options):
    with pytest.raises(ValueError, match="has no coefficients to read off"):
        gaussian_error(name, VP, 5, **options)


@pytest.mark.parametrize("given, match", [
    ({"spectrum": [[1.0, 0.0], [0.0, 1.0]]}, "spectrum_of"), ({"spectrum": [-1.0]}, ">= 0"), ({"spectrum": []}, "variances"),
    ({"spectrum": [math.nan]}, "finite"), ({"mean": [0.0, 1.0]}, "one for each eigenvalue"), ({"multiplicity": -1.0}, ">= 0"),
    ({"times": [1.0, 0.5]}, "expected none of steps"), ({"nfe": 5}, "give exactly one")])
def test_wrong_numbers_are_refused(given, match):
    with pytest.raises(ValueError, match=match):
        gaussian_error("ddim", VP, 5, **given)


def test_more_that_is_refused():
    with pytest.raises(ValueError, match="strictly decreasing"):
        gaussian_error("ddim", VP, times=[0.5, 0.5])
    with pytest.raises(TypeError, match=r"times\.double"):
        gaussian_error("ddim", VP, times=torch.tensor([1.0, 0.5], requires_grad=True))
    with pytest.raises(ValueError, match="stochastic method's paths"):
        _ = gaussian_error("ddpm", VP, 5).path_rmse
    with pytest.raises(ValueError, match="solves the probability-flow ODE alone"):
        gaussian_error(sdediff.Method("odd", sdediff.method("heun").solver, 1.0), VP, 5)


# -- spectra and rankings -------------------------------------------------------------------------------------------
def test_the_spectrum_of_data_and_targets():
    x = torch.randn(50, 1, 2, 3, generator=torch.Generator().manual_seed(0), dtype=F64) + 5.0
    wanted = np.linalg.eigvalsh(np.cov(x.flatten(1).numpy(), rowvar=False, bias=True))
    assert spectrum_of(x).tolist() == pytest.approx(wanted.tolist(), rel=1e-12)
    assert spectrum_of(targets.Empirical(x.flatten(1))).tolist() == pytest.approx(wanted.tolist(), rel=1e-10)
    few = spectrum_of(x[:4].float())
    assert few.dtype == F64 and few.shape == (6,) and few[:2].tolist() == [0.0, 0.0] and float(few[2]) < 1e-10 < float(few[3])
    assert spectrum_of(targets.Gaussian([0.0, 1.0], [0.5, 0.1])).tolist() == pytest.approx([0.1, 0.5])
    with pytest.raises(ValueError, match="leading batch axis"):
        spectrum_of(torch.ones(3))


def test_the_ranking_is_sorted_and_says_what_gaussian_error_says():
    ode = ranking(VP, nfe=8, methods=["ddim", "heun", "ddpm", ("eab-3", {"form": "x0"}), "rosenbrock-2", "rk4"])
    assert {entry.name for entry in ode} == {"ddim", "heun", "eab-3", "rk4"} and {e.grid for e in ode} == {"uniform", "quadratic", "logsnr", "karras", "sech"}
    errors = [float(entry.error.total.path_rmse) for entry in ode]
    assert errors == sorted(errors) and all(entry.error.calls <= 8 for entry in ode)
    again = gaussian_error("eab-3", VP, nfe=8, grid="karras", form="x0")
    entry = next(entry for entry in ode if entry.name == "eab-3" and entry.grid == "karras")
    assert entry.options == {"form": "x0"} and float(entry.error.total.w2) == float(again.total.w2)
    sde = ranking(CHAIN, nfe=10, methods=["ddim", "ddpm", "mala"], spectrum=[1.0], mean=0.5, stochastic=True)
    assert {(entry.name, entry.grid) for entry in sde} >= {("ddpm", "ddpm"), ("ddpm", "logsnr")} and sde[0].error.stochastic
    with pytest.raises(ValueError, match="dimm"):
        ranking(VP, nfe=8, methods=["dimm"])
    with pytest.raises(ValueError, match=r"spectrum=\[-1.0\]"):
        ranking(VP, nfe=8, spectrum=[-1.0], methods=["ddim"])
    with pytest.raises(ValueError, match=r"nothing to rank.*takes 4 network calls"):
        ranking(VP, nfe=3, methods=["rk4"], grids=["uniform"])


def test_by_default_every_method_is_ranked_on_the_band():
    found = ranking(VP, nfe=6, grids=["logsnr"])
    assert {e.name for e in found} == {n for n in LINEAR if not sdediff.method(n).stochastic}
    assert found[0].error.spectrum.tolist() == list(BAND)
