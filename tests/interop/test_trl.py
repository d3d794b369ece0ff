"""trl multiplies hidden states by the weight of the output layer itself: prior included, its losses are ours."""

import dataclasses

import pytest
import torch

trl = pytest.importorskip("trl")
transformers = pytest.importorskip("transformers")
from datasets import Dataset  # noqa: E402
from test_transformers import VARIANTS  # noqa: E402

from symboliclight.interop.transformers import SymbolicLightConfig, SymbolicLightForCausalLM  # noqa: E402

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("one_thread")]
TEXTS = ["the sun rose over the old city.", "nobody in the house was awake.", "春天的风吹过江南的小镇。", "the river"]
PAIRS = [{"prompt": "the sun", "chosen": " rose over the old city", "rejected": " fell on the water of the river"},
         {"prompt": "nobody", "chosen": " in the house", "rejected": " was awake; the light fell"}]
SMALL = {"report_to": [], "use_cpu": True, "disable_tqdm": True, "save_strategy": "no", "logging_steps": 1,
         "per_device_train_batch_size": 4, "per_device_eval_batch_size": 4}


def rough(config, **changes):
    """A model whose prior is not small beside its logits."""
    torch.manual_seed(2)
    config = SymbolicLightConfig(**dataclasses.asdict(dataclasses.replace(config, init_std=0.3, **changes)))
    model = SymbolicLightForCausalLM(config).eval()
    with torch.no_grad():
        model.head.prior_weight.fill_(1.0)
        if config.prior == "static":
            model.head.log_prior.normal_()
    return model


@pytest.mark.parametrize("changes", VARIANTS, ids=lambda c: ",".join(c) or "default")
def test_hidden_states_times_the_output_layer_are_the_logits(changes, small_config):
    model, tokens = rough(small_config, **changes), torch.randint(4, 500, (2, 12))
    lm_head = model.get_output_embeddings()
    assert lm_head in list(model.modules()) and not list(lm_head.parameters())
    hidden = model.base_model(input_ids=tokens, use_cache=False).last_hidden_state
    logits = hidden @ lm_head.weight.T + (0 if lm_head.bias is None else lm_head.bias)
    expected = model(tokens).logits
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-4)
    (logits ** 2).sum().backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    (expected ** 2).sum().backward()
    for name, p in model.named_parameters():
        if p.grad is not None:
            torch.testing.assert_close(found[name], p.grad, rtol=1e-3, atol=1e-2 * float(p.grad.abs().max()) + 1e-6)


@pytest.mark.parametrize("packing", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("changes", [{}, {"prior": "static"}], ids=["dynamic", "static"])
def test_sft_has_the_loss_of_trainer(changes, packing, small_config, tokenizer, tmp_path):
    model = rough(small_config, **changes)
    ids = [{"input_ids": [*one, tokenizer.eos_token_id]} for one in tokenizer(TEXTS)["input_ids"]]
    collator = transformers.DataCollatorForSeq2Seq(tokenizer, padding=True)
    trainer = transformers.Trainer(model, transformers.TrainingArguments(tmp_path / "a", **SMALL),
                                   data_collator=collator)
    expected = trainer.evaluate([one | {"labels": [-100, *one["input_ids"][1:]]} for one in ids])["eval_loss"]
    options = trl.SFTConfig(tmp_path / "b", bf16=False, packing=packing, max_length=96, **SMALL)
    sft = trl.SFTTrainer(model, options, train_dataset=Dataset.from_list(ids), eval_dataset=Dataset.from_list(ids),
                         processing_class=tokenizer)
    assert sft.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-4)


def test_sft_with_defaults_trains_the_head_and_its_prior(folder, tokenizer, tmp_path):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    options = trl.SFTConfig(tmp_path, max_steps=8, learning_rate=5e-3, **SMALL)
    trainer = trl.SFTTrainer(model, options, train_dataset=Dataset.from_dict({"text": TEXTS}),
                             processing_class=tokenizer)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0] - 0.3
    for name in ("head.out.weight", "head.prior_up.weight", "head.prior_down.weight", "blocks.0.mixer.tcam.weight"):
        assert not torch.equal(before[name], model.get_parameter(name)), name


@torch.no_grad()
def log_probability(model, prompt, answer):
    ids = torch.tensor([[*prompt, *answer]])
    log_p = model(ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None])
    return float(log_p[-len(answer) :].sum())


def test_dpo_with_defaults_trains_and_its_log_probabilities_are_ours(folder, tokenizer, tmp_path):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    options = trl.DPOConfig(tmp_path, max_steps=3, learning_rate=5e-3, **SMALL)
    trainer = trl.DPOTrainer(model, args=options, train_dataset=Dataset.from_list(PAIRS), processing_class=tokenizer)
    wanted = {kind: [log_probability(model, row["prompt_ids"], row[f"{kind}_ids"]) for row in trainer.train_dataset]
              for kind in ("chosen", "rejected")}
    trainer.train()
    log = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert log[0]["loss"] == pytest.approx(0.6931, abs=1e-3) and log[-1]["loss"] < log[0]["loss"]
    for kind, values in wanted.items():
        assert log[0][f"logps/{kind}"] == pytest.approx(sum(values) / 2, rel=1e-2)  # in bfloat16


@pytest.mark.parametrize("target", ["all-linear", ["tcam", "down", "q"]], ids=str)
def test_adapters_are_trained_wherever_they_stand_or_refused(target, small_config, tokenizer, tmp_path):
    peft = pytest.importorskip("peft")
    model, tokens = rough(small_config), torch.randint(4, 500, (2, 12))
    before = model(tokens).logits
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=target, r=2, task_type="CAUSAL_LM"))
    torch.testing.assert_close(adapted(input_ids=tokens).logits, before, rtol=1e-5, atol=1e-4)
    adapted(input_ids=tokens, labels=tokens).loss.backward()
    grads = {name: p.grad for name, p in adapted.named_parameters() if "lora_B" in name}
    assert grads and all(g is not None and g.abs().max() > 0 for g in grads.values())
    assert any("tcam" in name for name in grads) and any("down" in name for name in grads)
    if target == "all-linear":
        with pytest.raises(ValueError, match=r"leave head\.out and head\.prior_up out"):
            _ = model.get_output_embeddings().weight
