"""Files that hold weights in a few bits, and the way back into them.

Nothing here ever has a decoded copy of a model, and nothing of a file is executed.
"""

from zolab.formats.asread import Saved, save_as_read
from zolab.formats.own import load_packed, save_packed

__all__ = ["Saved", "load_packed", "save_as_read", "save_packed"]
