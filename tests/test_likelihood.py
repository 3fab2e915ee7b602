"""Log densities against closed forms, estimators against their exact laws, bounds against the densities they bound."""
import math

import numpy as np
import pytest
import torch

import sdediff
from sdediff import likelihood, nets, training
from sdediff.data import load
from sdediff.equation import ReverseSDE, with_density
from sdediff.likelihood import Bins, bits_per_dim, dequantise, elbo, log_prob, products
from sdediff.random import WhiteNoise
from sdediff.recipes import method
from sdediff.sampling import iterate
from sdediff.sde import likelihood_law

F64 = torch.float64
COV = [[1.0, 0.8, 0.1], [0.8, 1.0, 0.2], [0.1, 0.2, 0.5]]
GAUSSIAN = sdediff.targets.Gaussian([0.3, 0.0, -0.2], COV)
MIXTURE = sdediff.targets.GaussianMixture([[1.0, 0.0], [-1.0, 0.5]], [[[0.3, 0.1], [0.1, 0.2]], [[0.1, 0.0], [0.0, 0.4]]], [0.3, 0.7])
VP = sdediff.VPSDE()
CHAIN = sdediff.VPSDE.from_betas(np.linspace(1e-4, 0.02, 1000))
PROCESSES = [VP, sdediff.SubVPSDE(), sdediff.EDMSDE(), sdediff.RectifiedFlow()]
name = lambda v: type(v).__name__


def clean(target, n, seed=0):
    return target.sample(n, seed=seed, dtype=F64)


# -- densities ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("sde", "target"), [(VP, GAUSSIAN), *((sde, MIXTURE) for sde in PROCESSES)], ids=name)
def test_exact_divergence_is_the_density_of_the_target(sde, target):
    x = clean(target, 20)
    p = log_prob(sde, target.score, x, rtol=1e-8, atol=1e-8, prior=target.log_prob)
    torch.testing.assert_close(p.value, target.log_prob(x, sde.at(sde.t_min)), atol=1e-6, rtol=0)
    assert (p.stderr == 0).all()
    assert p.products == target.dim


def test_on_a_chain_it_is_the_density_at_the_first_knot():
    x = clean(GAUSSIAN, 5)
    p = log_prob(CHAIN, GAUSSIAN.score, x, method="eab-3", steps=120, grid="logsnr", prior=GAUSSIAN.log_prob)
    torch.testing.assert_close(p.value, GAUSSIAN.log_prob(x, CHAIN.at(1.0)), atol=1e-3, rtol=0)
    assert log_prob(CHAIN, GAUSSIAN.score, x, method="ddim", steps=10).times[0] == 1.0


@pytest.mark.parametrize(("spelled", "order"), [("ddim", 1), ("heun", 2), ("edm-heun", 2), ("dpm++2m", 2), ("dpm++3s", 3), ("unipc-2", 3),
                                                ("eab-3", 3), ("rk4", 4), ("rosenbrock-2", 2)])
def test_every_family_of_solvers_moves_the_density_at_its_order(spelled, order):
    x = clean(MIXTURE, 20)
    error = [(log_prob(VP, MIXTURE.score, x, method=spelled, grid="logsnr", steps=n, t_end=0.05, prior=MIXTURE.log_prob).value
              - MIXTURE.log_prob(x, VP.at(0.05))).square().mean().sqrt().item() for n in (30, 60)]
    assert math.log2(error[0] / error[1]) > order - (0.15 if order < 3 else 0.3)


@pytest.mark.parametrize(("spelled", "options", "bound"), [("scipy-dop853", {"rtol": 1e-8, "atol": 1e-8}, 1e-6), ("rk23", {}, 1e-3),
                                                           ("picard", {"inner": "edm-heun", "steps": 100, "tol": 1e-9}, 5e-3)])
def test_other_engines_move_it_too(spelled, options, bound):
    x = clean(GAUSSIAN, 5)
    p = log_prob(VP, GAUSSIAN.score, x, method=spelled, t_end=0.1, prior=GAUSSIAN.log_prob, **options)
    torch.testing.assert_close(p.value, GAUSSIAN.log_prob(x, VP.at(0.1)), atol=bound, rtol=0)


def test_the_state_goes_its_way_as_without_the_density():
    x = clean(MIXTURE, 4)
    for spelled in ("heun", "dpm++2m", "unipc-2"):
        p = log_prob(VP, MIXTURE.score, x, method=spelled, steps=10)
        torch.testing.assert_close(p.latent, sdediff.encode(VP, MIXTURE.score, x, method=spelled, steps=10), atol=1e-13, rtol=0)
        assert p.nfe == sdediff.sample_info(VP, MIXTURE.score, x_init=x, method=spelled, steps=10).nfe


def test_its_gradient_is_the_score():
    x = clean(MIXTURE, 5).requires_grad_()
    flow = with_density(ReverseSDE(VP, MIXTURE.score), (2,), likelihood.Divergence("exact", None, 2))
    *_, state = iterate(flow, method("rk4").solver, torch.cat([x, x.new_zeros(5, 1)], 1), VP.levels(np.geomspace(0.05, 1, 30)))
    value = MIXTURE.log_prob(state.x[:, :2], VP.at(1.0)) - state.x[:, 2]
    found, = torch.autograd.grad(value.sum(), x)
    torch.testing.assert_close(found, MIXTURE.score(x.detach(), VP.at(0.05)).score, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("sde", [VP, sdediff.RectifiedFlow()], ids=name)
def test_it_goes_down_to_clean_data_where_these_have_a_density(sde):
    x = clean(GAUSSIAN, 5)
    p = log_prob(sde, GAUSSIAN.score, x, t_end=0.0, prior=GAUSSIAN.log_prob, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(p.value, GAUSSIAN.log_prob(x), atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match=r"eps where sigma = 0|sigma = 0"):
        log_prob(sde, sdediff.from_network(lambda x, c: x, "eps" if sde is VP else "x0"), x, t_end=0.0)


def test_the_prior_is_stated_and_its_error_is_that_of_the_noisy_end():
    x = clean(GAUSSIAN, 2)
    normal, true = (log_prob(VP, GAUSSIAN.score, x, prior=p) for p in (None, GAUSSIAN.log_prob))
    assert "N(0, 1^2 I)" in normal.explain
    assert "prior given" in true.explain
    z, end = true.latent, VP.at(1.0)
    at_end = -0.5 * z.square().sum(1) - 1.5 * math.log(2 * math.pi) - GAUSSIAN.log_prob(z, end)
    torch.testing.assert_close(normal.value - true.value, at_end, atol=1e-10, rtol=0)
    assert 0 < at_end.abs().max() < 0.1


def test_any_event_shape_dtype_and_grad_mode():
    target = sdediff.targets.Gaussian([0.0] * 6, [0.5, 1.0, 1.5, 0.7, 0.2, 1.1])
    x = clean(target, 3)
    flat = log_prob(VP, target.score, x)
    with torch.inference_mode():
        shaped = log_prob(VP, target.score, x.reshape(3, 2, 3))
    torch.testing.assert_close(shaped.value, flat.value, atol=1e-12, rtol=0)
    assert shaped.latent.shape == (3, 2, 3)
    assert log_prob(VP, target.score, x.float(), steps=1).value.dtype == torch.float32
    assert log_prob(VP, sdediff.from_score(lambda x, t: -x), torch.zeros(2)).value.shape == (2,)
    assert log_prob(VP, target.score, x[:0]).value.shape == (0,)
    assert not flat.value.requires_grad


def test_refinement_reports_the_error():
    x, run = clean(MIXTURE, 20), {"method": "edm-heun", "steps": 20, "prior": MIXTURE.log_prob}
    p, coarse, fine = (log_prob(VP, MIXTURE.score, x, **(run | v)) for v in ({"refine": True}, {}, {"steps": 40}))
    assert torch.equal(p.value, fine.value)
    torch.testing.assert_close(p.error, (fine.value - coarse.value).abs(), atol=0, rtol=0)
    left = (p.value - MIXTURE.log_prob(x, VP.at(VP.t_min))).abs()
    assert left.median() < p.error.median() < 8 * left.median()        # order 2: three times
    assert f"{p.error.max():.2g} nats" in p.explain
    q = log_prob(VP, MIXTURE.score, x, refine=True, prior=MIXTURE.log_prob, t_end=0.1, rtol=1e-4, atol=1e-4)
    assert (q.value - MIXTURE.log_prob(x, VP.at(0.1))).abs().max() < 1e-3
    assert 0 < q.error.max() < 1e-2


def test_any_network_has_a_density_that_integrates_to_one():
    score = sdediff.from_network(lambda x, c: torch.sin(2 * x.flip(1) + c[:, None]), "v")           # no gradient of anything
    axis = torch.arange(-6.0, 6.0, 0.1, dtype=F64)
    x = torch.cartesian_prod(axis, axis)
    p = log_prob(VP, score, x, method="eab-3", steps=80, t_end=0.01).value.exp()
    assert (p - torch.exp(-0.5 * x.square().sum(1)) / (2 * math.pi)).abs().max() > 0.1             # it is not the prior
    assert p.sum().item() * 0.1**2 == pytest.approx(1, abs=0.001)


@pytest.mark.slow
def test_the_likelihood_of_trained_two_moons_integrates_to_one():
    target = sdediff.targets.two_moons()
    score = sdediff.from_network(nets.MLP((2,), 48, 2, seed=0), "eps", time_input="lam")
    trained = training.train(score, VP, target.sample(4000, seed=0), training.TrainingConfig(steps=1200, batch=256, lr=3e-3), progress=False)
    axis = torch.arange(-3.0, 3.0, 0.05)
    p = log_prob(VP, trained.score, torch.cartesian_prod(axis, axis), method="dpm++2m", steps=60, t_end=0.005)
    assert p.value.exp().sum().item() * 0.05**2 == pytest.approx(1, abs=0.01)
    x = target.sample(500, seed=1)
    held, exact = log_prob(VP, trained.score, x, method="dpm++2m", steps=60, t_end=0.005).value, target.log_prob(x, VP.at(0.005))
    assert exact.mean() - 0.3 < held.mean() < exact.mean() + 5 * (held - exact).std() / 500**0.5


@pytest.mark.slow
def test_bits_of_held_out_digits_are_stable_and_their_bound_lies_above():
    digits, bins = load("digits"), Bins(17, -1 - 1 / 16, 1 + 1 / 16)
    score = sdediff.from_network(nets.MLP((1, 8, 8), 128, 2, seed=0), "v", time_input="lam", sigma_data=0.75)
    config = training.TrainingConfig(steps=600, batch=256, ema=0.99, weighting="likelihood", times="likelihood", importance=True,
                                     dequantise=bins.width)
    trained = training.train(score, VP, digits.train, config, progress=False)
    x = dequantise(((digits.held_out(100) + 1) * 8).round(), bins, seed=0)
    p = log_prob(VP, trained.score, sdediff.renoise(VP, x, VP.t_min, seed=0), method="dpm++2m", steps=25, refine=True)
    bound = elbo(VP, trained.score, x, draws=256, seed=0)
    volume = bins.width * VP.at(VP.t_min).alpha
    bits, most = bits_per_dim(p.value, 64, volume), bits_per_dim(bound.value, 64, volume)
    assert 2 < bits.mean() < math.log2(17) - 0.5                        # better than guessing
    assert p.error.mean() / 64 / math.log(2) < bits.std() / 10          # refinement moves it by less than its standard error
    assert (most - bits).mean() > 3 * (most - bits).std() / 10


# -- the divergence -----------------------------------------------------------------------------------------------------
def change(cov):
    """int J dt from t_min to t_max along the flow of N(m, cov): half the logarithm of S_T/S_0, in its eigenbasis."""
    low, high = VP.at(VP.t_min), VP.at(VP.t_max)
    values, basis = torch.linalg.eigh(torch.as_tensor(cov, dtype=F64))
    s = lambda m: m.alpha**2 * values + m.sigma**2
    return basis @ torch.diag(0.5 * torch.log(s(high) / s(low))) @ basis.T


@pytest.mark.parametrize("law", ["rademacher", "gaussian"])
def test_hutchinson_is_the_quadratic_form_of_its_probes_at_its_rate(law):
    n, k, m = 200, 8, change(COV)
    x = clean(GAUSSIAN, n)
    exact = GAUSSIAN.log_prob(x, VP.at(VP.t_min))
    p = log_prob(VP, GAUSSIAN.score, x, method="eab-3", steps=80, divergence="hutchinson", probes=k, law=law, seed=5, prior=GAUSSIAN.log_prob)
    u = likelihood.divergence("hutchinson", k, law, 3, WhiteNoise(5, (n, 3), dtype=F64)).probes
    forms = torch.einsum("kbi,ij,kbj->bk", u, m, u) - m.trace()
    torch.testing.assert_close(p.value - exact, forms.mean(1), atol=1e-3, rtol=0)
    torch.testing.assert_close(p.stderr, forms.std(1) / k**0.5, atol=1e-3, rtol=0)
    square = m.square().sum() - (m.diagonal().square().sum() if law == "rademacher" else 0)
    z2 = (p.value - exact).square() / (2 * square / k)                 # chi^2 of one degree of freedom, about
    assert abs(z2.mean() - 1) < 5 * z2.std() / n**0.5
    spread = p.stderr.square() / (2 * square / k)
    assert abs(spread.mean() - 1) < 5 * spread.std() / n**0.5


def test_hutchpp_is_unbiased_with_an_honest_and_smaller_error():
    d, n = 12, 150
    basis = torch.linalg.qr(torch.randn(d, d, generator=torch.Generator().manual_seed(0), dtype=F64))[0]
    cov = basis @ torch.diag(0.02 * 0.35 ** torch.arange(d, dtype=F64) + 0.9) @ basis.T
    cov[:2, :2] += torch.tensor([[8.0, 7.0], [7.0, 8.0]])
    target = sdediff.targets.Gaussian([0.0] * d, cov)
    x = clean(target, n)
    run = {"method": "eab-3", "steps": 40, "t_end": 0.05, "prior": target.log_prob, "seed": 1, "probes": 9}
    exact = log_prob(VP, target.score, x, **(run | {"seed": None, "probes": None})).value
    plus, plain = (log_prob(VP, target.score, x, divergence=v, **run) for v in ("hutch++", "hutchinson"))
    assert plus.products == plain.products == 9
    off = plus.value - exact
    assert abs(off.mean()) < 5 * off.std() / n**0.5
    ratio = off.square().mean() / plus.stderr.square().mean()
    assert 0.5 < ratio < 2
    assert off.square().mean() < 0.3 * (plain.value - exact).square().mean()


def test_hutchpp_with_probes_enough_is_exact():
    x = clean(GAUSSIAN, 5)
    p, q = (log_prob(VP, GAUSSIAN.score, x, method="heun", steps=20, **v) for v in ({"divergence": "hutch++", "probes": 9, "seed": 0}, {}))
    torch.testing.assert_close(p.value, q.value, atol=1e-9, rtol=0)
    assert p.stderr.max() < 1e-9


def test_probes_belong_to_a_samples_seed_and_one_has_no_error_bar():
    x, run = clean(GAUSSIAN, 6), {"method": "heun", "steps": 5, "divergence": "hutchinson"}
    whole = log_prob(VP, GAUSSIAN.score, x, seed=7, **run)
    part = log_prob(VP, GAUSSIAN.score, x[3:5], seed=7, first=3, **run)
    torch.testing.assert_close(part.value, whole.value[3:5], atol=1e-12, rtol=0)
    assert whole.seed == 7
    torch.manual_seed(0)
    state = torch.get_rng_state()
    assert log_prob(VP, GAUSSIAN.score, x, seed=1, probes=1, **run).stderr.isnan().all()
    assert torch.equal(torch.get_rng_state(), state)


class Square(torch.autograd.Function):
    """A function whose derivative knows no batches of vectors."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    def backward(ctx, g):
        assert g.numpy() is not None            # no batched tensor has an array
        return 2 * ctx.saved_tensors[0] * g


def test_products_are_rows_of_the_jacobian_with_and_without_batches(monkeypatch):
    x = torch.randn(3, 4, dtype=F64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    mix = torch.randn(4, 4, dtype=F64, generator=torch.Generator().manual_seed(1))
    u = torch.randn(5, 3, 4, dtype=F64, generator=torch.Generator().manual_seed(2))
    expected = torch.einsum("kbi,ij,bj->kbj", u, mix.T, 2 * x.detach())
    for square in (torch.square, Square.apply):
        torch.testing.assert_close(products(square(x) @ mix, x, u), expected, atol=1e-12, rtol=0)
    monkeypatch.setitem(likelihood.AT_ONCE, "cpu", 6)                   # two at once
    torch.testing.assert_close(products(x.square() @ mix, x, u), expected, atol=1e-12, rtol=0)
    trace = likelihood.Divergence("exact", None, 4)(x.square() @ mix, x, False)
    torch.testing.assert_close(trace[:, 0], (2 * x.detach() * mix.diagonal()).sum(1), atol=1e-12, rtol=0)


# -- bits -----------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("bits", [1, 5, 8])
def test_uniform_data_take_as_many_bits_as_they_have(bits):
    torch.testing.assert_close(bits_per_dim(torch.tensor([-3 * math.log(2.0)]), 3, Bins.of(bits).width), torch.tensor([float(bits)]))
    assert bits_per_dim(torch.zeros(1), 3, Bins.of(8).width).item() == 7


def test_dequantised_data_lie_uniformly_on_their_bins():
    k = torch.arange(256).repeat(40, 2)
    x = dequantise(k, 8, seed=0, dtype=F64)
    place = (x + 1) / 2 * 256
    assert torch.equal(place.floor().long(), k)
    u = (place - k).flatten().sort().values
    assert (u - torch.arange(1, len(u) + 1) / len(u)).abs().max() < 2.5 / len(u)**0.5      # Kolmogorov-Smirnov, p = 1e-5
    assert torch.equal(x[:3], dequantise(k[:3], 8, seed=0, dtype=F64))
    assert torch.equal(dequantise(k, Bins(256, 0.0, 256.0), seed=0, dtype=F64).floor().long(), k)


def test_bits_of_a_normal_law_bound_its_discrete_entropy():
    target, bins = sdediff.targets.Gaussian([0.0], 0.1), Bins(32, -2.0, 2.0)
    edges = torch.cat([bins.centres - bins.width / 2, bins.centres[-1:] + bins.width / 2]) / 0.1**0.5
    chance = torch.special.ndtr(edges).diff()
    chance = chance / chance.sum()
    k = torch.multinomial(chance, 1000, True, generator=torch.Generator().manual_seed(0))[:, None]
    p = log_prob(VP, target.score, dequantise(k, bins, seed=1, dtype=F64), bits=bins, prior=target.log_prob)
    code = -chance.log2()[k[:, 0]]
    gap = p.bits_per_dim - code
    assert gap.mean() > -5 * gap.std() / 1000**0.5
    assert gap.mean() < 0.02
    assert "uniform dequantisation" in p.explain


# -- bounds ---------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("sde", [*PROCESSES, CHAIN], ids=name)
def test_the_bound_is_the_density_where_the_score_is_exact(sde):
    n = 2000
    x, end = clean(MIXTURE, n), sde.at(1.0 if sde.knots else sde.t_min)
    noised = end.alpha * x + end.sigma * WhiteNoise(9, x.shape, dtype=F64).initial()
    bound, exact = elbo(sde, MIXTURE.score, x, seed=0, draws=32), MIXTURE.log_prob(noised, end)
    off = bound.value - exact                   # the mean over x of both sides
    assert abs(off.mean()) < 5 * off.std() / n**0.5
    assert off.std() / n**0.5 < 0.1
    assert bound.nfe == 32
    again = elbo(sde, MIXTURE.score, x, seed=1, draws=32)
    ratio = (again.value - bound.value).square().mean() / (again.stderr.square() + bound.stderr.square()).mean()
    assert 0.6 < ratio < 1.6


def test_a_wrong_score_has_a_lower_bound():
    x = clean(GAUSSIAN, 500)
    wrong = sdediff.from_score(lambda y, t: 0.8 * GAUSSIAN.score(y, VP.at(t)).score)
    right, low = (elbo(VP, s, x, seed=0).value for s in (GAUSSIAN.score, wrong))
    assert (right - low).mean() > 5 * (right - low).std() / 500**0.5


@pytest.mark.parametrize("steps", [20, 1000])
def test_the_chain_bound_of_a_normal_law_in_closed_form(steps):
    chain = sdediff.VPSDE.from_betas(np.linspace(1e-4, 0.02, steps) * 1000 / steps)
    x = clean(GAUSSIAN, 2000)
    bound = elbo(chain, GAUSSIAN.score, x, chain=True, seed=0, draws=32)
    levels, variances = chain.levels([float(i) for i in range(1, steps + 1)]), torch.linalg.eigvalsh(GAUSSIAN.cov)
    exact = sum(0.5 * ((s.alpha / s.sigma)**2 - (t.alpha / t.sigma)**2) * (t.sigma**2 * variances / (t.alpha**2 * variances + t.sigma**2)).sum()
                for s, t in zip(levels, levels[1:])).item()
    assert abs(bound.diffusion.mean() - exact) < 5 * bound.diffusion.std() / 2000**0.5
    assert exact > elbo(chain, GAUSSIAN.score, x, seed=0).diffusion.mean()           # the continuous one is tighter


@pytest.mark.parametrize("chain", [False, True])
def test_discrete_data_cost_their_entropy(chain):
    bins, weights = Bins(4, -1.0, 1.0), torch.tensor([0.5, 0.25, 0.125, 0.125], dtype=F64)
    target = sdediff.targets.GaussianMixture(bins.centres[:, None], 1e-12, weights)
    sde = sdediff.VPSDE.from_betas(np.linspace(1e-4, 0.02, 1000)) if chain else VP
    x = bins.centres[torch.multinomial(weights, 4000, True, generator=torch.Generator().manual_seed(0))][:, None]
    bound = elbo(sde, target.score, x, bits=bins, chain=chain, seed=0, draws=64)
    bits, error = bound.bits_per_dim.mean(), 5 * bound.bits_per_dim.std() / 4000**0.5
    assert 1.75 - error < bits < 1.75 + error + (0.05 if chain else 0)
    assert bound.reconstruction.max() < 1e-3


def test_reconstruction_pays_for_bins_that_the_noise_blurs():
    bins = Bins(64, -1.0, 1.0)
    x = bins.centres[torch.arange(64)][:, None]
    coarse, fine = (elbo(VP, GAUSSIAN1.score, x, bits=bins, seed=0, t_end=t).reconstruction for t in (0.1, 0.001))
    assert coarse.mean() > 1 > fine.mean() > 0


GAUSSIAN1 = sdediff.targets.Gaussian([0.0], 0.5)


# -- training for likelihood ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("sde", PROCESSES, ids=name)
@pytest.mark.parametrize("law", ["logsnr", "lognormal", "likelihood"])
def test_the_density_of_times_is_that_of_the_law(sde, law):
    if law == "logsnr" and sde.at(sde.t_max).alpha == 0:
        pytest.skip("its lambda is infinite")
    u = torch.linspace(0.01, 0.99, 2001, dtype=F64)
    t = training.times(law, sde, u, sigma_data=0.7)
    density = training.density(law, sde, t, sigma_data=0.7) / (sde.t_max - sde.t_min)
    between = ((density[1:] + density[:-1]) / 2 * t.diff()).abs()
    torch.testing.assert_close(between, torch.full_like(between, 0.98 / 2000), rtol=2e-2, atol=0)


def test_the_law_inverts_its_integral():
    lam = torch.linspace(-4, 5, 200001, dtype=F64)
    rate = torch.sigmoid(2 * lam + 2 * math.log(0.6))
    mass = torch.trapezoid(rate, lam)
    below = torch.cumulative_trapezoid(rate, lam) / mass
    found, total = likelihood_law(below[::20000], -4.0, 5.0, 0.6)
    torch.testing.assert_close(found, lam[1::20000], atol=1e-7, rtol=0)
    assert total == pytest.approx(mass.item(), rel=1e-8)
    assert likelihood_law(torch.tensor([1e-9, 0.5], dtype=F64), -math.inf, 5.0, 0.6)[0].isfinite().all()


def test_importance_sampling_keeps_the_loss_and_takes_its_variance_to_the_least():
    d, n, std = 16, 20000, 0.5
    target, rng = sdediff.targets.Gaussian([0.0] * d, std**2), np.random.default_rng(0)
    x0, eps = clean(target, n), WhiteNoise(1, (n, d), dtype=F64).initial()
    found = {}
    for law in ("uniform", "logsnr", "likelihood"):
        t = training.times(law, VP, training.uniforms(n, rng, False), sigma_data=std)
        found[law] = training.loss(target.score, VP, x0, t, eps, "likelihood") / training.density(law, VP, t, sigma_data=std)
    mean = {law: v.mean() for law, v in found.items()}
    error = {law: v.std() / n**0.5 for law, v in found.items()}
    for law in ("uniform", "logsnr"):
        assert abs(mean[law] - mean["likelihood"]) < 5 * math.hypot(error[law], error["likelihood"])
        assert found[law].var() > 4 * found["likelihood"].var()
    # what is left is the spread of |eps - eps_hat|^2 at one level, a chi^2 of d degrees of freedom
    assert (found["likelihood"].var() / mean["likelihood"]**2).item() == pytest.approx(2 / d, rel=0.1)
    # and the loss is that of "edm" up to a constant
    ratio = found["likelihood"] / training.loss(target.score, VP, x0, t, eps, "edm", sigma_data=std)
    torch.testing.assert_close(ratio, ratio.mean().expand(n), rtol=1e-9, atol=0)


def test_a_run_trains_by_importance_on_dequantised_data_and_goes_on(tmp_path):
    x = Bins(8).centres.float()[torch.randint(8, (500, 2), generator=torch.Generator().manual_seed(0))]
    score = lambda: sdediff.from_network(nets.MLP((2,), 16, 1, seed=0), "v", time_input="lam", sigma_data=0.6)
    make = lambda **v: training.TrainingConfig(steps=30, batch=64, warmup=0, schedule="constant", weighting="likelihood", times="likelihood",
                                               importance=True, dequantise=0.25, **v)
    whole = training.train(score(), VP, x, make(), progress=False)
    path = tmp_path / "c.safetensors"
    training.train(score(), VP, x, training.dataclasses.replace(make(), steps=17), checkpoint=path, progress=False)
    on = training.train(score(), VP, x, make(), checkpoint=path, resume=True, progress=False)
    assert torch.equal(whole.losses, on.losses)
    run = training._Run(score().network, score(), training.denoising(VP, make()), VP, x, {}, {}, make())
    x0 = run.draw()[0]
    assert (x0 + 1).frac().unique().numel() > 100
    assert 0 <= (x0 + 1).min() < (x0 + 1).max() <= 2
    with pytest.raises(ValueError, match=r"density of times='likelihood' on ChainVPSDE"):
        training.train(score(), CHAIN, x, make(), progress=False)


# -- refusals -----------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("given", "error", "message"), [
    ({"method": "euler-maruyama", "steps": 10}, ValueError, r"method='euler-maruyama': a likelihood follows the probability-flow ODE"),
    ({"method": "ddim", "eta": 0.5, "steps": 10}, ValueError, r"method='ddim'.*eta=0"),
    ({"method": "pc", "steps": 10}, ValueError, r"method='pc'"),
    ({"divergence": "hutchison"}, ValueError, r"divergence='hutchison' is unknown; nearest: hutchinson"),
    ({"divergence": "hutchinson", "probes": 0}, ValueError, r"probes=0: expected an integer >= 1"),
    ({"divergence": "hutch++", "probes": 2}, ValueError, r"probes=2: expected an integer >= 3"),
    ({"divergence": "hutchinson", "probes": 2.0}, TypeError, r"probes=2.0"),
    ({"divergence": "hutchinson", "law": "normal"}, ValueError, r"law='normal' is unknown"),
    ({"probes": 4}, ValueError, r"probes=4, divergence='exact'"),
    ({"bits": 8}, ValueError, r"bits: x lies on a lattice of 256 levels.*dequantise"),
    ({"bits": 0}, ValueError, r"bits=0: expected an integer in \[1, 32\]"),
    ({"bits": Bins(16, 0.0, 1.0)}, ValueError, r"bits: x runs from -1 to .*, the bins from 0 to 1"),
    ({"prior": 3}, TypeError, r"prior=3: expected a log density"),
    ({"prior": lambda x, level: x}, ValueError, r"prior returned \(6, 2\); expected a tensor of shape \(6,\)"),
    ({"method": "heun"}, ValueError, r"steps=None, nfe=None: give exactly one"),
])
def test_wrong_arguments_are_refused_by_name(given, error, message):
    x = (torch.arange(12).reshape(6, 2) * 17 / 255 * 2 - 1).double()
    with pytest.raises(error, match=message):
        log_prob(VP, MIXTURE.score, x, **given)


@pytest.mark.parametrize(("given", "error", "message"), [
    ({"draws": 3}, ValueError, r"draws=3: expected an integer >= 4"),
    ({"chain": True}, ValueError, r"chain=True: VPSDE is no discrete chain"),
    ({"t_end": 0.0}, ValueError, r"t_end=0: sigma = 0"),
    ({"bits": 8}, ValueError, r"bits=8: x is not on the 256 centres"),
])
def test_wrong_arguments_of_the_bound_are_refused_by_name(given, error, message):
    with pytest.raises(error, match=message):
        elbo(VP, MIXTURE.score, clean(MIXTURE, 4), **given)


def test_wrong_integers_are_refused_by_name():
    with pytest.raises(TypeError, match=r"k=Tensor .*: expected a tensor \(B, ...\) of integers from 0 to 255"):
        dequantise(torch.tensor([[0.5]]))
    with pytest.raises(ValueError, match=r"k runs from 0 to 256; expected integers from 0 to 255"):
        dequantise(torch.tensor([[0, 256]]))
    with pytest.raises(ValueError, match=r"chain.*expected an integer from 1 to 1000"):
        elbo(CHAIN, MIXTURE.score, clean(MIXTURE, 2), chain=True, t_end=1.5)
