"""Which time grid suits which method and process? The exact Wasserstein-2 error on Gaussian data, without Monte Carlo.

Each cell is the mean over data of standard deviation 0.05, 0.3 and 1 (mean 0.5), by unit impulses through the solver, started from the
prior-side exact marginal and ended at the process's t_min. ``SDE.spacing`` and the methods' own grids were chosen from this table.

    python benchmarks/grid_study.py
"""
from statistics import mean

import torch

import sdediff
from sdediff.testing import affine_law

GRIDS = {"uniform": sdediff.grids.Uniform(), "quadratic": sdediff.grids.Quadratic(), "logsnr": sdediff.grids.LogSNR(),
         "karras": sdediff.grids.Karras()}
PROCESSES = {
    "vp": (sdediff.VPSDE(), None),
    "cosine": (sdediff.CosineVPSDE(), None),
    "ve": (sdediff.VESDE(), None),
    "edm": (sdediff.EDMSDE(), None),
    "flow": (sdediff.RectifiedFlow(), 0.999),                     # the flow's SDE coefficients are infinite at t = 1
}
STEPS = {"euler-maruyama": 100, "reverse-diffusion": 100, "sde-heun": 50, "ddpm": 100, "dpm++2m-sde": 50, "ddim": 30, "heun": 15,
         "euler": 30, "dpm++2m": 20, "eab-3": 20, "unipc-2": 20}


def main() -> None:
    torch.set_num_threads(1)
    print(f"{'process':8} {'method':18} {'steps':>5}  " + "  ".join(f"{name:>9}" for name in GRIDS))
    for process, (sde, t_start) in PROCESSES.items():
        for method, steps in STEPS.items():
            errors = [mean(affine_law(method, sde, sde.levels(grid(sde, steps, t_start)), 0.5, c**2).w2 for c in (0.05, 0.3, 1.0))
                      for grid in GRIDS.values()]
            best = min(errors)
            cells = "  ".join(f"{e:9.4f}" if e > best else f"{e:8.4f}*" for e in errors)
            print(f"{process:8} {method:18} {steps:5d}  {cells}", flush=True)


if __name__ == "__main__":
    main()
