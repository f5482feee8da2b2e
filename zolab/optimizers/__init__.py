"""Rules turn a gradient into an update; the front door is a torch.optim.Optimizer."""

from zolab.optimizers.base import Rule
from zolab.optimizers.front import MeZO, ZOOptimizer
from zolab.optimizers.groups import decay_groups
from zolab.optimizers.rebuild import replay
from zolab.optimizers.sgd import SGD

__all__ = ["SGD", "MeZO", "Rule", "ZOOptimizer", "decay_groups", "replay"]
