"""The number of threads that a stage sets belongs to its thread."""

import threading

import torch

from safelight.pipeline.assembly.device import set_threads


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
