"""Findings, results and reports: what a conformance suite says, and the one place where a check becomes a verdict.

A check is a generator of findings, one per number it measures, registered under its name in a ``Suite``. It fails at its first
finding out of bounds, at any exception, and when it measured nothing; it does not apply where it says so before measuring.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from ..contracts import instance, names, shown

PASSED, FAILED, EXPECTED, UNEXPECTED, NOT_APPLICABLE, REPORTED = (
    "passed", "FAILED", "expected failure", "UNEXPECTED PASS", "not applicable", "reported")


class NotApplicable(Exception):
    """Raised by a check before its first finding: the declared facts of the subject leave it nothing to test."""


class Finding(NamedTuple):
    """One measured number: the case (what was measured), the number and its bound, and whether it lies within."""

    case: str
    measured: float
    bound: float
    ok: bool
    report_only: bool = False

    @property
    def use(self) -> float:
        """How much of the bound is used up: 1 at the bound."""
        if self.measured == self.bound:
            return 1.0 if self.bound else 0.0
        low, high = sorted((abs(self.measured), abs(self.bound)))
        return (low / high if self.ok else high / low if low else math.inf) if high else 0.0


def at_most(case: str, measured: Any, bound: float) -> Finding:
    """measured <= bound; NaN is out of bounds."""
    return Finding(case, float(measured), bound, bool(measured <= bound))


def at_least(case: str, measured: Any, bound: float) -> Finding:
    """measured >= bound; NaN is out of bounds."""
    return Finding(case, float(measured), bound, bool(measured >= bound))


def holds(case: str, condition: Any) -> Finding:
    """A statement: measured 0 violations, bound 0."""
    return Finding(case, float(not condition), 0.0, bool(condition))


def reported(case: str, measured: Any) -> Finding:
    """A number for the reader, without a bound; it must be finite."""
    return Finding(case, float(measured), math.inf, math.isfinite(measured), True)


@dataclass(frozen=True)
class Result:
    """The verdict of one check: ``status``, the decisive ``finding`` (the first failure, else the one nearest its bound), and
    ``reason`` (of an expected failure, of not applying, of an error)."""

    check: str
    status: str
    finding: Finding | None = None
    reason: str = ""

    @property
    def ok(self) -> bool:
        """Whether it passed, did not apply, or failed as expected."""
        return self.status not in (FAILED, UNEXPECTED)

    def __str__(self) -> str:
        f, text = self.finding, f"{self.check:<13} {self.status:<17}"
        if f is not None and not math.isnan(f.bound):
            text += f"{f.measured:<10.3g} {'' if math.isinf(f.bound) else f'bound {f.bound:<9.3g}'} {f.case}"
        elif f is not None:
            text += f.case
        return (text + (f"  [{self.reason}]" if self.reason else "")).rstrip()


class ConformanceError(AssertionError):
    """A report that is not ok; its text is the report."""


@dataclass(frozen=True)
class Report:
    """The results of a suite on one subject. ``ok``; ``report["order"]`` is one result; ``str(report)`` a table."""

    subject: str
    level: str
    results: tuple[Result, ...]

    @property
    def ok(self) -> bool:
        return all(r.ok for r in self.results)

    @property
    def failures(self) -> tuple[Result, ...]:
        """The results that are not ok."""
        return tuple(r for r in self.results if not r.ok)

    def __getitem__(self, check: str) -> Result:
        return next(r for r in self.results if r.check == check)

    def raise_on_failure(self) -> Report:
        """This report, or ConformanceError with its text."""
        if not self.ok:
            raise ConformanceError(str(self))
        return self

    def __str__(self) -> str:
        counts = {s: sum(r.status == s for r in self.results) for s in (PASSED, FAILED, EXPECTED, UNEXPECTED, NOT_APPLICABLE, REPORTED)}
        head = f"{self.subject} ({self.level}): " + ", ".join(f"{n} {s}" for s, n in counts.items() if n)
        return "\n".join([head, *(f"  {r}" for r in self.results)])


Check = Callable[[Any], Iterator[Finding]]


class Suite(dict[str, Check]):
    """Checks by name, in order."""

    def check(self, fn: Check) -> Check:
        """Register a generator of findings under its own name, dashes for underscores."""
        self[fn.__name__.strip("_").replace("_", "-")] = fn
        return fn

    def run(self, name: str, subject: Any, expected_failures: Mapping[str, str] | None = None) -> Result:
        """One check's verdict. An expected failure that passes, or that does not apply, is a failure. Raises ValueError on a name that
        is none."""
        expected = self.expected(expected_failures)
        if instance("check", name, str, f"the name of a check, such as {next(iter(self))!r}") not in self:
            raise ValueError(f"check={name!r} is unknown; expected one of: {', '.join(self)}.")
        result = self._verdict(name, subject)
        if name not in expected:
            return result
        if result.status == FAILED:
            return Result(name, EXPECTED, result.finding, expected[name])
        return Result(name, UNEXPECTED, result.finding, f"expected to fail ({expected[name]}) but: {result.status}")

    def expected(self, failures: Mapping[str, str] | None) -> dict[str, str]:
        """Reasons by check. TypeError or ValueError on what is none, and on a check that there is not."""
        known = names("expected_failures", failures, f"{{{next(iter(self))!r}: 'why'}}")
        for name in known:
            if name not in self:
                raise ValueError(f"expected_failures={shown(failures)}: check {name!r} is unknown; expected one of: {', '.join(self)}.")
        return known

    def _verdict(self, name: str, subject: Any) -> Result:
        worst: Finding | None = None
        was = torch.get_default_dtype(), torch.is_grad_enabled(), torch.random.get_rng_state()
        try:
            for finding in self[name](subject):
                if not finding.ok:
                    return Result(name, FAILED, finding)
                if worst is None or finding.use > worst.use:
                    worst = finding
        except NotApplicable as why:
            if worst is None:
                return Result(name, NOT_APPLICABLE, None, str(why))
        except Exception as error:
            return Result(name, FAILED, Finding(f"{type(error).__name__}: {error}", math.nan, math.nan, False))
        finally:                                # a subject that leaves torch changed fails its own check, and no other
            torch.set_default_dtype(was[0])
            torch.set_grad_enabled(was[1])
            torch.random.set_rng_state(was[2])
        if worst is None:
            return Result(name, FAILED, Finding("the check measured nothing", math.nan, math.nan, False))
        return Result(name, REPORTED if worst.report_only else PASSED, worst)

    def report(self, title: str, level: str, subject: Any, expected_failures: Mapping[str, str] | None = None) -> Report:
        """Every check's verdict."""
        self.expected(expected_failures)
        return Report(title, level, tuple(self.run(name, subject, expected_failures) for name in self))
