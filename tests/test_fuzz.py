"""Readers on thousands of damaged, forged and hostile files; and processes, grids, methods and shapes of any kind together.

`pytest -s tests/test_fuzz.py` prints how many files were tried, refused and served."""
import random
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import sdediff
from sdediff import runs
from sdediff.cli import main
from sdediff.testing import fuzz, strategies

N = {"quick": 60, "many": 1000}


def checked(row, record_property):
    print(f"{row.entry}: {row.tried} files tried, {row.refused} refused by name, {row.served} served, {row.unclear} unclear, {row.silent} silent")
    record_property("tried", row.tried)
    assert not row.unclear and not row.silent, "\n".join(row.examples)
    assert row.tried == row.refused + row.served and row.refused


@pytest.mark.parametrize("reader", fuzz.READERS, ids=lambda reader: reader.entry)
def test_damaged_files_are_refused_by_name_or_sound(reader, record_property):
    checked(fuzz.trials(reader, N["quick"], seed=1), record_property)


@pytest.mark.slow
def test_thousands_of_files(record_property):
    rows = list(fuzz.rows(N["many"], seed=2))
    for row in rows:
        checked(row, record_property)
    assert len(rows) == len(fuzz.READERS) and sum(row.tried for row in rows) > 6_500


@pytest.mark.parametrize("reader", fuzz.READERS, ids=lambda reader: reader.entry)
def test_valid_files_are_served(reader, tmp_path):
    for content in reader.valid():
        (tmp_path / reader.name).write_bytes(content)
        assert reader.holds(content, reader.read(tmp_path / reader.name))


def test_a_reader_that_is_wrong_is_found_out():
    """The four ends, of readers that were made for them."""
    def reader(read, holds=lambda content, found: True):
        return fuzz.Reader("mine", "x.txt", lambda: [b"0123456789" * 5], read, holds)

    def refuses(path):
        raise ValueError(f"{path}: no")

    assert fuzz.trials(reader(refuses), 20)[1:6] == (20, 20, 0, 0, 0)
    assert fuzz.trials(reader(lambda path: path.read_bytes()), 20)[1:6] == (20, 0, 20, 0, 0)
    for wrong in (lambda path: {}[path], lambda path: int("nameless"), lambda path: [].pop()):
        row = fuzz.trials(reader(wrong), 20)
        assert row[1:6] == (20, 0, 0, 20, 0) and len(row.examples) == 5
    assert fuzz.trials(reader(lambda path: 0, lambda content, found: content == b"0123456789" * 5), 20).silent > 10
    assert fuzz.trials(reader(lambda path: (path.parent / fuzz.CANARY).mkdir(exist_ok=True)), 5)[1:6] == (5, 0, 0, 0, 5)


@given(st.binary(min_size=0, max_size=200), st.integers(0, 2**32))
def test_mutations_are_functions_of_their_seed(content, seed):
    first, second = (fuzz.mutated(content, [b"word"], random.Random(seed)) for _ in range(2))
    assert first == second and len(first) <= 8 * len(content) + 200


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3), max_leaves=12))
def test_settings_are_the_mapping_that_was_written_or_refused_by_name(tmp_path_factory, tree):
    import yaml
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    if isinstance(tree, dict):
        assert yaml.safe_dump(runs.settings(path)) == yaml.safe_dump(tree)
    else:
        with pytest.raises(ValueError, match=r"any\.yaml"):
            runs.settings(path)


@pytest.mark.parametrize("words", ["training: {class_path: evil_module.X}", "training: evil_module.X", "network.class_path: evil_module.X",
                                   "config: other.yaml", "seed: {class_path: evil_module.X}"])
def test_a_config_file_imports_nothing(tmp_path, monkeypatch, capsys, words):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "evil_module.py").write_text("import pathlib\npathlib.Path('ran').mkdir()\nclass X: ...\n")
    (tmp_path / "other.yaml").write_text("training: {class_path: evil_module.X}\n")
    (tmp_path / "job.yaml").write_text(words + "\n")
    assert main(["train", "--config", "job.yaml", "--quiet"]) == 2 and "job.yaml" in capsys.readouterr().err
    assert not (tmp_path / "ran").exists() and not (tmp_path / "runs").exists() and "evil_module" not in sys.modules


# -- everything together ------------------------------------------------------------------------------------------------------------
@given(st.data(), strategies.processes(), strategies.methods(), strategies.shapes(max_batch=3, max_rank=4), st.integers(1, 4), strategies.seeds)
@settings(max_examples=60)
@pytest.mark.filterwarnings("ignore::sdediff.guards.NumericalWarning")
def test_any_process_grid_method_and_shape(data, sde, method, shape, steps, seed):
    """A finite sample of that shape, the same again; or a refusal."""
    grid = data.draw(strategies.grids(sde))

    def score(x, level):
        level = level.to(x)                                             # of N(0, 1)
        return sdediff.Prediction(x, level, x0=level.alpha / (level.alpha**2 + level.sigma**2) * x)

    call = {"shape": shape, "method": method, "grid": grid, "steps": steps, "seed": seed, "dtype": torch.float64}
    try:
        x = sdediff.sample(sde, score, **call)
    except (ValueError, TypeError) as error:
        said = str(error)
    else:
        said = ""
    if said:
        assert any(word in said for word in ("expected", "use ", "start "))
        return
    assert x.shape == shape and x.dtype == torch.float64 and bool(torch.isfinite(x).all())
    assert torch.equal(x, sdediff.sample(sde, score, **call))


@given(strategies.solvers(stochastic=False), strategies.solvers(stochastic=True))
def test_solvers_are_of_the_kind_that_was_asked_for(ode, sde):
    assert isinstance(ode, sdediff.solvers.Solver) and isinstance(sde, sdediff.solvers.Solver)
