"""The dtype that a device computes fast, and that a stage's number of threads belongs to its thread."""

import threading

import pytest
import torch

from safelight.pipeline.assembly.device import fast_dtype, keep_precision, set_threads


@pytest.mark.parametrize(
    ("avx512", "amx", "dtype"),
    [
        (False, False, torch.float32),  # which would emulate bfloat16, slowly
        (True, False, torch.bfloat16),
        (False, True, torch.bfloat16),
    ],
)
def test_a_processor_computes_in_bfloat16_where_it_multiplies_it(
    monkeypatch: pytest.MonkeyPatch, avx512: bool, amx: bool, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert fast_dtype() == dtype


def test_another_thread_does_not_change_the_number() -> None:
    """Two stages in one process: the second sets its number before the first one multiplies."""
    before, first_is_set, second_is_set, counts = (
        torch.get_num_threads(),
        threading.Event(),
        threading.Event(),
        [],
    )

    def first() -> None:
        set_threads(before + 1)
        first_is_set.set()
        second_is_set.wait(60)
        counts.append(torch.get_num_threads())

    def second() -> None:
        first_is_set.wait(60)
        set_threads(1)
        second_is_set.set()

    threads = [threading.Thread(target=run) for run in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    torch.set_num_threads(before)
    assert counts == [before + 1]


def test_a_gpu_rounds_no_more_than_the_dtype() -> None:
    """torch allows TensorFloat-32 in convolutions by default."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    cudnn.allow_tf32 = matmul.allow_tf32 = matmul.allow_bf16_reduced_precision_reduction = True
    cudnn.benchmark = True
    keep_precision()
    assert not (cudnn.allow_tf32 or matmul.allow_tf32 or cudnn.benchmark)
    assert not matmul.allow_bf16_reduced_precision_reduction
