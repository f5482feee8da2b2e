"""Tasks: data, a loss that forward passes answer, and an evaluation with its floor."""

from zolab.tasks.digits import Digits, Pictures, load_digits
from zolab.tasks.readers import TableError
from zolab.tasks.sentences import Sentence, Splits, overlap, splits
from zolab.tasks.sentiment import (
    Batch,
    Evaluation,
    Score,
    Sentiment,
    accuracy,
    all_margins,
    error_rate,
    evaluate,
    f1,
    f1_of,
    fit_bias,
    loss,
    margins,
    mistakes,
)
from zolab.tasks.tables import Table, read_table, write_csv

__all__ = [
    "Batch",
    "Digits",
    "Evaluation",
    "Pictures",
    "Score",
    "Sentence",
    "Sentiment",
    "Splits",
    "Table",
    "TableError",
    "accuracy",
    "all_margins",
    "error_rate",
    "evaluate",
    "f1",
    "f1_of",
    "fit_bias",
    "load_digits",
    "loss",
    "margins",
    "mistakes",
    "overlap",
    "read_table",
    "splits",
    "write_csv",
]
