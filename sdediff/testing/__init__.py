"""Instruments that measure and check solvers, processes and scores: anyone's, in three lines."""
from .conformance import TWINS, Subject, Twins, assert_conforms, check_solver, checks, run_check
from .measure import (
    FLOOR,
    MIDWAY,
    STEPS,
    Convergence,
    KnotPath,
    Law,
    Problem,
    affine_law,
    affine_laws,
    converge,
    gaussian_problem,
    knot_path,
    mixture_problem,
    overlap_problem,
    path_reference,
    strong_convergence,
    weak_convergence,
)
from .processes import check_score, check_sde, run_sde_check
from .report import ConformanceError, Finding, NotApplicable, Report, Result, Suite

__all__ = [
    "FLOOR", "MIDWAY", "STEPS", "TWINS", "ConformanceError", "Convergence", "Finding", "KnotPath", "Law", "NotApplicable", "Problem",
    "Report", "Result", "Subject", "Suite", "Twins", "affine_law", "affine_laws", "assert_conforms", "check_score", "check_sde",
    "check_solver", "checks", "converge", "gaussian_problem", "knot_path", "mixture_problem", "overlap_problem", "path_reference",
    "run_check", "run_sde_check", "strong_convergence", "weak_convergence",
]
