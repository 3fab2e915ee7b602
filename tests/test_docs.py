"""The README and the pages: their blocks run, their command lines parse, their links and citations hold, and what is computed is current.
Every public name has a docstring, which says what is raised."""
import ast
import configparser
import functools
import importlib
import inspect
import pkgutil
import re
import runpy
import shlex
import sys
import textwrap
from pathlib import Path

import pytest
import torch
import yaml

sys.path.insert(0, str(Path(__file__).parent.parent))

import sdediff
from benchmarks.pages import PAGES
from sdediff import catalogue, cli

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "benchmarks/README.md",
             *(p for p in sorted((ROOT / "docs").rglob("*.md")) if "include}" not in p.read_text())]
TEXTS = {str(p.relative_to(ROOT)): p.read_text() for p in DOCUMENTS}
FENCED = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
BLOCKS = [(name, i, block) for name, text in TEXTS.items()
          for i, block in enumerate(block for kind, block in FENCED.findall(text) if kind == "python")]
INDENTED = [(name, block) for name, text in TEXTS.items()
            for block in re.findall(r"(?:^    \S.*\n)+", FENCED.sub("", text), re.MULTILINE)]


# -- blocks ---------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name, i, block", BLOCKS, ids=[f"{name}-{i}" for name, i, _ in BLOCKS])
def test_the_blocks_run(name, i, block, capsys, tmp_path):
    """Each on its own, as a script of the repository; it prints something."""
    script = tmp_path / f"block_{i}.py"
    script.write_text(block)
    runpy.run_path(str(script), run_name="__main__")
    assert capsys.readouterr().out.strip()


def test_python_is_fenced():
    """So that no snippet escapes the test above: what is indented are formulas, tables and shell lines."""
    assert len(BLOCKS) > 12 and len(INDENTED) > 10
    for name, block in INDENTED:
        assert not re.search(r"^\s*(import|from) \w|\bsdediff\.\w+\(", block, re.MULTILINE), (name, block)


def commands():
    """(page, words) of every line of a shell block and every indented line that starts with a program, continued lines joined, and of every
    `sdediff` line in the text."""
    for name, text in TEXTS.items():
        shell = [block for kind, block in FENCED.findall(text) if kind in ("bash", "sh", "")]
        for block in [*shell, *(textwrap.dedent(block) for page, block in INDENTED if page == name)]:
            for line in block.replace("\\\n", " ").splitlines():
                if re.match(r"(sdediff|python3?|torchrun|pip|\.venv/bin/\S+|\.ci/run|[A-Z_]+=\S+) ?", line):
                    words = shlex.split(line, comments=True)
                    for part in " ".join(shlex.quote(w) if w != "&&" else w for w in words).split(" && "):
                        yield name, [w for w in shlex.split(part) if not re.fullmatch(r"[A-Z_]+=\S*", w)]
        for line in re.findall(r"`(sdediff [a-z]+ [^`]*)`", FENCED.sub("", text)):
            yield name, shlex.split(line)


COMMANDS = list(commands())


def test_the_command_lines_are_found():
    assert {words[0].rpartition("/")[2] for _, words in COMMANDS} >= {"sdediff", "python", "pip", "pytest", "run", "sphinx-build"}
    assert len(COMMANDS) > 30


@pytest.mark.parametrize("name, words", COMMANDS, ids=[f"{name}: {shlex.join(words)}"[:90] for name, words in COMMANDS])
def test_the_command_lines_parse(name, words, tmp_path, monkeypatch):
    """`sdediff` lines by its own parsers; a script exists and knows the options it is given; pip's extras are those of setup.cfg."""
    program = words[0].rpartition("/")[2]
    if program == "torchrun":
        program, words = "sdediff", words[words.index("sdediff"):]
    if program == "sdediff":
        monkeypatch.chdir(tmp_path)
        argv = words[1:]
        assert cli._parsers(argv)[0].parse_args(argv).command == argv[0]
    elif program.startswith("python") and words[1] == "-m":
        assert words[2] == "venv"
    elif program.startswith("python"):
        script = ROOT / words[1]
        assert script.is_file()
        assert {w.lstrip("-").split("=")[0].replace("-", "_") for w in words[2:] if w.startswith("--")} - \
            set(re.findall(r"\w+", script.read_text().replace("-", "_"))) == set()
    elif program == "pip":
        setup = configparser.ConfigParser()
        setup.read(ROOT / "setup.cfg")
        asked = [extra for w in words for extra in re.findall(r"\[([\w,]+)\]", w)]
        assert {e for extras in asked for e in extras.split(",")} <= set(setup["options.extras_require"])
    elif program == "pytest":
        assert words[1:] in ([], ["-m", "slow"])
    elif program in ("sphinx-build", "pre-commit"):
        assert program in (ROOT / ".ci/run").read_text() or program in (ROOT / "setup.cfg").read_text()
    else:
        assert (ROOT / words[0]).is_file()


@pytest.mark.parametrize("name", TEXTS)
def test_links_lead_to_files_that_exist(name):
    text = FENCED.sub("", TEXTS[name])
    folder = (ROOT / name).parent
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
        assert "://" in target or (folder / target).exists(), target
    for target in re.findall(r"`((?:tests|examples|benchmarks|sdediff|docs)/[^`*\s]+)`", text):
        assert (ROOT / target).exists(), target


# -- what is computed -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", PAGES)
def test_the_pages_say_what_the_results_say(name):
    """Else: python benchmarks/pages.py."""
    assert (ROOT / "docs" / name).read_text() == PAGES[name]()


def test_equations_are_numbered_in_their_order_and_citations_are_of_equations():
    """A citation is "theory, eq. (4)" or "theory, eqs. (4) and (5)"; on the page itself, (4)."""
    page = TEXTS["docs/theory.md"]
    numbers = [int(n) for n in re.findall(r"\\tag\{(\d+)\}", page)]
    assert numbers == list(range(1, len(numbers) + 1)) and len(numbers) > 30
    said = {int(n) for n in re.findall(r"(?<![\w$])\((\d+)\)", re.sub(r"\$\$.*?\$\$", "", page, flags=re.DOTALL))}
    assert said and said <= set(numbers)
    cited = {}
    for path in [*(ROOT / "sdediff").rglob("*.py"), *(ROOT / "benchmarks").glob("*.py"), *DOCUMENTS]:
        text = re.sub(r"\s+", " ", path.read_text())
        for found in re.finditer(r"[Tt]heory(?:\]\([^)]*\))?, eqs?\. (.{0,60})", text):
            listed = re.match(r"\(\d+\)(?:(?:, | and | or )\(\d+\))*", found[1])
            assert listed, f"{path}: {found[0]!r}"
            cited.setdefault(path.stem, set()).update(int(n) for n in re.findall(r"\((\d+)\)", listed[0]))
    assert set().union(*cited.values()) <= set(numbers)
    assert {"sde", "score", "equation", "exponential", "chain", "langevin", "likelihood", "guidance", "inverse", "tuning"} <= set(cited)


def test_ddpm_as_the_theory_derives_it():
    """Eqs. (17) to (19) of the page, in numbers: Bayes' rule for two Gaussians, in alpha and sigma and in the chain's own symbols."""
    sde = sdediff.VPSDE.from_betas(torch.linspace(1e-4, 0.04, 300, dtype=torch.float64))
    t, s = sde.at(120.0), sde.at(119.0)
    beta, h = 1 - (t.alpha / s.alpha)**2, s.lam - t.lam
    fresh = -torch.expm1(torch.tensor(-2 * h, dtype=torch.float64)).item()
    precision = 1 / s.sigma**2 + (t.alpha / s.alpha)**2 / beta
    assert 1 / precision == pytest.approx(s.sigma**2 * fresh, rel=1e-12)
    of_x0, of_xt = s.alpha / s.sigma**2 / precision, t.alpha / s.alpha / beta / precision
    assert (of_x0, of_xt) == pytest.approx((s.alpha * fresh, s.sigma / t.sigma * (1 - fresh)**0.5), rel=1e-10)
    assert (of_x0, of_xt) == pytest.approx((s.alpha * beta / (1 - t.alpha**2), (1 - beta)**0.5 * (1 - s.alpha**2) / (1 - t.alpha**2)), rel=1e-10)


def test_the_habits_are_those_of_ci():
    """Hooks run what CI runs, without a network; the citation is of this version, by the authors of setup.cfg."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    ran = [line.split() for line in (ROOT / ".ci/run").read_text().splitlines()]
    (hooks,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert hooks["repo"] == "local" and [h["id"] for h in hooks["hooks"]] == ["ruff", "mypy"]
    assert all(h["language"] == "system" and any(h["entry"].split() == line[:len(h["entry"].split())] for line in ran) for h in hooks["hooks"])
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= set(cited) and cited["cff-version"] == "1.2.0"
    assert cited["version"] == sdediff.__version__ == setup["metadata"]["version"] and cited["license"] == setup["metadata"]["license"]
    assert [a["name"] for a in cited["authors"]] == [setup["metadata"]["author"]]
    assert re.search(rf"^## \[Unreleased\]$|^## \[{re.escape(sdediff.__version__)}\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)


# -- docstrings -----------------------------------------------------------------------------------------------------------
# The machine rooms, whose callers have been checked, and which refuse in their callers' names.
INNER = {"contracts", "guards", "programs", "execution", "compilation", "chunks", "ranks", "runs", "evaluate", "files", "progress", "cli"}
MODULES = [m.name for m in pkgutil.walk_packages(sdediff.__path__, "sdediff.") if not m.name.endswith("__main__")]


def function(value):
    """What is behind a property, a static, class, cached or wrapped method."""
    if isinstance(value, property | functools.cached_property | staticmethod | classmethod):
        value = next(getattr(value, name) for name in ("fget", "func", "__func__") if hasattr(value, name))
    return inspect.unwrap(value) if callable(value) else value


def public(space, home):
    """(name, function or class) of those defined in the module ``home`` without an underscore."""
    for name, value in vars(space).items():
        found = function(value)
        if not name.startswith("_") and (inspect.isfunction(found) or inspect.isclass(found)) and getattr(found, "__module__", "") == home:
            yield name, found


def said(cls, name):
    """What is written of a member: by itself, by those of ours that it overrides, or in the docstring of a class of ours that has it."""
    ours = [c for c in cls.__mro__ if c.__module__.startswith("sdediff")]
    own = [function(c.__dict__[name]).__doc__ for c in ours if callable(function(c.__dict__.get(name)))]
    return " ".join(filter(None, [*own, *(c.__doc__ for c in ours if f"``{name}``" in (c.__doc__ or ""))]))


def raised(module):
    """By the qualified name of a function: the exceptions that its own body raises by name, but a check's verdict that it does not apply."""
    def visit(node, outer):
        for d in ast.iter_child_nodes(node):
            if isinstance(d, ast.ClassDef | ast.FunctionDef):
                name = f"{outer}{d.name}"
                inner = {id(n) for f in ast.walk(d) if isinstance(f, ast.FunctionDef) and f is not d for n in ast.walk(f)}
                calls = [n.exc.func for n in ast.walk(d) if isinstance(n, ast.Raise) and id(n) not in inner and isinstance(n.exc, ast.Call)]
                yield name, {f.id for f in calls if isinstance(f, ast.Name) and f.id[0].isupper()} - {"NotApplicable"}
                yield from visit(d, f"{name}.")

    return dict(visit(ast.parse(Path(module.__file__).read_text()), ""))


@pytest.mark.parametrize("name", MODULES)
def test_every_public_name_has_a_docstring_that_says_what_is_raised(name):
    module = importlib.import_module(name)
    missing, silent, raising = [] if module.__doc__ else [name], [], raised(module)
    for outer, found in public(module, name):
        members = [(f"{outer}.{m}", f, said(found, m), found.__doc__ or "") for m, f in public(found, name)] if inspect.isclass(found) else []
        generated = inspect.isclass(found) and (found.__doc__ or "").startswith(f"{outer}(")                   # a dataclass's signature
        for label, value, text, more in [(outer, found, "" if generated else found.__doc__, ""), *members]:
            missing += [label] * (not text)
            if inspect.isfunction(value) and name.split(".")[1] not in INNER and raising[label] - set(re.findall(r"\w+", f"{text} {more}")):
                silent.append(f"{label}: {raising[label]}")
    assert (missing, silent) == ([], [])


def test_the_front_door_says_shapes_and_methods_their_sources():
    """Functions of tensors say their shapes; every method of the catalogue has a source with a year, or is this library's own."""
    for name in sdediff.__all__:
        found = getattr(sdediff, name)
        assert found.__doc__, name
        if inspect.isfunction(found) and "Tensor" in str(found.__annotations__):
            assert re.search(r"\([Bn]\b|shaped as|shape|of d coordinates", found.__doc__), name
    assert all(re.search(r"\b(19|20)\d\d", e.reference) for e in catalogue.catalogue()), \
        [e.name for e in catalogue.catalogue() if not re.search(r"\b(19|20)\d\d", e.reference)]
