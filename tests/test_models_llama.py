"""The Llama with padding, and the differ that says where two Llamas part."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from llmcourse.decode.cache import KVCache
from llmcourse.errors import CourseError
from llmcourse.models import llama
from llmcourse.models.differ import first_difference, record
from llmcourse.models.layers import RMSNorm, SwiGLU, rotate
from llmcourse.models.llama import Llama, LlamaConfig


def a_llama(*, layers=3, groups=2, queries=3, head_dim=8, tied=True, seed=0):
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=61,
        hidden_size=groups * queries * head_dim,
        intermediate_size=40,
        num_hidden_layers=layers,
        num_attention_heads=groups * queries,
        num_key_value_heads=groups,
        head_dim=head_dim,
        max_position_embeddings=64,
        tie_word_embeddings=tied,
    )
    model = Llama(config)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    return model.requires_grad_(False).eval()


# Padding ---------------------------------------------------------------------------------------


def padded(texts, side, filling=7):
    """Texts of several lengths as one batch: ids (B, T), and True where there is only filling."""
    T = max(map(len, texts))
    rows, masks = [], []
    for text in texts:
        fill, none = [filling] * (T - len(text)), [False] * len(text)
        mask = [True] * len(fill)
        rows.append(fill + text if side == "left" else text + fill)
        masks.append(mask + none if side == "left" else none + mask)
    return torch.tensor(rows), torch.tensor(masks)


@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    side=st.sampled_from(["left", "right"]),
    filling=st.integers(0, 60),
    seed=st.integers(0, 999),
)
@settings(max_examples=25, deadline=None)
def test_padded_equals_alone(lengths, side, filling, seed):
    """In a batch with filling on either side, does each text get the logits it gets alone?"""
    model = a_llama(seed=seed)
    texts = [torch.randint(61, (n,)).tolist() for n in lengths]
    ids, padding = padded(texts, side, filling)
    logits = model(ids, padding=padding)
    assert logits.isfinite().all()
    for text, row, mask in zip(texts, logits, padding, strict=True):
        # Left filling moves the positions, and the angles' rounding with them.
        torch.testing.assert_close(row[~mask], model(torch.tensor([text]))[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_equals_alone_with_a_cache(side):
    """Fed in two pieces through a cache, padded prompts and then a token: the same logits?"""
    model, texts = a_llama(), [[3, 1, 4, 1, 5], [9, 2], [6]]
    ids, padding = padded(texts, side)
    cache = KVCache(model.config, max_tokens=7, batch=3)
    parts = [
        model(piece, cache, padding[:, :end])
        for piece, end in zip(ids.split([3, 2], dim=1), (3, 5), strict=True)
    ]
    new = torch.tensor([[8], [8], [8]])
    last = model(new, cache, F.pad(padding, (0, 1), value=False))[:, 0]
    logits = torch.cat(parts, 1)
    for text, row, mask, then in zip(texts, logits, padding, last, strict=True):
        alone = model(torch.tensor([[*text, 8]]))[0]
        torch.testing.assert_close(row[~mask], alone[:-1], rtol=1e-4, atol=1e-4)
        if side == "left":  # on the right the new token stands behind the filling: further away
            torch.testing.assert_close(then, alone[-1], rtol=1e-4, atol=1e-4)


def test_no_padding_is_the_mask_of_none():
    """Is a mask without a True no mask, in a batch of one too?"""
    model, ids = a_llama(), torch.tensor([[5, 6, 7]])
    free = torch.zeros(1, 3, dtype=torch.bool)
    torch.testing.assert_close(model(ids, padding=free), model(ids), rtol=0, atol=1e-6)


def test_padding_hides_what_it_covers():
    """Does the filling's id change nothing, and would it without the mask?"""
    model = a_llama()
    (one, mask), (other, _) = (padded([[3, 1], [4, 1, 5]], "left", fill) for fill in (0, 60))
    torch.testing.assert_close(
        model(one, padding=mask)[0, 1:], model(other, padding=mask)[0, 1:], rtol=0, atol=1e-6
    )
    assert not torch.allclose(model(one)[0, 1:], model(other)[0, 1:], atol=1e-3)


def test_a_row_of_nothing_but_filling_spoils_no_other():
    """Is a row that is all filling finite, and its neighbour as alone?"""
    model = a_llama()
    ids = torch.tensor([[3, 1, 4], [0, 0, 0]])
    padding = torch.tensor([[False] * 3, [True] * 3])
    logits = model(ids, padding=padding)
    assert logits.isfinite().all()
    torch.testing.assert_close(logits[:1], model(ids[:1]), rtol=1e-5, atol=1e-5)


def test_the_model_says_what_does_not_fit():
    """Do no tokens, too many tokens and a mask of another shape get one sentence each?"""
    model = a_llama()
    with pytest.raises(CourseError, match="no tokens"):
        model(torch.zeros(1, 0, dtype=torch.long))
    with pytest.raises(CourseError, match="no tokens"):
        model(torch.zeros(1, 0, dtype=torch.long), KVCache(model.config, max_tokens=2))
    with pytest.raises(CourseError, match=r"65 tokens do not fit .* context of 64"):
        model(torch.zeros(1, 65, dtype=torch.long))
    cache = KVCache(model.config, max_tokens=4)
    model(torch.tensor([[1, 2]]), cache)
    with pytest.raises(CourseError, match=r"\(1, 1\), and \(1, 3\) is wanted"):
        model(torch.tensor([[3]]), cache, torch.zeros(1, 1, dtype=torch.bool))


# The differ ------------------------------------------------------------------------------------

IDS = torch.tensor([[5, 9, 2, 31, 17, 8, 44], [1, 1, 2, 3, 5, 8, 13]])


class Swapped(SwiGLU):
    """silu on the wrong half."""

    def forward(self, x):
        return self.down_proj(F.silu(self.up_proj(x)) * self.gate_proj(x))


class WithMean(RMSNorm):
    """A layer norm where a root mean square is due."""

    def forward(self, x):
        return super().forward(x - x.mean(-1, keepdim=True))


class Faulty(llama.Attention):
    """The attention of one layer, with a rotation or an `attend` of its own."""

    rotation, attention = staticmethod(rotate), staticmethod(llama.attend)

    def forward(self, x, angles, cache, padding=None):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(llama, "rotate", type(self).rotation)
            patch.setattr(llama, "attend", type(self).attention)
            return super().forward(x, angles, cache, padding)


class Neighbours(Faulty):
    """Pairs (0, 1), (2, 3), … where (i, i + D/2) are due."""

    @staticmethod
    def rotation(x, angles):
        halves = torch.cat([x[..., 0::2], x[..., 1::2]], -1)
        return torch.stack(rotate(halves, angles).chunk(2, -1), -1).flatten(-2)


class OnlyQ(Faulty):
    """Queries turned by one position too many, keys as they should be."""

    @staticmethod
    def rotation(x, angles):
        return rotate(x, angles + (angles[1] if x.shape[1] == 6 else 0))


class Tiled(Faulty):
    """Query heads take the key/value heads in turn, 0 1 0 1, not in groups, 0 0 0 1 1 1."""

    @staticmethod
    def attention(q, k, v):
        return llama_attend(q, k.repeat(1, 3, 1, 1), v.repeat(1, 3, 1, 1))


class NoMask(Faulty):
    @staticmethod
    def attention(q, k, v):
        return llama_attend(q, k, v, causal=False)


llama_attend = llama.attend


def turned_into(kind, name):
    """A fault: one part of a block becomes another class, with the weights it had."""

    def plant(block):
        getattr(block, name).__class__ = kind

    return plant


def wrong_eps(block):
    block.input_layernorm.eps = 1e-2


def wrong_second_eps(block):
    block.post_attention_layernorm.eps = 1e-2


def exchanged(block):
    mlp = block.mlp
    mlp.gate_proj, mlp.up_proj = mlp.up_proj, mlp.gate_proj


def transposed(block):
    weight = block.self_attn.o_proj.weight
    block.self_attn.o_proj.weight = torch.nn.Parameter(weight.T.clone(), requires_grad=False)


def interleaved(block):
    weight = block.self_attn.q_proj.weight.view(6, 2, 4, -1).transpose(1, 2).reshape(48, -1)
    block.self_attn.q_proj.weight = torch.nn.Parameter(weight, requires_grad=False)


FAULTS = {
    "wrong epsilon": (wrong_eps, "input_layernorm"),
    "mean subtracted": (turned_into(WithMean, "input_layernorm"), "input_layernorm"),
    "rows of q in the file's order": (interleaved, "q_proj"),
    "rotary pairs": (turned_into(Neighbours, "self_attn"), "k, rotated"),
    "q turned too far": (turned_into(OnlyQ, "self_attn"), "heads"),
    "tile for repeat": (turned_into(Tiled, "self_attn"), "heads"),
    "no mask": (turned_into(NoMask, "self_attn"), "heads"),
    "o transposed": (transposed, "o_proj"),
    "second epsilon": (wrong_second_eps, "post_attention_layernorm"),
    "gate and up exchanged": (exchanged, "gate_proj"),
    "silu on the other half": (turned_into(Swapped, "mlp"), "gated"),
}


@pytest.fixture(scope="module", params=["ours", "transformers"])
def reference(request):
    """The same random Llama, as ours or as transformers'; and ours, to be spoiled."""
    ours = a_llama()
    if request.param == "ours":
        return ours, ours
    transformers = pytest.importorskip("transformers")
    c = ours.config
    theirs = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=c.vocab_size,
            hidden_size=c.hidden_size,
            intermediate_size=c.intermediate_size,
            num_hidden_layers=c.num_hidden_layers,
            num_attention_heads=c.num_attention_heads,
            num_key_value_heads=c.num_key_value_heads,
            rms_norm_eps=c.rms_norm_eps,
            tie_word_embeddings=True,
            rope_parameters={"rope_type": "default", "rope_theta": c.rope_theta},
        )
    ).eval()
    weights = {f"model.{k}": v for k, v in ours.state_dict().items() if k != "lm_head.weight"}
    theirs.load_state_dict(weights | {"lm_head.weight": ours.lm_head.weight})
    return theirs, ours


@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found_where_it_is(reference, fault, layer):
    """Is the first place that differs the one where the fault was planted, in the right block?"""
    theirs, ours = reference
    plant, where = FAULTS[fault]
    mine = copy.deepcopy(ours)
    plant(mine.layers[layer])
    found = first_difference(mine, theirs, IDS)
    assert found.where == f"layers.{layer}.{where}"
    assert found.first.relative > found.tolerance
    before = found.rows[: found.rows.index(found.first)]
    assert before and all(row.relative <= found.tolerance for row in before)
    assert found.suspect and found.where in str(found) and found.where in found._repr_html_()


def test_equal_models_do_not_differ(reference):
    """Is nothing found where there is nothing, inside every block, and are no hooks left behind?"""
    theirs, ours = reference
    found = first_difference(ours, theirs, IDS)
    assert (found.first, found.where, found.suspect) == (None, None, "")
    assert len(found.rows) == 3 + 3 * 13  # around the blocks; three blocks of thirteen places
    assert "Nothing differs" in str(found)
    for model in (ours, theirs):
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_faults_outside_the_blocks(reference):
    """Are the embedding, the last norm and the head named, too?"""
    theirs, ours = reference
    for where in ("embed_tokens", "norm", "lm_head"):
        mine = copy.deepcopy(ours)
        mine.lm_head.weight = torch.nn.Parameter(mine.lm_head.weight.clone())
        getattr(mine, where).weight.data *= 1.01
        assert first_difference(mine, theirs, IDS).where == where


def test_a_forgotten_residual_is_the_block():
    """If all parts agree and the block does not, is the block itself named?"""
    ours = a_llama()
    mine = copy.deepcopy(ours)

    class NoResidual(llama.Block):
        def forward(self, x, angles, cache, padding=None):
            h = x + self.self_attn(self.input_layernorm(x), angles, cache, padding)
            return self.mlp(self.post_attention_layernorm(h))

    mine.layers[1].__class__ = NoResidual
    found = first_difference(mine, ours, IDS)
    assert found.where == "layers.1.block" and "residual" in found.suspect


class Other(torch.nn.Module):
    """A reader's model with names of its own, around our parts."""

    def __init__(self, ours):
        super().__init__()
        self.table, self.blocks, self.last, self.out = (
            ours.embed_tokens, ours.layers, ours.norm, ours.lm_head)  # fmt: skip
        self.config = ours.config

    def forward(self, ids):
        D, theta = self.config.head_dim, self.config.rope_theta
        angles = llama.rotary_angles(torch.arange(ids.shape[1]), D, theta)
        x = self.table(ids)
        for block in self.blocks:
            x = block(x, angles, None)
        return self.out(self.last(x))


NAMES = {
    "embed_tokens": "table",
    "layers.{n}": "blocks.{n}",
    "layers.{n}.self_attn.q_proj": "blocks.{n}.self_attn.q_proj",
    "norm": "last",
    "lm_head": "out",
}


def test_other_names_can_be_said():
    """Is a model with other names compared once they are said, and a wrong name refused?"""
    ours = a_llama()
    other = Other(copy.deepcopy(ours))
    assert first_difference(other, ours, IDS, names=NAMES).where is None
    interleaved(other.blocks[1])
    assert first_difference(other, ours, IDS, names=NAMES).where == "layers.1.q_proj"
    with pytest.raises(CourseError, match="no part 'tabel'"):
        first_difference(other, ours, IDS, names={**NAMES, "embed_tokens": "tabel"})
    with pytest.raises(CourseError, match="no part with the same name"):
        first_difference(torch.nn.Identity(), ours, IDS)


def test_hidden_states_can_be_handed_over():
    """Do a list of hidden states, and what was recorded before, do for a model?"""
    ours = a_llama()
    states = record(ours, IDS)
    plain = [states["embed_tokens"], *(states[f"layers.{n}.block"] for n in range(3))]
    assert first_difference(states, ours, IDS).where is None
    assert first_difference(plain, ours, IDS).where is None
    plain[2] = plain[2] + 0.1
    assert first_difference(plain, ours, IDS).where == "layers.1.block"
    plain[2] = plain[2] * torch.nan
    assert first_difference(plain, ours, IDS).where == "layers.1.block"
    assert first_difference(plain[:2], ours, IDS).where is None  # less is compared, not more
    assert first_difference([plain[0][:, :3]], ours, IDS).where == "embed_tokens"


def test_record_by_hand():
    """Is what is kept what the parts compute: keys turned, heads before o, the gate before down?"""
    model = a_llama(layers=1)
    found, block = record(model, IDS), model.layers[0]
    x = model.embed_tokens(IDS)
    normed = block.input_layernorm(x)
    k = block.self_attn.k_proj(normed).view(2, 7, 2, 8).transpose(1, 2)
    turned = rotate(k, llama.rotary_angles(torch.arange(7), 8, model.config.rope_theta))
    torch.testing.assert_close(found["layers.0.k, rotated"], turned.transpose(1, 2).flatten(2))
    o = found["layers.0.heads"] @ block.self_attn.o_proj.weight.T
    torch.testing.assert_close(found["layers.0.o_proj"], o)
    h = block.post_attention_layernorm(x + o)
    gated = F.silu(block.mlp.gate_proj(h)) * block.mlp.up_proj(h)
    torch.testing.assert_close(found["layers.0.gated"], gated)
    torch.testing.assert_close(found["lm_head"], model(IDS))
