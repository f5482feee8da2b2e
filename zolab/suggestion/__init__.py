"""Which eps, which lr? Answered by forward passes, before the first step."""

from zolab.suggestion.front import Suggestion, suggest

__all__ = ["Suggestion", "suggest"]
