import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from training.active import Chosen
from training.sparse.slots import Bags, Layout, Slots

ROWS, NEURONS = 4, 9
LAYOUT = Layout(row_count=ROWS, neuron_count=NEURONS, sizes=torch.tensor([2, 5, NEURONS]))


def drawn(generator: torch.Generator, count: int) -> Chosen:
    """So many different places, about half of which stand for nothing."""
    places = torch.randperm(ROWS * NEURONS, generator=generator)[:count]
    return Chosen(torch.randn(count, generator=generator), places)


def active_of(chosen: Chosen, first_bag: int, *, is_nested: bool) -> set[tuple[int, int, float]]:
    """Bag, neuron and value of what is positive, by a plain loop."""
    found = set()
    for value, place in zip(chosen.values.tolist(), chosen.places.tolist(), strict=True):
        row, neuron = divmod(place, NEURONS)
        level = sum(neuron >= size for size in LAYOUT.sizes.tolist()) if is_nested else 0
        if value > 0:
            found.add((first_bag + row * (3 if is_nested else 1) + level, neuron, value))
    return found


def check(slots: Slots, bags: Bags, keys: Tensor) -> list[tuple[int, int, float]]:
    """Every bag's active slots come first, then what stands for nothing; gives the active ones in order."""
    found = []
    borders = [*bags.starts.tolist(), len(keys)]
    assert borders[0] == 0
    for bag, (start, end, following) in enumerate(zip(borders, bags.ends.tolist(), borders[1:], strict=False)):
        assert keys[start:following].tolist() == [bag] * (following - start)
        assert bool((slots.values[start:end] > 0).all())
        assert not bool(slots.values[end:following].any())
        found += list(
            zip(
                slots.bags[start:end].tolist(),
                slots.neuron_ids[start:end].tolist(),
                slots.values[start:end].tolist(),
                strict=True,
            )
        )
    return found


@given(st.integers(0, 2**16), st.integers(1, 36), st.integers(0, 36))
@settings(max_examples=60)
def test_active_neurons_stand_first_by_bag_and_by_neuron(seed: int, count: int, dead_count: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    active, dead = drawn(generator, count), drawn(generator, dead_count) if dead_count else None
    due = active_of(active, 0, is_nested=True)
    if dead is not None:
        due |= active_of(dead, 3 * ROWS, is_nested=False)
    slots, bags = LAYOUT.slots(active, dead)
    assert len(bags.starts) == (3 if dead is None else 4) * ROWS
    assert check(slots, bags, slots.bags) == sorted(due)
    order, neurons = LAYOUT.by_neuron(slots)
    ordered = Slots(*(part[order] for part in slots))
    found = check(ordered, neurons, ordered.neuron_ids)
    assert found == sorted(due, key=lambda slot: (slot[1], slot[0]))
    rows = LAYOUT.rows(slots.bags).tolist()
    assert rows == [bag // 3 if bag < 3 * ROWS else bag - 3 * ROWS for bag in slots.bags.tolist()]
