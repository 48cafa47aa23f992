import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from phosphene.selection import JumpReLU, TopK
from training.active import Active, choose_active, decode_active
from training.variants import (
    BatchTopKTraining,
    JumpReluTraining,
    MatryoshkaTraining,
    ReluTraining,
    SparseVariant,
    TopKTraining,
    VariantName,
    name_of,
    variant_config,
)

SPARSE: tuple[SparseVariant, ...] = (
    TopKTraining(k=3),
    BatchTopKTraining(k=3),
    MatryoshkaTraining(k=3, prefixes=(4, 12)),
)


def dense(active: Active, row_count: int, neuron_count: int) -> torch.Tensor:
    """The chosen activations as a table, by a plain loop."""
    table = torch.zeros(row_count, neuron_count)
    ends = [*active.row_starts.tolist()[1:], len(active.values)]
    for row, (start, end) in enumerate(zip(active.row_starts.tolist(), ends, strict=True)):
        for slot in range(start, end):
            table[row, active.neuron_ids[slot]] = active.values[slot]
    return table


@given(st.integers(0, 2**16), st.integers(1, 7), st.integers(1, 9))
@settings(max_examples=40)
def test_topk_keeps_the_k_largest_of_every_row(seed: int, rows: int, k: int) -> None:
    pre = torch.randn(rows, 9, generator=torch.Generator().manual_seed(seed))
    due = torch.zeros_like(pre)
    for row in range(rows):
        for neuron in sorted(range(9), key=lambda n: -float(pre[row, n]))[:k]:  # noqa: B023
            due[row, neuron] = max(float(pre[row, neuron]), 0.0)
    assert torch.equal(dense(choose_active(TopKTraining(k=k), pre), rows, 9), due)


@given(st.integers(0, 2**16), st.integers(1, 7), st.integers(1, 9))
@settings(max_examples=40)
def test_batchtopk_keeps_the_k_times_rows_largest_of_the_batch(seed: int, rows: int, k: int) -> None:
    pre = torch.randn(rows, 9, generator=torch.Generator().manual_seed(seed))
    cutoff = sorted(pre.flatten().tolist(), reverse=True)[k * rows - 1]
    due = torch.where(pre >= cutoff, pre, 0).clamp_min(0)
    assert torch.equal(dense(choose_active(BatchTopKTraining(k=k), pre), rows, 9), due)


def test_batchtopk_leaves_a_quiet_row_empty() -> None:
    pre = torch.tensor([[9.0, 8.0, 7.0], [0.1, 0.2, 0.3]])
    active = choose_active(BatchTopKTraining(k=1), pre)
    assert active.row_starts.tolist() == [0, 2]
    assert active.neuron_ids.tolist() == [0, 1]


@given(st.integers(0, 2**16), st.sampled_from(SPARSE))
@settings(max_examples=20)
def test_sparse_decoding_equals_the_dense_product_and_so_do_its_gradients(seed: int, variant: SparseVariant) -> None:
    generator = torch.Generator().manual_seed(seed)
    pre = torch.randn(5, 12, generator=generator, dtype=torch.float64).requires_grad_()
    directions = torch.randn(12, 4, generator=generator, dtype=torch.float64).requires_grad_()
    active = choose_active(variant, pre)
    sparse = decode_active(active, directions)
    mask = dense(Active(*(part.detach() for part in active)), 5, 12) > 0
    full = torch.where(mask, pre, 0) @ directions
    assert torch.allclose(sparse, full)
    for due, found in zip(
        torch.autograd.grad(full.square().sum(), [pre, directions]),
        torch.autograd.grad(sparse.square().sum(), [pre, directions]),
        strict=True,
    ):
        assert torch.allclose(due, found)


def test_every_variant_ships_a_rule_that_sees_one_row_at_a_time() -> None:
    assert TopKTraining(k=3).for_inference() == TopK(3)
    threshold = torch.tensor([0.5, 0.5])
    rule = BatchTopKTraining(k=3).for_inference(threshold)
    assert isinstance(rule, JumpReLU)
    assert rule.threshold is threshold
    nested = MatryoshkaTraining(k=3, prefixes=(1, 2)).for_inference(threshold)
    assert isinstance(nested, JumpReLU)
    learnt = JumpReluTraining(l0_coefficient=1.0).for_inference(threshold)
    assert learnt.threshold is threshold
    relu = ReluTraining(l1_coefficient=1.0, is_error_normalised=True, has_ghost_gradients=True).for_inference(2)
    assert relu.threshold.tolist() == [0, 0]


def test_every_variant_has_a_name_of_its_own_and_a_plain_form() -> None:
    every = (
        *SPARSE,
        ReluTraining(l1_coefficient=1.0, is_error_normalised=True, has_ghost_gradients=True),
        JumpReluTraining(l0_coefficient=1.0),
    )
    assert [name_of(variant) for variant in every] == list(VariantName)
    assert variant_config(every[2]) == {"name": "matryoshka", "k": 3, "prefixes": [4, 12], "precision": "float32"}
