"""Solvers, one family a file. A solver moves a state between two noise levels of one equation (``base``)."""
from .base import Multistep, Solver, State
from .chain import DDIM, Ancestral, analytic_variance
from .exponential import Exponential, SingleStep, UniPC, dpm_solver
from .external import SciPy, TorchSDE
from .langevin import Langevin
from .multistep import IPNDM, AdamsBashforth
from .onestep import EULER, HEUN, KUTTA, MIDPOINT, RK4, EulerMaruyama, ReverseDiffusion, RungeKutta, StochasticHeun
from .rosenbrock import Rosenbrock
from .tracing import Form, Table, table
from .wrappers import Chain, Exploded, Start, started

__all__ = [
    "DDIM", "EULER", "HEUN", "IPNDM", "KUTTA", "MIDPOINT", "RK4", "AdamsBashforth", "Ancestral", "Chain", "EulerMaruyama", "Exploded",
    "Exponential", "Form", "Langevin", "Multistep", "ReverseDiffusion", "Rosenbrock", "RungeKutta", "SciPy",
    "SingleStep", "Solver", "Start", "State",
    "StochasticHeun", "Table", "TorchSDE", "UniPC", "analytic_variance", "dpm_solver", "started", "table",
]
