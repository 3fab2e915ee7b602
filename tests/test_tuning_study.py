"""The committed study of tuned methods: its cells come out again from the methods that are kept, and its page is what they say."""
import statistics
import sys
from pathlib import Path

import pytest
import torch

import sdediff
from sdediff import tuned

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks import tuning_page
from benchmarks.tuned import contestant
from benchmarks.tuning import FILE, PLANE, PROCESSES, Ground, baselines, best_peers, measure, read

OWN = {row[:3]: row for row in read(tuning_page.TUNED)}


def kept(target, process, calls):
    return tuned.best(tuned.read(tuning_page.RESULTS / "tuned" / f"{target}-{process}.json"), calls)


@pytest.mark.parametrize("target, process, calls", [("ring", "VPSDE", 5), ("ring", "VPSDE", 20), ("gaussian-16", "VPSDE", 8),
                                                    ("gaussian-16", "VPSDE", 15)])
def test_cells_come_out_again(target, process, calls, tmp_path):
    """The method from its file, run by ``sample`` on the test trajectories, against an exact solution made anew."""
    method = kept(target, process, calls)
    ground = Ground(target, process, tmp_path)
    row = measure(ground, contestant(method), calls, ground.draws("test"), ground.ends("test"))
    assert row.calls_used == method.calls and row.rmse == pytest.approx(OWN[target, process, calls].rmse, rel=1e-3)


def test_the_baseline_comes_out_again(tmp_path):
    """Azula's exponential Adams-Bashforth 4 is our eab-4 without a start."""
    ground = Ground("gaussian-16", "VPSDE", tmp_path)
    x = ground.draws("test")
    info = sdediff.sample_info(ground.sde, ground.score, x_init=x, method="eab-4", start=False, nfe=10, grid="logsnr")
    rmse = float((info.x - ground.ends("test")).square().mean().sqrt())
    assert info.nfe == 10 and rmse == pytest.approx(baselines(read(FILE))["gaussian-16", "VPSDE", 10].rmse, rel=1e-3)


def test_every_committed_method_is_read_and_runs_on_its_process():
    for (target, process, calls), row in OWN.items():
        m, sde = kept(target, process, calls), PROCESSES[process][0]()
        assert m.grid(sde, m.grid.steps) == list(m.grid.knots) and m.calls == row.calls_used


def test_the_page_is_what_the_results_say():
    assert (tuning_page.PAGE / "README.md").read_text() == tuning_page.page()


def test_what_the_readme_may_claim():
    """The bars that are met, from the committed numbers; those that are not stand in the page."""
    best = best_peers(read(FILE))
    for plane, bar in ((True, 0.5), (False, 0.8)):
        ratios = [row.rmse / best[cell].rmse for cell, row in OWN.items() if (cell[0] in PLANE) == plane]
        assert len(ratios) >= 7 and statistics.median(ratios) <= bar
    base = baselines(read(FILE))
    auto = [r.rmse / base[r[:3]].rmse for r in read(FILE) if r.source == "sdediff" and r.method == "auto"]
    assert len(auto) == len(base) and statistics.median(auto) <= 1.0


def test_tuned_methods_carry_no_rounding(tmp_path):
    """In single precision they end where they end in double, to rounding."""
    ground = Ground("ring", "VPSDE", tmp_path)
    for calls, m in tuned.read(tuning_page.RESULTS / "tuned" / "ring-VPSDE.json").items():
        run, x = contestant(m).run, ground.draws("test")[:200]
        single, double = (run(ground, x.to(dtype), calls)[0].double() for dtype in (torch.float32, torch.float64))
        assert float((single - double).square().mean().sqrt()) < 2e-5
