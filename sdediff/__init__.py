"""sdediff: score-based diffusion models as SDEs, with interchangeable solvers whose order is measured."""
from . import grids, random
from .equation import ReverseSDE
from .score import NetworkError, Prediction, from_network, from_score
from .sde import SDE, CosineVPSDE, EDMSDE, LinearSDE, NoiseLevel, RectifiedFlow, SubVPSDE, VESDE, VPSDE

__version__ = "0.1.0"
