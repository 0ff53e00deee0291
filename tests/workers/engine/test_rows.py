"""Rows in batches, in one lane and in several."""

import threading

import pytest
import torch

from workers.engine.lanes import Lanes
from workers.engine.rows import RowBatches


@pytest.fixture(scope="module", params=[1, 2, 3])
def lanes(request) -> Lanes:
    return Lanes(request.param)


@pytest.mark.parametrize("fixed_rows", [None, (4,), (1, 2, 3)])
@pytest.mark.parametrize("num_rows", [1, 2, 7, 16])
def test_rows_come_back_in_order(lanes, num_rows, fixed_rows) -> None:
    results = RowBatches(3, lanes)(torch.tensor, num_rows, fixed_rows)
    assert results.failures == {}
    assert results.values.tolist() == list(range(num_rows))


@pytest.mark.parametrize("num_rows", [1, 2, 5, 9, 30])
def test_calls_have_only_numbers_of_rows_that_are_allowed(num_rows) -> None:
    sizes = []

    def call(rows: list[int]) -> torch.Tensor:
        sizes.append(len(rows))
        return torch.tensor(rows)

    results = RowBatches(16, Lanes(2))(call, num_rows, (2, 6, 8))
    assert results.values.tolist() == list(range(num_rows))
    assert set(sizes) <= {2, 6, 8}
    assert sum(sizes) < num_rows + 8


def test_a_failing_row_leaves_the_others_their_results(lanes) -> None:
    def compute(rows: list[int]) -> torch.Tensor:
        if 5 in rows:
            raise RuntimeError("boom")
        return torch.tensor(rows)

    results = RowBatches(16, lanes)(compute, 9, None)
    assert [(row, str(error)) for row, error in results.failures.items()] == [(5, "boom")]
    assert results.values.tolist() == [0, 1, 2, 3, 4, 0, 6, 7, 8]


def test_rows_that_fit_only_one_at_a_time_are_computed_one_at_a_time(lanes) -> None:
    memory = threading.Semaphore(1)

    def compute(rows: list[int]) -> torch.Tensor:
        if len(rows) > 1 or not memory.acquire(blocking=False):
            raise torch.OutOfMemoryError("out of memory")
        threading.Event().wait(0.02)  # long enough for the other lanes to want some, too
        memory.release()
        return torch.tensor(rows)

    results = RowBatches(16, lanes)(compute, 7, None)
    assert results.failures == {}
    assert results.values.tolist() == list(range(7))


def test_less_memory_chooses_a_smaller_number_that_is_allowed(lanes) -> None:
    def compute(rows: list[int]) -> torch.Tensor:
        if len(rows) > 4:
            raise torch.OutOfMemoryError("out of memory")
        return torch.tensor(rows)

    results = RowBatches(16, lanes)(compute, 30, (2, 4, 8, 16))
    assert results.failures == {}
    assert results.values.tolist() == list(range(30))


def test_lanes_share_the_threads_and_infer() -> None:
    before = torch.get_num_threads()
    seen = Lanes(2).map(lambda part: (part, torch.get_num_threads(), torch.is_inference_mode_enabled()), "ab")
    assert seen == [("a", max(1, before // 2), True), ("b", max(1, before // 2), True)]
    assert torch.get_num_threads() == before


def test_what_a_lane_raises_arrives() -> None:
    with pytest.raises(ZeroDivisionError):
        Lanes(2).map(lambda part: 1 // part, [1, 0])


@pytest.mark.parametrize("sizes", [[2] * 9, [2, 1, 1, 2, 2, 1, 2, 2, 1, 1], [2], [1, 2]])
def test_items_of_several_rows_stay_whole_and_within_the_limit(lanes, sizes) -> None:
    calls = []

    def call(items: list[int]) -> torch.Tensor:
        calls.append(sum(sizes[item] for item in items))
        return torch.tensor(items)

    results = RowBatches(99, lanes)(call, len(sizes), (2, 4, 5), sizes)
    assert results.values.tolist() == list(range(len(sizes)))
    assert sum(calls) == sum(sizes)
    assert max(calls) <= 5


@pytest.mark.parametrize(("num_rows", "fixed_rows", "num_calls"), [(2, None, 1), (8, None, 2), (8, (32,), 1)])
def test_a_lane_is_used_only_for_a_share_that_is_worth_it(num_rows, fixed_rows, num_calls) -> None:
    calls = []

    def call(rows: list[int]) -> torch.Tensor:
        calls.append(rows)
        return torch.tensor(rows)

    RowBatches(64, Lanes(2))(call, num_rows, fixed_rows)
    assert len(calls) == num_calls
