"""What fits, and how fast: arithmetic on a published shape, no weight loaded.

from zolab.plan import Work, find, peak
peak(find("facebook/opt-13b"), "mezo", Work(16, 512)).total
"""

from zolab.plan.advice import Advice, advise
from zolab.plan.machine import measure
from zolab.plan.memory import Memory, Work, moments, peak, scratch
from zolab.plan.methods import METHODS, Rate, rate
from zolab.plan.pace import Machine, Pace, flops, pace
from zolab.plan.shape import PUBLISHED, Shape, find, of_config
from zolab.plan.streamed import Window, in_ram, moved, on_device, streamed
from zolab.plan.units import PlanError, batch, quantity, size

__all__ = [
    "METHODS",
    "PUBLISHED",
    "Advice",
    "Machine",
    "Memory",
    "Pace",
    "PlanError",
    "Rate",
    "Shape",
    "Window",
    "Work",
    "advise",
    "batch",
    "find",
    "flops",
    "in_ram",
    "measure",
    "moments",
    "moved",
    "of_config",
    "on_device",
    "pace",
    "peak",
    "quantity",
    "rate",
    "scratch",
    "size",
    "streamed",
]
