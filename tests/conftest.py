"""Tests run at the tiny scale and in any order."""

import os

os.environ.setdefault("ZOLAB_SCALE", "tiny")
