"""Engines answer probes and apply updates; what differs is where the weights live."""

from zolab.engines.base import Engine
from zolab.engines.resident import Resident

__all__ = ["Engine", "Resident"]
