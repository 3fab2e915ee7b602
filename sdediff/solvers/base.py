"""The protocol: a solver is a pure function that moves a state between two noise levels of one equation.

State in, state out; the solver object holds hyperparameters only, so that one object serves any number of runs and threads.
A step may run down (t noisier than s: sampling) or up (encoding), and may have zero length (a corrector).
"""
from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Any, NamedTuple

from ..equation import ReverseSDE
from ..random import Noise
from ..score import Prediction
from ..sde import NoiseLevel

LONG = 0.5      # a step in lambda beyond which no high order is to be seen, and extrapolation over it does harm


class State(NamedTuple):
    """What a step hands to the next: ``x`` (B, *D); ``memory``, remembered (level, evaluation) pairs, newest first;
    ``prediction``, the last one of the model (its ``x0`` is the preview), None from black-box methods."""

    x: Any
    memory: tuple[tuple[NoiseLevel, Any], ...] = ()
    prediction: Prediction | None = None


class Solver(abc.ABC):
    """A frozen dataclass of hyperparameters with one method.

    ``order``: the order of convergence on the probability-flow ODE, and the weak order on the SDE where that differs
    (``weak_order``); None where the method does not converge by refining the grid (a corrector's fixed point).
    ``noise``: "never" (ODE only), "always", or "eta" (as much as the equation has). ``adaptive``: it chooses its own number of network
    calls. ``looks_ahead``: over a grid (``over``) it may call the network beyond the step that it is asked for, within the grid.
    """

    order: int | None = 1
    noise: str = "eta"
    remembers: int = 0          # evaluations of earlier steps that a step uses
    adaptive: bool = False
    looks_ahead: bool = False
    couples: int | None = 1     # consecutive samples that a step moves together; None: all of a batch

    @property
    def weak_order(self) -> int | None:
        """Order of the output's law on an equation with eta > 0, by refinement; None where there is none."""
        return None if self.noise == "never" else 1

    @property
    def strong_order(self) -> float | None:
        """Order path by path on a shared Brownian path (the noise is additive: 1 for every scheme here that has a weak order)."""
        return None if self.noise == "never" or self.weak_order is None else 1

    @abc.abstractmethod
    def step(self, eq: ReverseSDE, state: State, t: NoiseLevel, s: NoiseLevel, noise: Noise | None) -> State:
        """The state at s from the state at t. ``noise`` is the source as this step sees it (None for a deterministic run)."""

    def over(self, levels: Sequence[NoiseLevel]) -> Solver:
        """This solver on the grid ``levels``: itself, unless a step depends on more of the grid than its own interval. Steps of one run
        are taken by ``solver.over(levels)``; the loops do so."""
        return self

    def smallest(self) -> Solver:
        """A solver that makes as many calls on the fewest samples, by which calls are counted."""
        return self

    def diagnostics(self, state: State) -> dict[str, Any]:
        """What a finished run's last state tells beside the samples."""
        return {}

    def accepts(self, eq: ReverseSDE) -> None:
        """Raises ValueError where this solver cannot integrate this equation."""
        if self.noise == "never" and not eq.is_ode:
            raise ValueError(f"eta={eq.eta!r}: {type(self).__name__} solves the probability-flow ODE alone; expected eta=0, "
                             "or a method for SDEs such as 'euler-maruyama', 'sde-heun' or 'dpm++2m-sde'.")


class Multistep(Solver):
    """A solver that interpolates through its last ``nodes`` evaluations of ``form`` ("x0" or "eps"); order ``nodes`` unless it says
    otherwise."""

    nodes: int
    form: str = "eps"
    corrects: bool = False      # whether a step uses evaluations beyond those before it, at the state that it predicts

    @property
    def order(self) -> int:                                                                  # type: ignore[override]
        return self.nodes

    @property
    def remembers(self) -> int:                                                              # type: ignore[override]
        """Evaluations kept from step to step."""
        return self.nodes - 1

    @property
    def starts(self) -> int:
        """Steps that must be taken by a starter of order ``order`` - 1 for the order to hold from any start."""
        return max(0, self.nodes - 2)

    def remember(self, p: Prediction) -> Any:
        """What is kept of an evaluation."""
        return getattr(p, self.form)
