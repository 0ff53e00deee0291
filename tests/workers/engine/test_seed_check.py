"""The check of the seed contract, on small functions whose answer is known."""

import json

import pytest
import torch
from torch import Tensor

from workers.engine.seed_check import SeedCheck, Verdict, VerdictStore, count_differing, verdict_key

VERDICT = Verdict((6, 32), 32, 256, {32: 0, 6: 0, 1: 3}, 1.5)
PROBES = torch.randn(512, 704, generator=torch.Generator().manual_seed(0))


def row_by_row(indices: Tensor) -> Tensor:
    return torch.stack([PROBES[index].square().cumsum(0) for index in indices])


class NeverUnder:
    """Adds up in another order where there are fewer rows than ``limit``, and counts its calls."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.sizes: list[int] = []

    def __call__(self, indices: Tensor) -> Tensor:
        self.sizes.append(len(indices))
        rows = PROBES[indices]
        halves = rows[:, :352].sum(1, keepdim=True) + rows[:, 352:].sum(1, keepdim=True)
        return halves if len(indices) < self.limit else rows.cumsum(1)[:, -1:]


def conclude(check: SeedCheck) -> Verdict:
    verdict = check.advance(60)
    assert verdict is not None
    return verdict


def test_a_function_of_rows_alone_agrees_at_every_number():
    verdict = conclude(SeedCheck(row_by_row, 128, 32, [1, 2, 3, 8]))
    assert verdict.agreeing == (1, 2, 3, 8, 32)
    assert verdict.is_kept
    assert verdict.do_all_agree
    assert verdict.num_differing == {1: 0, 2: 0, 3: 0, 8: 0, 32: 0}


def test_numbers_that_disagree_are_given_up_at_once():
    function = NeverUnder(6)
    verdict = conclude(SeedCheck(function, 128, 32, [1, 2, 5, 6, 16]))
    assert verdict.agreeing == (6, 16, 32)
    assert verdict.is_kept
    assert not verdict.do_all_agree
    assert all(verdict.num_differing[rows] for rows in (1, 2, 5))
    assert function.sizes.count(5) <= 2
    assert function.sizes.count(2) <= 4
    assert function.sizes.count(6) == -(-128 // 6)


def test_one_row_in_five_hundred_is_found():
    def call(indices: Tensor) -> Tensor:
        rows = PROBES[indices].clone()
        if len(indices) == 4:
            rows[indices == 77, 700] = rows[indices == 77, 700].nextafter(torch.tensor(9.0))
        return rows

    verdict = conclude(SeedCheck(call, 500, 32, [4, 8]))
    assert verdict.agreeing == (8, 32)
    assert verdict.num_differing[4] == 1


def test_a_difference_in_a_zeros_sign_counts_and_nans_agree():
    assert count_differing(torch.tensor([[0.0], [1.0]]), torch.tensor([[-0.0], [1.0]])) == 1
    assert count_differing(torch.full((2, 3), torch.nan), torch.full((2, 3), torch.nan)) == 0
    assert count_differing(torch.ones(2, 0), torch.ones(2, 0)) == 0
    halves = torch.ones(3, 2, dtype=torch.bfloat16)
    assert count_differing(halves, halves * torch.tensor([[1], [2], [1]])) == 1


def test_full_calls_that_depend_on_the_neighbours_promise_nothing():
    verdict = conclude(SeedCheck(lambda indices: PROBES[indices] - PROBES[indices].mean(), 128, 32, [1, 8]))
    assert verdict.agreeing == ()
    assert not verdict.is_kept
    assert set(verdict.num_differing) == {32}


def test_a_row_that_depends_on_its_place_is_found():
    def call(indices: Tensor) -> Tensor:
        rows = PROBES[indices].clone()
        if len(rows) == 32:
            rows[31] += 1e-3
        return rows

    assert not conclude(SeedCheck(call, 128, 32, [1])).is_kept


def test_it_works_a_slice_at_a_time():
    function = NeverUnder(1)
    check = SeedCheck(function, 64, 32, [16])
    num_slices = 1
    while (verdict := check.advance(0)) is None:
        assert len(function.sizes) == num_slices
        num_slices += 1
    assert function.sizes == [32] * 4 + [16] * 4
    assert check.advance(0) is verdict
    assert len(function.sizes) == 8


def test_an_output_that_lives_on_in_a_reused_buffer_is_no_trouble():
    buffer = torch.empty(32, 704)

    def call(indices: Tensor) -> Tensor:
        buffer[: len(indices)] = PROBES[indices]
        return buffer[: len(indices)]

    assert conclude(SeedCheck(call, 100, 32, [3])).agreeing == (3, 32)


def test_it_rejects_what_it_cannot_check():
    with pytest.raises(ValueError, match="num_probes must be at least 1, got 0"):
        SeedCheck(row_by_row, 0, 32, [1])
    with pytest.raises(ValueError, match="from 1 to 32"):
        SeedCheck(row_by_row, 64, 32, [33])


def test_a_verdict_survives_the_disk(tmp_path):
    store = VerdictStore(tmp_path / "new")
    assert store.read("key") is None
    store.write("key", VERDICT)
    assert VerdictStore(tmp_path / "new").read("key") == VERDICT
    assert store.read("other") is None
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["key.json"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        '{"agreeing": [1]}',
        VERDICT.to_json()[:-20],
        json.dumps(json.loads(VERDICT.to_json()) | {"agreeing": [1, 6, 32]}),  # 1 differed
        json.dumps(json.loads(VERDICT.to_json()) | {"agreeing": [6]}),  # without the full call
        json.dumps(json.loads(VERDICT.to_json()) | {"seconds": "soon"}),
    ],
)
def test_a_damaged_file_is_ignored_and_replaced(tmp_path, text):
    store = VerdictStore(tmp_path)
    (tmp_path / "key.json").write_text(text)
    assert store.read("key") is None
    store.write("key", VERDICT)
    assert store.read("key") == VERDICT


def test_bytes_that_are_no_text_are_ignored(tmp_path):
    (tmp_path / "key.json").write_bytes(b"\xff\xfe\x00")
    assert VerdictStore(tmp_path).read("key") is None


def test_a_folder_that_cannot_be_written_costs_nothing(tmp_path):
    (tmp_path / "file").write_text("in the way")
    store = VerdictStore(tmp_path / "file")
    store.write("key", VERDICT)
    assert store.read("key") is None


def test_the_key_changes_with_all_that_matters(monkeypatch):
    cpu = torch.device("cpu")
    keys = {
        verdict_key("weights", 1, cpu, {"dtype": "bfloat16"}),
        verdict_key("others", 1, cpu, {"dtype": "bfloat16"}),
        verdict_key("weights", 2, cpu, {"dtype": "bfloat16"}),
        verdict_key("weights", 1, cpu, {"dtype": "float32"}),
    }
    assert verdict_key("weights", 1, cpu, {"dtype": "bfloat16"}) in keys
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")
    keys.add(verdict_key("weights", 1, cpu, {"dtype": "bfloat16"}))
    monkeypatch.setattr("workers.engine.seed_check.describe_processor", lambda device: "another")
    keys.add(verdict_key("weights", 1, cpu, {"dtype": "bfloat16"}))
    assert len(keys) == 6
