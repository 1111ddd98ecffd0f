"""Rollouts that the losses are tested on: hypothesis strategies for any, and fixed ones of unlike lengths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from hypothesis import strategies as st
from losses_reference import Sample

from s2d.demo.tokenizer import build_tokenizer

TOKENIZER = build_tokenizer(256)
EOS: int = TOKENIZER.eos_token_id
#: The most tokens of a completion in the plans of these tests.
LONGEST = 24
#: Rollouts of one prompt.
GROUP = 4
#: π/π_old on both sides of either clip bound, never on it: there the two branches of the minimum have two gradients.
RATIOS = (0.5, 0.79, 0.81, 1.0, 1.19, 1.21, 1.27, 1.29, 1.6)


def sample(text: str, completion: Sequence[int], reward: float = 0.0) -> Sample:
    """A rollout of a user's turn, its prompt as the model will see it."""
    turns = [{"role": "user", "content": text}]
    ids = TOKENIZER.apply_chat_template(turns, add_generation_prompt=True, return_dict=True)["input_ids"]
    return Sample(tuple(ids), tuple(completion), reward)


def asked(one: Sample) -> str:
    """The text of the user's turn, without the token of either role."""
    return str(TOKENIZER.decode(one.prompt[1:-1]))


def said(text: str, *, ended: bool = True) -> list[int]:
    """Token ids of a completion, with the end of sequence or cut off before it."""
    return TOKENIZER(text)["input_ids"] + [EOS] * ended


#: Eight prompts; 1 to 24 completion tokens, three of them cut off.
EIGHT = (
    sample("4*9+3=", said(";6;9\\boxed{9}")),
    sample("1+1=", said("\\boxed{2}")),
    sample("7*8*9+2*3*4*5+6=", said(";6;4;6;8;2;0;6\\boxed{6}")),
    sample("0+5=", said(";", ended=False)),
    sample("3*3=", said("123456789012345678901234", ended=False)),
    sample("2", said("")),
    sample("8*8+8*8=", said(";4;2;6\\boxed{6}")),
    sample("9+9+9+9=", said(";8;7", ended=False)),
)
#: Two groups of four with unlike rewards.
GROUPS = tuple(
    replace(EIGHT[prompt], completion=EIGHT[said_by].completion, reward=reward)
    for prompt, said_by, reward in (
        (0, 0, 1.0), (0, 1, 0.0), (0, 2, 0.0), (0, 3, 0.5), (2, 4, 0.0), (2, 5, 1.0), (2, 6, 1.0), (2, 7, 1.0),
    )
)  # fmt: skip


def off_policy(samples: Sequence[Sample]) -> list[Sample]:
    """The same rollouts as if an earlier policy had drawn them."""
    return [
        replace(s, ratios=tuple(RATIOS[(i + len(s.completion)) % 9] for i in range(len(s.completion)))) for s in samples
    ]


# Any token but the end of sequence may stand anywhere, the pad token among them.
_tokens = st.integers(0, len(TOKENIZER) - 1).filter(lambda token: token != EOS)
_ended = st.lists(_tokens, max_size=LONGEST - 1).map(lambda ids: [*ids, EOS])
_completions = st.one_of(_ended, st.lists(_tokens, min_size=1, max_size=LONGEST))
_questions = st.text("0123456789+*=", min_size=1, max_size=20)
rollouts = st.lists(st.builds(sample, _questions, _completions), min_size=1, max_size=6)
"""Prompts and completions of any length, cut off or not."""


@st.composite
def _group(draw: st.DrawFn, on_policy: bool) -> list[Sample]:
    question, rewards = draw(_questions), st.sampled_from([0.0, 0.5, 1.0])
    members = [sample(question, draw(_completions), draw(rewards)) for _ in range(GROUP)]
    if on_policy:
        return members
    ratio = st.sampled_from(RATIOS)
    return [replace(s, ratios=tuple(draw(ratio) for _ in s.completion)) for s in members]


@st.composite
def groups(draw: st.DrawFn) -> list[Sample]:
    """One or two groups with their rewards, all on-policy or all with a π_old of their own."""
    on_policy = draw(st.booleans())
    return [s for _ in range(draw(st.integers(1, 2))) for s in draw(_group(on_policy))]
