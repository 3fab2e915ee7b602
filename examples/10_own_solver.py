r"""A solver of your own, from the idea to its place among the others.

The idea: x0 changes little along the flow, which in lambda = log(alpha/sigma) reads, exactly,

    x_s = sigma_s/sigma_t x_t + sigma_s int_{lambda_t}^{lambda_s} e^lambda x0(x(lambda), lambda) dlambda;

freeze x0 at the middle of the step, reached by a first-order step: the exponential midpoint rule. That is all that is written below. What
follows is the library's: the checks that any solver can run (its measured order among them; nothing may be loosened), and a benchmark on
targets whose solution is known, with its place at each number of network calls.

Expect: all checks passed, a measured order of 1.96, and the third or fourth place of seven: the error on the path is some 3 times that of
Heun's and the midpoint rule in t, a half of dpm++2s's. So the idea alone wins nothing on these targets, which is the kind of thing that one
wants to know in a minute. The page with all figures is in the folder.
"""
import math
import sys
from dataclasses import dataclass
from pathlib import Path

from sdediff import testing
from sdediff.bench import findings, study
from sdediff.solvers import Solver, State


@dataclass(frozen=True)
class ExponentialMidpoint(Solver):
    """x0 frozen at the middle of the step in log-SNR. Order 2, two calls; DDIM's step into sigma = 0."""

    order = 2
    noise = "never"

    def step(self, eq, state, t, s, noise):
        freeze = lambda x0, to: to.sigma / t.sigma * state.x - to.alpha * math.expm1(t.lam - to.lam) * x0
        x0 = eq.predict(state.x, t).x0
        if not math.isfinite(s.lam - t.lam):
            return State(x0)
        half = eq.sde.level_of((t.lam + s.lam) / 2)
        return State(freeze(eq.predict(freeze(x0, half), half).x0, s))


if __name__ == "__main__":
    print(testing.check_solver(ExponentialMidpoint()))
    chosen = study.Study(solvers=(ExponentialMidpoint,), methods=("ddim", "heun", "midpoint", "dpm-solver-2", "dpm++2s", "dpm++2m"),
                         targets=("mixture", "8-gaussians"), processes=("VPSDE",), nfe=(6, 10, 20, 50))
    out = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/own-solver")
    table = findings.leading(findings.Results(study.run(chosen, out, jobs=2)), "ODE")
    for budget in chosen.nfe:
        print(f"{budget} calls: " + ", ".join(f"{who} ({place.ratio:.2f})" for who, place in table.at(budget)))
    print(f"{out}/index.html")
