"""Tasks: data, a loss that forward passes answer, and an evaluation with its floor."""

from zolab.tasks.sentences import Sentence, Splits, overlap, splits
from zolab.tasks.sentiment import (
    Batch,
    Evaluation,
    Score,
    Sentiment,
    accuracy,
    evaluate,
    loss,
)

__all__ = [
    "Batch",
    "Evaluation",
    "Score",
    "Sentence",
    "Sentiment",
    "Splits",
    "accuracy",
    "evaluate",
    "loss",
    "overlap",
    "splits",
]
