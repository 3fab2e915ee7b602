"""sdediff: score-based diffusion models as SDEs, with interchangeable solvers whose order is measured."""
from . import grids, random, solvers, targets
from .equation import ReverseSDE
from .recipes import Method, method, methods
from .sampling import Path, SampleInfo, encode, iterate, sample, sample_info, simulate
from .score import NetworkError, Prediction, from_network, from_score
from .sde import EDMSDE, SDE, VESDE, VPSDE, CosineVPSDE, LinearSDE, NoiseLevel, RectifiedFlow, SubVPSDE
from .solvers import StepBudgetError, as_torchsde

__version__ = "0.1.0"

__all__ = [
    "EDMSDE",
    "SDE",
    "VESDE",
    "VPSDE",
    "CosineVPSDE",
    "LinearSDE",
    "Method",
    "NetworkError",
    "NoiseLevel",
    "Path",
    "Prediction",
    "RectifiedFlow",
    "ReverseSDE",
    "SampleInfo",
    "StepBudgetError",
    "SubVPSDE",
    "as_torchsde",
    "encode",
    "from_network",
    "from_score",
    "grids",
    "iterate",
    "method",
    "methods",
    "random",
    "sample",
    "sample_info",
    "simulate",
    "solvers", "targets",
]
