import pytest
import torch
from torch import Tensor

from training.active import Choice, Chosen
from training.ranks import Ranks
from training.variants import BatchTopKTraining, SparseVariant, TopKTraining


class Heard(Ranks):
    """One of several processes, told beforehand what the others send."""

    def __init__(self, *, rank: int, parts: list[Tensor]) -> None:
        super().__init__(rank=rank, count=len(parts))
        self._parts = parts

    def gather_tensor(self, values: Tensor) -> Tensor:
        assert torch.equal(values, self._parts[self.rank])
        return torch.cat(self._parts)


def table(chosen: Chosen, row_count: int, neuron_count: int) -> Tensor:
    found = torch.zeros(row_count * neuron_count)
    found[chosen.places[chosen.values > 0]] = chosen.values[chosen.values > 0].float()
    return found.view(row_count, neuron_count)


@pytest.mark.parametrize("variant", [TopKTraining(k=3), BatchTopKTraining(k=3)])
@pytest.mark.parametrize("block_rows", [1, 4, 20])
def test_blocks_of_rows_choose_what_the_whole_batch_does(variant: SparseVariant, block_rows: int) -> None:
    pre = torch.randn(20, 13, generator=torch.Generator().manual_seed(0))
    whole, parts = Choice(variant, 20, 13), Choice(variant, 20, 13)
    whole.add(pre)
    for block in pre.split(block_rows):
        parts.add(block)
    assert torch.equal(table(whole.chosen(), 20, 13), table(parts.chosen(), 20, 13))
    assert len(parts.chosen().values) == 60


def test_of_equal_values_the_first_ranks_keep_theirs() -> None:
    """Two processes with two rows of three neurons each, two active per row: eight in all, of which five are plain."""
    batches = [
        torch.tensor([[9.0, 1.0, 1.0], [8.0, 0.5, 1.0]]),
        torch.tensor([[7.0, 1.0, 6.0], [0.125, 5.0, 1.0]]),
    ]
    sent = [batch.flatten() for batch in batches]
    kept = []
    for rank, batch in enumerate(batches):
        choice = Choice(BatchTopKTraining(k=2), 2, 3, Heard(rank=rank, parts=sent))
        choice.add(batch.to(torch.bfloat16))
        kept.append(table(choice.chosen(), 2, 3))
    assert kept[0].tolist() == [[9.0, 1.0, 1.0], [8.0, 0.0, 1.0]]
    assert kept[1].tolist() == [[7.0, 0.0, 6.0], [0.0, 5.0, 0.0]]
