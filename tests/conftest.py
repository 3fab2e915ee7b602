"""One thread, reproducible hypothesis, and a device fixture that skips where there is no GPU."""
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis
import pytest
import torch

torch.set_num_threads(1)
hypothesis.settings.register_profile(
    "sdediff", deadline=None, derandomize=True, database=None, max_examples=40,
    suppress_health_check=[hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.data_too_large])
hypothesis.settings.load_profile("sdediff")


@pytest.fixture
def cuda() -> torch.device:
    """The CUDA device; a test that asks for it is skipped where none is visible. Mark such tests ``gpu``."""
    if not torch.cuda.is_available():
        pytest.skip("needs a visible CUDA device")
    return torch.device("cuda")


@pytest.fixture(autouse=True)
def _same_global_state():
    """A test leaves torch's global settings as it found them."""
    dtype, grad = torch.get_default_dtype(), torch.is_grad_enabled()
    yield
    assert torch.get_default_dtype() == dtype
    assert torch.is_grad_enabled() == grad
