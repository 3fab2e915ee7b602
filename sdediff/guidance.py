r"""Guidance: a Score made of Scores, so that it works with every method, and with likelihood."""
from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch

from .score import Score


@dataclass(frozen=True)
class Guided:
    """A Score around another one, which conditions, chunks and autocast reach through it."""

    score: Score

    def __post_init__(self) -> None:
        if not callable(self.score) or isinstance(self.score, torch.nn.Module):
            raise TypeError(f"score={type(self.score).__name__}: expected a Score; wrap a network as "
                            "sdediff.from_network(net, predicts='eps').")

    @property
    def network(self) -> Any:
        """The network behind, if any: it says where samples are drawn, and in which dtype."""
        return getattr(self.score, "network", None)

    @property
    def time_input(self) -> Any:
        return getattr(self.score, "time_input", None)

    def condition(self, **conditions: Any) -> Guided:
        """The same guidance with more conditions, tensors (B, ...) or scalars."""
        return dataclasses.replace(self, score=conditioned(self.score, **conditions))

    def rows(self, start: int, stop: int) -> Guided:
        """The same guidance for the samples start..stop of a batch."""
        return dataclasses.replace(self, score=rows_of(self.score, start, stop))

    def cast(self, autocast: torch.dtype) -> Guided:
        """The same guidance with the network under autocast."""
        if not hasattr(self.score, "cast"):
            raise TypeError(f"autocast={autocast}: {type(self.score).__name__} is no network; expected sdediff.from_network(...), or none.")
        return dataclasses.replace(self, score=self.score.cast(autocast))


def conditioned(score: Score, **conditions: Any) -> Any:
    """``score`` with conditions. TypeError where it takes none."""
    if not hasattr(score, "condition"):
        raise TypeError(f"conditions={sorted(conditions)}: {type(score).__name__} takes none; expected a network score, "
                        "sdediff.from_network(...).")
    return score.condition(**conditions)


def rows_of(score: Score, start: int, stop: int) -> Any:
    """``score`` for the samples start..stop of a batch."""
    return score.rows(start, stop) if hasattr(score, "rows") else score
