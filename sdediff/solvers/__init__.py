"""Solvers, one family a file. A solver moves a state between two noise levels of one equation (``base``)."""
from .base import Solver, State
from .exponential import DDIM, Exponential
from .external import SciPy, TorchSDE
from .langevin import Langevin
from .onestep import EULER, HEUN, KUTTA, MIDPOINT, RK4, EulerMaruyama, ReverseDiffusion, RungeKutta, StochasticHeun
from .tracing import Form, Table, table
from .wrappers import Chain, Exploded, Start, started

__all__ = ["DDIM", "EULER", "HEUN", "KUTTA", "MIDPOINT", "RK4", "Chain", "EulerMaruyama", "Exploded", "Exponential", "Form", "Langevin",
           "ReverseDiffusion", "RungeKutta", "SciPy", "Solver", "Start", "State", "StochasticHeun", "Table", "TorchSDE", "started", "table"]
