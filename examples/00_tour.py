r"""The tour, in ten lines: a process, an exact score, one call for any solver, and how far the samples are from the truth.

Expect, with 8 network calls each, a sliced W2 of 0.07 to 0.08 for ddim, ddpm, dpm++2m and unipc-3, 0.35 for sa-solver, which wants more
calls, and 0.02 for auto: as near as two exact sets of this size are to each other (0.03). Seconds.
"""
import sdediff
from sdediff import metrics

sde = sdediff.VPSDE()
target = sdediff.targets.toy("8-gaussians")                # its score, density and samples are exact
exact = target.sample(10_000, seed=1)
for method in ("ddim", "dpm++2m", "unipc-3", "auto", "ddpm", "sa-solver"):
    x = sdediff.sample(sde, target.score, shape=(10_000, 2), method=method, nfe=8, seed=0)
    print(f"{method:<12}{metrics.sliced_w2(x, exact)}")
print(f"{'exact':<12}{metrics.sliced_w2(target.sample(10_000, seed=2), exact)}")
