"""Files that hold weights in a few bits, and the way back into them.

Nothing here ever has a decoded copy of a model, and nothing of a file is executed.
"""

from zolab.formats.asread import Saved, save_as_read

__all__ = ["Saved", "save_as_read"]
