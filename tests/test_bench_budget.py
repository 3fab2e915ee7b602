r"""The error budget against closed forms. For Gaussian data N(m, C) the flows are known: an exact score, a score with a known error, N(0, I)
in place of the law at t_max, and the way from t_min to 0. In the chart y = x/alpha, r = sigma/alpha, a constant error delta of eps gives

    d/dr (y - m)/sqrt(c^2 + r^2) = delta/sqrt(c^2 + r^2),   so that   y(r_0) moves by - delta sqrt(c^2 + r_0^2) (asinh(r_T/c) - asinh(r_0/c)).
"""
import json
import math
import re

import pytest
import torch
from scipy.integrate import quad

import sdediff
from sdediff import EDMSDE, VESDE, VPSDE, RectifiedFlow, data, runs, targets
from sdediff.bench import budget
from sdediff.score import Prediction

F64 = torch.float64
VARIANCES = (0.25, 1.5)
GAUSSIAN = targets.Gaussian(torch.tensor([0.5, -0.3]), torch.tensor(VARIANCES))
NAMES = ["prior mismatch", "truncation at t_min", "score error", "discretisation"]
FEW = {"n": 500, "repeats": 3, "levels": 6}


def _shifted(score, delta):
    """The score with an error delta of eps, the same everywhere."""
    def wrong(x, level):
        p = score(x, level)
        return Prediction(x, level, eps=p.eps + delta)
    return wrong


def _deviations(sde, t):
    level = sde.at(t)
    return torch.tensor([math.sqrt(level.alpha**2 * v + level.sigma**2) for v in VARIANCES], dtype=F64), level.alpha * GAUSSIAN.mean


@pytest.fixture(scope="module")
def exact():
    return budget.measure((VPSDE(), GAUSSIAN.score), GAUSSIAN, method="dpm++2m", steps=20, **FEW)


def test_each_ingredient_vanishes_where_it_is_exact(exact):
    assert [i.name for i in exact.ingredients] == NAMES
    assert exact["score error"].w2 == exact["score error"].path == (0, 0, 0)
    assert exact.score_kl == (0, 0, 0)
    fine = budget.measure((RectifiedFlow(), GAUSSIAN.score), GAUSSIAN, method=budget.REFERENCE, steps=budget.FINE, **FEW)
    assert fine["discretisation"].path == fine["prior mismatch"].path == (0, 0, 0)      # alpha(t_max) = 0: the prior is the law
    assert fine.prior_kl.value < 1e-15
    assert fine.total.path.value == pytest.approx(fine["truncation at t_min"].path.value, rel=1e-4)
    chain = VPSDE.from_betas(torch.linspace(1e-3, 0.3, 40).tolist())
    ends_clean = budget.measure((chain, GAUSSIAN.score), GAUSSIAN, method="ddim", steps=10, **FEW)
    assert ends_clean["truncation at t_min"].path == (0, 0, 0)


@pytest.mark.parametrize("sde", [VPSDE(), VESDE(), EDMSDE(sigma_max=10.0), RectifiedFlow()], ids=lambda sde: type(sde).__name__)
def test_the_prior_is_carried_onto_the_law_at_t_max(sde):
    """For a Gaussian by the affine map that Monge's problem has as its solution."""
    x = sde.prior_std() * torch.randn(200, 2, dtype=F64, generator=torch.Generator().manual_seed(0))
    deviations, mean = _deviations(sde, sde.t_max)
    assert (budget.onto_marginal(x, sde, GAUSSIAN) - (mean + deviations / sde.prior_std() * x)).abs().max() < 1e-6
    assert (budget.onto_marginal(x, sde, GAUSSIAN, 64) - (mean + deviations / sde.prior_std() * x)).abs().max() < 1e-10


@pytest.mark.parametrize("sde", [VPSDE(), VESDE(), EDMSDE(), RectifiedFlow()], ids=lambda sde: type(sde).__name__)
def test_the_flow_from_t_min_to_the_data(sde):
    x = budget._noised(GAUSSIAN, sde.at(sde.t_min), 200, 1)
    exact = GAUSSIAN.flow(x, sde.at(sde.t_min), targets.CLEAN)
    moved = (x / sde.at(sde.t_min).alpha - exact).square().mean().sqrt()
    assert (budget.to_data(x, sde, GAUSSIAN) - exact).square().mean().sqrt() < 1e-2 * moved


def test_prior_mismatch_in_closed_form():
    """z moved to m_T + S_T^{1/2} z and carried on by the flow, which is affine: the W2 between the two output laws. Its KL is that of two
    Gaussians. A process that ends early makes it large."""
    sde = VPSDE(beta_max=4.0)
    b = budget.measure((sde, GAUSSIAN.score), GAUSSIAN, method=budget.REFERENCE, steps=50, n=2000, repeats=4, levels=2)
    start, mean = _deviations(sde, sde.t_max)
    end, _ = _deviations(sde, sde.t_min)
    scale = end / start
    w2 = math.sqrt(float((scale**2 * (mean**2 + (start - 1)**2)).sum()) / 2)           # per coordinate, as all path errors
    assert b["prior mismatch"].path.low <= w2 <= b["prior mismatch"].path.high
    assert b["prior mismatch"].path.value == pytest.approx(w2, rel=0.02)
    assert b["prior mismatch"].w2.value == pytest.approx(w2, rel=0.1)                  # Monge's map: sliced W2 misses its directions alone
    kl = 0.5 * float((start**2 + mean**2 - 1 - 2 * start.log()).sum())
    assert abs(b.prior_kl.value - kl) < 5 * (b.prior_kl.high - b.prior_kl.value) / 1.96
    assert b.prior_kl.value == pytest.approx(kl, rel=0.1)


def test_truncation_in_closed_form(exact):
    end, mean = _deviations(VPSDE(), VPSDE().t_min)
    v = torch.tensor(VARIANCES, dtype=F64).sqrt()
    w2 = math.sqrt(float(((mean - GAUSSIAN.mean)**2 + (end - v)**2).sum()) / 2)
    assert exact["truncation at t_min"].path.value == pytest.approx(w2, rel=0.03)      # the sampler's law is near that at t_min
    assert exact["truncation at t_min"].w2.value == pytest.approx(w2, rel=0.1)


def test_discretisation_is_the_solver_s_known_error(exact):
    """Against the flow in closed form from the same starts."""
    z = torch.cat([budget.WhiteNoise(budget._key(0, k), (500, 2), dtype=F64).normal() for k in range(3)])
    sde = VPSDE()
    x = sdediff.sample(sde, GAUSSIAN.score, x_init=z, method="dpm++2m", steps=20)
    known = [float(e.square().mean().sqrt()) for e in (x - GAUSSIAN.flow(z, sde.at(1.0), sde.at(sde.t_min))).split(500)]
    assert exact["discretisation"].path.value == pytest.approx(sum(known) / 3, rel=1e-3)
    assert exact["discretisation"].w2.value < 1.1 * exact["discretisation"].path.value


@pytest.mark.parametrize("method", ["dpm++2m", "edm-heun"])
def test_a_score_with_a_known_error(method):
    """Its endpoint moves by the closed form above, its E |eps_theta - eps|^2 is |delta|^2 at every level, and (2) is |delta|^2 times the span of
    lambda, which is the integral of g^2 |s_theta - s|^2/2 over t by quadrature."""
    sde, delta = VPSDE(), torch.tensor([0.05, -0.02], dtype=F64)
    b = budget.measure((sde, _shifted(GAUSSIAN.score, delta)), GAUSSIAN, method=method, steps=60, **FEW)
    (r, c), end = (math.exp(-sde.at(t).lam) for t in (1.0, sde.t_min)), sde.at(sde.t_min)
    v = torch.tensor(VARIANCES, dtype=F64).sqrt()
    shift = end.alpha * delta * (v**2 + c**2).sqrt() * (torch.asinh(r / v) - torch.asinh(c / v))
    assert b["score error"].path.value == pytest.approx(float(shift.square().mean().sqrt()), rel=0.01)
    assert b["score error"].w2.value == pytest.approx(b["score error"].path.value, rel=0.15)
    assert all(f.value == pytest.approx(float(delta @ delta), rel=1e-9) and f.stderr < 1e-12 for f in b.fisher)
    assert b.score_kl.value == pytest.approx(float(delta @ delta) * (end.lam - sde.at(1.0).lam), rel=1e-9)
    integrand = lambda t: 0.5 * sde.at(t).g2 * float(delta @ delta) / sde.at(t).sigma**2
    assert b.score_kl.value == pytest.approx(quad(integrand, sde.t_min, 1.0, epsabs=1e-12, limit=200)[0], rel=1e-8)


def test_the_parts_add_up_as_vectors():
    """Shares sum to one; the total is within the sum; for Gaussian data and a constant error everything is affine and the interaction of
    second order."""
    sde = VPSDE(beta_max=4.0)
    b = budget.measure((sde, _shifted(GAUSSIAN.score, 0.05)), GAUSSIAN, method="ddim", steps=40, **FEW)
    assert sum(i.share.value for i in (*b.ingredients, b.interaction)) == pytest.approx(1)
    assert b.total.share.value == pytest.approx(1)
    assert b.total.path.value <= b.path_sum + b.interaction.path.value + 1e-12
    assert b.interaction.path.value < 0.1 * b.total.path.value
    assert b.total.w2.value < 1.1 * b.total.path.value
    half = budget.measure((sde, _shifted(GAUSSIAN.score, 0.025)), GAUSSIAN, method="ddim", steps=40, **FEW)
    assert half["score error"].path.value == pytest.approx(b["score error"].path.value / 2, rel=1e-6)


def test_paths_and_law_are_counted_apart():
    """An error of eps that turns an isotropic law moves every path and no law: the path error is that of the turn by
    theta = omega (lambda_0 - lambda_T), and the sliced distance no more than that of independent sets."""
    target, omega = targets.Gaussian([0.0, 0.0], 1.0), 0.1

    def turned(x, level):
        p = target.score(x, level)
        r = level.sigma / level.alpha
        return Prediction(x, level, eps=p.eps + omega / r * x.flip(1) * torch.tensor([-1.0, 1.0], dtype=F64) / level.alpha)

    b = budget.measure((VPSDE(), turned), target, method="edm-heun", steps=60, **FEW)
    theta = omega * (VPSDE().at(VPSDE().t_min).lam - VPSDE().at(1.0).lam)
    assert b["score error"].path.value == pytest.approx(2 * math.sin(theta / 2), rel=0.05)
    assert b["score error"].w2.value < 1.5 * b.floor.value < 0.5 * b["score error"].path.value


def test_an_exact_sampler_is_not_told_from_the_floor():
    target = targets.toy("8-gaussians")
    b = budget.measure((VPSDE(), target.score), target, method="eab-3", steps=80, **FEW)
    assert b.total.w2.value < 5e-3 < b.floor.value
    assert abs(b.seen.value - b.floor.value) < 0.5 * b.floor.value


@pytest.mark.parametrize("method", ["euler-maruyama", "ddpm", "dpm++2m-sde"])
def test_stochastic_methods_share_a_path_with_their_refinement(method):
    errors = []
    for steps in (20, 40):
        b = budget.measure((VPSDE(), GAUSSIAN.score), GAUSSIAN, method=method, steps=steps, n=300, repeats=2, levels=2)
        assert b["score error"].path == (0, 0, 0) and b.nfe == steps
        errors.append(b["discretisation"].path.value)
    assert 1.5 < errors[0] / errors[1] < 4                                              # strong order 1


@pytest.mark.parametrize("method", ["pc", "edm-stochastic", "gotta-go-fast"])
def test_stochastic_methods_without_a_refinement_are_refused(method):
    with pytest.raises(ValueError, match="expected a"):
        budget.measure((VPSDE(), GAUSSIAN.score), GAUSSIAN, method=method, steps=5, n=20, repeats=2)


def test_wrong_arguments_are_named():
    for given, message in (({"repeats": 1}, "repeats"), ({"n": 1}, "n=1"), ({"seed": -1}, "seed")):
        with pytest.raises(ValueError, match=message):
            budget.measure((VPSDE(), GAUSSIAN.score), GAUSSIAN, **given)
    with pytest.raises(TypeError, match="target"):
        budget.measure((VPSDE(), GAUSSIAN.score))
    with pytest.raises(ValueError, match="unknown; nearest: dpm\\+\\+2m"):
        budget.measure((VPSDE(), GAUSSIAN.score), GAUSSIAN, method="dpm+2m")


def test_intervals_cover_at_their_rate():
    """Student's, of 4 normal values: 95 % of 2000 within 5 standard deviations of the count."""
    generator = torch.Generator().manual_seed(3)
    hits = sum(low <= 0 <= high for _, low, high in (budget.Interval.of(row) for row in torch.randn(2000, 4, generator=generator).tolist()))
    assert abs(hits - 1900) < 5 * math.sqrt(2000 * 0.95 * 0.05)


def test_a_run_folder_becomes_a_file(tmp_path):
    """The whole way: train a little, measure, write, read; the table and the page hold what the file holds."""
    job = runs.Job(data="8-gaussians", network=runs.NetworkConfig(width=16, depth=1), training=runs.TrainingConfig(steps=60, batch=64))
    run, out = tmp_path / "run", tmp_path / "out"
    runs.prepare(run, "data: 8-gaussians\nseed: 0\n", resume=False, overwrite=False)
    runs.train(job, run, data.load(job.data, seed=0), progress=False)
    said = budget.write(run, out, ["ddim:steps=5", "heun:steps=3"], n=100, repeats=2, levels=3, reference_steps=40)
    text = (out / "budget.json").read_text()
    document, other = json.loads(text)["budgets"]
    assert str(tmp_path) not in text and other["nfe"] == 6 and document["run"] == "run"
    assert {"run", "metric", "unit", "ingredients", "total", "floor"} <= document.keys()
    assert [i["name"] for i in document["ingredients"]] == [*NAMES, "Monte Carlo"]
    assert all(i["low"] <= i["value"] <= i["high"] and i["how"] for i in document["ingredients"])
    assert document["total_low"] <= document["total"] <= document["total_high"] and document["nfe"] == 5
    values = {i["name"]: i["value"] for i in document["ingredients"]}
    assert values["score error"] > 0.05 > values["prior mismatch"]                      # a network of 60 steps knows little
    assert f"{values['score error']:.3g}" in re.search("score error.*", str(said[0])).group()
    page = (out / "README.md").read_text()
    assert page.count("made exact by") == 2 and "What was run" not in page and len(list((out / "figures").iterdir())) == 2
    (out / "stray.txt").touch()
    assert len(budget.write(run, out, n=100, repeats=2, levels=3, reference_steps=40)) == 1         # a benchmark's folder is gone on with
    with pytest.raises(FileExistsError, match="not a benchmark"):
        budget.write(run, run)
    assert document["score_kl"]["value"] > 0.1
    with pytest.raises(ValueError, match="no config"):
        budget.write(tmp_path / "none", out)
