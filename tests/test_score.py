"""Predictions convert among all parameterisations, also at the ends where some do not exist; adapters hand a network what it
expects and refuse what it must not return."""
import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate
from strategies import PROCESSES, levels, seeds

from sdediff.random import WhiteNoise
from sdediff.score import QUANTITIES, NetworkError, Prediction, from_network, from_score
from sdediff.sde import EDMSDE, VPSDE, RectifiedFlow, SubVPSDE

F64 = torch.float64


def truth(level, x0, eps):
    """Every quantity at a level from x0 and eps, by definition."""
    x = level.alpha * x0 + level.sigma * eps
    return x, {"x0": x0, "eps": eps, "score": -eps / level.sigma if level.sigma else None, "v": level.alpha * eps - level.sigma * x0,
               "velocity": level.dalpha * x0 + level.dsigma * eps}


def pair(seed, n=4):
    noise = WhiteNoise(seed, (n, 2), dtype=F64)
    return noise.normal(1), noise.normal(2)


# -- conversions --------------------------------------------------------------------------------------------------

@given(levels(), seeds)
def test_every_conversion_gives_the_definition(drawn, seed):
    """From each quantity to each other one, away from the ends: relative to what the division by alpha and sigma amplifies."""
    _, level = drawn
    x, known = truth(level, *pair(seed))
    for given_ in QUANTITIES:
        p = Prediction(x, level, **{given_: known[given_]})
        size = {"velocity": known["velocity"].abs().max() / (abs(level.dsigma) + abs(level.dalpha))}.get(given_, 1.0)
        scale = max(1.0, float(x.abs().max()), float(size)) / min(level.alpha, level.sigma, 1.0)
        for wanted in QUANTITIES:
            unit = {"score": 1 / level.sigma, "velocity": abs(level.dalpha) + abs(level.dsigma)}.get(wanted, 1.0)
            got = getattr(p, wanted)
            assert torch.allclose(got, known[wanted], rtol=1e-12, atol=1e-13 * scale * max(unit, level.alpha, level.sigma) * 10)


@given(levels(0.1), seeds)
def test_round_trips(drawn, seed):
    """a -> b -> a for every pair of quantities."""
    _, level = drawn
    x, known = truth(level, *pair(seed))
    for a, b in itertools.permutations(QUANTITIES, 2):
        there = getattr(Prediction(x, level, **{a: known[a]}), b)
        back = getattr(Prediction(x, level, **{b: there}), a)
        scale = float(known[a].abs().max()) + {"score": 1 / level.sigma, "velocity": abs(level.dalpha) + abs(level.dsigma)}.get(a, 1.0)
        assert torch.allclose(back, known[a], rtol=1e-12, atol=1e-12 * scale * max(1.0, 1 / level.sigma))


@given(levels(), seeds)
def test_single_precision_round_trips(drawn, seed):
    _, level = drawn
    x0, eps = (v.float() for v in pair(seed))
    x, known = truth(level, x0, eps)
    for a, b in itertools.permutations(("x0", "eps", "v"), 2):
        back = getattr(Prediction(x, level, **{a: known[a]}), b)
        assert back.dtype == torch.float32
        amplified = float(x.abs().max() + x0.abs().max() + eps.abs().max() + known["v"].abs().max()) / min(level.alpha, level.sigma, 1.0)
        assert torch.allclose(back, known[b], rtol=1e-5, atol=3e-6 * max(1.0, level.alpha, level.sigma) * amplified)


@given(levels(), seeds, st.permutations(QUANTITIES), st.sampled_from([*QUANTITIES, "x0+score", "x0+eps"]))
def test_the_answer_does_not_depend_on_the_order_of_asking(drawn, seed, order, given_):
    _, level = drawn
    x, known = truth(level, *pair(seed))
    given_ = {k: known[k] for k in given_.split("+")}
    p = Prediction(x, level, **given_)
    for wanted in order:
        assert torch.equal(getattr(p, wanted), getattr(Prediction(x, level, **given_), wanted))
        assert getattr(p, wanted) is getattr(p, wanted)
    for k, v in given_.items():
        assert getattr(p, k) is v


@given(levels(), seeds)
def test_velocity_is_f_x_minus_half_g2_score(drawn, seed):
    _, level = drawn
    x, known = truth(level, *pair(seed))
    expected = level.f * x - 0.5 * level.g2 * known["score"]
    scale = float(known["x0"].abs().max() * abs(level.dalpha) + known["eps"].abs().max() * abs(level.dsigma)
                  + (level.f * x).abs().max())
    for given_ in QUANTITIES:
        assert torch.allclose(Prediction(x, level, **{given_: known[given_]}).velocity, expected, rtol=1e-11,
                              atol=1e-11 * scale * max(1.0, 1 / level.sigma, 1 / level.alpha))


ORDERS = list(itertools.permutations(QUANTITIES))[::7]


def asked(p, order, works, known, where):
    """In this order of asking: the right value where it exists, a refusal that says why where it does not."""
    for wanted in order:
        if wanted in works:
            assert torch.allclose(getattr(p, wanted), known[wanted], rtol=1e-13, atol=1e-14), wanted
        else:
            with pytest.raises(ValueError, match=where):
                getattr(p, wanted)


ALPHA_ZERO = {"x0": QUANTITIES, "v": QUANTITIES, "velocity": QUANTITIES, "eps": ("eps", "score"), "score": ("eps", "score")}


@pytest.mark.parametrize("name", ["flow", "chain-zero", "cosine-full"])
@pytest.mark.parametrize("given_", QUANTITIES)
def test_at_alpha_zero(name, given_):
    """x = sigma eps: eps and score say nothing about x0; x0, v and velocity say all."""
    level = PROCESSES[name].at(PROCESSES[name].t_max)
    x, known = truth(level, *pair(3))
    for order in ORDERS:
        asked(Prediction(x, level, **{given_: known[given_]}), order, ALPHA_ZERO[given_], known, "alpha = 0")


SMOOTH = ("sub-vp", "edm", "flow")                              # sigma' is finite at sigma = 0
ROOT = ("vp", "cosine", "ve-from-point", "chain", "ladder", "linear-vp")      # sigma ~ sqrt(t): sigma' is infinite there


@pytest.mark.parametrize("name", [*SMOOTH, *ROOT])
@pytest.mark.parametrize("given_", QUANTITIES)
def test_at_sigma_zero(name, given_):
    """x = alpha x0: x0 says nothing about eps. A finite score means eps = 0 there, and the velocity f x - g^2/2 score."""
    level = PROCESSES[name].at(0.0)
    x0, eps = pair(4)
    score = None
    if given_ == "score" or (given_ == "velocity" and name in ROOT):
        score, eps = eps, torch.zeros_like(eps)
    x = level.alpha * x0
    known = {"x0": x0, "eps": eps, "v": level.alpha * eps}
    known["velocity"] = level.dalpha * x0 + level.dsigma * eps if score is None else level.f * x - 0.5 * level.g2 * score
    works = {"x0": ("x0",), "eps": ("x0", "eps", "v"), "v": ("x0", "eps", "v"), "score": ("x0", "eps", "v", "score", "velocity"),
             "velocity": ("x0", "eps", "v", "velocity")}[given_]
    works = (*works, "velocity") if name in SMOOTH and given_ in ("eps", "v") else works
    known["score"] = score
    for order in ORDERS:
        asked(Prediction(x, level, **{given_: known[given_]}), order, works, known, "sigma = 0")


@pytest.mark.parametrize("t", [1e-12, 1e-9, 1e-6])
def test_close_to_sigma_zero_nothing_that_was_given_cancels(t):
    """x0 from an x0 network and eps from an eps network are untouched, and the velocity from v is exact to rounding."""
    level = VPSDE().at(t)
    x, known = truth(level, *pair(5))
    assert torch.equal(Prediction(x, level, x0=known["x0"]).x0, known["x0"])
    p = Prediction(x, level, v=known["v"])
    for wanted in ("x0", "eps", "velocity"):
        assert torch.allclose(getattr(p, wanted), known[wanted], rtol=1e-12, atol=1e-13 * float(known[wanted].abs().max()))
    p = Prediction(x, level, velocity=known["velocity"])
    assert torch.allclose(p.x0, known["x0"], rtol=1e-12, atol=1e-13)
    assert torch.allclose(p.eps, known["eps"], rtol=1e-9, atol=1e-9)


def test_bad_predictions_are_refused():
    level = VPSDE().at(0.5)
    for wrong in ({}, {"noise": 1.0}, {"x0": 1.0, "edm": 1.0}):
        with pytest.raises(TypeError, match="expected one or more of x0, eps"):
            Prediction(1.0, level, **wrong)
    with pytest.raises(AttributeError):
        Prediction(1.0, level, x0=1.0).something = 3


@given(levels(), st.floats(-3, 3), st.floats(0.1, 3.0))
def test_tweedie(drawn, mean, std):
    """x0 from the score of a Gaussian mixture is the posterior mean E[x_0 | x_t], by quadrature over x_0."""
    _, m = drawn
    centres, weights = torch.tensor([mean, mean + 2.0], dtype=F64), torch.tensor([0.3, 0.7], dtype=F64)
    x = torch.linspace(-3, 3, 5, dtype=F64).mul(m.sigma + m.alpha).requires_grad_()
    var = (m.alpha * std)**2 + m.sigma**2
    log_p = torch.logsumexp(torch.log(weights) - (x[:, None] - m.alpha * centres)**2 / (2 * var), -1)
    score = torch.autograd.grad(log_p.sum(), x)[0]
    p = Prediction(x.detach(), m, score=score)
    spread = 1 / math.sqrt(1 / std**2 + (m.alpha / m.sigma)**2)             # the posterior's own width sets the quadrature's
    for i, xi in enumerate(x.tolist()):
        posterior = [c + m.alpha * std**2 / var * (xi - m.alpha * c) for c in centres.tolist()]
        u = torch.linspace(min(posterior) - 12 * spread, max(posterior) + 12 * spread, 20001, dtype=F64)
        log_prior = torch.logsumexp(torch.log(weights) - (u[:, None] - centres)**2 / (2 * std**2), -1)
        log_q = log_prior - (xi - m.alpha * u)**2 / (2 * m.sigma**2)
        q = torch.exp(log_q - log_q.max())
        expected = integrate.trapezoid((u * q).numpy(), u.numpy()) / integrate.trapezoid(q.numpy(), u.numpy())
        assert p.x0[i].item() == pytest.approx(expected, rel=1e-7, abs=1e-7 * (1 + spread))


@given(levels(), seeds, st.floats(0.1, 10.0), st.sampled_from(QUANTITIES))
def test_rescaled_is_the_same_statement(drawn, seed, scale, given_):
    """y = x/alpha in the chart alpha = 1, sigma = sigma/alpha: x0 and eps stay, the score of y is alpha times that of x."""
    _, level = drawn
    x, known = truth(level, *pair(seed))
    chart = EDMSDE(sigma_max=1e9).at(level.sigma / level.alpha)
    p = Prediction(x, level, **{given_: known[given_]})
    q = p.rescaled(x / level.alpha, chart, 1 / level.alpha)
    worst = float(x.abs().max() + 10) * 1e-12 / min(level.alpha, level.sigma, 1.0)**2
    assert torch.allclose(q.x0, known["x0"], rtol=1e-11, atol=worst)
    assert torch.allclose(q.eps, known["eps"], rtol=1e-11, atol=worst)
    assert torch.allclose(q.score * chart.sigma, -known["eps"], rtol=1e-11, atol=worst)


# -- network adapters ---------------------------------------------------------------------------------------------

class Recorder:
    """A network that remembers what it was given and returns what it is told."""

    def __init__(self, out):
        self.out, self.seen = out, []

    def __call__(self, x, c, **conditions):
        self.seen.append((x, c, conditions))
        return self.out(x) if callable(self.out) else self.out


@pytest.mark.parametrize("predicts", QUANTITIES)
@pytest.mark.parametrize("name", PROCESSES)
def test_each_meaning_of_the_output(predicts, name):
    sde = PROCESSES[name]
    level = sde.at(0.4 * sde.t_max)
    x, known = truth(level, *pair(1))
    p = from_network(Recorder(known[predicts]), predicts=predicts)(x, level)
    assert torch.equal(getattr(p, predicts), known[predicts])
    assert p.given == (predicts,)
    assert p.level == level and p.x is x


@given(levels(), seeds, st.floats(0.2, 2.0))
def test_edm_preconditioning(drawn, seed, sigma_data):
    """x/alpha at noise s = sigma/alpha: c_skip, c_out, c_in, c_noise of Karras et al. 2022, Table 1."""
    _, level = drawn
    x0, eps = pair(seed)
    x, _ = truth(level, x0, eps)
    s, y = level.sigma / level.alpha, x / level.alpha
    skip, out = sigma_data**2 / (s**2 + sigma_data**2), s * sigma_data / math.sqrt(s**2 + sigma_data**2)
    net = Recorder((x0 - skip * y) / out)
    p = from_network(net, predicts="edm", sigma_data=sigma_data)(x, level)
    fed, c, _ = net.seen[0]
    assert torch.allclose(fed, y / math.sqrt(s**2 + sigma_data**2), rtol=1e-12, atol=1e-14)
    assert torch.allclose(c, torch.full((4,), math.log(s) / 4, dtype=F64), rtol=1e-12, atol=1e-14)
    assert torch.allclose(p.x0, x0, rtol=1e-10, atol=1e-11)
    assert torch.allclose(p.eps, eps, rtol=1e-10, atol=1e-11 / min(1.0, s))


@pytest.mark.parametrize("sde, t", [(RectifiedFlow(), 1.0), (RectifiedFlow(), 0.0), (EDMSDE(), 0.0)])
def test_edm_networks_work_at_both_ends(sde, t):
    level = sde.at(t)
    x = pair(0)[0]
    net = Recorder(torch.ones(4, 2, dtype=F64))
    p = from_network(net, predicts="edm", time_input="sigma")(x, level)
    expected = level.dalpha * p.x0 + level.dsigma * p.eps
    assert torch.isfinite(p.x0).all() and torch.isfinite(p.eps).all()
    assert torch.equal(p.velocity, expected)
    assert torch.allclose(level.alpha * p.x0 + level.sigma * p.eps, x, rtol=1e-12)


@pytest.mark.parametrize("time_input, read", [
    (None, lambda m: m.t), ("t", lambda m: m.t), ("lam", lambda m: math.log(m.alpha / m.sigma)), ("sigma", lambda m: m.sigma),
    ("edm", lambda m: math.log(m.sigma / m.alpha) / 4), (lambda m: 1000 * m.t, lambda m: 1000 * m.t),
    (lambda m: m.alpha**2, lambda m: m.alpha**2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_what_the_network_is_conditioned_on(time_input, read, dtype):
    sde = VPSDE()
    x = torch.ones(3, 2, dtype=dtype)
    net = Recorder(lambda x: x)
    score = from_network(net, time_input=time_input)
    score(x, sde.at(0.3))
    score(x, sde.at(torch.tensor([[0.1], [0.5], [0.9]], dtype=F64)))
    (_, c, _), (_, each, _) = net.seen
    assert c.shape == each.shape == (3,)
    assert c.dtype == each.dtype == dtype
    assert torch.allclose(c.double(), torch.full((3,), read(sde.at(0.3)), dtype=F64).to(dtype).double(), rtol=1e-14)
    assert torch.allclose(each.double(), torch.tensor([read(sde.at(t)) for t in (0.1, 0.5, 0.9)], dtype=F64), rtol=1e-2 if dtype
                          == torch.bfloat16 else 1e-6)


def test_index_is_the_ddpm_integer():
    """Index i is t = i + 1: int64 at the knots of a chain, a fraction between them, for floats and for per-sample times."""
    sde = VPSDE.from_betas([0.1] * 10)
    net = Recorder(lambda x: x)
    score = from_network(net, time_input="index")
    for i in range(10):
        score(torch.ones(2, 1), sde.at(float(i + 1)))
        c = net.seen[-1][1]
        assert c.dtype == torch.int64 and c.tolist() == [i, i]
    score(torch.ones(2, 1), sde.at(3.5))
    assert net.seen[-1][1].tolist() == [2.5, 2.5]
    score(torch.ones(2, 1), sde.at(torch.tensor([[1.0], [10.0]], dtype=F64)))
    assert net.seen[-1][1].dtype == torch.int64 and net.seen[-1][1].tolist() == [0, 9]
    embedding = torch.nn.Embedding(10, 1)
    assert from_network(lambda x, c: x + embedding(c), time_input="index")(torch.ones(2, 1), sde.at(10.0)).eps.shape == (2, 1)


@pytest.mark.parametrize("own", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_network_runs_in_its_own_dtype(own, dtype):
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_parameter("steps", torch.nn.Parameter(torch.zeros(1, dtype=torch.int64), requires_grad=False))
            self.linear = torch.nn.Linear(2, 2, dtype=own)

        def forward(self, x, c):
            assert x.dtype == c.dtype == own
            return self.linear(x) * c[:, None]

    p = from_network(Net())(torch.ones(3, 2, dtype=dtype), VPSDE().at(0.4))
    assert p.eps.dtype == p.x0.dtype == dtype


def test_conditions_reach_the_network():
    net = Recorder(lambda x: x)
    labels = torch.arange(4)
    score = from_network(net, conditions={"y": labels}).condition(w=2.5)
    score(torch.ones(4, 2), VPSDE().at(0.5))
    assert net.seen[-1][2]["y"] is labels and net.seen[-1][2]["w"] == 2.5
    score.rows(1, 3)(torch.ones(2, 2), VPSDE().at(0.5))
    assert net.seen[-1][2]["y"].tolist() == [1, 2] and net.seen[-1][2]["w"] == 2.5
    assert set(from_network(net, conditions={"y": labels}).conditions) == {"y"}


def mutates(x, c):
    x += 1
    return x


@pytest.mark.parametrize("net, match", [
    (lambda x, c: x[:, :1], r"shape \(4, 1\)"), (lambda x, c: x[:1], r"shape \(1, 3\)"), (lambda x, c: x.mean(), r"shape \(\)"),
    (lambda x, c: x.T, r"shape \(3, 4\)"), (lambda x, c: x[None], r"shape \(1, 4, 3\)"), (lambda x, c: None, "NoneType"),
    (lambda x, c: (x, x), "tuple"), (lambda x, c: {"sample": x}, "dict"), (lambda x, c: x.long(), "int64"),
    (lambda x, c: x > 0, "bool"), (lambda x, c: x.to(torch.complex64), "complex64"), (lambda x, c: 0.0, "float"),
    (mutates, "in place"), (lambda x, c: x.view(-1).mul_(2).view(4, 3), "in place")])
def test_wrong_networks_are_named(net, match):
    x = torch.arange(12.0).view(4, 3)
    with pytest.raises(NetworkError, match=match) as caught:
        from_network(net)(x, VPSDE().at(0.25))
    assert "t=0.25" in str(caught.value) and (net.__name__ in str(caught.value))
    if match != "in place":
        with pytest.raises(NetworkError, match=match):
            from_score(lambda x, t: net(x, t))(x, VPSDE().at(0.25))


def test_faults_of_per_sample_calls_show_the_range_of_times():
    with pytest.raises(NetworkError, match=r"t=0.1\.\.0.9"):
        from_network(lambda x, c: None)(torch.ones(2, 1), VPSDE().at(torch.tensor([[0.9], [0.1]])))


def test_the_networks_own_exceptions_pass_unchanged():
    class Mine(Exception):
        pass

    def net(x, c):
        raise Mine("of the user")

    with pytest.raises(Mine, match="of the user"):
        from_network(net)(torch.ones(2, 1), VPSDE().at(0.5))


def test_under_inference_mode_a_writing_network_cannot_corrupt_the_state():
    with torch.inference_mode():
        x = torch.ones(3, 2)
        p = from_network(mutates)(x, VPSDE().at(0.5))
        assert torch.equal(x, torch.ones(3, 2))
        assert torch.equal(p.eps, torch.full((3, 2), 2.0))
        assert torch.equal(p.x, x)
    x = torch.ones(3, 2)
    with torch.inference_mode():
        assert from_network(lambda x, c: 2 * x)(x, VPSDE().at(0.5)).x0.shape == (3, 2)


def test_gradients_flow_through_the_adapter():
    x = torch.ones(2, 2, dtype=F64, requires_grad=True)
    level = VPSDE().at(0.5)
    from_network(lambda x, c: x**2)(x, level).x0.sum().backward()
    expected = (1 - level.sigma * 2 * 1.0) / level.alpha
    assert torch.allclose(x.grad, torch.full((2, 2), expected, dtype=F64), rtol=1e-13)


@pytest.mark.parametrize("make, error, match", [
    (lambda: from_network(3), TypeError, "network=int"), (lambda: from_network(None), TypeError, "network"),
    (lambda: from_network(mutates, predicts="epsilon"), ValueError, "nearest: eps"),
    (lambda: from_network(mutates, predicts=1), TypeError, "predicts"),
    (lambda: from_network(mutates, time_input="time"), ValueError, "time_input"),
    (lambda: from_network(mutates, time_input=3), TypeError, "time_input"),
    (lambda: from_network(mutates, predicts="edm", sigma_data=0.0), ValueError, "sigma_data"),
    (lambda: from_score(1.0), TypeError, "function")])
def test_wrong_arguments_are_refused_by_name(make, error, match):
    with pytest.raises(error, match=match):
        make()


# -- scores as formulas -------------------------------------------------------------------------------------------

@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_from_score(dtype):
    """Data N(0, I) under VP stay N(0, I): the score is -x, x0 = alpha x, eps = sigma x, and nothing moves."""
    score = from_score(lambda x, t: -x)
    x = pair(2)[0].to(dtype)
    for level in (VPSDE().at(0.3), VPSDE().at(torch.full((4, 1), 0.3, dtype=F64))):
        p = score(x, level)
        m = VPSDE().at(0.3)
        tol = 1e-6 if dtype == torch.float32 else 1e-12
        assert p.x0.dtype == p.velocity.dtype == dtype
        assert torch.allclose(p.x0, m.alpha * x, rtol=10 * tol, atol=tol)
        assert torch.allclose(p.eps, m.sigma * x, rtol=10 * tol, atol=tol)
        assert torch.allclose(p.velocity, torch.zeros_like(x), atol=100 * tol)


def test_from_score_is_given_the_time():
    seen = []
    score = from_score(lambda x, t: seen.append(t) or -x)
    x = torch.ones(2, 3, 4)
    score(x, VPSDE().at(0.25))
    score(x, SubVPSDE().at(torch.tensor([0.1, 0.2], dtype=F64).view(2, 1, 1)))
    assert seen[0] == 0.25
    assert seen[1].shape == (2, 1, 1) and seen[1].dtype == torch.float32


def test_from_score_does_not_promote_the_state():
    assert from_score(lambda x, t: -x.double())(torch.ones(2, 2), VPSDE().at(0.5)).velocity.dtype == torch.float32


@pytest.mark.gpu
def test_adapter_on_a_gpu(cuda):
    x = torch.ones(3, 2, device=cuda)
    net = Recorder(lambda x: x)
    for level in (VPSDE().at(0.5), VPSDE().at(torch.tensor([[0.1], [0.2], [0.3]]))):
        assert from_network(net)(x, level).velocity.device.type == "cuda"
        assert net.seen[-1][1].device.type == "cuda"
    with pytest.raises(NetworkError, match="cpu"):
        from_network(lambda x, c: x.cpu())(x, VPSDE().at(0.5))
