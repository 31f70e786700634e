import pytest
import torch

from slm.checkpoints.weights import weights_to_export
from slm.model import Decoder
from slm.training.optim import WeightAverage
from tests.seeds import seeded
from tests.training.small import random_decoder


def flat(decoder: Decoder) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in decoder.parameters()])


@pytest.mark.parametrize("decay", [0.5, 0.999])
def test_the_average_is_the_closed_form_over_the_steps_that_counted(decay: float) -> None:
    decoder = random_decoder().double()
    average = WeightAverage(decoder, decay).double()
    taken = []
    for step in range(12):
        skipped = step in (0, 5)
        if not skipped:
            with torch.no_grad():
                for p in decoder.parameters():
                    p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(seeded(step)), dtype=p.dtype))
            taken.append(flat(decoder))
        average.update(decoder, skipped=torch.tensor(skipped))
    weights = torch.tensor([decay ** (len(taken) - 1 - i) for i in range(len(taken))], dtype=torch.float64)
    expected = (weights[:, None] * torch.stack(taken)).sum(0) / weights.sum()
    with average.applied(decoder):
        torch.testing.assert_close(flat(decoder), expected, rtol=1e-12, atol=1e-12)


def test_weights_and_averages_come_back_to_the_last_bit() -> None:
    decoder = random_decoder().double()
    average = WeightAverage(decoder, 0.9).double()
    with torch.no_grad():
        for p in decoder.parameters():
            p.add_(0.1)
    average.update(decoder, skipped=torch.tensor(False))
    before = [t.clone() for t in (*decoder.parameters(), *average.buffers())]
    with pytest.raises(KeyError), average.applied(decoder):
        raise KeyError
    assert all(torch.equal(a, b) for a, b in zip(before, (*decoder.parameters(), *average.buffers()), strict=True))


def test_the_averages_are_exported_where_a_checkpoint_has_them() -> None:
    decoder, other = random_decoder(0).double(), random_decoder(1).double()
    state = {f"decoder.{name}": tensor for name, tensor in decoder.state_dict().items()}
    assert weights_to_export(state).keys() == decoder.state_dict().keys()
    averages = WeightAverage(other, 0.9).state_dict()
    exported = weights_to_export(state | {f"average.{name}": tensor for name, tensor in averages.items()})
    assert exported.keys() == decoder.state_dict().keys()
    assert all(torch.equal(exported[name], tensor) for name, tensor in other.state_dict().items())
