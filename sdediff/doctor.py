r"""A trained model's health: `sdediff doctor RUN`, or ``examine(sde, score, data)`` for any score and held-out data.

*One unit.* A score that says eps + e in place of eps moves the probability flow: in y = x/alpha, whose clock is r = sigma/alpha,
dy = (eps + e) dr, and data of variance c per coordinate contract what happens at r by sqrt(c/(c + r^2)) on the way down. In units of the
data's spread a unit of lambda = log(alpha/sigma) therefore moves the samples by

    w |e|,        w = r/sqrt(c + r^2) = sigma/sqrt(V),        V = alpha^2 c + sigma^2 = E x^2 per coordinate,                           (1)

eps itself at high noise, x_0/sqrt(c) at low noise, where errors of eps do little. Errors of the score are told as (1), a root mean square
per coordinate: below ``SMALL`` = 3 % of the data's spread OK, above ``LARGE`` = 10 % bad, if they are ``SURE`` = 5 standard errors from 0.

*What is looked at*, on held-out x_0, x = alpha x_0 + sigma eps:

    prior       KL(p_T || N(0, s^2 I)). That of the Gaussian of p_T's moments is a lower bound, for the rest, KL(p_T || Gaussian), is >= 0;
                so is E log(q_T/N(0, s^2 I)) for any density q_T, here the target's or that of the noised training data (Gibbs); and
                ``guards.prior_kl`` is an upper bound.
    score       E|eps_theta - eps|^2 exceeds its least value, at the true score, by E|e|^2. Where the law is known (a toy) the least is, and
                e itself; else that of the best linear denoiser, which knows mean and covariance alone, and which every network should beat.
    Stein       E s = 0 and E x.s = -d hold for the true score under its own law: for eps, E eps_theta = 0, E x.eps_theta = sigma d. Both
                means are taken with the true eps, of which they are known, for control variate.
    memory      the loss on held-out data less that on data trained on.
    gradient    a score is a gradient: its Jacobian is symmetric. B = sigma d eps_theta/dx is asked by probes, E (v.Bu - u.Bv)^2 =
                |B - B^T|_F^2 for normal u, v; half of its root per coordinate is what the field without a potential does over a length of
                sigma.
    codes       held-out data run up the flow, from where their noise is 3 % of their spread, must have the law at t_max: its size and mean.
    round trip  up and down again; what does not come back is lost to stiffness, or to a network that is not smooth.
    weights     the moving average against the last weights, by their losses on the same draws.
    calls       the error of ``method="auto"`` on this network's own flow, and the fewest calls with which it is below 2 %.

Costs a minute at most for small networks: some 20 calls on all of the data, 40 backward passes and 600 calls on a few of them. References:
Efron 2011 (Tweedie); Stein 1981; Gorham & Mackey 2015 (a score judged by Stein's identity); Song et al. 2021b for the score's part in nats.
"""
from __future__ import annotations

import dataclasses
import json
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import analysis, files, guards, latent, sampling
from .contracts import flags, instance, integer, names, scored, state, text
from .execution import Watched
from .grids import finite_span
from .progress import bar
from .random import WhiteNoise
from .score import NetworkError, Prediction, Score, cut, pullback
from .sde import SDE, NoiseLevel
from .targets import Target

OK, LOOK, BAD = "OK", "look", "bad"
SMALL, LARGE, SURE = 0.03, 0.1, 5.0             # of the data's spread, see (1); standard errors
CURL, CODES = (0.06, 0.2), (0.1, 0.3)           # a network is never quite a gradient; along the flow the errors of its span add up
NATS = (0.02, 0.1)                              # of the prior, in all: a total variation of up to 10 % and 22 % (Pinsker)
TRIP = (0.02, 0.1)                              # of the round trip, relative
FINE, BUDGETS, ENOUGH = 60, (5, 10, 20, 40), 0.02
FILE = "doctor.json"
_PRIOR, _CODE, _STARTS, _PROBE = (1 << k for k in (12, 13, 14, 15))         # uses of the noise beside those of the levels


class Line(NamedTuple):
    """One finding: its ``name``, a ``verdict`` (OK, look, bad), what was ``found``, what to do (``advice``, empty where all is well), and
    the ``numbers`` it stands on."""

    name: str
    verdict: str
    found: str
    advice: str = ""
    numbers: Mapping[str, Any] = {}


class Health(NamedTuple):
    """At one level: ``loss``, E|eps_theta - eps|^2 per coordinate; ``linear``, that of the best linear denoiser; ``best``, the least there
    can be (a toy's). In units of (1): ``error`` beyond the best, or beyond the linear denoiser, with the sign of the difference; ``scale``,
    the part of the error that lies along x; ``mean``, that of its mean; ``curl``, of its rotation; each with standard errors from 0."""

    t: float
    lam: float
    loss: float
    linear: float
    best: float | None
    error: float
    error_z: float
    scale: float
    scale_z: float
    mean: float
    mean_z: float
    curl: float | None


@dataclass(frozen=True)
class Report:
    """Made by ``examine``; ``str`` is its table, ``document`` its JSON. ``lines``, the findings, ``report["score"]`` one of them;
    ``levels``, from noise to data; ``n`` samples of ``d`` coordinates."""

    name: str
    process: str
    n: int
    d: int
    lines: tuple[Line, ...]
    levels: tuple[Health, ...] = field(default=())

    def __getitem__(self, name: str) -> Line:
        """The line of that name."""
        return next(line for line in self.lines if line.name == name)

    @property
    def verdict(self) -> str:
        """The worst of the lines."""
        return max((line.verdict for line in self.lines), key=(OK, LOOK, BAD).index)

    def table(self, paint: Callable[[str, str], str] = lambda text, verdict: text) -> str:
        """The table; ``paint`` may colour a text by a verdict."""
        rows = [f"Health of {self.name}: {self.process}, {self.n} held-out samples of {self.d} coordinates", ""]
        for line in self.lines:
            rows.append(f"{line.name:<11} {paint(f'{line.verdict:<4}', line.verdict)}  {line.found}")
            rows += [f"{'':<18}{line.advice}"] if line.advice else []
        if self.levels:
            known = self.levels[0].best is not None
            rows += ["", f"{'lambda':>7}{'t':>9}{'loss':>9}{'linear':>9}{'best' if known else '':>9}{'error':>10}{'scale':>9}{'mean':>8}"
                         f"{'curl':>8}   (error beyond the {'best' if known else 'linear denoiser'}; in units of the data's spread)"]
            show = lambda v, form: "" if v is None else format(v, form)
            rows += [f"{h.lam:7.2f}{h.t:9.3g}{h.loss:9.4f}{h.linear:9.4f}{show(h.best, '9.4f'):>9}{h.error:10.4f}{h.scale:+9.4f}"
                     f"{h.mean:8.4f}{show(h.curl, '8.4f'):>8}" for h in self.levels]
        return "\n".join(rows)

    def __str__(self) -> str:
        return self.table()

    def document(self) -> dict[str, Any]:
        """Plain numbers and words, None where a number does not exist."""
        whole = {"name": self.name, "process": self.process, "n": self.n, "d": self.d, "verdict": self.verdict,
                 "lines": [line._asdict() | {"numbers": dict(line.numbers)} for line in self.lines],
                 "levels": [h._asdict() for h in self.levels]}
        return json.loads(json.dumps(whole), parse_constant=lambda name: None)


def examine(sde: SDE, score: Score, data: Tensor, *, train: Tensor | None = None, target: Target | None = None,
            conditions: Mapping[str, Any] | None = None, train_conditions: Mapping[str, Any] | None = None, raw: Score | None = None,
            levels: int = 10, n: int | None = None, seed: int = 0, name: str = "a model", progress: bool = False) -> Report:
    """The health of a score.

    Parameters
    ----------
    sde, score : the forward process, and the score as for ``sample``.
    data : held-out samples (N, *D) in the network's units, 32 or more.
    train : the samples that were trained on, from which the linear denoiser is fitted (by default from the first half of data, and the
        second is what is looked at).
    target : the exact law, where it is known.
    conditions, train_conditions : of the samples of data and of train, passed to the network by keyword as in ``sample``.
    raw : the score with the last weights where ``score`` has their moving average.
    levels : at which the score is judged, equally spaced in lambda; of a chain, the knots beside them.
    n : samples of data that are looked at (default: 2000, fewer where they are large).
    seed : of the noise and the probes.
    progress : show a progress bar.

    Raises TypeError or ValueError on wrong arguments. What is wrong with the network is a finding, not an error.
    """
    instance("sde", sde, SDE, "a forward process such as sdediff.VPSDE()")
    instance("target", target, Target, "an exact law such as sdediff.targets.toy('two-moons')", none=True)
    integer("levels", levels, 2), integer("seed", seed, 0)
    scored("score", score), text("name", name, "a model")
    flags(progress=progress)
    conditions, train_conditions = (names(of, given, "{'y': labels}") for of, given in (
        ("conditions", conditions), ("train_conditions", train_conditions)))
    if raw is not None and not all(isinstance(getattr(s, "network", None), torch.nn.Module) for s in (score, raw)):
        raise TypeError(f"raw={type(raw).__name__}: expected the score of a network, as score is, sdediff.from_network(net, ...).")
    if len(state("data", data, rank=2)) < 32:
        raise ValueError(f"data.shape={tuple(data.shape)}: expected 32 held-out samples or more.")
    half = len(data) // 2 if train is None else 0
    fit, d = data[:half] if train is None else state("train", train, rank=2), math.prod(data.shape[1:])
    if fit.shape[1:] != data.shape[1:] or len(fit) < 2:
        raise ValueError(f"train.shape={tuple(fit.shape)}: expected (N, {', '.join(map(str, data.shape[1:]))}), two samples or more.")
    count = min(integer("n", 2000 if n is None else n, 16), len(data) - half, *([max(256, (1 << 18) // d)] if n is None else []))
    for of, rows in ((conditions, data), (train_conditions, fit)):
        sampling.check_conditions(of, len(rows))
    given = lambda who, of, first: who.condition(**{k: cut(v, first, first + count) for k, v in of.items()}) if who and of else who
    patient = _Patient(sde, given(score, conditions, half), data[half:half + count], _Linear.of(fit), fit, target, seed)
    known = dataclasses.replace(patient, score=given(score, train_conditions, 0), x0=fit[:count])
    last = dataclasses.replace(patient, score=given(raw, conditions, half))
    lines, found = [patient.prior()], list[Health]()
    with bar(levels + 3, progress, desc="doctor", unit="check", leave=False) as ticks:
        try:
            for k, m in enumerate(patient.spaced(levels)):
                found.append(patient.level(m, k))
                ticks.update()
            lines += [_score(found, target is not None), _stein(found), _gradient(found)]
            if train is not None and bool(conditions) == bool(train_conditions):
                lines.append(patient.memory(known))
            if raw is not None:
                lines.append(patient.weights(last))
            ticks.update()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", guards.NumericalWarning)        # what they would say is said here
                for line in patient.flow():
                    lines.append(line)
                    ticks.update()
        except NetworkError as error:
            lines.append(Line("network", BAD, str(error), "Without an answer from the network nothing more can be looked at."))
    process = f"{type(sde).__name__} of {sde.knots} steps" if sde.knots else repr(sde)
    return Report(name, process, count, d, tuple(lines), tuple(found))


@dataclass(frozen=True)
class _Linear:
    """The best linear denoiser of data of this mean and covariance: its eigenvalues and eigenvectors (None: of a diagonal one)."""

    mean: Tensor
    values: Tensor
    vectors: Tensor | None

    @staticmethod
    def of(x: Tensor) -> _Linear:
        """From samples; with fewer than two for a coordinate, from the variances alone."""
        x = x[:20_000].flatten(1).double()
        if len(x) < 2 * x.shape[1]:
            return _Linear(x.mean(0), x.var(0), None)
        values, vectors = torch.linalg.eigh(torch.atleast_2d(torch.cov(x.T)))
        return _Linear(x.mean(0), values.clamp(min=0), vectors)

    def eps(self, x: Tensor, m: NoiseLevel) -> Tensor:
        """sigma (alpha^2 C + sigma^2)^{-1} (x - alpha m) for x (B, d) in float64."""
        off, total = x - m.alpha * self.mean, m.alpha**2 * self.values + m.sigma**2
        return m.sigma * (off / total if self.vectors is None else (off @ self.vectors / total) @ self.vectors.T)


def _effect(mean: Tensor, stderr: Tensor) -> tuple[float, float]:
    """The root mean square of estimates (d,) less what their standard errors contribute, and by how many standard errors of its own the
    sum of their squares lies above that: chi^2."""
    excess = (mean.square() - stderr.square()).mean()
    z = ((mean / stderr.clamp_min(1e-300)).square() - 1).sum() / math.sqrt(2 * len(mean))
    return math.sqrt(max(0.0, float(excess))), float(z)


def _controlled(v: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """Means of v (n, k) with standard errors, by the control variates c (n, k) of mean 0."""
    beta = ((v - v.mean(0)) * c).sum(0) / c.square().sum(0)
    rest = v - beta * c
    return rest.mean(0), rest.std(0) / math.sqrt(len(v))


@dataclass(frozen=True)
class _Patient:
    """A score, and the data that it is judged by."""

    sde: SDE
    score: Any
    x0: Tensor
    linear: _Linear
    train: Tensor
    target: Target | None
    seed: int

    @property
    def d(self) -> int:
        return math.prod(self.x0.shape[1:])

    def spread(self, m: NoiseLevel) -> float:
        """V of (1)."""
        return m.alpha**2 * self.x0.double().square().mean().item() + m.sigma**2

    def spaced(self, count: int) -> list[NoiseLevel]:
        """The levels; of a chain at its knots, each once."""
        low, high = (self.sde.at(t).lam for t in finite_span(self.sde, self.sde.t_max, self.sde.t_min))
        found = [self.sde.level_of(low + (high - low) * k / (count - 1)) for k in range(count)]
        knots = dict.fromkeys(float(max(1, round(m.t))) for m in found)
        return found if not self.sde.knots else [self.sde.at(t) for t in knots]

    def noise(self, rows: int | None = None) -> WhiteNoise:
        """Of the shape of the data, or of so many of them."""
        return WhiteNoise(self.seed, tuple(self.x0[:rows].shape), dtype=self.x0.dtype, device=self.x0.device)

    def noised(self, m: NoiseLevel, k: int) -> tuple[Tensor, Tensor]:
        """x and eps."""
        eps = self.noise().at(k).normal()
        return m.alpha * self.x0 + m.sigma * eps, eps

    def prior(self) -> Line:
        m, s = self.sde.at(self.sde.t_max), self.sde.prior_std()
        square = self.x0.double().square().mean().item()
        r = (m.alpha**2 * self.linear.values + m.sigma**2) / s**2
        least = 0.5 * float((r - 1 - r.log()).sum() + ((m.alpha / s * self.linear.mean)**2).sum())
        x = self.noised(m, _PRIOR)[0].flatten(1).double()
        if self.target is not None:
            log_p = self.target.log_prob(x.reshape(self.x0.shape), m)
        else:                                                   # up to the Gaussian's constant, as the prior's below
            y = m.alpha * self.train.flatten(1).double()[:2000]
            log_p = torch.logsumexp(-0.5 * (torch.cdist(x, y) / m.sigma)**2, 1) - math.log(len(y)) - self.d * math.log(m.sigma)
        constant = 0.5 * self.d * math.log(2 * math.pi) * (self.target is not None)
        each = log_p + 0.5 * (x / s).square().sum(1) + self.d * math.log(s) + constant
        seen, stderr = each.mean().item(), each.std().item() / math.sqrt(len(x))
        low, high = max(least, seen - 3 * stderr), self.d * guards.prior_kl(m, s, square)
        numbers = {"alpha": m.alpha, "sigma": m.sigma, "snr": (m.alpha / m.sigma)**2, "kl_gaussian": least, "kl_density": seen,
                   "kl_density_stderr": stderr, "kl_at_most": high}
        found = (f"alpha_T {m.alpha:.3g}, SNR {numbers['snr']:.2g}; KL to N(0, {s:.3g}^2 I) between {max(0.0, low):.2g} and {high:.2g} "
                 f"nats (Gaussian {least:.2g}; {'exact' if self.target is not None else 'training'} density {seen:.2g} ± {stderr:.1g})")
        verdict = BAD if low > NATS[1] else LOOK if low > NATS[0] or high > self.d * guards.START else OK
        return Line("prior", verdict, found, "" if verdict == OK else "Sampling starts from another law than training ended with: expected "
                    "a process that ends with less of the data (more or greater betas, a greater sigma_max), and scaled data.", numbers)

    def level(self, m: NoiseLevel, k: int) -> Health:
        x, eps = self.noised(m, k)
        p = self._ask(x, m)
        said, true, flat = (v.flatten(1).double() for v in (p.eps, eps, x))
        v = self.spread(m)
        w, rms = m.sigma / math.sqrt(v), math.sqrt(v)
        loss = (said - true).square().mean(1)
        linear = (self.linear.eps(flat, m) - true).square().mean(1)
        if self.target is not None:
            exact = self.target.score(x.double(), m).eps.flatten(1)
            beyond, best = (said - exact).square().mean(1), (exact - true).square().mean().item()
        else:
            beyond, best = loss - linear, None
        error, error_z = _root(beyond.mean(), beyond.std() / math.sqrt(len(x)))
        along = lambda e: (e * flat).sum(1, keepdim=True) / (self.d * rms) - w                   # mean 0 for the true score, and for eps
        scale, scale_error = (float(v) for v in _controlled(along(said), along(true)))
        drift, drift_z = _effect(*_controlled(said, true))
        return Health(m.t, m.lam, loss.mean().item(), linear.mean().item(), best, w * error, error_z, w * scale,
                      scale / max(scale_error, 1e-300), w * drift, drift_z, self._curl(x, m, w))

    def _ask(self, x: Tensor, m: NoiseLevel) -> Prediction:
        with torch.no_grad():
            return Watched(self.score)(x, m)

    def _curl(self, x: Tensor, m: NoiseLevel, w: float, most: int = 256) -> float | None:
        """w/2 |B - B^T|_F, a root mean square per coordinate; None where the score gives no gradient."""
        x, few = x[:most], self._few(most)
        u, v = (self.noise(most).at(_PROBE + j).normal() for j in (0, 1))
        try:
            _, pull = pullback(few, x, m)
            turned = (v * m.alpha * pull(u) - u * m.alpha * pull(v)).flatten(1).double().sum(1)         # B = 1 - alpha d x0/dx
        except (NetworkError, RuntimeError):
            return None
        return 0.5 * w * math.sqrt(turned.square().mean().item() / self.d)

    def _few(self, count: int) -> Any:
        return self.score.rows(0, min(count, len(self.x0))) if callable(getattr(self.score, "rows", None)) else self.score

    def _losses(self) -> Tensor:
        """w^2 |eps_theta - eps|^2 per coordinate, (levels, n)."""
        total = []
        for k, m in enumerate(self.spaced(5)):
            x, eps = self.noised(m, k)
            total.append(m.sigma**2 / self.spread(m) * (self._ask(x, m).eps - eps).double().square().flatten(1).mean(1))
        return torch.stack(total)

    def memory(self, known: _Patient) -> Line:
        """Held-out data against those trained on."""
        a, b = self._losses(), known._losses()
        stderr = (a.var(1) / a.shape[1] + b.var(1) / b.shape[1]).sqrt()
        gap, z = max((_root(*pair) for pair in zip(a.mean(1) - b.mean(1), stderr)), key=lambda pair: pair[1])
        verdict = _judge(gap, z)
        return Line("memory", verdict, f"its error on held-out data against that on data trained on: {_told(gap, z)}", "" if verdict
                    == OK else "It remembers single samples: expected more data, fewer steps, or a smaller network.", {"gap": gap, "z": z})

    def weights(self, last: _Patient) -> Line:
        """The average against the last weights, on the same draws."""
        each = (self._losses() - last._losses()).mean(0)
        gap, z = _root(each.mean(), each.std() / math.sqrt(len(each)))
        pairs = [[p.detach().double() for p in who.score.network.parameters()] for who in (self, last)]
        size, far = (math.sqrt(sum(float(p.square().sum()) for p in v)) for v in (pairs[1], [p - q for p, q in zip(*pairs)]))
        far, verdict = far / max(size, 1e-300), _judge(gap, z)
        return Line("weights", verdict, f"the average lies {100 * far:.2g} % from the last weights; its error against theirs: "
                    f"{_told(gap, z)}", "" if verdict == OK else "The average still remembers the first weights: train longer, or lower "
                    "training.ema.", {"distance": far, "gap": gap, "z": z})

    def flow(self) -> Iterator[Line]:
        """The lines that run the probability flow, on a few samples."""
        count = min(len(self.x0), max(8, min(1000, (1 << 15) // self.d)))
        few, sde, score = dataclasses.replace(self, x0=self.x0[:count], score=self._few(count)), self.sde, self._few(count)
        start, end = (sde.at(t) for t in finite_span(sde, sde.t_max, 1.0 if sde.knots else sde.t_min))
        seen = sde.level_of(-math.log(SMALL) - 0.5 * math.log(few.x0.double().square().mean().item() or 1.0))
        if start.t > seen.t > end.t:
            end = seen if not sde.knots else sde.at(float(math.ceil(seen.t)))
        x = latent.renoise(sde, few.x0, end.t, seed=self.seed)
        how: dict[str, Any] = {"steps": min(FINE, int(start.t - end.t))} if sde.knots else {"steps": FINE, "grid": "logsnr"}
        trip = latent.round_trip(sde, score, x, method="heun", **how, t_start=start.t, t_end=end.t)
        code, rms = trip.code.flatten(1).double(), math.sqrt(few.spread(start))
        mean = (code.mean(0) - start.alpha * few.x0.flatten(1).double().mean(0)) / rms
        drift, drift_z = _effect(mean, code.std(0) / rms / math.sqrt(len(code)))
        # in logarithms, since paths that are led astray leave heavy tails
        fresh = few.noised(start, _CODE)[0].flatten(1).double()
        size, right = ((v / rms).square().mean(1).clamp_min(1e-300).log() / 2 for v in (code, fresh))
        gap, stderr = (size.mean() - right.mean()).item(), math.sqrt((size.var() + right.var()).item() / len(size))
        wide, wide_z = math.expm1(gap), gap / stderr
        verdict = max((_judge(abs(wide), abs(wide_z), *CODES), _judge(drift, drift_z, *CODES)), key=(OK, LOOK, BAD).index)
        yield Line("codes", verdict, f"held-out data run up the flow: spread {100 * wide:+.2g} % off that of x_T, mean off by {drift:.2g} "
                   f"of it ({len(code)} samples)", "" if verdict == OK else "The errors of the score add up along the flow: see memory, "
                   "and the levels below.", {"spread": wide, "spread_z": wide_z, "mean": drift, "mean_z": drift_z})
        verdict = BAD if not trip.relative < TRIP[1] else LOOK if trip.relative > TRIP[0] else OK
        yield Line("round trip", verdict, f"up and down the flow by heun with {how['steps']} steps: {trip.relative:.2g} of the "
                   "samples' size is lost", "" if verdict == OK else "The network is not smooth in x or t: train longer, or average the "
                   "weights over more steps (training.ema).", {"relative": trip.relative})
        yield few.calls(start, end)

    def calls(self, start: NoiseLevel, end: NoiseLevel) -> Line:
        """How few calls do."""
        z = self.sde.prior_std(start) * self.noise().at(_STARTS).normal()
        run = lambda **how: sampling.sample(self.sde, self.score, x_init=z, t_start=start.t, **how)
        fine, spectrum = run(method="eab-3", steps=min(2 * FINE, self.sde.knots or 2 * FINE)), self.linear.values
        spread, tried = math.sqrt(self.x0.double().var(0).mean().item()), {}
        for nfe in BUDGETS:
            info = sampling.sample_info(self.sde, self.score, x_init=z, t_start=start.t, method="auto", nfe=nfe)
            tried[nfe] = float((info.x - fine).double().square().mean().sqrt()) / spread
            if tried[nfe] < ENOUGH:
                break
        method = info.explain.partition(":")[0]
        try:
            said = analysis.gaussian_error("auto", self.sde, nfe=nfe, spectrum=spectrum).total.path_rmse
            predicted = None if said is None else float(said) / math.sqrt(self.d) / spread
        except ValueError:                      # not linear in the state
            predicted = None
        found = (f"auto takes {method} at {nfe} calls: {100 * tried[nfe]:.2g} % of the data's spread from this network's own flow"
                 + ("" if predicted is None else f" ({100 * predicted:.2g} % predicted for Gaussian data)"))
        numbers = {"method": method, "nfe": nfe, "errors": {str(k): v for k, v in tried.items()}, "predicted": predicted}
        if tried[nfe] < ENOUGH:
            return Line("calls", OK, f"{found}: --method auto --nfe {nfe}", "", numbers)
        return Line("calls", LOOK, found, f"More than {nfe} calls are needed for {100 * ENOUGH:g} %: `sdediff tune RUN`, a stochastic "
                    "method such as dpm++2m-sde, or a smoother network.", numbers)


def _judge(size: float, z: float, small: float = SMALL, large: float = LARGE) -> str:
    return OK if z < SURE or size < small else BAD if size > large else LOOK


def _root(square: Tensor, stderr: Tensor) -> tuple[float, float]:
    """The root of a difference of squares, with its sign, and how many standard errors it is from 0."""
    v = float(square)
    return math.copysign(math.sqrt(abs(v)), v), v / max(float(stderr), 1e-300)


def _told(gap: float, z: float) -> str:
    """A difference of errors in words."""
    return f"{abs(gap):.2g} {'above' if gap > 0 else 'below'} ({z:+.1f} standard errors)" if abs(z) > 2 else "no difference to be seen"


def _worst(levels: list[Health], pick: Callable[[Health], tuple[float, float]]) -> tuple[Health, float, str]:
    """The level of the largest error that is sure (or of the largest), its size, and the verdict."""
    worst = max(levels, key=lambda h: (_judge(*pick(h)) != OK, pick(h)[0]))
    return worst, pick(worst)[0], _judge(*pick(worst))


def _score(levels: list[Health], known: bool) -> Line:
    worst, size, verdict = _worst(levels, lambda h: (h.error, h.error_z))
    numbers = {"error": size, "lam": worst.lam, "z": worst.error_z, "rival": "best" if known else "linear denoiser"}
    if known:
        found = f"its own error is {size:.2g} of the data's spread per unit of lambda at worst (lambda {worst.lam:.1f})"
    else:
        gains = [(h.linear - h.loss) / h.linear for h in levels]
        numbers["gain"] = max(gains)
        best = levels[gains.index(max(gains))].lam
        found = (f"{100 * max(gains):.0f} % below the loss of the best linear denoiser at lambda {best:.1f}; at worst "
                 f"{abs(size):.2g} {'above' if size > 0 else 'below'} (lambda {worst.lam:.1f})")
        if verdict == OK and all(h.error_z > -3 for h in levels):
            return Line("score", LOOK, found, "Nothing shows that it knows more than mean and covariance of the data, which is right for "
                        "Gaussian data alone: more held-out samples may show it; else train longer, or a larger network.", numbers)
    return Line("score", verdict, found, "" if verdict == OK else f"Around lambda {worst.lam:.1f} (t {worst.t:.3g}) the network does "
                + ("not know the score" if known else "worse than a linear denoiser") + ": train longer; check what it predicts and how it "
                "is told the time (predicts, time_input), and the weighting and times of training there.", numbers)


def _stein(levels: list[Health]) -> Line:
    worst, size, verdict = _worst(levels, lambda h: max((abs(h.scale), abs(h.scale_z)), (h.mean, h.mean_z),
                                                        key=lambda v: (_judge(*v) != OK, v[0])))
    along = abs(worst.scale) == size
    found = (f"{'E x.s = -d' if along else 'E s = 0'} is {'missed' if verdict != OK else 'met'}: off by {size:.2g} at worst (lambda "
             f"{worst.lam:.1f}, {min(999.0, abs(worst.scale_z) if along else worst.mean_z):.1f} standard errors)")
    advice = (f"There the network says {'more' if worst.scale > 0 else 'less'} noise than there is: its output or its noise level is "
              "scaled wrongly (predicts, time_input, sigma_data), or it was trained on other data." if along else
              "Its output has a mean of its own: it was trained on data of another mean, or not long enough.")
    return Line("Stein", verdict, found, "" if verdict == OK else advice,
                {"scale": worst.scale, "scale_z": worst.scale_z, "mean": worst.mean, "mean_z": worst.mean_z, "lam": worst.lam})


def _gradient(levels: list[Health]) -> Line:
    seen = [h for h in levels if h.curl is not None]
    if not seen:
        return Line("gradient", LOOK, "not seen: the score gives no gradient", "A network that is differentiable in x shows its Jacobian.")
    worst = max(seen, key=lambda h: h.curl or 0.0)
    size, verdict = worst.curl or 0.0, _judge(worst.curl or 0.0, math.inf, *CURL)
    found = f"its Jacobian is symmetric but for {size:.2g} of the data's spread (lambda {worst.lam:.1f})"
    return Line("gradient", verdict, found, "" if verdict == OK else "A score is a gradient, this field is not: a network not trained "
                "enough there, or something added to it (guidance by a field that is no gradient).", {"curl": size, "lam": worst.lam})


def of_run(run: Path, *, seed: int = 0, progress: bool = False) -> Report:
    """The health of a trained run, on its held-out data. Raises what ``runs.read`` raises."""
    from . import nets, runs
    run = files.named("run", run)
    integer("seed", seed, 0)
    flags(progress=progress)
    config, checkpoint, score = runs.read(run)
    dataset = runs.data_of(config, checkpoint)
    n, labelled = min(2000, dataset.limit or 2000), config.get("conditional")
    raw = checkpoint.score(nets.build(checkpoint.document["network"]), ema=False)
    return examine(checkpoint.sde, score, dataset.held_out(n), train=dataset.train, target=dataset.target, raw=raw, seed=seed,
                   conditions={"y": dataset.labels_of("held-out", n)} if labelled else None,
                   train_conditions={"y": dataset.labels} if labelled else None, name=run.resolve().name, progress=progress)


def write(report: Report, path: Path) -> Path:
    """The report as JSON, with the versions of what it depends on."""
    from . import runs
    path = files.named("path", path)
    instance("report", report, Report, "a report of doctor.examine(...)")
    files.write(path, json.dumps(report.document() | {"versions": runs.versions()}, indent=1) + "\n")
    return path
