"""sdediff: score-based diffusion models as SDEs, with interchangeable solvers whose order is measured."""
from . import adapters, doctor, grids, guidance, inverse, operators, random, selection, solvers, targets
from .equation import ReverseSDE
from .guards import NumericalWarning
from .latent import decode, denoise_from, interpolate, renoise, round_trip, slerp
from .likelihood import Bins, Bound, LogProb, bits_per_dim, dequantise, elbo, log_prob
from .recipes import Method, method, methods
from .sampling import Path, SampleInfo, encode, iterate, sample, sample_chunks, sample_info, simulate
from .score import NetworkError, Prediction, from_classifier, from_network, from_score
from .sde import EDMSDE, SDE, VESDE, VPSDE, CosineVPSDE, LinearSDE, NoiseLevel, RectifiedFlow, SubVPSDE
from .solvers import StepBudgetError, as_torchsde
from .tuning import tune

__version__ = "0.1.0"

__all__ = [
    "EDMSDE",
    "SDE",
    "VESDE",
    "VPSDE",
    "Bins",
    "Bound",
    "CosineVPSDE",
    "LinearSDE",
    "LogProb",
    "Method",
    "NetworkError",
    "NoiseLevel",
    "NumericalWarning",
    "Path",
    "Prediction",
    "RectifiedFlow",
    "ReverseSDE",
    "SampleInfo",
    "StepBudgetError",
    "SubVPSDE",
    "adapters",
    "as_torchsde",
    "bits_per_dim",
    "decode",
    "denoise_from",
    "dequantise",
    "doctor",
    "elbo",
    "encode",
    "from_classifier",
    "from_network",
    "from_score",
    "grids",
    "guidance",
    "interpolate",
    "inverse",
    "iterate",
    "log_prob",
    "method",
    "methods",
    "operators",
    "random",
    "renoise",
    "round_trip",
    "sample",
    "sample_chunks",
    "sample_info",
    "selection",
    "simulate",
    "slerp",
    "solvers",
    "targets",
    "tune",
]
