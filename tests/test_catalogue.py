"""The catalogue tells the truth: committed orders meet the declared ones, and are what a new measurement gives."""
import json

import pytest

from sdediff import methods
from sdediff.catalogue import catalogue, measure, measured, report, tableau, write_measurements

ENTRIES = {entry.name: entry for entry in catalogue()}


@pytest.mark.parametrize("name", methods())
def test_every_method_is_measured_and_meets_its_declared_order(name):
    entry = ENTRIES[name]
    for declared, seen in ((entry.order, entry.measured), (entry.weak, entry.measured_weak), (entry.strong, entry.measured_strong)):
        assert (declared is None) == (seen is None)
        assert declared is None or seen >= declared - (0.15 if declared <= 2 else 0.3)
    assert entry.strong is None or abs(entry.measured_strong - entry.strong) < 0.25
    assert entry.reference and entry.summary and entry.calls != 0 and entry.memory >= 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["heun", "dpm++2m", "eab-3", "unipc-2", "ddpm", "sde-heun"])
def test_the_committed_measurement_is_reproduced(name):
    again = measure(name)
    assert again and measured()[name] == pytest.approx(again, abs=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("name", methods())
def test_every_committed_measurement_is_reproduced(name):
    assert measured()[name] == pytest.approx(measure(name), abs=0.05)


def test_calls_and_memory():
    calls = {name: ENTRIES[name].calls for name in ("ddim", "heun", "rk4", "dpm-solver-3", "dpm++2m", "unipc-3", "torchsde-euler", "pc", "mala")}
    assert calls == {"ddim": 1, "heun": 2, "rk4": 4, "dpm-solver-3": 3, "dpm++2m": 1, "unipc-3": 1, "torchsde-euler": 1, "pc": 2, "mala": 2}
    assert {name: ENTRIES[name].memory for name in ("ddim", "dpm++3m", "eab-4", "unipc-4")} == {"ddim": 0, "dpm++3m": 2, "eab-4": 3, "unipc-4": 4}


def test_the_report_has_a_row_for_every_method():
    lines = report().splitlines()
    assert len(lines) == len(methods()) + 1 and all(line.startswith(name) for line, name in zip(lines[1:], methods()))


@pytest.mark.parametrize("name", [n for n in methods() if not n.startswith(("scipy", "torchsde", "torchdiffeq", "mala", "rosenbrock", "rk45", "dopri5", "rk23",
                                                                            "gotta-go-fast"))])
def test_every_linear_method_prints_its_tableau(name):
    text = tableau(name, steps=2, **({"steps_per_level": 2} if name == "annealed-langevin" else {}))
    assert "D0 = eps(t=1; +1 x)" in text or name in ("langevin", "annealed-langevin")
    assert len([line for line in text.splitlines() if line.startswith("  x(t=")]) == 3
    assert ("z0" in text) == ENTRIES[name].stochastic


@pytest.mark.parametrize("name", ["scipy-rk45", "torchsde-euler", "mala", "rosenbrock-2", "rk45", "gotta-go-fast"])
def test_a_method_without_a_table_says_so(name):
    with pytest.raises(TypeError, match="table"):
        tableau(name)


def test_measurements_are_written_as_they_are_read(tmp_path):
    write_measurements(tmp_path / "orders.json", ["ddim"])
    assert json.loads((tmp_path / "orders.json").read_text())["ddim"] == pytest.approx(measured()["ddim"], abs=0.02)
