"""Imports go down the ladder only, heavy packages are imported where they are used, and every public name resolves."""
import ast
import graphlib
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent / "sdediff"
MODULES = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in ROOT.rglob("*.py")}
MODULES["(package)"] = MODULES.pop("__init__")
OWN = {"plots": {"matplotlib"}, "cli": {"jsonargparse"}}       # the one module that is made of a heavy package
HEAVY = {"scipy", "torchsde", "matplotlib", "sklearn", "mlxtend", "PIL", "tqdm", "jsonargparse", "torchdiffeq", "torchvision",
         "diffusers"}

# A module may import modules of lower floors; solvers may also import each other.
FLOORS = [["contracts", "progress"], ["random", "ranks", "operators", "files"], ["sde", "chunks"], ["grids", "score", "guards"], ["guidance", "targets", "equation"], ["solvers", "inverse"],
          ["recipes", "programs"], ["execution"], ["compilation"], ["sampling", "tuned"], ["likelihood", "latent", "tuning", "analysis", "adapters"], ["selection"]]
FLOOR = {name: i for i, floor in enumerate(FLOORS) for name in floor}
# And these see no more than they need.
NARROW = {"solvers": {"contracts", "random", "sde", "score", "equation", "solvers"}, "training": {"contracts", "files", "guards", "progress", "random", "ranks", "sde", "score"}}


def room(module: str) -> str:
    return module.split(".")[0]


def imports(module: str, whole: bool):
    """(dotted name of a module of ours or of the first part of another package) for each import; ``whole`` or at the top only."""
    tree = ast.parse(MODULES[module].read_text())
    skip = {id(n) for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            for n in ast.walk(node)} if not whole else set()
    package = MODULES[module].parent.relative_to(ROOT).parts
    for node in ast.walk(tree):
        if id(node) in skip:
            continue
        if isinstance(node, ast.Import):
            for name in node.names:
                parts = name.name.split(".")
                yield from [".".join(parts[1:]) or "(package)"] if parts[0] == "sdediff" else [parts[0]]
        elif isinstance(node, ast.ImportFrom):
            parts = (node.module or "").split(".") if node.module else []
            if node.level:
                parts = [*package[:len(package) - node.level + 1], *parts]
            elif parts[0] == "sdediff":
                parts = parts[1:]
            else:
                yield parts[0]
                continue
            for name in node.names:             # ``from .solvers import base`` names a module, ``from .sde import SDE`` does not
                longer = ".".join([*parts, name.name])
                yield longer if longer in MODULES else ".".join(parts) or "(package)"


def test_the_floors_that_exist_are_found():
    assert {"contracts", "random", "sde", "grids", "score", "equation", "(package)"} <= set(MODULES)
    assert set(imports("sde", True)) >= {"random", "contracts", "torch", "scipy"}
    assert "scipy" not in set(imports("sde", False))
    assert set(imports("equation", True)) >= {"contracts", "score", "sde"}


@pytest.mark.parametrize("module", [m for m in MODULES if room(m) in FLOOR])
def test_imports_go_down(module):
    for other in set(imports(module, True)) & set(MODULES):
        if room(module) == room(other) == "solvers":
            continue
        assert room(other) in FLOOR, f"{module} imports {other}, which is no floor of the ladder"
        assert FLOOR[room(other)] < FLOOR[room(module)], f"{module} imports {other}, which is not below it"


@pytest.mark.parametrize("module", [m for m in MODULES if room(m) in NARROW])
def test_solvers_and_training_see_what_they_need(module):
    seen = {room(m) for m in set(imports(module, True)) & set(MODULES)}
    assert seen <= NARROW[room(module)], f"{module} imports {seen - NARROW[room(module)]}"


def test_no_cycles():
    graph = {module: set(imports(module, False)) & set(MODULES) - {module} for module in MODULES}
    tuple(graphlib.TopologicalSorter(graph).static_order())


@pytest.mark.parametrize("module", MODULES)
def test_heavy_packages_are_imported_where_they_are_used(module):
    assert not set(imports(module, False)) & HEAVY - OWN.get(module, set())


def test_import_sdediff_reaches_no_module_made_of_a_heavy_package():
    reached, new = set(), {"(package)"}
    while new:
        reached |= new
        new = {other for module in new for other in set(imports(module, False)) & set(MODULES)} - reached
    assert {"sde", "sampling"} <= reached
    assert not reached & set(OWN)


def test_what_sampling_does_not_need_is_imported_at_its_first_use():
    code = ("import sys, sdediff; loaded = lambda *names: [n for n in names if f'sdediff.{n}' in sys.modules]; "
            "assert loaded('adapters', 'doctor', 'inverse', 'guidance', 'latent', 'likelihood', 'targets', 'tuning') == [], loaded; "
            "assert set(sdediff.__all__) <= set(dir(sdediff)); "
            "every = [getattr(sdediff, n) for n in sdediff.__all__]; assert sdediff.targets is sys.modules['sdediff.targets']; "
            "assert sdediff.tune is sys.modules['sdediff.tuning'].tune and callable(sdediff.log_prob); "
            "print(hasattr(sdediff, 'unet'), 'tuning' in loaded('tuning'))")
    out = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, cwd=ROOT.parent, check=False)
    assert out.returncode == 0, out.stderr
    assert out.stdout.split() == ["False", "True"]


def test_import_is_light_and_draws_nothing():
    code = ("import torch, sys; before = torch.get_rng_state(); import sdediff; "
            "assert torch.equal(before, torch.get_rng_state()); "
            "print([m for m in ('scipy.stats', 'scipy.integrate', 'scipy.optimize', 'torchsde', 'matplotlib', 'sklearn', 'mlxtend', "
            "'PIL.Image', 'torchdiffeq', 'torchvision', 'jsonargparse', 'diffusers', 'safetensors') if m in sys.modules])")
    out = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, cwd=ROOT.parent, check=False)
    assert out.returncode == 0, out.stderr
    assert out.stdout.strip() == "[]"
