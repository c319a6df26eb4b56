"""The translators: equal to torch's own layers, to themselves step by step, and blind to filling."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from llmcourse.data.vocabulary import BOS, PAD
from llmcourse.errors import CourseError
from llmcourse.models import load_translator
from llmcourse.models.seq2seq import (
    AttentiveLSTMTranslator,
    LSTMConfig,
    LSTMTranslator,
    backwards,
    filling_last,
)
from llmcourse.models.transformer import (
    DecoderBlock,
    EncoderBlock,
    Transformer,
    TransformerConfig,
    sinusoids,
)

LSTM = LSTMConfig(source_vocab=31, target_vocab=37, width=8, hidden=12, dropout=0.0)
SMALL = TransformerConfig(
    31, 37, width=8, heads=2, hidden=20, encoder_layers=2, decoder_layers=2, dropout=0.0
)
KINDS = {
    "lstm": (LSTMTranslator, LSTM),
    "attentive": (AttentiveLSTMTranslator, LSTM),
    "transformer": (Transformer, SMALL),
}


@pytest.fixture(params=KINDS)
def model(request):
    torch.manual_seed(0)
    kind, config = KINDS[request.param]
    return kind(config).eval()


def sentences(B=3, S=6, T=5):
    generator = torch.Generator().manual_seed(1)
    source = torch.randint(4, 31, (B, S), generator=generator)
    target = torch.randint(4, 37, (B, T), generator=generator)
    target[:, 0] = BOS
    return source, target


def test_step_by_step_equals_all_at_once(model):
    """Does writing one token at a time see exactly what teacher forcing sees?"""
    source, target = sentences()
    whole, state, steps = model(source, target), model.start(source), []
    for token in target.T:
        logits, state = model.step(state, token)
        steps.append(logits)
    torch.testing.assert_close(torch.stack(steps, 1), whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("side", ["right", "left", "both"])
def test_filling_changes_nothing(model, side):
    """Padded on either side, does each row give what it gives alone?"""
    source, target = sentences()
    before, after = {"right": (0, 4), "left": (4, 0), "both": (2, 2)}[side]
    filled = nn.functional.pad(source, (before, after), value=PAD)
    torch.testing.assert_close(model(filled, target), model(source, target), rtol=1e-5, atol=1e-5)


def test_rows_of_different_length_do_not_mix(model):
    """In a batch beside a longer sentence, does a short one give what it gives alone?"""
    source, target = sentences(B=2)
    source[0, 3:] = PAD
    together, alone = model(source, target)[:1], model(source[:1, :3], target[:1])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


def test_a_later_target_changes_nothing_earlier(model):
    source, target = sentences()
    other = target.clone()
    other[:, 3] = 9
    a, b = model(source, target), model(source, other)
    torch.testing.assert_close(a[:, :3], b[:, :3], rtol=0, atol=1e-6)
    assert not torch.allclose(a[:, 3], b[:, 3])


def test_the_source_reaches_the_target(model):
    """Is there the link that the article's listing lacks?"""
    source, target = sentences()
    assert not torch.allclose(model(source, target), model(source.flip(0), target))


def test_a_selected_state_belongs_to_the_selected_rows(model):
    """Does a beam that moves its hypotheses take each one's past along?"""
    source, target = sentences()
    state = model.start(source)
    for token in target.T[:3]:
        _, state = model.step(state, token)
    rows = torch.tensor([2, 0, 0])
    chosen, _ = model.step(state.select(rows), target[rows, 3])
    plain, _ = model.step(state, target[:, 3])
    torch.testing.assert_close(chosen, plain[rows], rtol=1e-5, atol=1e-5)


def test_tied_head_is_one_matrix():
    tied, untied = LSTMTranslator(LSTM), Transformer(TransformerConfig(31, 37, tied=False))
    assert tied.head.weight is tied.target_embedding.weight
    assert untied.head.weight is not untied.target_embedding.weight


def test_lstm_equals_torch_without_our_head():
    """Is the plain translator two nn.LSTMs, the second started from the first's last state?"""
    torch.manual_seed(0)
    model = LSTMTranslator(LSTM).eval()
    source, target = sentences()
    _, state = model.encoder(model.source_embedding(source.flip(1)))
    y, _ = model.decoder(model.target_embedding(target), state)
    torch.testing.assert_close(model(source, target), model.head(model.project(y)))


def test_attention_equals_torch():
    """Is what the attentive one looks back with torch's attention over the real tokens alone?"""
    torch.manual_seed(0)
    model = AttentiveLSTMTranslator(LSTM).eval()
    source, target = sentences(B=1)
    outputs, state = model.encoder(model.source_embedding(source.flip(1)))
    y, _ = model.decoder(model.target_embedding(target), state)
    context = nn.functional.scaled_dot_product_attention(y, model.key(outputs), outputs, scale=1.0)
    y = torch.tanh(model.combine(torch.cat([context, y], -1)))
    expected = model.head(model.project(y))
    filled = nn.functional.pad(source, (0, 3), value=PAD)
    torch.testing.assert_close(model(filled, target), expected, rtol=1e-5, atol=1e-5)


@given(
    heads=st.sampled_from([1, 2, 4]),
    T=st.integers(1, 7),
    S=st.integers(1, 7),
    seed=st.integers(0, 999),
)
@settings(max_examples=15, deadline=None)
def test_blocks_equal_torch(heads, T, S, seed):
    """Are our encoder and decoder block torch's, given the same weights?"""
    torch.manual_seed(seed)
    config = TransformerConfig(9, 9, width=8, heads=heads, hidden=20, dropout=0.0)
    kind = {"dropout": 0.0, "batch_first": True, "norm_first": True}
    encoder, decoder = EncoderBlock(config).eval(), DecoderBlock(config).eval()
    their_encoder = nn.TransformerEncoderLayer(8, heads, 20, **kind).eval()
    their_decoder = nn.TransformerDecoderLayer(8, heads, 20, **kind).eval()
    copy_attention(encoder.self_attention, their_encoder.self_attn)
    copy_attention(decoder.self_attention, their_decoder.self_attn)
    copy_attention(decoder.cross_attention, their_decoder.multihead_attn)
    copy_rest(encoder, their_encoder, ["norm_self", "norm_ff"])
    copy_rest(decoder, their_decoder, ["norm_self", "norm_cross", "norm_ff"])

    source, x = torch.randn(2, S, 8), torch.randn(2, T, 8)
    padding = torch.zeros(2, S, dtype=torch.bool)
    padding[0, S // 2 + 1 :] = True
    theirs = their_encoder(source, src_key_padding_mask=padding)
    real = ~padding
    ours = encoder(source, padding)
    torch.testing.assert_close(ours[real], theirs[real], rtol=1e-4, atol=1e-5)
    causal = nn.Transformer.generate_square_subsequent_mask(T)
    expected = their_decoder(x, source, tgt_mask=causal, memory_key_padding_mask=padding)
    got, _ = decoder(x, None, decoder.cross_attention.keys_values(source), padding)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def copy_attention(ours, theirs):
    parts = (ours.q_proj, ours.k_proj, ours.v_proj)
    theirs.in_proj_weight.data = torch.cat([part.weight for part in parts]).detach()
    theirs.in_proj_bias.data = torch.cat([part.bias for part in parts]).detach()
    theirs.out_proj.load_state_dict(ours.o_proj.state_dict())


def copy_rest(ours, theirs, norms):
    for number, name in enumerate(norms, 1):
        getattr(theirs, f"norm{number}").load_state_dict(getattr(ours, name).state_dict())
    theirs.linear1.load_state_dict(ours.feed_forward[0].state_dict())
    theirs.linear2.load_state_dict(ours.feed_forward[3].state_dict())


def test_sinusoids_by_hand():
    """Position 0 is (0, 1, 0, 1); position 1 begins with sin 1, cos 1; the last pair turns 10000 times slower."""
    table = sinusoids(3, 4)
    assert table[0].tolist() == [0, 1, 0, 1]
    torch.testing.assert_close(table[1], torch.tensor([0.8414710, 0.5403023, 0.0099998, 0.9999500]))


def test_filling_last_keeps_the_order():
    ids = torch.tensor([[0, 0, 5, 0, 6], [7, 8, 0, 9, 0], [0, 0, 0, 0, 4]])
    assert filling_last(ids).tolist() == [[5, 6, 0, 0, 0], [7, 8, 9, 0, 0], [4, 0, 0, 0, 0]]
    assert backwards(ids).tolist() == [[6, 5, 0, 0, 0], [9, 8, 7, 0, 0], [4, 0, 0, 0, 0]]


def test_too_long_is_one_sentence():
    model = Transformer(TransformerConfig(31, 37, width=8, heads=2, hidden=8, max_tokens=5))
    source, target = sentences(S=6)
    with pytest.raises(CourseError, match="6 tokens do not fit"):
        model(source, target)
    state = model.start(source[:, :5])
    with pytest.raises(CourseError, match="6 tokens do not fit"):
        for _ in range(6):
            _, state = model.step(state, target[:, 0])


@pytest.mark.parametrize("name", KINDS)
def test_shipped_translators_load(name):
    """Are the three there, of one size within two per cent, and do they read and write?"""
    model, source, target, about = load_translator(name)
    parameters = sum(p.numel() for p in model.parameters())
    assert parameters == about["parameters"]
    assert abs(parameters / 3.12e6 - 1) < 0.02
    ids = torch.tensor([source.encode("He is my friend.")])
    logits, _ = model.step(model.start(ids), torch.tensor([BOS]))
    assert logits.shape == (1, len(target))


def test_an_unknown_translator_is_one_sentence():
    with pytest.raises(CourseError, match="choose one of lstm, attentive, transformer"):
        load_translator("gru")
