"""Training on a part of the tokens, and extrapolation: against references written from the formulas."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from plan_pair import CPU, policy, write_pair
from transformers import Qwen3Config, Qwen3ForCausalLM
from trl import DistillationConfig

from s2d.demo.tokenizer import build_tokenizer
from s2d.errors import InvalidPlan
from s2d.plan.document import Plan
from s2d.plan.request import read_request
from s2d.plan.service import make_plan
from s2d.stages.distillation import FORWARD, REVERSE, BridgeTrainer
from s2d.stages.extrapolation import _copied, _moved
from s2d.stages.scored import ScoredOnce
from s2d.stages.tokens import informative, kept_tokens
from s2d.stages.training import exact_gradients
from s2d.stages.warmup import WarmupTrainer

TOKENIZER = build_tokenizer(256)
PROMPTS = ["4*9+3=", "1+1=", "7*8*9+2*3=", "0+5="]
COMPLETIONS = [";6;9\\boxed{9}", "\\boxed{2}", ";6;4;6\\boxed{1}", ";"]


def model(seed: int, hidden: int) -> Qwen3ForCausalLM:
    """Random, with weights large enough that its distributions are far from uniform."""
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=len(TOKENIZER), hidden_size=hidden, intermediate_size=2 * hidden, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, head_dim=16, tie_word_embeddings=True, initializer_range=0.3,
        bos_token_id=None, eos_token_id=TOKENIZER.eos_token_id, pad_token_id=TOKENIZER.pad_token_id,
    )  # fmt: skip
    return Qwen3ForCausalLM(config).eval()


def trainer(folder: Path, *, beta: float, batch: int = 4, **options: Any) -> WarmupTrainer:
    """On stored completions for both directions, so that the reference knows them."""
    rows = {
        "prompt": [[{"role": "user", "content": text}] for text in PROMPTS],
        "completion_ids": [TOKENIZER(text)["input_ids"] for text in COMPLETIONS],
        "rollout": list(range(len(PROMPTS))),
    }
    args = DistillationConfig(
        output_dir=str(folder), beta=beta, max_completion_length=12, use_cpu=True, bf16=False, max_steps=1, seed=3,
        gradient_checkpointing=False, report_to="none", per_device_train_batch_size=batch, shuffle_dataset=False,
        gradient_accumulation_steps=max(1, 4 // batch),
    )  # fmt: skip
    made = WarmupTrainer(
        model=model(0, 32), teacher_model=model(1, 48), args=args, train_dataset=Dataset.from_dict(rows),
        processing_class=TOKENIZER, **options,
    )  # fmt: skip
    made.model.train()
    return made


def gradients(one: BridgeTrainer) -> dict[str, torch.Tensor]:
    return {name: parameter.grad.clone() for name, parameter in one.model.named_parameters()}


def loss_and_gradients(one: BridgeTrainer) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    loss = one.compute_loss(one.model, one._prepare_inputs(list(one.train_dataset)))
    loss.backward()
    return loss, gradients(one)


def wanted_loss(one: WarmupTrainer, share: float, beta: float) -> torch.Tensor:
    """Mean KL over the kept tokens in float64: one sequence at a time, the score and the choice written out."""
    total, kept = torch.zeros((), dtype=torch.float64), 0
    for row in one.train_dataset:
        prompt = TOKENIZER.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=True)["input_ids"]
        ids, n = torch.tensor([prompt + row["completion_ids"]]), len(row["completion_ids"])
        s, t = (
            torch.log_softmax(m(input_ids=ids).logits[0, len(prompt) - 1 : -1].double(), -1)
            for m in (one.model, one.teacher_model)
        )
        p, q = (s, t) if beta == REVERSE else (t, s)
        kl = (p.exp() * (p - q)).sum(-1)
        entropy = -(s.exp() * s).sum(-1)
        h, d = (entropy / entropy.max()).tolist(), (kl / kl.max()).tolist()
        best = sorted(range(n), key=lambda k: 1 - (1 - h[k]) * (1 - d[k]), reverse=True)[: math.ceil(share * n)]
        total, kept = total + kl[best].sum(), kept + len(best)
    return total / kept


@pytest.mark.parametrize("beta", [FORWARD, REVERSE])
@pytest.mark.parametrize("share", [0.5, 0.2])
def test_the_loss_is_the_mean_over_the_informative_tokens(share: float, beta: float, tmp_path: Path) -> None:
    one = trainer(tmp_path, beta=beta, token_share=share)
    loss, got = loss_and_gradients(one)
    one.model.zero_grad()
    wanted = wanted_loss(one, share, beta)
    wanted.backward()
    assert wanted.item() != pytest.approx(wanted_loss(one, 1.0, beta).item(), rel=0.02), "the choice must matter"
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-4)
    for name, parameter in one.model.named_parameters():
        torch.testing.assert_close(got[name], parameter.grad, rtol=2e-3, atol=2e-5, msg=name)


def test_what_is_logged_stays_the_mean_over_all_tokens(tmp_path: Path) -> None:
    one, whole = (trainer(tmp_path, beta=REVERSE, token_share=share) for share in (0.5, 1.0))
    for each in (one, whole):
        loss_and_gradients(each)
    for name in ("forward_kl", "reverse_kl", "entropy"):
        assert one._metrics["train"][name] == [pytest.approx(whole._metrics["train"][name][0], rel=1e-5)]


def test_the_choice_does_not_depend_on_the_micro_batch(tmp_path: Path) -> None:
    found = []
    for batch in (4, 1):
        one = trainer(tmp_path, beta=FORWARD, batch=batch, token_share=0.5)
        one.current_gradient_accumulation_steps = 4 // batch
        for _ in range(4 // batch):
            one.training_step(one.model, list(one.train_dataset), None)
        found.append(gradients(one))
    for name, gradient in found[0].items():
        torch.testing.assert_close(gradient, found[1][name], rtol=1e-3, atol=1e-6, msg=name)


@pytest.mark.parametrize("beta", [FORWARD, REVERSE])
def test_a_share_of_one_is_trl_to_the_bit(beta: float, tmp_path: Path) -> None:
    """Against TRL's own loss, called past this class."""
    one, plain = trainer(tmp_path, beta=beta), trainer(tmp_path, beta=beta)
    # TRL shuffles the batch.
    torch.manual_seed(5)
    loss, got = loss_and_gradients(one)
    torch.manual_seed(5)
    inputs = plain._prepare_inputs(list(plain.train_dataset))
    trl, *_ = super(BridgeTrainer, plain)._compute_loss(plain.model, inputs, inputs["num_items_in_batch"])
    trl.backward()
    assert torch.equal(loss, trl)
    assert all(torch.equal(got[name], wanted) for name, wanted in gradients(plain).items())


@pytest.mark.parametrize("batch", [4, 1])
def test_a_teacher_that_reads_once_gives_the_same_loss_and_is_not_asked_again(batch: int, tmp_path: Path) -> None:
    once, plain = (
        trainer(tmp_path, beta=FORWARD, batch=batch, token_share=0.5, scored=scored)
        for scored in (ScoredOnce(tmp_path / "teacher"), None)
    )
    asked: list[int] = []
    once.teacher_model.base_model.register_forward_hook(lambda *_: asked.append(1))
    for _ in range(2):
        for one in (once, plain):
            one.model.zero_grad()
            one.current_gradient_accumulation_steps = 4 // batch
            for _ in range(4 // batch):
                one.training_step(one.model, list(one.train_dataset), None)
        for name, gradient in gradients(once).items():
            torch.testing.assert_close(gradient, gradients(plain)[name], rtol=1e-3, atol=1e-6, msg=name)
        assert len(asked) == 4, "once a rollout"
    kept = {path.name: path.read_bytes() for path in (tmp_path / "teacher").iterdir()}
    again = trainer(tmp_path, beta=FORWARD, batch=5 - batch, scored=ScoredOnce(tmp_path / "other"))
    again.current_gradient_accumulation_steps = 1
    again.training_step(again.model, list(again.train_dataset), None)
    other = {path.name: path.read_bytes() for path in (tmp_path / "other").iterdir()}
    assert other.items() <= kept.items(), "whatever batch a rollout is read in"


def test_undecided_and_confidently_wrong_tokens_are_kept_and_padding_never_is() -> None:
    entropy = torch.tensor([[2.0, 0.01, 0.01, 0.5], [1.0, 1.0, 9.0, 9.0]])
    kl = torch.tensor([[0.1, 3.0, 0.0, 0.1], [0.0, 1.0, 9.0, 9.0]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    assert informative(entropy, kl, mask, 0.5).tolist() == [[1, 1, 0, 0], [1, 0, 0, 0]], "of equals the first"
    assert kept_tokens(mask, 0.5).tolist() == [2, 1]
    assert informative(torch.zeros(1, 3), torch.zeros(1, 3), torch.ones(1, 3, dtype=torch.long), 0.1).sum() == 1


def test_extrapolation_moves_along_the_update() -> None:
    one, other = model(0, 32), model(1, 32)
    start, end = _copied(one), _copied(other)
    for factor in (0.0, 1.5):
        moved = dict(_moved(one, start, end, factor).named_parameters())
        for name, weights in moved.items():
            wanted = start[name].double() + (1 + factor) * (end[name].double() - start[name].double())
            torch.testing.assert_close(weights.double(), wanted, rtol=1e-5, atol=1e-6)
            assert factor or torch.equal(weights, end[name])


def plan(root: Path, **stages: Any) -> Plan:
    teacher, student = write_pair(root)
    asked = {"teacher": str(teacher), "student": str(student), "labeled_budget": 400, "stages": stages}
    return make_plan(read_request(asked), None, CPU, policy(root))


def test_the_options_are_off_unless_asked_for(tmp_path: Path) -> None:
    made = plan(tmp_path / "a")
    for stage in (made.stage("warmup"), made.stage("opd")):
        assert (stage.token_share, stage.prefix_share) == (1.0, 1.0)
    assert made.stage("opd").extrapolate == ()
    assert not made.stage("warmup").score_once
    asked = plan(
        tmp_path / "b",
        warmup={"token_share": 0.5, "score_once": True},
        opd={"prefix_share": 0.25, "extrapolate": [0.5, 1]},
    )
    assert (asked.stage("warmup").token_share, asked.stage("warmup").score_once) == (0.5, True)
    assert (asked.stage("opd").prefix_share, asked.stage("opd").extrapolate) == (0.25, (0.5, 1.0))


@pytest.mark.parametrize(
    "wrong",
    [
        {"warmup": {"token_share": 0}}, {"opd": {"prefix_share": 1.5}}, {"opd": {"extrapolate": [1, 0.5]}},
        {"opd": {"extrapolate": [-1]}}, {"opd": {"score_once": True}}, {"warmup": {"extrapolate": [1]}},
        {"teacher_rl": {"token_share": 0.5}},
    ],
)  # fmt: skip
def test_an_option_out_of_range_or_of_another_stage_is_refused(wrong: dict[str, Any], tmp_path: Path) -> None:
    (stage,) = wrong
    with pytest.raises(InvalidPlan, match=f"stages.{stage}"):
        plan(tmp_path, **wrong)


def test_shared_gradients_are_exchanged_in_fp32(tmp_path: Path) -> None:
    arguments = DistillationConfig(output_dir=str(tmp_path), fsdp=True, bf16=True, use_cpu=True)
    exact_gradients(arguments)
    policy = arguments.fsdp_plugin_args["mixed_precision_policy"]
    assert (policy.param_dtype, policy.reduce_dtype) == (torch.bfloat16, torch.float32)
