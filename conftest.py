"""For tests/ and notebooks/ alike: tests run tiny, whatever the shell says."""

import os

import pytest

# Notebook kernels inherit the environment, so this reaches their cells too.
os.environ["ZOLAB_SCALE"] = "tiny"
os.environ.setdefault("MPLBACKEND", "Agg")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    needing = [i for i in items if i.get_closest_marker("gpu")]
    if not needing:
        return
    import torch

    if not torch.cuda.is_available():
        for item in needing:
            item.add_marker(pytest.mark.skip(reason="torch sees no CUDA device"))
