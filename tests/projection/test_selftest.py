import pytest
import torch

from pntk.errors import KernelError
from pntk.projection import bits, selftest
from pntk.projection.dispatch import resolve_impl
from pntk.projection.selftest import check_kernels

pytestmark = pytest.mark.skipif(not bits.has_native(), reason=str(bits.native_error()))


@pytest.fixture(autouse=True)
def fresh():
    check_kernels.cache_clear()
    yield
    check_kernels.cache_clear()


def slightly_wrong(operator):
    """The operator, with one number of the first row off by a thousandth of the row."""

    def run(*args):
        returned = operator(*args)
        out = args[-1] if returned is None else returned[1]
        out[0, 5] += 1e-3 * out[0].norm()
        return returned

    return run


@pytest.mark.parametrize(
    ("operator", "kernel"),
    [
        ("hadamard_gradient", "gradient"),
        ("hadamard_lookup", "look-up"),
        ("hadamard_factors", "outer product"),
        ("hadamard_affine", "outer product"),
        ("norm_sums", "norm sums"),
        ("dense_project", "rademacher"),
    ],
)
def test_a_wrong_kernel_is_named_with_its_level_and_remedy(monkeypatch, operator, kernel):
    monkeypatch.setattr(torch.ops.pntk, operator, slightly_wrong(getattr(torch.ops.pntk, operator)))
    level = bits.native_module().level()
    message = (
        rf"compiled CPU kernel for {kernel} is wrong on this machine: relative error .* at level "
        rf"'{level}'.*use impl='torch', or set PNTK_CPU_LEVEL=portable"
    )
    for _ in range(2):  # a failure is not forgotten
        with pytest.raises(KernelError, match=message):
            check_kernels("cpu", selftest.CPU)
    with pytest.raises(KernelError, match=message):
        resolve_impl("auto")
    with pytest.raises(KernelError, match=message):
        resolve_impl("cpu")
    assert resolve_impl("torch") == "torch"


def test_rows_that_are_not_numbers_are_wrong(monkeypatch):
    def run(*args):
        args[-1].fill_(torch.nan)

    monkeypatch.setattr(torch.ops.pntk, "hadamard_gradient", run)
    with pytest.raises(KernelError, match=r"kernel for gradient is wrong.*relative error nan"):
        check_kernels("cpu", selftest.CPU)


@pytest.mark.parametrize("place", [0, 299])
def test_one_wrong_word_is_noticed(monkeypatch, place):
    class Wrong:
        def __getattr__(self, name):
            return getattr(module, name)

        def philox_words(self, out, *args):
            module.philox_words(out, *args)
            out[place] ^= 1

    module = bits.native_module()
    monkeypatch.setattr(bits, "native_module", Wrong)
    with pytest.raises(KernelError, match="kernel for random bits is wrong on this machine"):
        check_kernels("cpu", selftest.CPU)


def test_runs_once(monkeypatch):
    checked = []
    monkeypatch.setattr(
        selftest, "_require", lambda impl, device, what, error: checked.append((what, error))
    )
    check_kernels("cpu", selftest.CPU)
    once = len(checked)
    for _ in range(3):
        check_kernels("cpu", selftest.CPU)
        resolve_impl("auto")
        resolve_impl("cpu")
    assert len(checked) == once >= 6
    assert all(error < selftest.BOUND / 10 for _, error in checked)
