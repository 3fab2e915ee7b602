"""The examination of a trained model: what is well is found well, and each thing that is broken by the line that should find it."""
import dataclasses
import json
import math

import numpy as np
import pytest
import torch

import sdediff
from sdediff import EDMSDE, CosineVPSDE, RectifiedFlow, SubVPSDE, data, doctor, nets, runs, targets
from sdediff.cli import main
from sdediff.score import Prediction
from sdediff.training import TrainingConfig, train

VP = sdediff.VPSDE()
CHAIN = sdediff.VPSDE.from_betas(np.linspace(1e-3, 0.2, 100))
LAW = targets.GaussianMixture([[1.4, 0.3], [-1.0, 0.7], [-0.4, -1.0]], covs=[0.05, 0.1, 0.08], name="three")
HELD, TRAIN = LAW.sample(600, seed=1, dtype=torch.float32), LAW.sample(3000, seed=2, dtype=torch.float32)
FEW = {"levels": 6, "train": TRAIN}


def examine(score, sde=VP, seed=0, known=True, **more):
    return doctor.examine(sde, score, HELD, target=LAW if known else None, seed=seed, **FEW | more)


def of_eps(change):
    """The exact score with its eps changed: ``change(eps, x, level)``."""
    return lambda x, m: Prediction(x, m, eps=change(LAW.score(x, m).eps, x, m))


def rms_of(m):
    return math.sqrt(m.alpha**2 * float(HELD.double().square().mean()) + m.sigma**2)


def turned(omega):
    quarter = torch.tensor([-1.0, 1.0])
    return of_eps(lambda eps, x, m: eps + omega * x.flip(1) * quarter / rms_of(m))


def late(x, m):
    """A network that is told a time with less noise than there is."""
    return Prediction(x, m, eps=LAW.score(x, VP.level_of(min(m.lam + 1.5, VP.at(VP.t_min).lam))).eps)


@pytest.mark.parametrize("sde", [VP, SubVPSDE(), CosineVPSDE(), EDMSDE(), sdediff.VESDE(), RectifiedFlow(), CHAIN],
                         ids=lambda sde: type(sde).__name__)
def test_an_exact_score_is_well(sde):
    report = examine(LAW.score, sde)
    assert {line.name: line.verdict for line in report.lines} == dict.fromkeys(
        ["prior", "score", "Stein", "gradient", "memory", "codes", "round trip", "calls"], "OK"), str(report)
    assert report.verdict == "OK" and not any(line.advice for line in report.lines)
    assert max(abs(h.error) for h in report.levels) < 1e-5 and max(h.curl for h in report.levels) < 1e-5


BROKEN = {
    "scaled": (of_eps(lambda eps, x, m: 1.3 * eps), {"Stein", "score"}, {"prior", "gradient", "round trip"}),
    "no gradient": (turned(0.35), {"gradient", "score"}, {"prior", "round trip"}),
    "wrong time": (late, {"Stein", "score"}, {"prior", "gradient"}),
    "shifted": (of_eps(lambda eps, x, m: eps + 0.2), {"Stein", "score"}, {"prior", "gradient"}),
    "untrained": (sdediff.from_network(nets.MLP(2, 32, 2, seed=0), time_input="lam"), {"Stein", "score"}, {"prior", "gradient"}),
}


SEEDS = [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2, 3))]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", BROKEN)
def test_what_is_broken_is_found_by_its_line(name, seed):
    score, bad, well = BROKEN[name]
    report = examine(score, seed=seed, known=seed % 2 == 0, n=400)                          # without the law the rival is a linear denoiser
    assert all(report[line].verdict == "bad" for line in bad), str(report)
    assert all(report[line].verdict == "OK" for line in well), str(report)
    assert report.verdict == "bad" and all(report[line].advice for line in bad)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("known", [True, False])
def test_a_schedule_that_ends_too_early(known, seed):
    sde = sdediff.VPSDE(beta_max=0.2)
    report = examine(LAW.score, sde, seed, known, n=400)
    assert report["prior"].verdict == "bad" and report["score"].verdict == report["Stein"].verdict == report["gradient"].verdict == "OK", \
        str(report)
    early = examine(LAW.score, sdediff.VPSDE(beta_max=4.0), seed, known, n=400)["prior"]                 # alpha_T = 0.36
    assert early.verdict == "look" and early.numbers["alpha"] == pytest.approx(0.3588, rel=1e-3)


def test_the_prior_s_divergence_lies_between_its_bounds():
    """Of a Gaussian all is in closed form; the exact density, seen through samples, agrees with it, and so does that of the training data."""
    law, sde = targets.Gaussian([0.8, -0.2], torch.tensor([0.3, 1.4])), sdediff.VPSDE(beta_max=1.0)
    x, train, m = law.sample(2000, seed=0), law.sample(20_000, seed=1), sde.at(1.0)
    r = m.alpha**2 * torch.tensor([0.3, 1.4]).double() + m.sigma**2
    kl = 0.5 * float((r - 1 - r.log()).sum() + m.alpha**2 * 0.68)
    for target in (law, None):
        found = doctor.examine(sde, law.score, x, train=train, target=target, levels=2)["prior"].numbers
        assert found["kl_gaussian"] == pytest.approx(kl, rel=0.05)
        assert abs(found["kl_density"] - kl) < 5 * found["kl_density_stderr"] + 0.02 * kl
        assert kl < found["kl_at_most"]


def test_errors_are_in_the_unit_they_are_told_in():
    """eps + delta is an error of w |delta| everywhere, all of it mean; a turn by omega has the Jacobian omega R/rms(x)."""
    delta, omega = 0.06, 0.1
    for h in examine(of_eps(lambda eps, x, m: eps + delta), levels=4).levels:
        w = VP.at(h.t).sigma / rms_of(VP.at(h.t))
        assert h.error == pytest.approx(w * delta, rel=1e-3) and h.mean == pytest.approx(w * delta, abs=0.02) and abs(h.scale) < 0.03
    for h in examine(turned(omega), levels=4).levels:
        w = VP.at(h.t).sigma / rms_of(VP.at(h.t))
        assert h.curl == pytest.approx(w**2 * omega, rel=0.25)                             # a root mean square of 256 probes
    for h in examine(of_eps(lambda eps, x, m: 1.2 * eps), levels=4).levels:
        w = VP.at(h.t).sigma / rms_of(VP.at(h.t))
        assert h.scale == pytest.approx(0.2 * w**2, abs=0.02)


def test_the_linear_denoiser_is_the_best_for_gaussian_data():
    """The loss of the fitted one is the closed form sum c_i alpha^2/(c_i alpha^2 + sigma^2)/d, and a score that knows no more is found out."""
    law = targets.Gaussian([0.5, -0.3], torch.tensor([0.25, 1.5]))
    report = doctor.examine(VP, law.score, law.sample(4000, seed=0), n=2000, levels=5)
    for h in report.levels:
        m = VP.at(h.t)
        least = sum(m.alpha**2 * c / (m.alpha**2 * c + m.sigma**2) for c in (0.25, 1.5)) / 2
        assert h.linear == pytest.approx(least, rel=0.15) and h.loss == pytest.approx(h.linear, rel=0.02)
    assert report["score"].verdict == "look" and "right for Gaussian data alone" in report["score"].advice


def test_memory_and_weights():
    """The exact score of the training samples knows them by heart; an average that lags behind is worse than the last weights."""
    known = targets.Empirical(TRAIN[:60])
    report = doctor.examine(VP, known.score, HELD, train=TRAIN[:60], levels=3)
    assert report["memory"].verdict == "bad" and report["memory"].numbers["z"] > 5, str(report)
    done = train(sdediff.from_network(nets.MLP(2, 16, 1, seed=0), "eps", time_input="lam"), VP, TRAIN,
                 TrainingConfig(steps=200, batch=256, lr=5e-3), progress=False)
    last = dataclasses.replace(done.score, network=done.network)
    lagging = dataclasses.replace(done.score, network=nets.MLP(2, 16, 1, seed=0))                       # where the average began
    report = examine(lagging, raw=last, levels=3)
    assert report["weights"].verdict == "bad" and report["weights"].numbers["distance"] > 0.1, str(report)
    assert examine(last, raw=last, levels=3)["weights"].numbers == {"distance": 0.0, "gap": 0.0, "z": 0.0}


def test_a_network_that_fails_is_a_finding():
    class Fails(torch.nn.Module):
        def forward(self, x, c):
            return x / (c > 0.5)[:, None]

    report = examine(sdediff.from_network(Fails()))
    assert report["network"].verdict == "bad" and "NaN or inf" in report["network"].found and report["prior"].verdict == "OK"
    frozen = examine(sdediff.from_network(lambda x, c: LAW.score(x.detach(), VP.at(float(c[0]))).eps.detach()), levels=3)
    assert frozen["gradient"].verdict == "look" and "no gradient" in frozen["gradient"].found
    assert frozen.document()["levels"][0]["curl"] is None


def test_conditions_belong_to_their_samples():
    law = targets.toy("8-gaussians")
    x, y = law.sample(400, seed=3, dtype=torch.float32), law.sample_labels(400, seed=3)
    report = doctor.examine(VP, law.conditional, x, conditions={"y": y}, levels=3)
    assert report["Stein"].verdict == report["codes"].verdict == "OK" and report.n == 200
    wrong = doctor.examine(VP, law.conditional, x, conditions={"y": y.roll(1)}, levels=3)
    assert wrong["score"].verdict == "bad"


def test_wrong_arguments_are_named():
    for given, error, words in (({"data": HELD[:10]}, ValueError, "32 held-out"), ({"score": nets.MLP(2, 8, 1)}, TypeError, "wrap a network"),
                                ({"sde": "vp"}, TypeError, "sde="), ({"levels": 1}, ValueError, "levels=1"), ({"n": 3}, ValueError, "n=3"),
                                ({"train": TRAIN[:, :1]}, ValueError, "train.shape"), ({"raw": LAW.score}, TypeError, "raw="),
                                ({"conditions": {"y": torch.zeros(3)}}, ValueError, "conditions"), ({"target": 1}, TypeError, "target")):
        with pytest.raises(error, match=words):
            doctor.examine(**{"sde": VP, "score": LAW.score, "data": HELD} | given)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A network that learned something in some seconds."""
    out = tmp_path_factory.mktemp("run") / "moons"
    job = runs.Job(data="8-gaussians", network=runs.NetworkConfig(width=32, depth=2),
                   training=runs.TrainingConfig(steps=700, batch=256, lr=5e-3, ema=0.99))
    runs.prepare(out, "data: 8-gaussians\nseed: 0\n", resume=False, overwrite=False)
    runs.train(job, out, data.load(job.data, seed=0), progress=False)
    return out


def test_a_trained_run(run, tmp_path, capsys):
    assert main(["doctor", str(run), "--quiet", "--out", str(tmp_path / "health.json")]) == 0
    said, document = capsys.readouterr().out, json.loads((tmp_path / "health.json").read_text())
    assert [line["name"] for line in document["lines"]] == ["prior", "score", "Stein", "gradient", "memory", "weights", "codes", "round trip",
                                                            "calls"]
    assert all(line["found"] in said and line["verdict"] in ("OK", "look", "bad") for line in document["lines"])
    assert not (run / "doctor.json").exists() and document["name"] == "moons" and document["versions"]["sdediff"]
    verdicts = {line["name"]: line["verdict"] for line in document["lines"]}
    assert {verdicts[name] for name in ("prior", "memory", "weights", "round trip")} == {"OK"}
    assert "\x1b" not in said                                                   # no terminal, no colours
    assert main(["doctor", str(run), "--quiet"]) == 0 and (run / "doctor.json").is_file()


def test_strict_says_what_is_bad(tmp_path, capsys):
    out = tmp_path / "hardly"
    job = runs.Job(data="8-gaussians", network=runs.NetworkConfig(width=8, depth=1), training=runs.TrainingConfig(steps=3, batch=16))
    runs.prepare(out, "data: 8-gaussians\nseed: 0\n", resume=False, overwrite=False)
    runs.train(job, out, data.load(job.data, seed=0), progress=False)
    assert main(["doctor", str(out), "--quiet", "--strict"]) == 1 and main(["doctor", str(out), "--quiet"]) == 0
    assert "score       bad" in capsys.readouterr().out
    assert main(["doctor", str(tmp_path / "none")]) == 2
