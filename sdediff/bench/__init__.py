r"""The benchmark: which solver, how many network calls, which grid? On targets whose scores and probability flows are known.

    from sdediff import bench

    rows = bench.run(bench.quick(), out="runs/bench", jobs=2)                     # what `sdediff bench --quick --jobs 2` does
    rows = bench.run(bench.quick(solvers=["mypackage.mymodule:MySolver"]), out="runs/mine")
    rows = bench.read("runs/bench")                                               # a list of Row

``cells`` says what one measurement is, ``study`` which of them are made and how, ``page`` what they show.
"""
from .cells import Cell, Problem, Row
from .study import Study, failures, full, quick, read, run

__all__ = ["Cell", "Problem", "Row", "Study", "failures", "full", "quick", "read", "run"]
