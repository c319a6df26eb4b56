"""Bert against transformers', padding against none, and the character tokenizer in front of it."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from llmcourse.data.characters import CLS, MASK, SEP, SPECIAL, UNKNOWN, Characters, normal
from llmcourse.errors import CourseError
from llmcourse.models.bert import Bert, BertConfig, Classifier, MaskedLanguageModel, masked_mean

SMALL = BertConfig(60, 24, 40, 3, 4, max_position_embeddings=16)


@pytest.fixture(scope="module")
def theirs():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=60,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=16,
    )
    model = transformers.BertForMaskedLM(config).eval()
    with torch.no_grad():  # its start is so small that a wrong bias or gain would not show
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="module")
def bert():
    torch.manual_seed(1)
    model = Classifier(SMALL).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def some(B=3, T=9):
    ids = torch.randint(5, 60, (B, T), generator=torch.Generator().manual_seed(2))
    padding = torch.zeros(B, T, dtype=torch.bool)
    padding[1:2, 6:] = True
    return ids.masked_fill(padding, 0), padding


def test_equals_transformers(theirs):
    """Is a vector of every real token theirs, with two kinds of text and with filling?"""
    ids, padding = some()
    types = (torch.arange(9) > 4).long().expand_as(ids)
    mine = Bert.from_transformers(theirs.bert)(ids, padding, types)
    expected = theirs.bert(ids, attention_mask=(~padding).long(), token_type_ids=types)
    difference = (mine - expected.last_hidden_state)[~padding].abs().max()
    assert difference < 2e-5, difference


def test_masked_language_model_equals_transformers(theirs):
    """Are the logits of the tied head theirs, everywhere and at chosen places?"""
    ids, padding = some()
    model = MaskedLanguageModel(SMALL).eval()
    left_over = model.load_state_dict(theirs.state_dict(), strict=False)
    assert not left_over.missing_keys
    expected = theirs(ids, attention_mask=(~padding).long()).logits
    torch.testing.assert_close(
        model(ids, padding)[~padding], expected[~padding], rtol=1e-4, atol=2e-5
    )
    where = ids > 40
    assert where.any()
    torch.testing.assert_close(model(ids, padding, where), expected[where], rtol=1e-4, atol=2e-5)


def test_weights_are_those_of_transformers(theirs):
    """Do the weights we draw equal theirs, rows summing to one over the real tokens?"""
    ids, padding = some()
    theirs.bert.set_attn_implementation("eager")
    mine = Bert.from_transformers(theirs.bert).attentions(ids, padding)
    expected = theirs.bert(ids, attention_mask=(~padding).long(), output_attentions=True).attentions
    torch.testing.assert_close(mine[:, 0], torch.stack(expected)[:, 0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        mine[:, 1, :, :6], torch.stack(expected)[:, 1, :, :6], rtol=1e-4, atol=1e-5
    )
    assert mine[:, 1, :, :, 6:].abs().max() == 0


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_filling_changes_nothing(bert, side, pooling):
    """Does a text get the same answer alone as with filling on either side, even past the context?"""
    ids, _ = some(B=1, T=8)
    filling = torch.full((1, 12), 7)  # any token: it must not be looked at
    both = (ids, filling) if side == "right" else (filling, ids)
    padded = torch.cat(both, 1)
    padding = torch.cat(
        [torch.zeros(1, 8) if one is ids else torch.ones(1, 12) for one in both], 1
    ).bool()
    model = Classifier(SMALL, pooling=pooling).eval()
    model.load_state_dict(bert.state_dict())
    alone = model(ids)
    torch.testing.assert_close(model(padded, padding), alone, rtol=1e-4, atol=1e-5)
    assert (model(padded[:, :16]) - alone).abs().max() > 1e-3  # without the mask it does matter


def test_batch_of_one_and_of_many(bert):
    """Is a row of a batch what it is alone?"""
    ids, padding = some()
    together = bert(ids, padding)
    for row in range(3):
        alone = bert(ids[row : row + 1], padding[row : row + 1])
        torch.testing.assert_close(alone[0], together[row], rtol=1e-4, atol=1e-5)


def test_every_token_looks_both_ways(bert):
    """Does the last token change the first one's vector, and the first the last's?"""
    ids, _ = some(B=1)
    for changed in (0, 8):
        other = ids.clone()
        other[0, changed] = (ids[0, changed] + 1 - 5) % 55 + 5
        moved = (bert.bert(other) - bert.bert(ids)).abs().amax(-1)[0]
        assert (moved > 1e-4).all(), moved


def test_masked_mean_by_hand():
    """Is the mean of 1 and 3 with filling of 100 the number 2?"""
    x = torch.tensor([[[1.0], [3.0], [100.0]]])
    assert masked_mean(x, torch.tensor([[False, False, True]])).item() == 2
    assert masked_mean(x[:, :2]).item() == 2


def test_from_checkpoint(theirs, tmp_path):
    """Is a folder in transformers' form read, the pooler and the head left out?"""
    theirs.bert.config.to_json_file(tmp_path / "config.json")
    weights = {f"bert.{k}": v.contiguous() for k, v in theirs.bert.state_dict().items()}
    weights |= {"bert.pooler.dense.bias": torch.zeros(24), "cls.predictions.bias": torch.zeros(60)}
    save_file(weights, tmp_path / "model.safetensors")
    ids, _ = some()
    mine = Bert.from_checkpoint(tmp_path)(ids)
    torch.testing.assert_close(mine, theirs.bert(ids).last_hidden_state, rtol=1e-4, atol=2e-5)
    (tmp_path / "config.json").write_text(
        json.dumps(theirs.bert.config.to_dict() | {"hidden_size": 32}), "utf-8"
    )
    with pytest.raises(CourseError, match="do not fit"):
        Bert.from_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "odd",
    [
        {"model_type": "roberta"},
        {"hidden_act": "relu"},
        {"position_embedding_type": "relative_key"},
        {"is_decoder": True},
    ],
    ids=lambda odd: next(iter(odd)),
)
def test_refuses_other_models(odd):
    """Is a model we would compute wrongly refused in one sentence?"""
    sizes = {"vocab_size": 9, "hidden_size": 8, "intermediate_size": 8}
    sizes |= {"num_hidden_layers": 1, "num_attention_heads": 2}
    assert BertConfig.from_dict(sizes).max_position_embeddings == 512
    with pytest.raises(CourseError):
        BertConfig.from_dict(sizes | odd)


def test_refuses_wrong_input(bert):
    """No tokens, too many, padding of another shape, an unknown pooling: one sentence each?"""
    with pytest.raises(CourseError, match="no tokens"):
        bert(torch.zeros(1, 0, dtype=torch.long))
    with pytest.raises(CourseError, match="17 tokens do not fit"):
        bert(torch.full((2, 17), 7))
    with pytest.raises(CourseError, match=r"\(1, 3\) is wanted"):
        bert(torch.full((1, 3), 7), torch.zeros(1, 4, dtype=torch.bool))
    with pytest.raises(CourseError, match="pooling"):
        Classifier(SMALL, pooling="max")


def test_learns_one_batch():
    """Does gradient reach every parameter, and does the loss of one batch go to nothing?"""
    torch.manual_seed(0)
    model = MaskedLanguageModel(BertConfig(20, 16, 32, 2, 2, 12, hidden_dropout_prob=0.0))
    ids = torch.randint(5, 20, (4, 8))
    where = torch.zeros_like(ids, dtype=torch.bool)
    where[:, 2::3] = True
    shown = ids.masked_fill(where, MASK)
    adam = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(120):
        loss = F.cross_entropy(model(shown, None, where), ids[where])
        adam.zero_grad()
        loss.backward()
        adam.step()
    # The second kind of text and the last positions were not in this batch.
    assert all(p.grad is not None for p in model.parameters())
    assert loss < 0.1, loss


# The tokenizer -------------------------------------------------------------------------------------


def test_characters_by_hand():
    """Are ids what one would write down, the most frequent character first?"""
    known = Characters.from_texts(["好好好 吃吃", "吃A"], at_least=2)
    assert known.tokens == (*SPECIAL, "吃", "好")  # 3 and 3: by code point
    assert known.encode("好a吃") == [CLS, 6, UNKNOWN, 5, SEP]
    assert known.decode([CLS, 6, UNKNOWN, 5, SEP, 0, 0]) == "[CLS]好[UNK]吃[SEP]"
    assert len(known) == 7


def test_one_form_for_a_character():
    """Wide and narrow, capital and small, line ends: one form?"""
    assert normal(" ＯＫ，好！\n Ok ") == "ok,好! ok"


def test_a_long_text_keeps_both_ends():
    """Is what is cut away the middle, and is the result exactly as long as the context?"""
    known = Characters("0123456789")
    assert known.decode(known.encode("0123456789", context=7)) == "[CLS]01289[SEP]"
    assert known.encode("01234", context=7) == known.encode("01234")
    assert len(known.encode("0123456789", context=3)) == 3


def test_batches():
    """Is filling on the right, 0, and said to be filling?"""
    known = Characters("ab")
    ids, padding = known.batch(["a", "bab"])
    assert ids.tolist() == [[2, 5, 3, 0, 0], [2, 6, 5, 6, 3]]
    assert padding.tolist() == [[False] * 3 + [True] * 2, [False] * 5]
    alone, none = known.batch(["bab"])
    assert torch.equal(alone[0], ids[1]) and not none.any()


@pytest.mark.parametrize(
    "texts", [[], ["好", ""], ["  \n"], "好"], ids=["none", "empty", "blank", "str"]
)
def test_refuses_no_text(texts):
    """Is a batch without a text, or a text without a character, refused in one sentence?"""
    with pytest.raises(CourseError):
        Characters("好").batch(texts)


def test_unknown_characters_still_give_an_answer(bert):
    """Does a text of characters the model has never seen go through, twice the same?"""
    ids, padding = Characters("好").batch(["龘靐🙂"])
    assert ids[0].tolist() == [CLS, UNKNOWN, UNKNOWN, UNKNOWN, SEP]
    assert torch.equal(bert(ids, padding), bert(ids, padding)) and bert(ids).isfinite().all()


# Real weights --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def encoder():
    from llmcourse.models.bert import sentence_encoder

    try:
        return sentence_encoder()
    except CourseError as error:
        pytest.skip(str(error))


def test_sentence_encoder_equals_transformers(encoder):
    """Do the published weights give transformers' vectors, token for token?"""
    transformers = pytest.importorskip("transformers")
    folder, mine, tokenizer = encoder
    texts = ["The room was spotless.", "No.", "The laptop has to be charged all the time."]
    rows = [torch.tensor(one.ids) for one in tokenizer.encode_batch(texts)]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    padding = ids == 0
    theirs = transformers.BertModel.from_pretrained(folder).eval()
    with torch.inference_mode():
        expected = theirs(ids, attention_mask=(~padding).long()).last_hidden_state
        difference = (mine(ids, padding) - expected)[~padding].abs().max()
    assert difference < 1e-5, difference


def test_sentence_encoder_knows_meaning(encoder):
    """Is a sentence nearer to another way of saying it than to one of the same words?"""
    _, mine, tokenizer = encoder
    texts = ["The movie was great.", "I enjoyed the film.", "The house was great."]
    vectors = []
    for text in texts:
        vector = masked_mean(mine(torch.tensor([tokenizer.encode(text).ids])))[0]
        vectors.append(vector / vector.norm())
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2]


# The checkpoints the course ships ------------------------------------------------------------------


@pytest.fixture(scope="module")
def shipped():
    from llmcourse.data.trained import load_trained

    before, about = load_trained("reviews_pretrained")
    after, record = load_trained("reviews")
    return before, after, about, record


def test_shipped_classifier_knows_praise_from_complaint(shipped):
    """Do the two files make one classifier, and is it right about what nobody would doubt?"""
    before, after, about, _ = shipped
    model = Classifier(BertConfig(**about["config"])).eval()
    model.load_state_dict({k: v for k, v in before.items() if k.startswith("bert.")} | after)
    tokenizer = Characters(about["characters"])
    texts = ["房间很干净，服务很好，非常满意", "太差了，房间又脏又吵，非常失望"]
    good, bad = model(*tokenizer.batch(texts)).softmax(-1)[:, 1].tolist()
    assert good > 0.9 and bad < 0.1, (good, bad)


def test_shipped_gap_filler_knows_words(shipped):
    """Is 干_ (clea_) filled to 干净 (clean)?"""
    before, _, about, _ = shipped
    model = MaskedLanguageModel(BertConfig(**about["config"])).eval()
    model.load_state_dict(before)
    tokenizer = Characters(about["characters"])
    ids, _ = tokenizer.batch(["房间很干净，服务员很热情"])
    place = ids[0].tolist().index(tokenizer.encode("净")[1])
    hidden = ids.clone()
    hidden[0, place] = MASK
    assert tokenizer.tokens[model(hidden)[0, place].argmax()] == "净"


def test_record_agrees_with_its_bits(shipped):
    """Do the stored predictions give the stored accuracy, where the real reviews are to be had?"""
    from llmcourse.data.datasets import load

    test = load("chinese_reviews", split="test")
    if test.origin != "real":
        pytest.skip("the real reviews are out of reach")
    stored = [row for row in shipped[3]["curve"] if "bits" in row]
    assert {row["arm"] for row in stored} == {"pretrained", "random", "bag"}
    for row in stored:
        named = f"{int(row['bits'], 16):0{len(test)}b}"
        hits = sum(int(bit) == one.label for bit, one in zip(named, test, strict=True))
        assert round(hits / len(test), 4) == row["test"], row["arm"]
