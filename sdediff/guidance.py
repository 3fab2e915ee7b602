r"""Guidance: a Score made of Scores, so that it works with every method, and with likelihood.

*Classifiers.* By Bayes' rule the score of p(x_t | y) is that of p(x_t) and the gradient of log p(y | x_t). Guidance counts it w times,

    s_w = s(x_t) + w grad log p(y | x_t)                               theory, eq. (29); Dhariwal & Nichol 2021, Alg. 1

*Without a classifier* the gradient is the difference of two scores, with and without the condition (Ho & Salimans 2022),

    D_w = D_0 + w (D_1 - D_0)                                          (their w is w - 1)

in any quantity D that is affine in the score: w = 0 leaves the condition out, w = 1 is the conditional law, w > 1 extrapolates. With a
weaker model of the same law for D_0 it is autoguidance (Karras et al. 2024). The extrapolation may be kept to levels low <= sigma/alpha
<= high (Kynkaanniemi et al. 2024), and x0 rescaled to the spread of the conditional one (Lin et al. 2023, sec. 3.4),

    x0 <- x0 (1 - phi + phi std(x0_1)/std(x0_w)),                      std over the event of each sample.

*What it samples.* At w = 1 and exact scores, p(x | y). At other w not p(x) p(y|x)^w: that density, noised, is not p_t(x) p_t(y|x)^w, whose
score s_w is (Du et al. 2023; Bradley & Nakkiran 2024; theory, eq. (30)). How far off it is has been measured: docs/guidance/README.md.

*Temperature.* N(m, s^2 I) to the power 1/T is N(m, T s^2 I). Noised, its score is that of the law itself times

    r = (alpha^2 s^2 + sigma^2)/(alpha^2 T s^2 + sigma^2),             theory, eq. (31); Ingraham et al. 2023 (Chroma)

for any mean, since both are proportional to x - alpha m. For other laws it is an approximation, as guidance is; s = inf gives r = 1/T.
"""
from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .contracts import integer, labels, names, real, scored, shown, text
from .score import Classifier, NetworkError, Prediction, Score, autocast_dtype, calls_at, cut, log_posterior, named, show, spread
from .sde import NoiseLevel

Scale = float | Callable[[NoiseLevel], Any]


@dataclass(frozen=True)
class Guided:
    """A Score around another one, which conditions, chunks and autocast reach through it."""

    score: Score

    def __post_init__(self) -> None:
        scored("score", self.score)

    @property
    def network(self) -> Any:
        """The network behind, if any: it says where samples are drawn, and in which dtype."""
        return getattr(self.score, "network", None)

    @property
    def name(self) -> Any:
        """The network's name, if there is one."""
        return getattr(self.score, "name", None)

    @property
    def time_input(self) -> Any:
        """What the network behind is conditioned on, if any."""
        return getattr(self.score, "time_input", None)

    @property
    def observation(self) -> Any:
        """The measurement that the score carries, if it does (``inverse``)."""
        return getattr(self.score, "observation", None)

    @property
    def conditions(self) -> Mapping[str, Any]:
        """The conditions that the score has."""
        return getattr(self.score, "conditions", {})

    def calls_at(self, level: NoiseLevel) -> int:
        """Network calls of one evaluation."""
        return calls_at(self.score, level)

    def condition(self, **conditions: Any) -> Guided:
        """The same guidance with more conditions, tensors (B, ...) or scalars."""
        return dataclasses.replace(self, score=conditioned(self.score, **conditions))

    def rows(self, start: int, stop: int) -> Guided:
        """The same guidance for the samples start..stop of a batch."""
        return dataclasses.replace(self, score=rows_of(self.score, start, stop))

    def cast(self, autocast: torch.dtype) -> Guided:
        """The same guidance with the network under autocast."""
        return dataclasses.replace(self, score=cast(self.score, autocast))


def conditioned(score: Score, **conditions: Any) -> Any:
    """``score`` with conditions. TypeError where it takes none."""
    if not hasattr(score, "condition"):
        raise TypeError(f"conditions={sorted(conditions)}: {type(score).__name__} takes none; expected a network score, "
                        "sdediff.from_network(...).")
    return score.condition(**conditions)


def rows_of(score: Score, start: int, stop: int) -> Any:
    """``score`` for the samples start..stop of a batch."""
    scored("score", score)
    integer("start", start, 0), integer("stop", stop, 0)
    return score.rows(start, stop) if hasattr(score, "rows") else score


def cast(score: Score, autocast: torch.dtype) -> Any:
    """``score`` with its network under autocast. TypeError where it has none."""
    scored("score", score)
    if autocast_dtype(autocast) is None:
        raise TypeError("autocast=None: expected torch.bfloat16 or torch.float16.")
    if not hasattr(score, "cast"):
        raise TypeError(f"autocast={autocast}: {type(score).__name__} is no network; expected sdediff.from_network(...), or none.")
    return score.cast(autocast)


# -- two scores -------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Extrapolated(Guided):
    """D_0 + w (D_1 - D_0) in the quantities that ``score`` (D_1) gives; ``weak`` is D_0. Made by ``classifier_free``, where conditions go
    to ``score`` alone, and ``autoguidance``, where ``both`` take them. A model whose factor is zero at a level is not called there."""

    weak: Score
    scale: Scale
    interval: tuple[float, float] | None = None
    rescale: float = 0.0
    both: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        scored("weak", self.weak)
        _check_scale(self.scale)
        real("rescale", self.rescale, 0.0, 1.0)
        if self.observation is not None:
            raise ValueError("score: it carries a measurement, which has no part in the difference of two scores; expected it outside, as "
                             "in sdediff.inverse.pigdm(sdediff.guidance.classifier_free(score, 2.0), ...).")
        if self.interval is not None:
            ends = [math.nan if isinstance(v, bool) else v for v in self.interval] if isinstance(self.interval, (tuple, list)) else []
            if len(ends) != 2 or not all(isinstance(v, (int, float)) for v in ends) or not 0 <= ends[0] < ends[1]:
                raise ValueError(f"interval={shown(self.interval)}: expected (low, high), 0 <= low < high, the levels sigma/alpha that are "
                                 "guided, such as (0.3, 5.0); high may be inf.")

    def condition(self, **conditions: Any) -> Guided:
        more = super().condition(**conditions)
        return dataclasses.replace(more, weak=conditioned(self.weak, **conditions)) if self.both else more  # type: ignore[call-arg]

    def rows(self, start: int, stop: int) -> Guided:
        return self._with(super().rows(start, stop), rows_of(self.weak, start, stop))

    def cast(self, autocast: torch.dtype) -> Guided:
        return self._with(super().cast(autocast), cast(self.weak, autocast))

    def _with(self, more: Guided, weak: Score) -> Guided:
        """``more`` with that weak score, which stays one with its score where it was: then no condition tells them apart."""
        return dataclasses.replace(more, weak=more.score if self.weak is self.score else weak)              # type: ignore[call-arg]

    def scale_at(self, level: NoiseLevel) -> Any:
        """w at a level, 1 outside the interval: a number, or a tensor where the level or the scale is one."""
        w = _scale_at(self.scale, level)
        if self.interval is None:
            return w
        low, high = (math.log(v) if v > 0 else -math.inf for v in self.interval)
        if not isinstance(level.alpha, Tensor):
            return w if low <= -level.lam <= high else 1.0
        return 1 + (w - 1) * ((low <= -level.lam) & (-level.lam <= high)).to(level.alpha)

    def calls_at(self, level: NoiseLevel) -> int:
        w = self.scale_at(level)
        return _any(w != 0) * calls_at(self.score, level) + _any(w != 1) * calls_at(self.weak, level)

    def __call__(self, x: Tensor, level: NoiseLevel) -> Prediction:
        w = self.scale_at(level.to(x))
        if not _any(w != 0):
            return self.weak(x, level)
        if self.weak is self.score and not self.both:
            raise ValueError("conditions: none was given, and nothing tells the guided score from the unguided one; expected "
                             "sample(..., conditions={'y': labels}), or scale=0.")
        good = self.score(x, level)
        if not _any(w != 1):
            return good
        weak = self.weak(x, level)
        by = {name: getattr(good, name) for name in good.given}
        out = Prediction(good.x, good.level, **{name: d + (w - 1) * (d - getattr(weak, name)) for name, d in by.items()})
        return self._rescaled(out, good) if self.rescale else out

    def _rescaled(self, p: Prediction, good: Prediction) -> Prediction:
        """``p`` with the spread of x0 brought to that of ``good``."""
        if p.x[:1].numel() < 2:
            raise ValueError(f"rescale={self.rescale} on events of shape {tuple(p.x.shape[1:])}: one number has no spread; expected "
                             "rescale=0.0.")
        spreads = [q.x0.flatten(1).std(1).clamp_min(torch.finfo(p.x.dtype).tiny) for q in (good, p)]
        factor = (self.rescale * (spreads[0] / spreads[1] - 1)).reshape(-1, *[1] * (p.x.ndim - 1))
        return p.shifted(x0=factor * p.x0)


def classifier_free(score: Score, scale: Scale, *, null: Mapping[str, Any] | None = None, interval: tuple[float, float] | None = None,
                    rescale: float = 0.0) -> Extrapolated:
    """Classifier-free guidance of a conditional score by itself without its condition.

        sdediff.sample(sde, sdediff.guidance.classifier_free(score, 2.0), conditions={"y": labels}, ...)

    Parameters
    ----------
    scale : w >= 0, or a function of the level: 0 is the unconditional law, 1 the conditional one. (Ho & Salimans' w is scale - 1.)
    null : the conditions that mean none, such as {"y": 10}; by default the network is called without any. Conditions of ``sample`` go to
        the conditional call alone, those that ``score`` was made with to both.
    interval : (low, high) in sigma/alpha; at other levels the conditional model alone is called, as with scale 1.
    rescale : phi in [0, 1], how far the spread of each sample's x0 is brought back to that of the conditional one. For images: the spread
        over the coordinates of a point may vanish, and the factor is unbounded.

    It takes two network calls (``SampleInfo.nfe``, ``nfe=``), one where w is 0 or 1. Raises TypeError or ValueError on a wrong argument.
    """
    none = names("null", null, "{'y': 10}")
    return Extrapolated(score, conditioned(score, **none) if none else score, scale, interval, rescale)


def autoguidance(score: Score, weak: Score, scale: Scale, *, interval: tuple[float, float] | None = None,
                 rescale: float = 0.0) -> Extrapolated:
    """Guidance of a score by a ``weak`` one of the same law (smaller, or trained less) under the same conditions; ``scale`` and the
    others as for ``classifier_free``, 1 being ``score`` itself."""
    return Extrapolated(score, weak, scale, interval, rescale, both=True)


# -- a score and a classifier -----------------------------------------------------------------------------------------
@dataclass(frozen=True)
class ClassifierGuided(Guided):
    """s + w grad log p(y | x_t), made by ``classifier``. ``y``: labels (B,), or one for all."""

    classifier: Classifier
    scale: Scale
    label: str = "y"
    y: Any = None

    def __post_init__(self) -> None:
        super().__post_init__()
        text("label", self.label, "y")
        if not callable(self.classifier) or isinstance(self.classifier, torch.nn.Module):
            raise TypeError(f"classifier={type(self.classifier).__name__}: expected a function (x, level) -> logits (B, C); wrap a network "
                            "as sdediff.from_classifier(net).")
        _check_scale(self.scale)

    def condition(self, **conditions: Any) -> Guided:
        y = conditions.pop(self.label, self.y)
        return dataclasses.replace(self, y=y, score=conditioned(self.score, **conditions) if conditions else self.score)

    def rows(self, start: int, stop: int) -> Guided:
        return dataclasses.replace(super().rows(start, stop), y=cut(self.y, start, stop))                   # type: ignore[call-arg]

    @property
    def conditions(self) -> Mapping[str, Any]:
        return {**super().conditions, **({} if self.y is None else {self.label: self.y})}

    def calls_at(self, level: NoiseLevel) -> int:
        return calls_at(self.score, level) + _any(_scale_at(self.scale, level) != 0)

    def __call__(self, x: Tensor, level: NoiseLevel) -> Prediction:
        base, w = self.score(x, level), _scale_at(self.scale, level.to(x))
        return base.shifted(score=w * self.gradient(x, level)) if _any(w != 0) else base

    def gradient(self, x: Tensor, level: NoiseLevel) -> Tensor:
        """grad log p(y | x_t), shaped as x, whatever the grad mode; where gradients flow through x, they flow through this too.
        NetworkError where the logits have none."""
        tracked = torch.is_grad_enabled() and x.requires_grad
        with torch.inference_mode(False), torch.enable_grad():
            own = lambda v: v.clone() if isinstance(v, Tensor) and v.is_inference() else v
            at = x if tracked else x.detach().clone().requires_grad_()
            log_p = self.log_prob(at, NoiseLevel(*map(own, level)), own(self.y))
            found = torch.autograd.grad(log_p.sum(), at, create_graph=tracked, allow_unused=True)[0] if log_p.requires_grad else None
        if found is None:
            raise NetworkError(f"{named(self.classifier, level)}: its logits have no gradient with respect to x; expected a network that "
                               "is not run under torch.no_grad() and does not detach x.")
        return found

    def log_prob(self, x: Tensor, level: NoiseLevel, y: Any) -> Tensor:
        """log p(y | x_t), (B,). Raises ValueError without labels, NetworkError on NaN or inf."""
        if y is None:
            raise ValueError(f"conditions: no {self.label!r}; expected sample(..., conditions={{{self.label!r}: labels}}), the classes "
                             "that guidance leads to.")
        every = log_posterior(self.classifier, x, level)
        if x.device.type == "cpu" and bool((bad := every.isnan().any(1)).any()):
            raise NetworkError(f"{named(self.classifier, level)}: returned NaN or inf for {int(bad.sum())} of {len(x)} states, first state "
                               f"{int(bad.nonzero()[0])}; expected finite logits.")
        chosen = labels(self.label, spread(y, len(x)), len(x), every.shape[1], x.device)
        return every.gather(1, chosen[:, None])[:, 0]


def classifier(score: Score, classifier: Classifier, scale: Scale, *, label: str = "y") -> ClassifierGuided:
    """Classifier guidance of an unconditional score.

        net = nets.MLP(2, outputs=3)
        p = training.train_classifier(sdediff.from_classifier(net), sde, data, labels).classifier       # or target.log_posterior, exact
        sdediff.sample(sde, sdediff.guidance.classifier(score, p, 2.0), conditions={"y": labels}, ...)

    ``classifier`` (x, level) -> logits (B, C), differentiable in x; ``scale`` w >= 0, or a function of the level; ``label`` names the
    condition that is the classifier's, and the others are the score's. It takes one call more than the score, where w is not 0. At
    alpha = 0 a classifier does not determine x0: models that predict x0, v or velocity are refused there (use t_start=). Raises TypeError
    or ValueError on a wrong argument, ``NetworkError`` where the classifier returns a wrong shape or NaN.
    """
    return ClassifierGuided(score, classifier, scale, label)


# -- temperature ------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Tempered(Guided):
    """The score times (alpha^2 s^2 + sigma^2)/(alpha^2 T s^2 + sigma^2), T ``factor`` and s ``spread``; made by ``temperature``."""

    factor: float
    spread: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        real("T", self.factor, 0.0, low_open=True)
        real("scale", self.spread, 0.0, low_open=True, infinite=True, hint="the data's standard deviation, or inf for the score over T")

    def __call__(self, x: Tensor, level: NoiseLevel) -> Prediction:
        base = self.score(x, level)
        if self.factor == 1:
            return base
        m, q = base.level, self.spread**-2
        total = self.factor * m.alpha**2 + q * m.sigma**2
        if not q and not isinstance(total, Tensor) and not total:
            raise ValueError(f"temperature at t={show(m.t)}: the score over T says nothing of x0 at alpha = 0; expected a finite scale=, "
                             "or a grid that does not reach this level (t_start=).")
        rate = (m.alpha**2 + q * m.sigma**2) / total
        said: dict[str, Callable[[], Any]] = {      # x0 - x/alpha is proportional to the score
            "x0": lambda: base.x0 + (1 - self.factor) * m.alpha / total * (m.alpha * base.x0 - base.x),
            "eps": lambda: rate * base.eps, "score": lambda: rate * base.score}
        return Prediction(base.x, m, **{name: said[name]() for name in [k for k in base.given if k in said] or ["x0", "eps"]})


def temperature(score: Score, T: float, scale: float = 1.0) -> Tempered:
    """Sampling at temperature T > 0: T < 1 sharpens, T > 1 spreads. Exact for data N(m, s^2 I) with s = ``scale``, whose samples are
    then of N(m, T s^2 I); ``scale=math.inf`` is the plain rule, the score over T. Raises TypeError or ValueError on a wrong argument."""
    return Tempered(score, T, scale)


# -- checks -----------------------------------------------------------------------------------------------------------
def _check_scale(scale: Any) -> None:
    if not callable(scale):
        real("scale", scale, 0.0, hint="or a function of the level; 1 is the conditional law")


def _scale_at(scale: Scale, level: NoiseLevel) -> Any:
    """w at a level, checked."""
    if not callable(scale):
        return float(scale)
    w = scale(level)
    if isinstance(w, Tensor) and w.numel() > 1:
        if w.device.type == "cpu" and not bool(((w >= 0) & w.isfinite()).all()):
            raise ValueError(f"scale(level) at t={show(level.t)}: {w.flatten().tolist()[:8]}; expected finite numbers >= 0.")
        return w
    return real("scale(level)", w, 0.0)


def _any(condition: Any) -> bool:
    return bool(condition.any()) if isinstance(condition, Tensor) else condition
