"""`PreferenceTrainer`: which pairs it gets from a compile, and DPO on a tiny model; TRL's trainers take the exports."""

import dataclasses
import json
from typing import cast

import dspy
import pytest

from sirius_dspy import PreferenceOptions, PreferenceTrainer, ProviderTrainer, open_export
from sirius_dspy.errors import SettingsError, UnpreparedProgramError
from sirius_dspy.local.chat import Chat
from sirius_dspy.local.preferences import PreferenceJob, TokenPair, to_pair
from sirius_dspy.testing import ToyLM
from tests import toy
from tests.test_local_lora import CHAT

for package in ("torch", "trl", "peft"):
    pytest.importorskip(package)

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of swig, at import
    pytest.mark.filterwarnings("ignore::FutureWarning"),  # inside transformers
]

PAIR = {
    "prompt": [{"role": "user", "content": "hi"}],
    "chosen": [{"role": "assistant", "content": "yo"}],
    "rejected": [{"role": "assistant", "content": "no!"}],
}


class Wishing(ProviderTrainer):
    """Notes the pairs of its requests."""

    wants_pairs = True

    def __init__(self) -> None:
        super().__init__()
        self.seen = {}

    def train(self, request):
        self.seen.setdefault(request.agent, []).append(request.pairs)
        return super().train(request)


def test_a_trainer_that_wants_pairs_gets_those_of_the_iteration(tmp_path):
    trainer = Wishing()
    with dspy.context(adapter=toy.ADAPTER):
        toy.compiled_by(tmp_path / "run", trainer=trainer, iterations=1)
    export = open_export(tmp_path / "run", iteration=1)
    with export.library:
        export.to_dpo(tmp_path / "dpo.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "dpo.jsonl").read_text().splitlines()]
    wanted = sorted(json.dumps([row["prompt"], row["chosen"], row["rejected"]], sort_keys=True) for row in rows)
    (found,) = trainer.seen["doubler"]
    assert sorted(json.dumps(list(pair.values()), sort_keys=True) for pair in found) == wanted
    assert len(wanted) == 4
    assert trainer.seen["writer.predict"] == [[]]


def test_other_trainers_get_no_pairs(tmp_path):
    trainer = Wishing()
    trainer.wants_pairs = False
    with dspy.context(adapter=toy.ADAPTER):
        toy.compiled_by(tmp_path / "run", trainer=trainer, iterations=1)
    assert trainer.seen["doubler"] == [[]]


def test_an_lm_that_is_not_trained_here_is_refused_before_any_call():
    with pytest.raises(UnpreparedProgramError, match=r"'solver'.*library export --to dpo"):
        PreferenceTrainer().check("solver", ToyLM(skill=lambda prompt: "green"))


@pytest.mark.parametrize("wrong", [{"beta": 0}, {"epochs": 0}, {"sft_weight": -1}, {"warmup": 1.0}])
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(SettingsError, match=f"`{next(iter(wrong))}`"):
        PreferenceOptions(**wrong)


def test_a_pair_is_the_inference_prompt_with_two_replies():
    pair = to_pair(cast(Chat, CHAT), PAIR)
    assert "".join(map(chr, pair.prompt)) == "<u>hi<a>"
    assert pair.chosen == (ord("y"), ord("o"), 0)
    assert pair.rejected == (ord("n"), ord("o"), ord("!"), 0)
    assert len(pair) == 12


def test_a_job_survives_the_way_to_the_child(tmp_path):
    pair = TokenPair((1, 2), (3,), (4, 5))
    job = PreferenceJob(
        tmp_path / "a.gguf", None, tmp_path, tmp_path, [pair], PreferenceOptions(beta=0.5), tmp_path, "n"
    )
    for kept in (job, dataclasses.replace(job, training_copy=tmp_path / "copy")):
        assert PreferenceJob.from_json(kept.to_json()) == kept


# On a tiny model

WORDS = ["<pad>", "<end>", "<unk>", "user", "system", "assistant", "double", "the", "number"]
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }} {{ m['content'] }}<end>{% endfor %}"
    "{% if add_generation_prompt %}assistant {% endif %}"
)


def tiny_tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    model = models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>")
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>", unk_token="<unk>")
    made.chat_template = TEMPLATE
    return made


def tiny_model():
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=len(WORDS), **sizes, **heads, pad_token_id=0, eos_token_id=1))


@pytest.mark.slow
def test_dpo_rates_the_chosen_reply_higher_and_keeps_the_reference(tmp_path):
    from peft import LoraConfig, get_peft_model

    from sirius_dspy.local.prefer import Reporter, build_trainer

    model = get_peft_model(tiny_model(), LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    pairs = [TokenPair((3, 6, 1), (7, 1), (8, 8, 1)), TokenPair((3, 8, 1), (7, 7, 1), (8, 1))] * 4
    reports = []
    options = PreferenceOptions(epochs=10, learning_rate=1e-2, beta=0.5, sft_weight=0.0)
    trainer = build_trainer(model, tiny_tokenizer(), pairs, options, tmp_path)
    reporter = Reporter(reports.append)
    trainer.add_callback(reporter)
    trainer.train()
    assert [report["step"] for report in reports] == list(range(1, 21))
    assert reporter.losses[0] == pytest.approx(0.6931, abs=1e-3)  # the reference is what training starts from
    assert reporter.losses[-1] < reporter.losses[0] - 0.05
    assert reporter.margins[0] == pytest.approx(0.0, abs=1e-3)
    assert reporter.margins[-1] > 0.1
    trainer.model.save_pretrained(str(tmp_path / "adapter"), selected_adapters=["default"])
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("preferences") / "run"
    with dspy.context(adapter=toy.ADAPTER):
        toy.compiled_by(folder, iterations=1)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
@pytest.mark.parametrize(("to", "columns"), [("sft", {"input_ids"}), ("dpo", {"chosen_ids"}), ("kto", {"label"})])
def test_the_trainers_of_trl_take_an_export(run_dir, tmp_path, to, columns, ending):
    import datasets
    import trl

    export = open_export(run_dir)
    path = tmp_path / f"{to}.{ending}"
    with export.library:
        exported = getattr(export, f"to_{to}")(path)
    kind = "json" if ending == "jsonl" else ending
    rows = datasets.load_dataset(kind, data_files=str(path), split="train", cache_dir=str(tmp_path / "cache"))
    assert len(rows) == exported.num_rows
    assert trl.is_conversational(rows[0])
    name = to.upper()
    settings = {"per_device_train_batch_size": 2, "max_steps": 1, "report_to": "none", "save_strategy": "no"}
    args = getattr(trl, f"{name}Config")(
        output_dir=str(tmp_path / "out"), bf16=False, use_cpu=True, disable_tqdm=True, **settings
    )
    trainer = getattr(trl, f"{name}Trainer")(
        model=tiny_model(), args=args, train_dataset=rows, processing_class=tiny_tokenizer(), **reference(to)
    )
    assert columns <= set(trainer.train_dataset.column_names)
    assert trainer.train().global_step == 1


def reference(to):
    """A reference model, where TRL would load one by the name of the model."""
    return {} if to == "sft" else {"ref_model": tiny_model()}
