"""sdediff: score-based diffusion models as SDEs, with interchangeable solvers whose order is measured."""
import importlib
from typing import TYPE_CHECKING, Any

from . import grids, random, selection, solvers
from .equation import ReverseSDE
from .guards import NumericalWarning
from .recipes import Method, method, methods
from .sampling import Path, SampleInfo, encode, iterate, sample, sample_chunks, sample_info, simulate
from .score import NetworkError, Prediction, from_classifier, from_network, from_score
from .sde import EDMSDE, SDE, VESDE, VPSDE, CosineVPSDE, LinearSDE, NoiseLevel, RectifiedFlow, SubVPSDE
from .solvers import StepBudgetError, as_torchsde

if TYPE_CHECKING:
    from . import adapters, doctor, guidance, inverse, operators, targets
    from .latent import decode, denoise_from, interpolate, renoise, round_trip, slerp
    from .likelihood import Bins, Bound, LogProb, bits_per_dim, dequantise, elbo, log_prob
    from .tuning import tune

# What sampling does not need is imported at its first use: a quarter of the time that importing the package would take.
_LATER = {
    **dict.fromkeys(("adapters", "doctor", "guidance", "inverse", "operators", "targets"), ""),
    **dict.fromkeys(("decode", "denoise_from", "interpolate", "renoise", "round_trip", "slerp"), "latent"),
    **dict.fromkeys(("Bins", "Bound", "LogProb", "bits_per_dim", "dequantise", "elbo", "log_prob"), "likelihood"),
    "tune": "tuning",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f".{_LATER[name] or name}", __name__)
    globals()[name] = value = getattr(module, name) if _LATER[name] else module
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


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
