"""What every test shares: a fixed seed, and no GPU tests where there is no GPU."""

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)  # the tensors of tests are too small for more
settings.register_profile("pntk", deadline=None, max_examples=25)
settings.load_profile("pntk")


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    return torch.device(request.param)
