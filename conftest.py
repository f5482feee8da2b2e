"""For tests/ and notebooks/ alike: tests run tiny, whatever the shell says."""

import os
from collections.abc import Iterator

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


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """On a busy machine OpenMP's waiting threads cost more than tiny tensors do."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
