"""The model room: attention against torch, the Llama against transformers, generation against itself."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from llmcourse.data.checkpoints import load_weights
from llmcourse.decode.cache import KVCache
from llmcourse.decode.generate import generate_cached, generate_plain
from llmcourse.errors import CourseError
from llmcourse.models.attention import attend
from llmcourse.models.layers import RMSNorm, rotary_angles, rotate
from llmcourse.models.llama import Llama, LlamaConfig


@pytest.mark.parametrize("T", [7, 3, 1], ids=["prefill", "chunk", "decode"])
@pytest.mark.parametrize("G", [6, 2, 1], ids=["multi-head", "grouped", "multi-query"])
def test_attend_equals_torch(T, G):
    """Is our attention torch's, in every regime the engine uses?"""
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 6, T, 8), torch.randn(2, G, 7, 8), torch.randn(2, G, 7, 8)
    past = torch.ones(T, 7).tril(7 - T).bool()
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=past, enable_gqa=True)
    torch.testing.assert_close(attend(q, k, v), expected, rtol=1e-6, atol=1e-6)
    free = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
    torch.testing.assert_close(attend(q, k, v, causal=False), free, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("causal", [False, True])
def test_attend_never_looks_at_filling(causal):
    """With filling on either side: torch's result at real queries, and a number, not nan, at the others?"""
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 6, 7, 8), torch.randn(2, 2, 7, 8), torch.randn(2, 2, 7, 8)
    padding = torch.zeros(2, 7, dtype=torch.bool)
    padding[0, :3] = padding[1, 5:] = True
    seen = ~padding[:, None, None, :]
    if causal:
        seen = seen & torch.ones(7, 7, dtype=torch.bool).tril()
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, enable_gqa=True)
    got = attend(q, k, v, causal=causal, padding=padding)
    real = ~padding[:, None, :].expand(2, 6, 7)
    torch.testing.assert_close(got[real], expected[real], rtol=1e-6, atol=1e-6)
    assert got.isfinite().all()


def test_attend_by_hand():
    """With equal scores, is the output the mean of the values so far: 1, (1+5)/2, (1+5+6)/3?"""
    q, v = torch.zeros(1, 1, 3, 1), torch.tensor([1.0, 5.0, 6.0]).view(1, 1, 3, 1)
    assert attend(q, q, v).flatten().tolist() == [1.0, 3.0, 4.0]


def test_attend_refuses_what_it_cannot_mean():
    """Do uneven groups, and more causal queries than positions, get a sentence?"""
    q, k = torch.zeros(1, 6, 2, 4), torch.zeros(1, 4, 2, 4)
    with pytest.raises(ValueError, match="6 query heads cannot share 4"):
        attend(q, k, k)
    with pytest.raises(ValueError, match="2 causal queries"):
        attend(q, torch.zeros(1, 6, 1, 4), torch.zeros(1, 6, 1, 4))


def test_rms_norm_equals_torch():
    """Is our norm torch's, far from unit scale too?"""
    torch.manual_seed(0)
    x = torch.randn(3, 5, 16) * 100
    ours, theirs = RMSNorm(16, 1e-5), torch.nn.RMSNorm(16, eps=1e-5)
    ours.weight.data = theirs.weight.data = torch.randn(16)
    torch.testing.assert_close(ours(x), theirs(x))


@given(m=st.integers(0, 500), n=st.integers(0, 500), shift=st.integers(0, 500))
@settings(max_examples=30, deadline=None)
def test_rotary_scores_depend_on_distance_only(m, n, shift):
    """Does moving query and key by the same number of positions leave their score alone?"""
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 1, 1, 1, 64, generator=generator)

    def score(i: int, j: int) -> torch.Tensor:
        at = rotary_angles(torch.tensor([i, j]), 64, 100000.0)
        return (rotate(q, at[:1]) * rotate(k, at[1:])).sum()

    # Angles reach 1,000 radians, where float32 is good to 6e-5: hence the tolerance.
    torch.testing.assert_close(score(m, n), score(m + shift, n + shift), rtol=2e-3, atol=5e-3)


@given(
    layers=st.integers(1, 3),
    groups=st.sampled_from([1, 2, 3]),
    queries=st.sampled_from([1, 2]),
    head_dim=st.sampled_from([4, 16]),
    tied=st.booleans(),
    T=st.integers(1, 9),
    B=st.integers(1, 3),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=20, deadline=None)
def test_llama_equals_transformers(layers, groups, queries, head_dim, tied, T, B, seed):
    """Are our logits transformers' for any shape of Llama, tied or not, with any grouping?"""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(seed)
    theirs = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=61,
            hidden_size=groups * queries * head_dim,
            intermediate_size=40,
            num_hidden_layers=layers,
            num_attention_heads=groups * queries,
            num_key_value_heads=groups,
            initializer_range=0.3,
            tie_word_embeddings=tied,
            rope_parameters={"rope_type": "default", "rope_theta": 700.0},
        )
    ).eval()
    ours = Llama.from_transformers(theirs)
    ids = torch.randint(61, (B, T))
    with torch.inference_mode():
        expected = theirs(ids).logits
    # Of the largest logit: a small one is a difference of large numbers, and float32 has seven digits.
    size = max(1.0, expected.abs().max().item())
    torch.testing.assert_close(ours(ids) / size, expected / size, rtol=0, atol=1e-5)


def test_cached_equals_uncached(tiny):
    """Fed in uneven pieces, does a cached model give the logits of the whole text at once?"""
    torch.manual_seed(1)
    ids = torch.randint(97, (2, 12))
    cache = KVCache(tiny.config, max_tokens=12, batch=2)
    pieces = [tiny(piece, cache) for piece in ids.split([5, 1, 4, 1, 1], dim=1)]
    torch.testing.assert_close(torch.cat(pieces, 1), tiny(ids), rtol=1e-5, atol=1e-5)
    assert cache.length == 12
    assert cache.bytes == 2 * 2 * 2 * 2 * 12 * 8 * 4  # k and v, L, B, G, S, D, float32


def test_a_later_token_changes_nothing_earlier(tiny):
    """Is the model causal, through all its layers?"""
    ids = torch.arange(10)[None]
    other = ids.clone()
    other[0, 7] = 50
    torch.testing.assert_close(tiny(ids)[:, :7], tiny(other)[:, :7], rtol=0, atol=1e-6)
    assert not torch.allclose(tiny(ids)[:, 7], tiny(other)[:, 7])


def test_generation_is_greedy_and_the_same_with_a_cache(tiny):
    """Does each token win its own logits, in both generators, and does an end token stop them?"""
    plain = list(generate_plain(tiny, [3, 1, 4], max_tokens=20))
    assert list(generate_cached(tiny, [3, 1, 4], max_tokens=20)) == plain
    text = torch.tensor([[3, 1, 4, *plain]])
    assert tiny(text)[0, 2:-1].argmax(-1).tolist() == plain
    stop = plain[5]
    assert (
        list(generate_cached(tiny, [3, 1, 4], max_tokens=20, end_ids={stop}))
        == plain[: plain.index(stop)]
    )


def test_generation_says_what_does_not_fit(tiny):
    """Do an empty prompt and a text longer than the context get one sentence each?"""
    for generate in (generate_plain, generate_cached):
        with pytest.raises(CourseError, match="prompt is empty"):
            next(generate(tiny, [], max_tokens=1))
        with pytest.raises(CourseError, match="context of 64"):
            next(generate(tiny, [1] * 60, max_tokens=5))
    with pytest.raises(CourseError, match="context of 64"):
        tiny(torch.zeros(1, 65, dtype=torch.long))
    with pytest.raises(CourseError, match="holds 2 tokens and would need 3"):
        tiny(torch.zeros(1, 3, dtype=torch.long), KVCache(tiny.config, max_tokens=2))


def test_config_refuses_models_it_would_compute_wrongly():
    """Is a model that is nearly a Llama refused, rather than run and wrong?"""
    base = {
        "vocab_size": 8,
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    assert LlamaConfig.from_dict(base).head_dim == 4
    assert LlamaConfig.from_dict(base).num_key_value_heads == 2
    for wrong in (
        {"model_type": "gpt2"},
        {"rope_scaling": {"rope_type": "llama3"}},
        {"attention_bias": True},
        {"hidden_act": "gelu"},
    ):
        with pytest.raises(CourseError):
            LlamaConfig.from_dict(base | wrong)


def test_weights_that_do_not_fit_are_one_sentence(tiny):
    """Does a checkpoint that lacks a tensor say so?"""
    weights = tiny.state_dict()
    del weights["norm.weight"]
    with pytest.raises(CourseError, match=r"norm\.weight"):
        Llama._from_weights(tiny.config, weights)


@pytest.mark.slow
def test_real_weights_equal_transformers(real, checkpoint):
    """On the real weights, are all logits of a text in two languages transformers', to float noise?"""
    transformers = pytest.importorskip("transformers")
    model, tokenizer = real
    config = transformers.LlamaConfig(**json.loads((checkpoint / "config.json").read_text("utf-8")))
    with torch.device("meta"):
        theirs = transformers.LlamaForCausalLM(config)
    weights = load_weights(checkpoint)
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    theirs.load_state_dict(weights, assign=True)
    # Computed buffers were made on "meta" too: make them anew, on the CPU.
    theirs.model.rotary_emb = type(theirs.model.rotary_emb)(config)
    ids = torch.tensor([tokenizer.encode("The keys to the cabinet are here. 今天天气很好。")])
    with torch.inference_mode():
        torch.testing.assert_close(model(ids), theirs.eval()(ids).logits, rtol=1e-4, atol=2e-4)


@pytest.mark.slow
def test_real_model_gives_the_known_tokens(real):
    """Do 32 greedy tokens say what this model is known to say, with and without a cache?"""
    model, tokenizer = real
    ids = tokenizer.chat("What is the capital of France?")
    tokens = list(generate_cached(model, ids, max_tokens=32, end_ids=tokenizer.end_ids))
    assert list(generate_plain(model, ids, max_tokens=32, end_ids=tokenizer.end_ids)) == tokens
    assert tokenizer.decode(tokens) == "The capital of France is Paris."
