"""What a chapter needs around its experiment; imports without notebook packages.

`scale` and `pick` set the size, `claim` puts ours beside the paper's, `same` compares
the reader's lines with the package, `figure`, `line`, `timeline` and `frames` draw,
`predict`, `exercise`, `check`, `hint` and `solution` ask.
"""

from zolab.lab.claims import claim
from zolab.lab.compare import compare, mean_se, sharpest, train, within
from zolab.lab.exercises import check, exercise, hint, solution
from zolab.lab.figures import bars, figure, line, mark, tag
from zolab.lab.language import device, live, sentiment_runs
from zolab.lab.notes import notes
from zolab.lab.passes import Pass, passes
from zolab.lab.readout import LastMLP, ReadOut, states
from zolab.lab.records import begin, cost, cost_card, memory_ratio, record, recorded
from zolab.lab.same import same
from zolab.lab.scales import pick, scale
from zolab.lab.show import say, show, table
from zolab.lab.timeline import timeline
from zolab.lab.watch import watch
from zolab.lab.weights import smollm2_rows
from zolab.lab.widgets import frames, predict

__all__ = [
    "Pass",
    "LastMLP",
    "ReadOut",
    "bars",
    "begin",
    "check",
    "claim",
    "compare",
    "cost",
    "cost_card",
    "device",
    "exercise",
    "figure",
    "frames",
    "hint",
    "line",
    "live",
    "mark",
    "mean_se",
    "memory_ratio",
    "notes",
    "pick",
    "passes",
    "predict",
    "record",
    "recorded",
    "same",
    "say",
    "scale",
    "sentiment_runs",
    "sharpest",
    "show",
    "smollm2_rows",
    "solution",
    "states",
    "table",
    "tag",
    "timeline",
    "train",
    "watch",
    "within",
]
