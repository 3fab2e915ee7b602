"""Guidance against what it must equal: Bayes' rule on labelled mixtures, whose posterior, class laws and guided scores are exact."""
import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import nn

import sdediff
from sdediff import EDMSDE, VPSDE, NetworkError, RectifiedFlow, data, from_classifier, from_network, metrics, runs, training
from sdediff.cli import main
from sdediff.guidance import Extrapolated, autoguidance, classifier, classifier_free, temperature
from sdediff.nets import MLP, build
from sdediff.targets import Gaussian, GaussianMixture, toy

F64 = torch.float64
VP = VPSDE()
SDES = [VP, EDMSDE(), RectifiedFlow()]
MIX = GaussianMixture([[-1.0, 0.0], [1.0, 0.0], [0.2, 1.4], [0.3, -1.2]], [0.3, 0.2, 0.4, 0.15], [1, 2, 1, 1], labels=[0, 1, 1, 2])
TILTED = GaussianMixture([[-0.8, 0.1], [0.9, 0.0], [0.0, 0.5]], labels=[1, 0, 1],
                         covs=[[[0.5, 0.3], [0.3, 0.4]], [[0.3, -0.1], [-0.1, 0.2]], [[0.2, 0.0], [0.0, 0.6]]])
FINE = {"method": "eab-3", "steps": 60, "grid": "logsnr", "t_end": 1e-5}


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def levels(sde, n):
    """Some levels of a process, and one with a time for each of n samples."""
    times = [sde.t_min + (sde.t_max - sde.t_min) * f for f in (0.01, 0.2, 0.6, 0.95)]
    return [*map(sde.at, times), sde.at(torch.linspace(times[0], times[-1], n, dtype=F64)[:, None])]


def mixed(n, classes):
    return torch.arange(n) % classes


def close(a, b, tol):
    assert float(((a - b).abs() / (1 + b.abs())).detach().max()) < tol


class Net(nn.Module):
    """A network with labels, some function of everything; label 3 is none."""

    def __init__(self, factor=1.0):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor, dtype=F64))

    def forward(self, x, c, y=3):
        return self.factor * torch.sin(x + torch.as_tensor(y, dtype=x.dtype).reshape(-1, 1)) * (1 + c[:, None])


NET = from_network(Net(), "eps")


# -- labelled mixtures ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("target", [MIX, TILTED, toy("two-moons"), toy("pinwheel")])
def test_the_posterior_is_bayes_rule_and_the_class_laws_add_up(target):
    x = 2 * normal(40, 2)
    for level in [None, *levels(VP, 40)]:
        each = torch.stack([target.of_class(y).log_prob(x, level) for y in range(target.classes)], 1)
        weights = torch.bincount(target.labels, target.weights)
        close(target.log_posterior(x, level), each + weights.log() - target.log_prob(x, level)[:, None], 1e-9)


@pytest.mark.parametrize("target", [MIX, TILTED, toy("rings")])
def test_the_conditional_score_is_that_of_the_class(target):
    x, y = 2 * normal(30, 2), mixed(30, target.classes)
    for level in levels(VP, 30):
        given = target.conditional.condition(y=y)(x, level)
        for k in range(target.classes):
            alone, here = target.of_class(k).score(x, level), y == k
            close(given.score[here], alone.score[here], 1e-12)
            close(given.x0[here], alone.x0[here], 1e-12)
            same = [target.conditional.condition(y=label)(x, level).score for label in (k, torch.full((30,), k))]
            assert torch.equal(*same)
        assert torch.equal(target.conditional(x, level).score, target.score(x, level).score)


@pytest.mark.parametrize("name", ["8-gaussians", "25-gaussians", "two-moons", "pinwheel", "two-spirals", "rings"])
def test_labels_of_draws(name):
    target = toy(name)
    x, y = target.sample(3000, seed=5, dtype=F64), target.sample_labels(3000, seed=5)
    assert torch.equal(target.sample_labels(70, seed=5), y[:70])
    assert target.classes == {"8-gaussians": 8, "25-gaussians": 25, "pinwheel": 5, "rings": 4}.get(name, 2)
    log_p = target.log_posterior(x)
    picked = log_p.gather(1, y[:, None])[:, 0]
    # the labels are draws from the posterior: as likely as it says, within 5 standard errors
    p = log_p.exp()
    expected, variance = (p * p).sum(1).mean(), (p * p * p).sum(1).mean() - (p * p).sum(1).square().mean()
    assert abs(float(picked.exp().mean() - expected)) < 5 * math.sqrt(max(0.0, float(variance)) / 3000) + 1e-6
    assert torch.bincount(y).min() > 0.7 * 3000 / target.classes - 20


def test_tempered_draws_have_the_density():
    """Moments by quadrature; w = 1 is the class, w = 0 the whole law."""
    line = GaussianMixture([[-0.7], [0.7]], [0.5, 0.3])
    z = torch.linspace(-6, 6, 4001, dtype=F64)[:, None]
    for w in (0.0, 0.5, 1.0, 3.0):
        p = (line.log_prob(z) + w * line.log_posterior(z)[:, 1]).exp()
        p = p / p.sum()
        mean = float((p * z[:, 0]).sum())
        std = math.sqrt(float((p * (z[:, 0] - mean)**2).sum()))
        x = line.tempered(1, w, 20_000, seed=3, dtype=F64)
        assert abs(float(x.mean()) - mean) < 5 * std / math.sqrt(20_000)
        assert abs(float(x.std()) / std - 1) < 5 / math.sqrt(20_000)
        assert torch.equal(x, line.tempered(1, w, 20_000, seed=3, dtype=F64))
    with pytest.raises(RuntimeError, match=r"w=30.0: of \d+ draws .* 0 were accepted; expected a smaller w"):
        GaussianMixture([[0.0], [0.0]]).tempered(1, 30.0, 100_000)


# -- identities -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("sde", SDES)
@pytest.mark.parametrize("target", [MIX, TILTED])
def test_classifier_guidance_with_the_exact_posterior(sde, target):
    """At scale 1 it is the conditional score; at every scale, and at levels of each sample's own, classifier-free guidance."""
    x, y = 2 * normal(24, 2), mixed(24, target.classes)
    for level in levels(sde, 24):
        given = classifier(target.score, target.log_posterior, 1.0).condition(y=y)(x, level)
        exact = target.conditional.condition(y=y)(x, level)
        close(given.score, exact.score, 1e-9)
        close(given.x0, exact.x0, 1e-9)
        for w in (0.0, 0.5, 3.0):
            a = classifier(target.score, target.log_posterior, w).condition(y=y)(x, level)
            b = classifier_free(target.conditional, w).condition(y=y)(x, level)
            for name in ("score", "x0", "velocity"):
                close(getattr(a, name), getattr(b, name), 1e-10)


def test_scales_zero_and_one_are_the_models_themselves():
    x, y = normal(6, 2), mixed(6, 3)
    for level in levels(VP, 6):
        with_, without = NET.condition(y=y)(x, level).eps, NET(x, level).eps
        for guided in (classifier_free(NET, 1.0).condition(y=y), classifier_free(NET, lambda m: 1).condition(y=y)):
            assert torch.equal(guided(x, level).eps, with_)
        assert torch.equal(classifier_free(NET, 0).condition(y=y)(x, level).eps, without)
        assert torch.equal(classifier_free(NET, 0.0, null={"y": 2}).condition(y=y)(x, level).eps, NET.condition(y=2)(x, level).eps)
        unguided = classifier(MIX.score, MIX.log_posterior, 0.0).condition(y=y)(x, level)
        assert torch.equal(unguided.score, MIX.score(x, level).score)
        assert torch.equal(temperature(NET, 1.0)(x, level).eps, without)
        close(classifier_free(NET, 2.5).condition(y=y)(x, level).eps, without + 2.5 * (with_ - without), 1e-14)


def test_autoguidance_conditions_both():
    x, y, weak = normal(6, 2), mixed(6, 3), from_network(Net(0.6), "eps")
    for t in (0.05, 0.3, 0.9):
        level = VP.at(t)
        got = autoguidance(NET, weak, 2.0).condition(y=y).rows(1, 5)(x[1:5], level)
        bad = weak.condition(y=y)(x, level).eps
        close(got.eps, (bad + 2 * (NET.condition(y=y)(x, level).eps - bad))[1:5], 1e-14)
        assert got.given == ("eps",)


def test_what_the_good_model_gives_is_what_is_combined():
    """Models of two parameterisations are one guidance."""
    x, level = normal(6, 2), VP.at(0.4)
    exact = MIX.conditional.condition(y=1)
    for predicts in ("eps", "x0", "v", "velocity", "score"):
        good = from_network(lambda x, c, p=predicts: getattr(exact(x, level), p), predicts)
        got = autoguidance(good, MIX.score, 2.0)(x, level)
        assert got.given == (predicts,)
        close(got.x0, classifier_free(MIX.conditional, 2.0).condition(y=1)(x, level).x0, 1e-11)


def test_interval_and_its_calls():
    x, y = normal(5, 2), mixed(5, 3)
    guided = classifier_free(NET, 2.3, interval=(0.3, 5.0)).condition(y=y)
    plain, always = NET.condition(y=y), classifier_free(NET, 2.3).condition(y=y)
    inside = {}
    for t in (0.05, 0.2, 0.5, 0.9):
        level = VP.at(t)
        inside[t] = 0.3 <= level.sigma / level.alpha <= 5
        assert guided.calls_at(level) == 1 + inside[t]
        assert torch.equal(guided(x, level).eps, (always if inside[t] else plain)(x, level).eps)
    assert set(inside.values()) == {True, False}
    each = VP.at(torch.tensor([0.05, 0.2, 0.5, 0.9, 0.5], dtype=F64)[:, None])
    got = guided(x, each).eps
    assert guided.calls_at(each) == 2
    for i, t in enumerate([0.05, 0.2, 0.5, 0.9, 0.5]):
        close(got[i], guided.rows(i, i + 1)(x[i:i + 1], VP.at(t)).eps[0], 1e-12)
    flow = RectifiedFlow()
    assert classifier_free(NET, 3.0, interval=(0.3, math.inf)).calls_at(flow.at(1.0)) == 2
    assert classifier_free(NET, 3.0, interval=(0.0, 1.0)).calls_at(flow.at(0.0)) == 2
    assert classifier_free(NET, 3.0, interval=(0.1, 1.0)).calls_at(flow.at(1.0)) == 1


def test_rescale_brings_the_spread_back():
    x, y, level = normal(5, 4), mixed(5, 3), VP.at(0.6)
    good, plain = NET.condition(y=y)(x, level), classifier_free(NET, 4.0).condition(y=y)(x, level)
    full = classifier_free(NET, 4.0, rescale=1.0).condition(y=y)(x, level)
    close(full.x0.std(1), good.x0.std(1), 1e-12)
    half = classifier_free(NET, 4.0, rescale=0.5).condition(y=y)(x, level)
    close(half.x0, (full.x0 + plain.x0) / 2, 1e-12)
    assert half.given == plain.given == ("eps",)
    with pytest.raises(ValueError, match=r"rescale=0.5 on events of shape \(1,\): one number has no spread"):
        classifier_free(NET, 4.0, rescale=0.5).condition(y=y)(x[:, :1], level)


# -- laws -------------------------------------------------------------------------------------------------------------
N = 3000


def guided_samples(kind, w, **run):
    score = classifier(MIX.score, MIX.log_posterior, w) if kind == "classifier" else classifier_free(MIX.conditional, w)
    return sdediff.sample(VP, score, shape=(N, 2), seed=7, dtype=F64, **{"conditions": {"y": 1}, **FINE, **run})


@pytest.mark.parametrize("kind", ["classifier", "classifier-free"])
def test_at_scale_one_the_samples_are_of_the_conditional_law(kind):
    law = MIX.of_class(1)
    x, exact = guided_samples(kind, 1.0), law.sample(N, seed=1, dtype=F64)
    off = x - law.mean
    assert float((off.mean(0) / (law.cov.diagonal() / N).sqrt()).abs().max()) < 5
    products = off[:, :, None] * off[:, None, :]
    assert float(((products.mean(0) - law.cov) / (products.std(0) / math.sqrt(N))).abs().max()) < 5
    distance, floor = (metrics.energy_distance(v, exact) for v in (x, law.sample(N, seed=2, dtype=F64)))
    assert abs(distance.value) < 5 * max(distance.stderr, floor.stderr)
    # and not of another one: the test has power
    assert metrics.energy_distance(guided_samples(kind, 0.5), exact).value > 20 * floor.stderr


def test_a_batch_of_several_classes():
    y = mixed(N, 3)
    x = guided_samples("classifier", 1.0, conditions={"y": y})
    for k in range(3):
        law, mine = MIX.of_class(k), x[y == k]
        assert float(((mine.mean(0) - law.mean) / (law.cov.diagonal() / len(mine)).sqrt()).abs().max()) < 5


@pytest.mark.parametrize("w", [2.0, 4.0])
def test_at_other_scales_they_are_not_of_the_product(w):
    """p(x) p(y|x)^w is missed by more than the Monte Carlo error, by both guidances alike; docs/guidance says by how much."""
    exact, again = (MIX.tempered(1, w, N, seed=s, dtype=F64) for s in (1, 2))
    x = guided_samples("classifier", w)
    close(x, guided_samples("classifier-free", w), 1e-6)
    off, floor = (metrics.energy_distance(v, exact) for v in (x, again))
    assert abs(floor.value) < 5 * floor.stderr and off.value > 5 * max(off.stderr, floor.stderr)
    assert metrics.sliced_w2(x, exact).value > 2 * metrics.sliced_w2(again, exact).value


@pytest.mark.parametrize("T", [0.25, 1.7])
def test_temperature_is_exact_for_a_gaussian(T):
    """The flow carries N(m, s^2) at temperature T to N(m, T s^2): the map of the prior's points is known."""
    mean, s = torch.tensor([0.7, -1.1], dtype=F64), 0.6
    cold, start = Gaussian(mean, T * s**2), 2 * normal(7, 2)
    score = temperature(Gaussian(mean, s**2).score, T, scale=s)
    for level in levels(VP, 7):
        close(score(start, level).score, cold.score(start, level).score, 1e-12)
        close(score(start, level).x0, cold.score(start, level).x0, 1e-12)
    end = sdediff.sample(VP, score, x_init=start, method="eab-3", steps=400, grid="logsnr")
    close(end, cold.flow(start, VP.at(1.0), VP.at(VP.t_min)), 1e-6)
    plain = temperature(MIX.score, T, scale=math.inf)
    close(plain(start, VP.at(0.5)).score, MIX.score(start, VP.at(0.5)).score / T, 1e-12)


@pytest.mark.parametrize("predicts", ["eps", "x0", "v", "velocity", "score", "edm"])
def test_temperature_of_every_parameterisation_also_at_the_noisy_end(predicts):
    target, flow, x = Gaussian([0.5, 0.1], 0.49), RectifiedFlow(), normal(4, 2)
    cold = Gaussian([0.5, 0.1], 0.49 * 0.3)
    for sde, t in ((VP, 0.4), (flow, 1.0)) if predicts in ("x0", "v", "velocity") else ((VP, 0.4), (flow, 0.9)):
        level = sde.at(t)

        def net(x, c, level=level):
            if predicts != "edm":
                return getattr(target.score(x, level), predicts)
            m = math.hypot(level.sigma, 0.5 * level.alpha)
            return (m * target.score(m * x, level).x0 - 0.25 * level.alpha * x) / (0.5 * level.sigma)

        score = temperature(from_network(net, predicts), 0.3, scale=0.7)
        close(score(x, level).x0, cold.score(x, level).x0, 1e-9)


# -- every method, every way of running -------------------------------------------------------------------------------
GUIDED = {"free": (classifier_free(MIX.conditional, 2.0), 2), "interval": (classifier_free(MIX.conditional, 2.0, interval=(0.2, 2.0)), None),
          "classifier": (classifier(MIX.score, MIX.log_posterior, 2.0), 2), "network": (classifier_free(NET, 2.0), 2),
          "cold": (temperature(classifier_free(MIX.conditional, 2.0), 0.7), 2), "auto": (autoguidance(NET, from_network(Net(0.7), "v"), 1.5), 2)}


class Counted:
    """A score that counts its calls."""

    def __init__(self, score, calls):
        self.score, self.calls = score, calls

    def __call__(self, x, level):
        self.calls.append(len(x))
        return self.score(x, level)


@pytest.mark.parametrize("method", ["ddim", "heun", "dpm++2m", "dpm++2m-sde", "euler-maruyama", "picard"])
def test_nfe_counts_the_calls_that_are_made(method):
    calls = []
    score = Extrapolated(Counted(MIX.of_class(1).score, calls), Counted(MIX.score, calls), 2.0, interval=(0.3, 3.0))
    info = sdediff.sample_info(VP, score, shape=(5, 2), method=method, steps=6, seed=0)
    assert info.nfe == len(calls) and len(info.times) == 7
    assert method == "picard" or 6 < info.nfe < 12 * (2 if method == "heun" else 1)
    if method not in ("picard", "ddim"):
        within = sdediff.sample_info(VP, score, shape=(5, 2), method=method, nfe=20, seed=0)
        more = sdediff.sample_info(VP, score, shape=(5, 2), method=method, steps=len(within.times), seed=0)
        assert within.nfe <= 20 < more.nfe


@pytest.mark.slow
@pytest.mark.parametrize("name", GUIDED)
@pytest.mark.parametrize("method", ["ddim", "dpm++2m-sde", "heun", "rk45", "picard"])
def test_batches_rows_and_chunks_give_the_same_samples(name, method, tmp_path):
    score, per = GUIDED[name]
    y = mixed(7, 3)
    run = {"shape": (7, 2), "method": method, "steps": 5, "seed": 3, "dtype": F64, "conditions": {"y": y}}
    info = sdediff.sample_info(VP, score, **run)
    assert per is None or method in ("rk45", "picard") or info.nfe == per * 5 * (2 if method == "heun" else 1)
    close(sdediff.sample(VP, score, **run, chunk=3), info.x, 1e-9)
    close(sdediff.sample(VP, score.condition(y=y), **{**run, "conditions": None}, out=tmp_path / "x.npy"), info.x, 1e-9)
    alone = sdediff.sample_info(VP, score, **{**run, "shape": (2, 2), "conditions": {"y": y[4:6]}}, first=4)
    close(alone.x, info.x[4:6], 1e-9)
    close(sdediff.sample(VP, score, **run, table=False), info.x, 1e-9)
    with torch.inference_mode():
        close(sdediff.sample(VP, score, **run), info.x, 1e-9)
    if method == "picard":                      # n B states in blocks of B: its limit is the serial run
        exact = sdediff.sample(VP, score, **{**run, "method": sdediff.method("picard", tol=1e-12)})
        close(exact, sdediff.sample(VP, score, **{**run, "method": "ddim"}, grid=list(info.times)), 1e-8)


@pytest.mark.parametrize("kind", ["classifier", "classifier-free"])
def test_likelihood_of_a_guided_score(kind):
    score = classifier(MIX.score, MIX.log_posterior, 1.0) if kind == "classifier" else classifier_free(MIX.conditional, 1.0)
    x, y = normal(6, 2), mixed(6, 3)
    law = torch.stack([MIX.of_class(int(k)).log_prob(x[i:i + 1], VP.at(VP.t_min))[0] for i, k in enumerate(y)])
    prior = lambda z, level: torch.stack([MIX.of_class(int(k)).log_prob(z[i:i + 1], level)[0] for i, k in enumerate(y)])
    got = sdediff.log_prob(VP, score, x, conditions={"y": y}, rtol=1e-8, atol=1e-8, prior=prior)
    close(got.value, law, 1e-5)
    # at another scale it is the density of the samples: it integrates to one, and has their mean
    z = torch.linspace(-5, 5, 41, dtype=F64)
    grid = torch.cartesian_prod(z, z)
    p = sdediff.log_prob(VP, dataclasses.replace(score, scale=3.0), grid, conditions={"y": 1}).value.exp() * 0.25**2
    assert abs(float(p.sum()) - 1) < 1e-4
    samples = guided_samples(kind, 3.0)
    assert float(((samples.mean(0) - p @ grid).abs() / (samples.std(0) / math.sqrt(N))).max()) < 5


def test_a_guided_score_is_differentiable():
    x, y, level = normal(3, 2).requires_grad_(), mixed(3, 3), VP.at(0.4)
    for guided in (classifier(MIX.score, MIX.log_posterior, 2.0), classifier_free(MIX.conditional, 2.0)):
        score = guided.condition(y=y)
        assert torch.autograd.gradcheck(lambda x, score=score: score(x, level).score, (x,))


# -- refusals ---------------------------------------------------------------------------------------------------------
POSTERIOR = MIX.log_posterior


@pytest.mark.parametrize(("make", "error", "message"), [
    (lambda: classifier_free(NET, -1.0), ValueError, r"scale=-1.0: expected a finite number >= 0"),
    (lambda: classifier_free(NET, math.nan), ValueError, r"scale=nan: expected"),
    (lambda: classifier_free(NET, math.inf), ValueError, r"scale=inf: expected"),
    (lambda: classifier_free(NET, "2"), TypeError, r"scale='2': expected"),
    (lambda: classifier_free(NET, True), TypeError, r"scale=True: expected"),
    (lambda: classifier_free(Net(), 2.0), TypeError, r"score=Net: expected a Score; wrap a network as sdediff.from_network"),
    (lambda: classifier_free(NET, 2.0, interval=(5.0, 0.3)), ValueError, r"interval=\(5.0, 0.3\): expected \(low, high\)"),
    (lambda: classifier_free(NET, 2.0, interval=(-1, 2)), ValueError, r"interval=\(-1, 2\)"),
    (lambda: classifier_free(NET, 2.0, interval=3.0), ValueError, r"interval=3.0"),
    (lambda: classifier_free(NET, 2.0, interval=(0.1, math.nan)), ValueError, r"interval="),
    (lambda: classifier_free(NET, 2.0, rescale=1.5), ValueError, r"rescale=1.5: expected a finite number in \[0.0, 1.0\]"),
    (lambda: classifier_free(MIX.score, 2.0, null={"y": 3}), TypeError, r"conditions=\['y'\]: .* takes none"),
    (lambda: autoguidance(NET, Net(), 2.0), TypeError, r"weak=Net: expected a Score"),
    (lambda: classifier(MIX.score, Net(), 2.0), TypeError, r"classifier=Net: expected .* sdediff.from_classifier\(net\)"),
    (lambda: classifier(MIX.score, POSTERIOR, -2.0), ValueError, r"scale=-2.0"),
    (lambda: temperature(NET, 0.0), ValueError, r"T=0.0: expected a finite number > 0"),
    (lambda: temperature(NET, math.inf), ValueError, r"T=inf"),
    (lambda: temperature(NET, 0.5, scale=-1.0), ValueError, r"scale=-1.0: expected .* > 0"),
    (lambda: from_classifier(3), TypeError, r"network=int: expected a callable"),
    (lambda: from_classifier(Net(), time_input="lambda"), ValueError, r"time_input='lambda' is unknown; nearest: lam"),
    (lambda: GaussianMixture([[0.0], [1.0]], labels=[0, 2]), ValueError, r"labels=\[0, 2\]: a class has no weight"),
    (lambda: GaussianMixture([[0.0], [1.0]], labels=[0.0, 1.0]), ValueError, r"labels=\[0.0, 1.0\]: expected 2 integers"),
    (lambda: GaussianMixture([[0.0], [1.0]], labels=[0]), ValueError, r"labels=\[0\]: expected 2 integers"),
    (lambda: MIX.of_class(3), ValueError, r"y=3: expected an integer in \[0, 2\]"),
    (lambda: MIX.tempered(0, -1.0, 5), ValueError, r"w=-1.0: expected a finite number >= 0"),
    (lambda: MIX.tempered(5, 0.5, 5), ValueError, r"y=5: expected an integer"),
])
def test_wrong_arguments_are_refused_by_name(make, error, message):
    with pytest.raises(error, match=message):
        make()


def nan_for_one(x, level):
    return torch.where(torch.arange(len(x))[:, None] == 2, math.nan, MIX.log_posterior(x, level))


@pytest.mark.parametrize(("score", "conditions", "error", "message"), [
    (classifier(MIX.score, nan_for_one, 2.0), {"y": 1}, NetworkError,
     r"classifier nan_for_one at t=1: returned NaN or inf for 1 of 4 states, first state 2; expected finite logits. \(call 2, step 0"),
    (classifier(MIX.score, lambda x, level: x[:, 0], 2.0), {"y": 1}, NetworkError, r"returned shape \(4,\); expected logits of shape \(4, C\)"),
    (classifier(MIX.score, lambda x, level: 3.0, 2.0), {"y": 1}, NetworkError, r"returned float; expected logits"),
    (classifier(MIX.score, POSTERIOR, 2.0), None, ValueError, r"conditions: no 'y'; expected sample\(\.\.\., conditions=\{'y': labels\}\)"),
    (classifier(MIX.score, POSTERIOR, 2.0), {"y": 3}, ValueError, r"y=3: expected labels in \[0, 2\]"),
    (classifier(MIX.score, POSTERIOR, 2.0), {"y": 1.0}, TypeError, r"y.dtype=torch.float32: expected integer labels"),
    (classifier(MIX.score, POSTERIOR, 2.0), {"y": torch.arange(3)}, ValueError, r"conditions\['y'\] has 3 rows for a batch of 4"),
    (classifier(MIX.score, POSTERIOR, 2.0), {"y": 1, "z": 2}, TypeError, r"conditions=\['z'\]: .* takes none"),
    (classifier_free(MIX.conditional, lambda m: -m.t), {"y": 1}, ValueError, r"scale\(level\)=-1.0: expected a finite number >= 0"),
    (classifier_free(MIX.conditional, 2.0), {"y": 7}, ValueError, r"y=7: expected labels in \[0, 2\]"),
    (temperature(NET, 0.5), {"y": torch.arange(3)}, ValueError, r"conditions\['y'\] has 3 rows"),
])
def test_faults_of_a_run_are_named(score, conditions, error, message):
    with pytest.raises(error, match=message):
        sdediff.sample(VP, score, shape=(4, 2), method="ddim", steps=4, seed=0, conditions=conditions)


def test_what_is_not_known_at_alpha_zero_is_refused_by_name():
    flow, x = RectifiedFlow(), normal(3, 2)
    velocity = from_network(lambda x, c: x, "velocity")
    with pytest.raises(ValueError, match="x0 of a guided score at t=1: it does not follow"):
        classifier(velocity, POSTERIOR, 2.0).condition(y=1)(x, flow.at(1.0))
    with pytest.raises(ValueError, match="temperature at t=1: the score over T says nothing of x0 at alpha = 0"):
        temperature(velocity, 0.5, scale=math.inf)(x, flow.at(1.0))
    guided = classifier(velocity, POSTERIOR, 2.0)
    assert sdediff.sample(flow, guided, shape=(3, 2), steps=4, method="heun", t_start=0.99, t_end=0.01, conditions={"y": 1}).isfinite().all()


# -- training ---------------------------------------------------------------------------------------------------------
SMALL = training.TrainingConfig(steps=40, batch=16, warmup=5, checkpoint_every=10, drop=0.3)
POINTS, LABELS = MIX.sample(200, seed=0), MIX.sample_labels(200, seed=0)


def small(config=SMALL, null=3, **more):
    return training.train(from_network(MLP(2, 8, 1, classes=3), "eps", time_input="lam"), VP, POINTS, config, conditions={"y": LABELS},
                          null={"y": null}, progress=False, **more)


def equal(a, b):
    return all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())


def test_dropout_of_conditions_is_reproducible_and_resumable_to_the_bit(tmp_path):
    whole, path = small(), tmp_path / "a.safetensors"
    assert equal(whole.ema, small().ema) and not equal(whole.ema, small(dataclasses.replace(SMALL, drop=0.0)).ema)
    with pytest.MonkeyPatch.context() as patch:
        advance = training._Run.advance
        patch.setattr(training._Run, "advance", lambda self: advance(self) if self.step < 23 else 1 / 0)
        with pytest.raises(ZeroDivisionError):
            small(checkpoint=path)
    assert training.load_checkpoint(path).step == 20
    with pytest.raises(ValueError, match="data"):
        small(null=2, checkpoint=path, resume=True)
    again = small(checkpoint=path, resume=True)
    assert equal(whole.ema, again.ema) and torch.equal(whole.losses, again.losses)


def test_the_share_that_is_dropped_and_that_nothing_else_moves():
    def draw(drop, step):
        config = dataclasses.replace(SMALL, drop=drop, batch=1000)
        score = from_network(MLP(2, 4, 0, classes=3), "eps")
        run = training._Run(score.network, score, training.denoising(VP, config), VP, POINTS, {"y": LABELS}, {"y": torch.tensor(3)}, config)
        run.step = step
        return run.draw()

    a, b = draw(0.3, 4), draw(0.0, 4)
    assert all(torch.equal(a[k], b[k]) for k in (0, 2, 3))
    dropped = a[1]["y"] == 3
    assert torch.equal(a[1]["y"][~dropped], b[1]["y"][~dropped]) and (b[1]["y"] < 3).all()
    assert abs(float(dropped.double().mean()) - 0.3) < 5 * math.sqrt(0.21 / 1000)
    assert not torch.equal(dropped, draw(0.3, 5)[1]["y"] == 3)


@pytest.mark.parametrize(("change", "message"), [
    ({"null": {}}, r"drop=0.3, null=\{\}: expected a value that means none for each of the conditions \['y'\]"),
    ({"null": {"y": 3.5}}, r"null\['y'\]=3.5: expected a value for conditions\['y'\] of one sample, \(\) and torch.int64"),
    ({"conditions": None, "null": None}, r"there is none to drop: drop=0.0"),
])
def test_dropout_without_a_null_is_refused(change, message):
    call = {"conditions": {"y": LABELS}, "null": {"y": 3}, **change}
    with pytest.raises(ValueError, match=message):
        training.train(from_network(MLP(2, 8, 1, classes=3), "eps"), VP, POINTS, SMALL, progress=False, **call)


def test_a_trained_classifier_comes_near_the_exact_posterior(tmp_path):
    """Its cross-entropy, over all levels, is the posterior's own up to 0.02 nats, and so is its accuracy, to the Bayes rule's; resumed, it
    is the same to the bit."""
    pair = GaussianMixture([[-0.7, 0.0], [0.7, 0.3]], [0.4, 0.2])
    x, y = pair.sample(20_000, seed=0), pair.sample_labels(20_000, seed=0)
    config = training.TrainingConfig(steps=600, batch=256, lr=5e-3, checkpoint_every=300)
    make = lambda: from_classifier(MLP(2, 32, 1, outputs=2))
    path = tmp_path / "c.safetensors"
    trained = training.train_classifier(make(), VP, x, y, config, checkpoint=path, progress=False)
    fresh, label, t = pair.sample(4000, seed=1), pair.sample_labels(4000, seed=1), torch.linspace(1e-3, 1, 4000, dtype=F64)
    level = VP.at(t[:, None])
    noised = (level.alpha * fresh + level.sigma * normal(4000, 2)).float()
    pick = label[:, None]
    own, exact = (f(noised, level).log_softmax(1).gather(1, pick).detach().double() for f in (trained.classifier, pair.log_posterior))
    gap = exact - own
    assert float(gap.mean()) < 0.02 and float(gap.mean()) > -5 * float(gap.std()) / math.sqrt(4000)
    clean = VP.at(VP.t_min)
    right = [(f(fresh.float(), clean).argmax(1) == label).double().mean() for f in (trained.classifier, pair.log_posterior)]
    assert right[1] > 0.9 and right[0] > right[1] - 0.01
    saved = training.load_checkpoint(path)
    again = saved.classifier(build(saved.document["network"]))
    assert torch.equal(again(noised, level), trained.classifier(noised, level))
    with pytest.raises(ValueError, match="it holds a classifier, not a score"):
        saved.score(build(saved.document["network"]))
    guided = classifier(pair.score, trained.classifier, 1.0)
    x = sdediff.sample(VP, guided, shape=(1000, 2), method="dpm++2m", steps=20, seed=0, conditions={"y": 1})
    assert float((x.mean(0) - pair.means[1].float()).norm()) < 0.15


@pytest.mark.parametrize(("call", "error", "message"), [
    ({"classifier": from_network(Net())}, TypeError, r"classifier=NetworkScore: expected from_classifier\(network\)"),
    ({"labels": LABELS + 1}, ValueError, r"labels=1..3: expected labels in \[0, 2\]"),
    ({"labels": LABELS[:5]}, ValueError, r"labels=.*expected integers \(200,\)"),
    ({"labels": LABELS.double()}, TypeError, r"labels.dtype=torch.float64: expected integer labels"),
    ({"config": SMALL}, ValueError, r"drop=0.3: a classifier is trained on all labels"),
    ({"classifier": from_classifier(MLP(3))}, ValueError, r"x.shape"),
])
def test_wrong_arguments_of_classifier_training(call, error, message):
    given = {"classifier": from_classifier(MLP(2, 8, 1, outputs=3)), "labels": LABELS,
             "config": training.TrainingConfig(steps=2, batch=64, checkpoint_every=2), **call}
    with pytest.raises(error, match=message):
        training.train_classifier(given["classifier"], VP, POINTS, given["labels"], given["config"], progress=False)


# -- data and the command line ----------------------------------------------------------------------------------------
def test_labels_of_data():
    digits = data.load("digits")
    assert digits.classes == tuple('0123456789') and digits.labels.shape == (len(digits.train),) and digits.labels_of("held-out", 50).shape == (50,)
    assert torch.bincount(digits.labels).min() > 80
    # a digit's nearest neighbour in the training part has its label
    near = torch.cdist(digits.held_out(200).flatten(1), digits.train.flatten(1)).argmin(1)
    assert float((digits.labels[near] == digits.labels_of("held-out", 200)).double().mean()) > 0.95
    moons = data.load("two-moons", seed=3)
    accuracy = (moons.target.log_posterior(moons.held_out(500)).argmax(1) == moons.labels_of("held-out", 500)).double().mean()
    assert moons.classes == ('0', '1') and float(accuracy) > 0.98
    for name in ("swiss-roll", "banana"):
        with pytest.raises(ValueError, match=f"data='{name}' has no labels; expected digits, mnist, a folder of folders of images, or a toy of several parts"):
            data.load(name).labels  # noqa: B018


TINY = ["--network.width", "16", "--network.depth", "1", "--training.steps", "300", "--training.batch", "128", "--quiet"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "eight"
    assert main(["train", "--data", "8-gaussians", "--conditional", "true", *TINY, "--out", str(out)]) == 0
    return out


def test_a_conditional_run_is_sampled_by_class(run, tmp_path, capsys):
    means, got = toy("8-gaussians").means, {}
    sample = ["sample", str(run), "--n", "600", "--steps", "10", "--quiet"]
    for w in ("0", "1", "3"):
        assert main([*sample, "--class", "2", "5", "--guidance", w, "--out", str(tmp_path / f"{w}.npy")]) == 0
        got[w] = torch.from_numpy(np.load(tmp_path / f"{w}.npy"))
    share = {w: float((torch.cdist(x, means).argmin(1) == torch.tensor([2, 5] * 300)).double().mean()) for w, x in got.items()}
    assert share["0"] < 0.3 and share["1"] > share["0"] + 0.2 and share["3"] > share["1"]
    assert main([*sample, "--class", "2"]) == 0
    assert "dpm++2m-class2-seed1.npy" in capsys.readouterr().out
    config = (run / "config.yaml").read_text()
    assert "conditional: true" in config and "drop: 0.1" in config
    guided = runs.guided(runs.read(run)[2], 0.1, 4, [3], 2.0)
    assert sdediff.sample_info(VP, guided, shape=(4, 2), nfe=20, seed=0).nfe == 20


@pytest.mark.parametrize(("more", "message"), [
    (["--class", "8"], "class='8': 8-gaussians has the classes 0, 1, 2, 3, 4, 5, 6, 7"),
    (["--class", "-1"], "class='-1': 8-gaussians has the classes 0, 1, 2, 3, 4, 5, 6, 7"),
    (["--class", "2", "--guidance", "-1"], "guidance=-1.0: expected a finite number >= 0.0; 1 is the conditional law"),
    (["--class", "2", "--guidance", "nan"], 'Parser key "guidance"'),
    (["--guidance", "2"], "guidance=2: there is no class that it leads to; expected --class as well"),
])
def test_the_command_line_refuses_by_name(run, more, message, tmp_path, capsys):
    assert main(["sample", str(run), "--n", "5", "--out", str(tmp_path / "x.npy"), *more]) == 2
    assert message in capsys.readouterr().err


def test_runs_without_classes_and_of_older_versions(run, tmp_path, capsys):
    plain = tmp_path / "plain"
    train = ["train", "--data", "8-gaussians", *TINY, "--training.steps", "5", "--out", str(plain)]
    assert main(train) == 0
    sample = ["sample", str(plain), "--n", "5", "--steps", "3", "--quiet"]
    assert main([*sample, "--class", "2"]) == 2
    assert "class=[2]: this run was trained without classes" in capsys.readouterr().err
    text = (plain / "config.yaml").read_text()
    old = "".join(line for line in text.splitlines(True) if line.strip() not in ("conditional: false", "drop: 0.0"))
    assert old.count("\n") == text.count("\n") - 2
    (plain / "config.yaml").write_text(old)
    assert main(sample) == 0 and main([*train, "--resume"]) == 0
    assert main([*train, "--resume", "--conditional", "true"]) == 2
    assert "conditional=True: the run in" in capsys.readouterr().err
    assert main(["train", "--data", "swiss-roll", "--conditional", "true", *TINY, "--out", str(tmp_path / "roll")]) == 2
    assert "data='swiss-roll' has no labels" in capsys.readouterr().err
    always = tmp_path / "always"
    assert main(["train", "--data", "8-gaussians", "--conditional", "true", *TINY, "--training.drop", "0", "--training.steps", "5",
                 "--out", str(always)]) == 0
    assert main(["sample", str(always), "--class", "2", "--guidance", "2"]) == 2
    assert "this run was trained with drop=0, without the unconditional score" in capsys.readouterr().err


# -- what would pass in silence ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("blind", [lambda x, level: (x.detach() @ torch.ones(2, 3, dtype=x.dtype)),
                                   torch.no_grad()(lambda x, level: x @ torch.ones(2, 3, dtype=x.dtype))], ids=["detached", "no_grad"])
def test_a_classifier_without_a_gradient_is_refused(blind):
    with pytest.raises(sdediff.NetworkError, match="logits have no gradient with respect to x"):
        sdediff.sample(VP, classifier(MIX.score, blind, 1.0), shape=(4, 2), steps=3, conditions={"y": 0})


def test_classifier_free_guidance_without_a_condition_is_refused():
    guided = classifier_free(MIX.conditional, 2.0)
    for score in (guided, guided.rows(0, 4)):
        with pytest.raises(ValueError, match="conditions: none was given"):
            sdediff.sample(VP, score, shape=(4, 2), steps=3)
    unguided = sdediff.sample(VP, classifier_free(MIX.conditional, 0.0), shape=(4, 2), steps=3, seed=0)
    assert torch.equal(unguided, sdediff.sample(VP, MIX.score, shape=(4, 2), steps=3, seed=0))


def test_labels_of_another_batch_are_refused():
    with pytest.raises(ValueError, match="2 rows for a batch of 4"):
        sdediff.sample(VP, MIX.conditional.condition(y=torch.tensor([0, 1])), shape=(4, 2), steps=3)
    with pytest.raises(ValueError, match="2 rows for a batch of 4"):
        sdediff.encode(VP, MIX.conditional.condition(y=torch.tensor([0, 1])), torch.zeros(4, 2), steps=3)


def test_a_class_without_weight_is_refused():
    law = sdediff.targets.GaussianMixture([[0.0, 0.0], [1.0, 0.0]], 0.1, [1.0, 0.0])
    with pytest.raises(ValueError, match="y=1: this class of gaussian-mixture has no weight"):
        sdediff.sample(VP, law.conditional, shape=(4, 2), steps=3, conditions={"y": 1})
