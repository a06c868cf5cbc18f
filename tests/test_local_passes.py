"""Training steps that do not fit into the memory of a device."""

from functools import partial

import pytest

for package in ("torch", "peft", "transformers"):
    pytest.importorskip(package)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning"),  # of PEFT
]

import torch  # noqa: E402

from sirius_dspy.errors import TrainingError  # noqa: E402
from sirius_dspy.local.adapter import Adapter  # noqa: E402
from sirius_dspy.local.decoder import Decoder  # noqa: E402
from sirius_dspy.local.learning import add_gradients  # noqa: E402
from sirius_dspy.local.lora import LoraOptions, TokenRow  # noqa: E402
from sirius_dspy.local.passes import FittingPasses  # noqa: E402
from tests.test_local_training import OPTIONS, disturb, gradients, rows, tiny  # noqa: E402


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # for models this small, more only wait for each other
    yield
    torch.set_num_threads(threads)


def with_memory_for(most, add):
    """A device whose memory is full above so many rows, when a part of the gradient is there already."""

    def add_gradients(adapters, rows):
        losses = add(adapters, rows)
        if sum(map(len, rows)) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return losses

    return add_gradients


def with_decoder(dtype=torch.float64):
    """The agents of a decoder, and what adds and reads their gradients."""
    decoder = Decoder(tiny(dtype=dtype))
    agents = [disturb(Adapter(decoder, LoraOptions(rank=rank, seed=rank)), rank) for rank in (2, 3)]
    return agents, partial(add_gradients, decoder), gradients


def with_peft_base():
    from sirius_dspy.local.peft_base import PeftBase

    base = PeftBase(tiny(dtype=torch.float64))
    agents = [base.add_adapter(LoraOptions(rank=rank, seed=rank)) for rank in (2, 3)]

    def read(agent):
        return torch.cat([weight.grad.flatten() for weight in agent._weights])

    return agents, base.add_gradients, read


@pytest.mark.parametrize(
    ("build", "most", "size"),
    [(with_decoder, 7, None), (with_decoder, 6, 3), (with_decoder, 1, 1), (with_peft_base, 2, 1)],
)
def test_a_step_that_does_not_fit_has_the_same_gradient_in_several_passes(build, most, size):
    batches = [
        [TokenRow(row.prompt, row.completion, weight) for row, weight in zip(part, (1, 3, 2, 1), strict=False)]
        for part in (rows(1, 4), rows(2, 3, prefix=(9,)))
    ]
    agents, add, read = build()
    expected = add(agents, batches), [read(agent).clone() for agent in agents]
    for agent in agents:
        agent.clear_gradient()
    told = []
    passes = FittingPasses(with_memory_for(most, add), told.append, "cuda")
    assert passes(agents, batches) == pytest.approx(expected[0], rel=1e-6)
    for agent, gradient in zip(agents, expected[1], strict=True):
        torch.testing.assert_close(read(agent), gradient, rtol=1e-4, atol=1e-6)
    assert passes.max_rows == size
    assert len(told) == (size is not None)
    for agent in agents:
        agent.clear_gradient()
    passes(agents, batches)  # the next step knows
    assert len(told) == (size is not None)


def test_a_row_that_does_not_fit_alone_and_other_errors_end_training():
    agents, add, _ = with_decoder()
    batches = [rows(1, 4), rows(2, 3)]
    longest = max(len(row) for part in batches for row in part)
    with pytest.raises(TrainingError, match=f"{longest} tokens.* memory of cuda:1.*gradient_checkpointing=True"):
        FittingPasses(with_memory_for(0, add), print, "cuda:1")(agents, batches)

    def broken(adapters, rows):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with pytest.raises(RuntimeError, match="illegal"):
        FittingPasses(broken, print, "cuda")(agents, batches)


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_checkpoints_change_no_gradient(dropout):
    options = LoraOptions(rank=2, dropout=dropout, gradient_checkpointing=True)
    results = []
    for has_checkpoints in (False, True):
        decoder = Decoder(tiny(dtype=torch.float64), has_checkpoints=has_checkpoints)
        agent = disturb(Adapter(decoder, options), 5)
        losses = [add_gradients(decoder, [agent], [rows(seed, 4)]) for seed in (1, 2)]
        results.append((losses, gradients(agent)))
    assert results[0][0] == results[1][0]
    torch.testing.assert_close(*(gradient for _, gradient in results), rtol=1e-9, atol=1e-12)
    assert results[0][1].abs().sum() > 0


def test_checkpoints_keep_fewer_tensors_for_the_backward_pass():
    def count(has_checkpoints):
        from sirius_dspy.local.peft_base import PeftBase

        decoder = Decoder(tiny(), has_checkpoints=has_checkpoints)
        base = PeftBase(tiny(), has_checkpoints=has_checkpoints)
        ways = [
            (partial(add_gradients, decoder), Adapter(decoder, OPTIONS)),
            (base.add_gradients, base.add_adapter(OPTIONS)),
        ]
        sizes, losses = [0, 0], []
        for way, (add, agent) in enumerate(ways):

            def keep(tensor, way=way):
                sizes[way] += tensor.numel()
                return tensor

            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                losses += add([agent], [rows(1, 4)])
        return sizes, losses

    (decoder, peft), losses = count(False)
    (less_decoder, less_peft), same = count(True)
    assert (less_decoder < decoder / 2, less_peft < peft / 2) == (True, True)
    assert same == pytest.approx(losses, rel=1e-6)
