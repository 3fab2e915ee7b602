"""Solvers, one family a file. A solver moves a state between two noise levels of one equation (``base``)."""
from .adaptive import BOGACKI_SHAMPINE, DORMAND_PRINCE, AdaptiveRungeKutta, EmbeddedPair, GottaGoFast, StepBudgetError
from .angular import Angular
from .base import Multistep, Solver, State
from .chain import DDIM, analytic_variance
from .exponential import Exponential, PredictorCorrector, SingleStep, dpm_solver, unipc
from .external import SciPy, TorchDiffEq, TorchDiffEqFixed, TorchSDE, TorchSDEForm, as_torchsde
from .langevin import Langevin
from .multistep import ERSDE, IPNDM, AdamsBashforth, extended_eta
from .nonstationary import NonStationary
from .observing import DDRM, DPS, Observing, Replacement, TwistedSMC
from .onestep import EULER, HEUN, KUTTA, MIDPOINT, RK4, SRA1, EulerMaruyama, ReverseDiffusion, RungeKutta, StochasticHeun
from .parallel import Picard
from .renoising import Ancestral, Churn, Interval, Restart
from .rosenbrock import Rosenbrock
from .tracing import Form, Table, table
from .wrappers import Chain, Exploded, Start, started

__all__ = [
    "BOGACKI_SHAMPINE", "DDIM", "DDRM", "DORMAND_PRINCE", "DPS", "ERSDE", "EULER", "HEUN", "IPNDM", "KUTTA", "MIDPOINT", "RK4",
    "SRA1", "AdamsBashforth", "AdaptiveRungeKutta", "Ancestral", "Angular", "Chain", "Churn", "EmbeddedPair", "EulerMaruyama",
    "Exploded", "Exponential", "Form", "GottaGoFast", "Interval", "Langevin", "Multistep", "NonStationary", "Observing", "Picard",
    "PredictorCorrector", "Replacement", "Restart", "ReverseDiffusion", "Rosenbrock", "RungeKutta", "SciPy", "SingleStep",
    "Solver", "Start", "State", "StepBudgetError", "StochasticHeun", "Table", "TorchDiffEq", "TorchDiffEqFixed", "TorchSDE",
    "TorchSDEForm", "TwistedSMC", "analytic_variance", "as_torchsde", "dpm_solver", "extended_eta", "started", "table", "unipc",
]
