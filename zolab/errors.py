"""Every error that zolab raises on purpose: what was found, what was expected."""


class ZolabError(Exception):
    """Base of all of them: `except zolab.ZolabError` catches every refusal."""


class SpaceError(ZolabError):
    """The parameters cannot form a space (dtype, layout, name, compiled model)."""


class UnseenSlotError(ZolabError):
    """The loss never read a parameter that should train."""


class LossError(ZolabError):
    """The closure returned something that is not one number in at least fp32."""


class NonFiniteLossError(LossError):
    """A probe's loss is NaN or infinite: the step was refused and logged."""

    def __init__(self, step: int, losses: tuple[float, ...]):
        self.step, self.losses = step, losses
        super().__init__(
            f"step {step}: the probes' losses are {list(losses)}, expected finite "
            "numbers. The step was refused, nothing moved, and the next step asks a "
            "new direction. Smaller eps or lr, or fp32 losses, usually help; not where "
            "the data gives no loss (labels that are all -100) or the weights are lost."
        )


class SuggestionError(LossError):
    """From this objective neither eps nor lr can be measured; says what to change."""


class ScoreError(ZolabError):
    """A score of single weights cannot be had: no pass, an odd shape, not finite."""


class InPlaceEditError(ZolabError):
    """Code inside the closure writes to a parameter that a probe reads."""


class BaseChangedError(ZolabError):
    """Somebody edited the weights since the last step: the log would be wrong."""


class JournalError(ZolabError):
    """The log is damaged, foreign, in use, or could not be written."""


class StoreError(ZolabError):
    """A streamed model's store is missing, damaged, foreign, full or used wrongly."""


class BudgetError(StoreError):
    """What must lie on the device does not fit into the budget that was given."""


class WorkerError(ZolabError):
    """A process of a parallel run failed, differs from the others or is missing."""
