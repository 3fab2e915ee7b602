"""Instruments that measure and check solvers, processes and scores: anyone's, in three lines."""
from .measure import (FLOOR, MIDWAY, STEPS, Convergence, Law, Problem, affine_law, converge, gaussian_problem, mixture_problem,
                      strong_convergence, weak_convergence)

__all__ = ["FLOOR", "MIDWAY", "STEPS", "Convergence", "Law", "Problem", "affine_law", "converge", "gaussian_problem", "mixture_problem",
           "strong_convergence", "weak_convergence"]
