"""Training of adapters: equal to PEFT's and TRL's, and equal whether agents are trained together or alone."""

import random
from functools import partial

import pytest

for package in ("torch", "peft", "transformers"):
    pytest.importorskip(package)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning"),  # of PEFT and TRL
]

import torch  # noqa: E402

from sirius_dspy.errors import TrainingError  # noqa: E402
from sirius_dspy.local.adapter import Adapter  # noqa: E402
from sirius_dspy.local.decoder import Decoder  # noqa: E402
from sirius_dspy.local.layout import build_batch  # noqa: E402
from sirius_dspy.local.learning import Learner, LengthBatches, add_gradients, learn  # noqa: E402
from sirius_dspy.local.lora import LoraOptions, TokenRow  # noqa: E402

OPTIONS = LoraOptions(rank=2, alpha=4, epochs=2, batch_size=3, stop_loss=0.0)


def tiny(kind="llama", dtype=torch.float32, **changes):
    """A random model of two layers, the same at every call."""
    import transformers

    torch.manual_seed(0)
    config = {"llama": "LlamaConfig", "qwen2": "Qwen2Config", "qwen3": "Qwen3Config", "gemma": "GemmaConfig"}[kind]
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "vocab_size": 40}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4, "initializer_range": 0.5}
    model = transformers.AutoModelForCausalLM.from_config(
        getattr(transformers, config)(**{**sizes, **heads, **changes}), dtype=torch.float32
    ).to(dtype)
    for name, weight in model.named_parameters():
        if name.endswith("bias") or "norm" in name:
            torch.nn.init.normal_(weight, mean=1.0, std=0.3)
    return model


def rows(seed, count=7, prefix=(3, 4, 5)):
    """Rows of different lengths with the same first tokens."""
    rng = random.Random(seed)

    def some(low, high):
        return tuple(rng.randrange(40) for _ in range(rng.randint(low, high)))

    return [TokenRow((*prefix, *some(1, 6)), some(1, 4)) for _ in range(count)]


def disturb(adapter, seed):
    """Give the wide factors values, so that all gradients are at work."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        adapter.weights.add_(0.2 * torch.randn(adapter.weights.shape, generator=generator) * adapter.trainable)
    adapter.refresh()
    return adapter


def with_peft(model, adapter, options):
    """The same adapter in PEFT."""
    from peft import LoraConfig, get_peft_model

    settings = LoraConfig(r=options.rank, lora_alpha=options.alpha, target_modules="all-linear", task_type="CAUSAL_LM")
    learner = get_peft_model(model, settings)
    with torch.no_grad():
        for name, narrow, wide in adapter.modules():
            layer = learner.base_model.model.model.get_submodule(name)
            layer.lora_A["default"].weight.copy_(narrow)
            layer.lora_B["default"].weight.copy_(wide)
    return learner


def padded(batch):
    """`input_ids`, `attention_mask` and `labels`."""
    width = max(map(len, batch))
    pads = [width - len(row) for row in batch]
    ids = [[*row.prompt, *row.completion, *[0] * pad] for row, pad in zip(batch, pads, strict=True)]
    mask = [[1] * len(row) + [0] * pad for row, pad in zip(batch, pads, strict=True)]
    labels = [[-100] * len(row.prompt) + [*row.completion] + [-100] * pad for row, pad in zip(batch, pads, strict=True)]
    return {
        "input_ids": torch.tensor(ids),
        "attention_mask": torch.tensor(mask),
        "labels": torch.tensor(labels),
    }


def gradients(adapter):
    return adapter._copy_gradient * adapter.trainable


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("prefix", [(3, 4, 5), ()])
@pytest.mark.parametrize("long", [384, 1])
def test_loss_and_gradients_are_those_of_peft(monkeypatch, kind, prefix, long):
    from sirius_dspy.local import attention

    monkeypatch.setattr(attention, "LONG", long)  # both ways to attend
    batch = rows(1, 4, prefix)
    decoder = Decoder(tiny(kind))
    adapter = disturb(Adapter(decoder, OPTIONS), 5)
    learner = with_peft(tiny(kind), adapter, OPTIONS)
    expected = learner(**padded(batch)).loss
    expected.backward()
    (loss,) = add_gradients(decoder, [adapter], [batch])
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    adapter.weights.copy_(gradients(adapter))  # to read the gradients by the names of the layers
    for name, narrow, wide in adapter.modules():
        layer = learner.base_model.model.model.get_submodule(name)
        torch.testing.assert_close(narrow, layer.lora_A["default"].weight.grad, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(wide, layer.lora_B["default"].weight.grad, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("long", [384, 1])
def test_gradients_of_agents_together_are_those_of_each_alone(monkeypatch, long):
    from sirius_dspy.local import attention

    monkeypatch.setattr(attention, "LONG", long)
    decoder = Decoder(tiny(dtype=torch.float64))  # in which nothing but rounding is below the tolerances
    agents = [disturb(Adapter(decoder, LoraOptions(rank=rank, seed=rank)), rank) for rank in (2, 3)]
    batches = [rows(1, 4), rows(2, 3, prefix=(9,))]
    losses = add_gradients(decoder, agents, batches)
    together = [gradients(agent).clone() for agent in agents]
    for agent, batch, loss, gradient in zip(agents, batches, losses, together, strict=True):
        agent._copy_gradient.zero_()
        assert add_gradients(decoder, [agent], [batch]) == [pytest.approx(loss, rel=1e-9)]
        assert gradient.abs().sum() > 0
        torch.testing.assert_close(gradients(agent), gradient, rtol=1e-9, atol=1e-10)


def learners(decoder, chosen):
    """Two agents that differ in rows, rank, rate, batch size and epochs."""
    options = [OPTIONS, LoraOptions(rank=3, epochs=3, batch_size=2, learning_rate=1e-3, dropout=0.2, seed=1)]
    told = lambda *_: None  # noqa: E731
    return [Learner(Adapter(decoder, options[number]), rows(number), told) for number in chosen]


def test_weights_of_agents_together_are_those_of_each_alone():
    decoder = Decoder(tiny())
    together = learners(decoder, [0, 1])
    learn(together, partial(add_gradients, decoder))
    assert [len(learner.losses) for learner in together] == [6, 12]
    for number, learner in enumerate(together):
        (alone,) = learners(decoder, [number])
        learn([alone], partial(add_gradients, decoder))
        assert learner.losses == pytest.approx(alone.losses, rel=1e-4)
        torch.testing.assert_close(learner.adapter.weights, alone.adapter.weights, rtol=1e-3, atol=1e-4)


def test_training_is_that_of_trl(tmp_path):
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast
    from trl import SFTConfig, SFTTrainer

    given = rows(3, 9)
    decoder = Decoder(tiny())
    ours = Learner(Adapter(decoder, OPTIONS), given, lambda *_: None)
    order = [number for _ in range(2) for batch in LengthBatches(list(map(len, given)), 3, 0) for number in batch]
    sampler = LengthBatches(list(map(len, given)), 3, 0)
    order = [number for _ in range(2) for batch in sampler for number in batch]
    learner = with_peft(tiny(), ours.adapter, OPTIONS)
    words = Tokenizer(models.WordLevel({"p": 0, "u": 1}, unk_token="u"))
    data = {
        "input_ids": [[*given[number].prompt, *given[number].completion] for number in order],
        "labels": [[-100] * len(given[number].prompt) + [*given[number].completion] for number in order],
    }

    class InOrder(SFTTrainer):
        def _get_train_sampler(self, train_dataset=None):
            return range(len(order))

    trainer = InOrder(
        model=learner,
        args=SFTConfig(
            output_dir=str(tmp_path),
            per_device_train_batch_size=3,
            num_train_epochs=1,  # the order has both epochs
            learning_rate=OPTIONS.learning_rate,
            warmup_steps=OPTIONS.warmup,
            weight_decay=0.0,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            bf16=False,
            use_cpu=True,
            gradient_checkpointing=False,
            dataset_kwargs={"skip_prepare_dataset": True},
            max_length=None,
            dataloader_pin_memory=False,
        ),
        train_dataset=Dataset.from_dict(data),
        processing_class=PreTrainedTokenizerFast(tokenizer_object=words, pad_token="p", eos_token="p"),
    )
    trainer.train()
    learn([ours], partial(add_gradients, decoder))
    logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert ours.losses == pytest.approx(logged, rel=1e-3)
    for name, narrow, wide in ours.adapter.modules():
        layer = learner.base_model.model.model.get_submodule(name)
        torch.testing.assert_close(narrow, layer.lora_A["default"].weight.detach(), rtol=1e-2, atol=2e-4)
        torch.testing.assert_close(wide, layer.lora_B["default"].weight.detach(), rtol=1e-2, atol=2e-4)


def test_a_saved_adapter_is_one_of_pefts(tmp_path):
    from peft import PeftModel

    decoder = Decoder(tiny())
    adapter = disturb(Adapter(decoder, OPTIONS), 5)
    adapter.save(tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(tiny(), str(tmp_path / "adapter"))
    batch = rows(1, 4)
    (loss,) = add_gradients(decoder, [adapter], [batch])
    assert loaded(**padded(batch)).loss.item() == pytest.approx(loss, rel=1e-5)


def test_only_ratios_of_weights_matter_and_a_row_of_weight_zero_teaches_nothing():
    from dataclasses import replace

    decoder = Decoder(tiny())
    given = rows(1, 3)

    def first_loss(*weights):
        weighted = [replace(row, weight=weight) for row, weight in zip(given, weights, strict=True)]
        learner = Learner(Adapter(decoder, OPTIONS), weighted, lambda *_: None)
        return add_gradients(decoder, [learner.adapter], [learner.next_rows()])[0]

    assert first_loss(1, 1, 1) == pytest.approx(first_loss(5, 5, 5), rel=1e-5)
    counts = [len(row.completion) for row in given]
    single = [first_loss(*(float(number == place) for place in range(3))) * sum(counts) / 3 for number in range(3)]
    assert first_loss(1, 1, 1) == pytest.approx(sum(single) / sum(counts), rel=1e-5)
    assert first_loss(1, 3, 2) == pytest.approx((single[0] + 3 * single[1] + 2 * single[2]) / 2 / sum(counts), rel=1e-5)


def test_what_rows_begin_with_is_laid_out_once():
    batch = build_batch([TokenRow((1, 2, 3), (7, 0)), TokenRow((1, 2, 4, 5), (8,))], 10)
    assert (batch.first, batch.own, batch.span) == (range(10, 12), [range(12, 15), range(15, 18)], slice(10, 18))
    assert batch.ids == [1, 2, 3, 7, 0, 4, 5, 8]
    assert batch.positions == [0, 1, 2, 3, 4, 2, 3, 4]
    assert (batch.sources, batch.targets) == ([12, 13, 16], [7, 0, 8])


def test_the_last_token_of_a_prompt_is_never_shared():
    batch = build_batch([TokenRow((1, 2), (7,)), TokenRow((1, 2), (8,))], 0)
    assert (batch.first, batch.ids, batch.sources) == (range(1), [1, 2, 7, 2, 8], [1, 3])


def test_a_model_that_would_be_computed_wrongly_is_refused():
    with pytest.raises(TrainingError, match=r"'gemma'.*llama, qwen2, qwen3"):
        Decoder(tiny("gemma"))
    with pytest.raises(TrainingError, match="'relu'"):
        Decoder(tiny(hidden_act="relu"))


def test_a_loss_that_is_no_number_ends_training_with_the_agents_name():
    decoder = Decoder(tiny())
    agents = [
        Learner(Adapter(decoder, OPTIONS), rows(number), lambda *_: None, name) for number, name in enumerate("ab")
    ]
    agents[1].adapter.weights.fill_(float("inf"))
    agents[1].adapter.refresh()
    with pytest.raises(TrainingError, match=r"loss of '[ab]' became nan in step 1 of 6.*lower `learning_rate`"):
        learn(agents, partial(add_gradients, decoder))


def test_training_ends_early_when_nothing_is_left_to_learn_but_sees_every_row_once():
    decoder = Decoder(tiny())
    learner = Learner(Adapter(decoder, LoraOptions(rank=1, batch_size=3)), rows(0, 30), lambda *_: None)

    def is_finished(losses):
        learner.losses[:] = losses
        return learner.is_finished

    assert is_finished([0.01] * 10)
    assert not is_finished([0.01] * 9)
    assert not is_finished([0.01] * 11 + [0.5])
    assert is_finished([1.0] * 30)


def test_other_architectures_are_trained_with_peft_each_agent_as_alone():
    from sirius_dspy.local.peft_base import PeftBase

    def told(*_):
        pass

    def neox():
        import transformers

        torch.manual_seed(0)
        sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "vocab_size": 40}
        config = transformers.GPTNeoXConfig(**sizes, num_attention_heads=4, hidden_dropout=0.5, initializer_range=0.5)
        return transformers.AutoModelForCausalLM.from_config(config)

    options = [LoraOptions(rank=rank, epochs=2, batch_size=3, seed=rank, stop_loss=0.0) for rank in (2, 3)]
    base = PeftBase(neox())
    together = [Learner(base.add_adapter(each), rows(each.rank), told) for each in options]
    learn(together, base.add_gradients)
    for learner, each in zip(together, options, strict=True):
        own = PeftBase(neox())
        alone = Learner(own.add_adapter(each), rows(each.rank), told)
        learn([alone], own.add_gradients)
        assert learner.losses == pytest.approx(alone.losses, rel=1e-4)
        assert learner.losses[-1] < learner.losses[0]


def test_with_peft_the_loss_of_a_batch_is_that_of_the_decoder():
    from sirius_dspy.local.peft_base import PeftBase

    batch = [TokenRow(row.prompt, row.completion, weight) for row, weight in zip(rows(1, 4), (1, 2, 3, 2), strict=True)]
    decoder, base = Decoder(tiny()), PeftBase(tiny())
    expected = add_gradients(decoder, [Adapter(decoder, OPTIONS)], [batch])
    assert base.add_gradients([base.add_adapter(OPTIONS)], [batch]) == pytest.approx(expected, rel=1e-5)
