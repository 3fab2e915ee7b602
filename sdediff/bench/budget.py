r"""The error budget of a trained model: how much of what is wrong with its samples is whose fault.

*Ingredients.* A sampler draws z ~ N(0, s^2 I) in place of the law at t_max, follows a model's score in place of the true one, by a solver
in place of the flow, and stops at t_min in place of 0. Each of the four has an exact counterpart, on a target whose score is known:

    prior          z is moved onto the law at t_max by the probability flow of the levels u in [0, 1] with alpha = u alpha(t_max) and
                   sigma = s + u (sigma(t_max) - s): dx/du = alpha(t_max) E[x_0|x] + (sigma(t_max) - s) E[eps|x] carries N(0, s^2 I), the
                   law at u = 0, to the law at u = 1 (for Gaussian data by the optimal transport)
    score          the target's
    discretisation a fine reference solver (a stochastic method: itself, 8 times finer, on the same Brownian path)
    truncation     the target's probability flow from t_min down to 0

Let A be the endpoints of the sampler, A_i those with ingredient i alone made exact, D those with all four exact, from common starts z (and
on common Brownian paths), so that e_i = A - A_i is zero, not small, where the ingredient is exact, and the law of D is the data's, up to
the reference's error.

*Two distances, in the units of the data.* The path error, and the sliced Wasserstein distance of two sets of n points,

    path(A, B)^2 = E |A - B|^2 / d,      SW(A, B)^2 = mean over directions u of int (F_{u.A}^{-1} - F_{u.B}^{-1})^2 dq <= path(A, B)^2,

the latter because sorting pairs points at least as well as the common starts do (up to the draw of the directions). SW forgives paths that
change places, for the law is what samples are for; it is ``value`` here. Both are zero where the ingredient is exact, so neither has a
floor. Only the last two lines have: the sampler against independent exact draws, and such draws against each other, the Monte Carlo error.

*What adds up.* Vectors do: A - D = sum_i e_i + r, where the rest r is the interaction of ingredients, of second order in them. Hence

    1 = sum_i E<e_i, A - D> / E|A - D|^2 + E<r, A - D> / E|A - D|^2                                                                 (1)

exactly, the shares (one that works against the others is negative), and path(A, D) <= sum_i path(A, A_i) + |r|. The squares of path errors
add only where ingredients are uncorrelated, and sliced distances need not add at all. The sum stands beside the total, to be seen.

*Score error by level.* With g^2 dt = -2 sigma^2 dlambda and E_t the mean under the exact law at t, the Fisher divergence integrates to

    1/2 int g^2 E_t |s_theta - s|^2 dt  =  int E |eps_theta - eps|^2 dlambda,                                                        (2)

and (2) + KL(p_T || N(0, s^2 I)) bounds KL(p_{t_min} || the model's reverse SDE, eta = 1, solved exactly; Song et al. 2021b, Theorem 1).
It is a bound on an SDE's law, in nats: it neither adds to the distances above nor bounds the ODE's law.

Intervals are those of Student for the mean over independent repeats, 95 %; (2) has independent draws at every level. References: Song,
Durkan, Murray & Ermon 2021 (arXiv:2101.09258); Bonneel et al. 2015 (sliced W2); Santambrogio 2015, sec. 5 (W2 and couplings).
"""
from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .. import metrics, sampling
from ..contracts import integer
from ..equation import ReverseSDE
from ..grids import finite_span
from ..progress import bar
from ..random import Noise, WhiteNoise
from ..recipes import Method
from ..score import Score
from ..sde import SDE, NoiseLevel
from ..targets import Target
from ..testing.measure import KnotPath
from . import cells, study

REFERENCE, FINE = "eab-4", 128          # the flow: median error about 1e-6 on the toys, RMS 1e-5 (paths that part at a ridge)
FINER = 8                               # of a stochastic method
TRANSPORT = 4                           # Runge-Kutta steps of the short way from N(0, s^2 I) to the law at t_max: 1e-13
CLEAN = math.log(1000.0)                # "0" is sigma/alpha a thousandth of that at t_min
LAST = 32                               # steps of the reference on that way: a thousandth of its length
PATHLESS = ("the method draws noise that is no increment of a Brownian path over its steps (Langevin, churn, inner stages): a finer "
            "grid is no finer solution of it; expected a deterministic method, or one such as 'euler-maruyama', 'ddpm', 'dpm++2m-sde'.")
INGREDIENTS = {
    "prior mismatch": "from N(0, s² I) moved onto the exact law at t_max by the probability flow",
    "truncation at t_min": "continued from t_min to 0 by the exact flow",
    "score error": "the exact score in place of the network, same solver and grid",
    "discretisation": "a fine reference solver in place of this one, same network",
}


class Interval(NamedTuple):
    """An estimate and its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}]"

    @staticmethod
    def of(values: Sequence[float], least: float = -math.inf) -> Interval:
        """The mean of independent values with Student's interval, which does not go below ``least``."""
        from scipy.special import stdtrit
        v = np.asarray(values, dtype=float)
        half = float(stdtrit(len(v) - 1, 0.975) * v.std(ddof=1) / math.sqrt(len(v)))
        return Interval(float(v.mean()), max(least, float(v.mean()) - half), float(v.mean()) + half)


@dataclass(frozen=True)
class Ingredient:
    """``w2``: sliced W2 between the sampler with and without it; ``path``: the path error, an upper bound; ``share``: its part of the whole
    path error, (1), nan where there is none."""

    name: str
    how: str
    w2: Interval
    path: Interval
    share: Interval


class FisherLevel(NamedTuple):
    """E |eps_theta - eps|^2 at a level with its standard error, and the level's weight in the integral over lambda."""

    lam: float
    t: float
    sigma: float
    alpha: float
    value: float
    stderr: float
    weight: float


@dataclass(frozen=True)
class Budget:
    """Made by ``measure``; ``str`` is its table, ``document`` its JSON.

    ``ingredients``: the four, one made exact at a time; ``interaction``: what they do together beyond that (it has no W2); ``total``: the
    sampler against the exact samples from the same starts; ``seen``: against independent exact samples, as anyone would measure it;
    ``floor``: two sets of independent exact samples. ``fisher``: the score error by level; ``score_kl``, ``prior_kl``: the two terms of
    Song's bound in nats.
    """

    run: str
    sampler: str
    nfe: int
    n: int
    repeats: int
    ingredients: tuple[Ingredient, ...]
    interaction: Ingredient
    total: Ingredient
    seen: Interval
    floor: Interval
    fisher: tuple[FisherLevel, ...]
    score_kl: Interval
    prior_kl: Interval

    metric = "sliced_w2"
    unit = "units of the data, per coordinate"

    def __getitem__(self, name: str) -> Ingredient:
        """The ingredient of that name."""
        return next(i for i in (*self.ingredients, self.interaction, self.total) if i.name == name)

    @property
    def sum(self) -> float:
        """The sum of the four sliced distances: not the total, and shown beside it."""
        return sum(i.w2.value for i in self.ingredients)

    @property
    def path_sum(self) -> float:
        """The sum of the four path errors; the total path error is at most this plus the interaction."""
        return sum(i.path.value for i in self.ingredients)

    @property
    def path_quadrature(self) -> float:
        """The root of the sum of the squared path errors, which the total would be if ingredients were uncorrelated."""
        return math.sqrt(sum(i.path.value**2 for i in self.ingredients))

    def __str__(self) -> str:
        columns = [("", "sliced W2", "path error", "share of path"), *((i.name, i.w2, i.path, i.share) for i in self.ingredients),
                   ("sum of these", f"{self.sum:.3g}", f"{self.path_sum:.3g}", ""),
                   (self.interaction.name, "", self.interaction.path, self.interaction.share),
                   (self.total.name, self.total.w2, self.total.path, ""),
                   ("Monte Carlo (the floor)", self.floor, "", ""), ("against fresh data", self.seen, "", "")]
        width = 2 + max(len(c[0]) for c in columns)
        lines = [f"Error budget of {self.run}: {self.sampler}, {self.nfe} calls",
                 f"{self.repeats} x {self.n} samples; {self.unit}; 95 % intervals", ""]
        lines += ["".join([f"{c[0]:<{width}}", *(f"{v!s:<30}" for v in c[1:])]).rstrip() for c in columns]
        lines += ["", f"KL to the law of the reverse SDE <= {self.score_kl} (score) + {self.prior_kl} (prior) nats", "",
                  "by level            lambda      sigma     E |eps_theta - eps|^2"]
        lines += [f"{f.lam:26.2f} {f.sigma:10.3g}     {f.value:.3g} ± {f.stderr:.2g}" for f in self.fisher[::max(1, len(self.fisher) // 8)]]
        return "\n".join(lines)

    def document(self) -> dict[str, Any]:
        """What ``write`` writes: plain numbers, None where one does not exist."""
        def record(i: Ingredient) -> dict[str, Any]:
            return {"name": i.name, **i.w2._asdict(), "how": i.how, "path": i.path._asdict(), "share": i.share._asdict()}

        monte_carlo = {"name": "Monte Carlo", **self.floor._asdict(), "how": f"two sets of {self.n} independent exact samples"}
        return _plain({
            "run": self.run, "sampler": self.sampler, "nfe": self.nfe, "n": self.n, "repeats": self.repeats, "metric": self.metric,
            "unit": self.unit, "ingredients": [*map(record, self.ingredients), monte_carlo],
            "total": self.seen.value, "total_low": self.seen.low, "total_high": self.seen.high,
            "floor": self.floor.value, "floor_low": self.floor.low, "floor_high": self.floor.high,
            "sum": self.sum, "common_starts": record(self.total), "interaction": record(self.interaction),
            "path_sum": self.path_sum, "path_quadrature": self.path_quadrature,
            "fisher": [f._asdict() for f in self.fisher], "score_kl": self.score_kl._asdict(), "prior_kl": self.prior_kl._asdict()})


def _plain(v: Any) -> Any:
    if isinstance(v, dict):
        return {k: _plain(u) for k, u in v.items()}
    if isinstance(v, list):
        return [_plain(u) for u in v]
    return None if isinstance(v, float) and not math.isfinite(v) else v


# -- the exact counterparts -----------------------------------------------------------------------------------------
def onto_marginal(x: Tensor, sde: SDE, target: Target, steps: int = TRANSPORT) -> Tensor:
    """Draws x (B, *D) from the prior carried onto the target's exact law at t_max by the flow of the module's first lines (RK4 in u)."""
    end, s = sde.at(sde.t_max), sde.prior_std()
    da, ds = end.alpha, end.sigma - s

    def velocity(x: Tensor, u: float) -> Tensor:
        p = target.score(x, NoiseLevel(u, u * da, s + u * ds, da, ds, 2 * (s + u * ds) * ds))
        return da * p.x0 + ds * p.eps if ds else da * p.x0

    if not da and not ds:
        return x
    h = 1 / steps
    for k in range(steps):
        k1 = velocity(x, k * h)
        k2 = velocity(x + h / 2 * k1, (k + 0.5) * h)
        k3 = velocity(x + h / 2 * k2, (k + 0.5) * h)
        x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + velocity(x + h * k3, min(1.0, (k + 1) * h)))
    return x


def to_data(x: Tensor, sde: SDE, target: Target, steps: int = LAST) -> Tensor:
    """States x (B, *D) at t_min carried to the data by the target's probability flow: to a thousandth of sigma/alpha at t_min, and
    divided by alpha. What is left out is a thousandth of the way for a point, a millionth for a density."""
    end = sde.at(sde.t_min)
    if end.sigma == 0:
        return x / end.alpha
    t = float(sde.time_of(torch.tensor([end.lam + CLEAN], dtype=torch.float64)))
    if not 0 < t < sde.t_min:                   # sigma does not fall to 0 (VE): on, as the process y = x/alpha in the clock sigma/alpha
        from ..sde import EDMSDE
        r = math.exp(-end.lam)
        return to_data(x / end.alpha, EDMSDE(sigma_min=r, sigma_max=2 * r), target, steps)
    times = [sde.t_min, *(float(v) for v in sde.time_of(torch.linspace(end.lam, end.lam + CLEAN, steps + 1, dtype=torch.float64))[1:])]
    return sampling.sample(sde, target.score, x_init=x, method=REFERENCE, grid=times) / sde.at(t).alpha


def fisher(sde: SDE, score: Score, target: Target, *, levels: int = 24, n: int = 2000, seed: int = 0) -> tuple[FisherLevel, ...]:
    """E |eps_theta - eps|^2 under the exact law at the Gauss-Legendre nodes of the span of lambda, from noise to data. The first of the two
    ends is cut where alpha = 0, the second where sigma = 0, as the grids do."""
    start, end = finite_span(sde, sde.t_max, sde.t_min)
    low, high = sde.at(start).lam, sde.at(end).lam
    nodes, weights = np.polynomial.legendre.leggauss(integer("levels", levels, 1))
    found = []
    for k, (node, w) in enumerate(zip(nodes, weights)):
        level = sde.level_of(0.5 * (low + high) + 0.5 * (high - low) * float(node))
        x = _noised(target, level, n, _key(seed, k, "fisher"))
        with torch.no_grad():
            square = (score(x, level).eps - target.score(x, level).eps).square().flatten(1).sum(1)
        found.append(FisherLevel(level.lam, level.t, level.sigma, level.alpha, float(square.mean()), float(square.std() / math.sqrt(n)),
                                 float(w) * 0.5 * (high - low)))
    return tuple(found)


def _kl(levels: Sequence[FisherLevel]) -> Interval:
    """The integral (2)."""
    value, stderr = sum(f.weight * f.value for f in levels), math.sqrt(sum((f.weight * f.stderr)**2 for f in levels))
    return Interval(value, max(0.0, value - 1.96 * stderr), value + 1.96 * stderr)


def _prior_kl(sde: SDE, target: Target, n: int, seed: int) -> Interval:
    """KL(p_T || N(0, s^2 I)) = E log p_T(x) - log N(x; 0, s^2 I), by draws of x ~ p_T. The mean of log N - log p_T + N/p_T - 1 has the same
    value with the sign turned, and every term of it is >= 0: no cancellation."""
    level, s = sde.at(sde.t_max), sde.prior_std()
    x = _noised(target, level, n, _key(seed, 0, "prior"))
    flat = x.flatten(1)
    log_ratio = -0.5 * (flat / s).square().sum(1) - flat.shape[1] * (math.log(s) + 0.5 * math.log(2 * math.pi)) - target.log_prob(x, level)
    terms = torch.expm1(log_ratio) - log_ratio
    value, stderr = float(terms.mean()), float(terms.std() / math.sqrt(n))
    return Interval(value, max(0.0, value - 1.96 * stderr), value + 1.96 * stderr)


def _noised(target: Target, level: NoiseLevel, n: int, seed: int) -> Tensor:
    x0 = target.sample(n, seed=seed, dtype=torch.float64, device="cpu")
    return level.alpha * x0 + level.sigma * WhiteNoise(seed, x0.shape, dtype=torch.float64).normal()


def _key(*words: Any) -> int:
    return int.from_bytes(hashlib.blake2b("/".join(map(str, words)).encode(), digest_size=8).digest(), "little") >> 2


# -- the budget -----------------------------------------------------------------------------------------------------
def measure(model: str | Path | tuple[SDE, Score], target: Target | None = None, *, method: str | Method = "dpm++2m",
            steps: int | None = None, nfe: int | None = None, grid: Any = None, n: int = 2000, repeats: int = 8, seed: int = 0,
            reference_steps: int = FINE, levels: int = 24, progress: bool = False) -> Budget:
    """The error budget of a model under one sampler.

    Parameters
    ----------
    model : the folder of a trained run (as ``sdediff train`` makes it), or a pair (sde, score).
    target : the exact law that was learned; of a run it is known where the data are a toy.
    method : a ``Method``, or as the command line writes it, "dpm++2m" or "ddim:steps=50,eta=0.5". ``steps`` | ``nfe``: grid intervals or a
        budget of calls (20 steps where nothing is said); ``grid``: as for ``sample``.
    n, repeats : samples of each of the independent repeats; intervals need two repeats at least.
    reference_steps : of the fine solver (``eab-4`` on the process's own grid; at most a chain's knots). A stochastic method is its own
        reference, on its grid 8 times refined, which keeps about an eighth of its error (strong order 1).
    levels : of the score error by level.
    progress : show a progress bar.

    Costs per repeat: two runs of the reference, one of them with the network, and three of the sampler. Raises ValueError for a run without
    an exact target (a table or images), and for a stochastic method that chooses its steps or whose noise is no increment of a path
    (Langevin steps, churn), for it has no finer solution to be held against; and what ``sample`` raises.
    TypeError for a target that is no law.
    """
    from .. import runs

    integer("n", n, 2)
    integer("repeats", repeats, 2)
    integer("reference_steps", reference_steps, 4)
    integer("seed", seed, 0)
    name = "a model"
    if isinstance(model, (str, Path)):
        config, checkpoint, network = runs.read(Path(model))
        pair: tuple[SDE, Score] = checkpoint.sde, network
        name = Path(model).resolve().name
        target = target or runs.data_of(config, checkpoint).target
        if target is None:
            raise ValueError(f"run='{model}' was trained on {config['data']!r}, whose law is not known; expected one of the toys, or "
                             "target=, an exact law in the network's units.")
    else:
        pair = model
    sde, score = pair
    if not isinstance(target, Target):
        raise TypeError(f"target={target!r}: expected an exact law such as sdediff.targets.toy('two-moons').")
    if isinstance(method, str):
        default = 20 if steps is None and nfe is None and "steps=" not in method and "nfe=" not in method else steps
        entry = runs.Entry.parse(method, steps=default, nfe=nfe, grid=grid)
        recipe, spent = entry.on(sde, score), entry.budget                                       # type: ignore[arg-type]
    else:
        recipe, spent = method, {k: v for k, v in (("steps", steps), ("nfe", nfe), ("grid", grid)) if v is not None}
        spent = spent or {"steps": 20}
    stochastic = recipe.solver.noise == "always" or (recipe.solver.noise == "eta" and recipe.eta != 0)
    if stochastic and recipe.solver.adaptive:
        raise ValueError(f"method={recipe.name!r} chooses its own steps on a random path: there is no finer grid to hold it against; "
                         "expected a stochastic method on a grid, or a deterministic one.")
    eq = ReverseSDE(sde, score, recipe.eta)
    times = sampling.times_of(recipe, eq.sde, spent.get("steps"), spent.get("nfe"), spent.get("grid"), None, None)
    finer = [t + (s - t) * j / FINER for t, s in zip(times, times[1:]) for j in range(FINER)] + times[-1:] if stochastic else []
    count = min(reference_steps, sde.knots or reference_steps)

    def pipeline(score: Score, x: Tensor, noise: Noise | None) -> sampling.SampleInfo:
        return sampling.sample_info(sde, score, x_init=x, method=recipe, grid=times, **_driven(noise))

    def fine(score: Score, x: Tensor, noise: Noise | None) -> Tensor:
        chosen: dict[str, Any] = {"method": recipe, "grid": finer} if stochastic else {"method": REFERENCE, "steps": count}
        return sampling.sample(sde, score, x_init=x, **chosen, **_driven(noise))

    rows: list[dict[str, dict[str, float]]] = []
    seen, floor = [], []
    shape = (n, *target.event)
    for k in bar(repeats, progress, iterable=range(repeats), desc=f"budget of {recipe.name}", unit="repeat", leave=False):
        key = _key(seed, k)
        z = sde.prior_std() * WhiteNoise(key, shape, dtype=torch.float64).normal()
        onto = onto_marginal(z, sde, target)
        noise = _Path(key, shape, sde.levels(finer)) if stochastic else None
        info = pipeline(score, z, noise)
        end, exact = info.x, to_data(fine(target.score, onto, noise), sde, target)
        instead = {"prior mismatch": pipeline(score, onto, noise).x, "truncation at t_min": to_data(end, sde, target),
                   "score error": pipeline(target.score, z, noise).x, "discretisation": fine(score, z, noise)}
        rows.append(_compare(end, exact, instead))
        first, second = (target.sample(n, seed=_key(seed, k, part), dtype=torch.float64, device="cpu") for part in ("held", "fresh"))
        seen.append(metrics.sliced_w2(end, first).value)
        floor.append(metrics.sliced_w2(second, first).value)

    def ingredient(name: str, how: str) -> Ingredient:
        column = lambda kind, least=-math.inf: Interval.of([row[name][kind] for row in rows], least)
        return Ingredient(name, how, column("w2", 0.0), column("path", 0.0), column("share"))

    by_level = fisher(sde, score, target, levels=levels, n=n, seed=seed)
    return Budget(name, f"{recipe.name} on {type(sde).__name__}, {len(times) - 1} steps", info.nfe, n, repeats,
                  ingredients=tuple(ingredient(*item) for item in INGREDIENTS.items()),
                  interaction=ingredient("interaction", "what the ingredients do together beyond the sum of what each does alone"),
                  total=ingredient("total, common starts", "the exact samples from the same starts"),
                  seen=Interval.of(seen, 0.0), floor=Interval.of(floor, 0.0), fisher=by_level, score_kl=_kl(by_level),
                  prior_kl=_prior_kl(sde, target, n * repeats, seed))


class _Path(KnotPath):
    """A Brownian path known at the knots of the finer grid, for solvers that take its increments over their steps and nothing else."""

    def _with(self, white: WhiteNoise) -> _Path:
        view = object.__new__(_Path)
        view.__dict__.update(self.__dict__, white=white)
        return view

    def normal(self, use: int = 1) -> Tensor:
        raise ValueError(PATHLESS)

    def unit(self, t: Any, s: Any) -> Tensor:
        if t.t == s.t:
            raise ValueError(PATHLESS)
        return super().unit(t, s)

    def _pair(self, t: float) -> tuple[Tensor, Tensor]:
        try:
            return super()._pair(t)
        except ValueError:
            raise ValueError(PATHLESS) from None


def _driven(noise: Noise | None) -> dict[str, Any]:
    return {} if noise is None else {"noise": noise}


def _compare(end: Tensor, exact: Tensor, instead: dict[str, Tensor]) -> dict[str, dict[str, float]]:
    """The distances of one repeat, by name."""
    whole = end - exact
    size = float(whole.square().mean())
    parts = {name: end - other for name, other in instead.items()}
    rest = whole - sum(parts.values(), torch.zeros_like(whole))

    def row(e: Tensor, other: Tensor | None) -> dict[str, float]:
        return {"w2": math.nan if other is None else metrics.sliced_w2(end, other).value, "path": float(e.square().mean().sqrt()),
                "share": float((e * whole).mean()) / size if size else math.nan}

    return {name: row(e, instead[name]) for name, e in parts.items()} | {"interaction": row(rest, None),
                                                                         "total, common starts": row(whole, exact)}


def write(run: str | Path, out: str | Path, methods: Sequence[str] = ("dpm++2m",), *, progress: bool = False,
          **options: Any) -> list[Budget]:
    """Measure the run in the folder ``run`` under each of ``methods``, write ``out``/budget.json and the page of the benchmark in ``out``
    (a new folder, or one that holds a benchmark), and return the budgets. ``options`` go to ``measure``. Raises ValueError without
    methods."""
    from . import page
    if not methods:
        raise ValueError("methods=(): nothing to account for; expected samplers such as ['dpm++2m', 'ddim:steps=50'].")
    folder = study.claimed(out)
    budgets = [measure(Path(run), method=method, progress=progress, **options) for method in methods]
    cells.write_json(folder / study.BUDGET, {"budgets": [budget.document() for budget in budgets]})
    page.write(folder)
    return budgets
