"""Are the clocks, counters and statistics right? Against hand calculation, torch and simulation."""

from __future__ import annotations

import itertools
import json
import math
import random
import re
import subprocess
import sys
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from llmcourse import measure
from llmcourse.errors import CourseError
from llmcourse.measure import comparison, memory, quality, roofline
from llmcourse.measure.counters import count
from llmcourse.measure.quality import Estimate
from llmcourse.measure.results import MIME, plain, read_results, record
from llmcourse.measure.tables import Table, bytes_text, number_text, seconds_text
from llmcourse.measure.timing import TokenTimer, TokenTimes, compare


@dataclass
class Clock:
    """Time that passes only when a test says so."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now

    def stream(self, *seconds: float):
        """Tokens 0, 1, 2 …, each as long in the making as said."""
        for token, taken in enumerate(seconds):
            self.now += taken
            yield token

    def run(self, seconds, result=None):
        """A function that takes the next of `seconds` at each call."""
        seconds = iter(seconds)

        def function():
            self.now += next(seconds)
            return result

        return function


# Timing


def test_token_times_by_hand():
    """5 s to the first token, then 1, 1 and 4 s: 3 tokens in 6 s, and a median step of 1 s?"""
    clock = Clock()
    times = TokenTimes.from_stream(clock.stream(5, 1, 1, 4), clock)
    assert (times.tokens, times.ttft_s, times.step_s) == ([0, 1, 2, 3], 5, [1, 1, 4])
    assert times.tokens_per_s == 3 / 6
    assert times.tokens_per_s_median == 1
    assert times.total_s == 11


def test_one_token_has_no_rate():
    """Is the decode rate of a single token unknown, and not the rate of the prefill?"""
    clock = Clock()
    times = TokenTimes.from_stream(clock.stream(2), clock)
    assert times.ttft_s == 2 and math.isnan(times.tokens_per_s)
    assert times.to_dict()["tokens_per_s"] is None
    assert "–" in repr(times)


def test_no_token_is_an_error():
    """Is an empty stream an error and not a division by zero?"""
    with pytest.raises(CourseError, match="No token"):
        TokenTimes.from_stream([], Clock())


def test_timer_ignores_the_reader_of_the_stream():
    """Is the printing of a token left out of the next token's time?"""
    clock = Clock()
    timer = TokenTimer(clock.stream(3, 1, 1), clock)
    for _ in timer:
        clock.now += 100
    assert (timer.times.ttft_s, timer.times.step_s) == (3, [1, 1])


def test_compare_interleaves():
    """Are runs taken in turn, A B A B, with the warm-up round first and not counted?"""
    order, clock = [], Clock()

    def run(name, seconds):
        order.append(name)
        clock.now += seconds

    found = compare(
        {"a": lambda: run("a", 2), "b": lambda: run("b", 1)}, repeat=3, clock=clock, progress=False
    )
    assert order == ["a", "b"] * 4
    assert found.seconds == {"a": [2, 2, 2], "b": [1, 1, 1]}


def test_compare_by_hand():
    """Medians, spread, rate and paired ratio of five rounds written out?"""
    clock = Clock()
    runs = {
        "slow": clock.run([9, 4, 6, 4, 8, 4], 12),
        "fast": clock.run([9, 2, 2, 1, 2, 4], 12),
    }
    found = compare(runs, repeat=5, clock=clock, progress=False)
    assert found.median_s("slow") == 4 and found.spread_s("slow") == (4, 8)
    assert found.per_s("slow") == 12 / 4
    ratio = found.ratio("slow", "fast")  # of the rounds: 2, 3, 4, 4, 1
    assert (ratio.value, ratio.low, ratio.high) == (3, 1, 4)
    assert ratio.confidence == 1 - 2 / 2**5
    assert "within the noise" in ratio.verdict  # one round in five went the other way
    assert found.speedup("fast", "slow") == ratio


def test_compare_says_what_is_beyond_the_noise():
    """Is a difference seen in all five rounds said to be one, whichever side it is asked from?"""
    clock = Clock()
    runs = {"slow": clock.run([4] * 6), "fast": clock.run([1, 1, 2, 1, 2, 1])}
    found = compare(runs, repeat=5, clock=clock, progress=False)
    for ratio in (found.ratio("slow", "fast"), found.ratio("fast", "slow")):
        assert ratio.verdict == "beyond the noise: fast is 4.00 times as fast as slow"


@pytest.mark.parametrize("repeat", [1, 2, 3, 4])
def test_compare_does_not_conclude_from_few_rounds(repeat):
    """Do fewer than five rounds, whose interval holds less than 90 %, leave the noise unknown?"""
    clock = Clock()
    runs = {"slow": clock.run([4] * 9), "fast": clock.run([1] * 9)}
    found = compare(runs, repeat=repeat, clock=clock, progress=False)
    assert found.ratio("slow", "fast").verdict.startswith("noise unknown")
    assert found.ratio("slow", "fast").value == 4


def test_compare_drains_generators_and_counts():
    """Is a lazy stream run to its end inside the timed part, and its tokens counted?"""
    clock = Clock()
    found = compare({"lazy": lambda: clock.stream(1, 1, 1)}, repeat=2, clock=clock, progress=False)
    assert found.seconds["lazy"] == [3, 3] and found.counts["lazy"] == [3, 3]
    assert found.per_s("lazy") == 1 and found.outputs["lazy"] == [0, 1, 2]


@pytest.mark.parametrize(
    ("results", "warning"),
    [
        ((128, 64), "Unequal work: a 128, b 64 tokens"),
        (([1, 2, 3], [1, 7, 3]), "Outputs differ: b leaves a at item 1"),
        ((128, None), "No count came from b"),
        ((128, 128), None),
        (([1, 2], [1, 2]), None),
        (("text", "longer text"), None),  # characters are no tokens
        ((None, None), None),
    ],
    ids=["count", "tokens", "silent", "equal", "equal tokens", "text", "nothing"],
)
def test_compare_flags_unequal_work(results, warning):
    """Is work that differs, or that cannot be proved, flagged, and only that?"""
    clock = Clock()
    runs = {n: clock.run([1] * 9, r) for n, r in zip("ab", results, strict=True)}
    found = compare(runs, repeat=5, clock=clock, progress=False)
    if warning is None:
        assert found.warnings == ()
    else:
        assert any(w.startswith(warning) for w in found.warnings), found.warnings
        assert warning in repr(found) and warning in found._repr_html_()


def test_compare_flags_work_that_changes_between_rounds():
    """Is a run noticed that made fewer tokens in one of its rounds?"""
    made = itertools.cycle([5, 4])
    found = compare({"a": lambda: next(made)}, repeat=4, warmup=0, clock=Clock(), progress=False)
    assert found.warnings == ("a did not do the same work each time: 4 to 5 tokens.",)


def test_compare_warns_about_warm_up():
    """Does a first run of 1.6 times the median warn, and one of 1.4 times not?"""
    clock = Clock()
    runs = {"cold": clock.run([1.6, 1, 1, 1, 1]), "warm": clock.run([1.4, 1, 1, 1, 1])}
    found = compare(runs, warmup=0, clock=clock, progress=False)
    assert found.warnings == ("cold: the first run took 1.6 times the median; raise warmup.",)


def test_compare_table_sets_the_guess_beside_the_result():
    """Are a plain number and a Guess taken, and is none at all left out?"""
    clock = Clock()
    found = compare({"a": clock.run([6] * 6), "b": clock.run([2] * 6)}, clock=clock, progress=False)
    for guess in (10, SimpleNamespace(value=10.0)):
        assert "You said 10.0 times; b came to 3.00." in found.table(guess).notes
    for guess in (None, SimpleNamespace(value=None)):
        assert not any("You said" in note for note in found.table(guess).notes)
    assert f"PyTorch used {torch.get_num_threads()} of" in repr(found)


def test_compare_names_its_errors():
    """Are no runs, no rounds and an unknown name each one clear sentence?"""
    for runs, repeat in (({}, 5), ({"a": int}, 0)):
        with pytest.raises(CourseError, match="at least one function"):
            compare(runs, repeat=repeat)
    found = compare({"a": int}, clock=Clock(), progress=False)
    with pytest.raises(CourseError, match="No run is called 'b'; there are a"):
        found.ratio("a", "b")


def test_zero_time_is_no_division_by_zero():
    """Does a run too short for the clock still give a ratio?"""
    found = compare({"a": int, "b": int}, clock=Clock(), progress=False)
    assert found.ratio("a", "b").value == 1 and "b" in repr(found)


@pytest.mark.parametrize("n", [5, 6, 9, 15, 25])
def test_median_interval_covers_as_often_as_it_says(n):
    """Over 4,000 skewed samples, is the true median inside as often as the stated confidence?

    Four standard errors of the simulated share: fails by chance once in 16,000.
    """
    generator = random.Random(n)
    trials, hits = 4000, 0
    for _ in range(trials):
        sample = [generator.expovariate(1.0) for _ in range(n)]
        low, high, confidence = comparison._median_interval(sample)
        hits += low <= math.log(2) <= high
    assert n == 5 or confidence >= 0.95
    error = math.sqrt(confidence * (1 - confidence) / trials)
    assert abs(hits / trials - confidence) < 4 * error


# Memory


def test_tensor_bytes_counts_shared_memory_once():
    """Weights, a tied head, views, overlapping slices and expanded axes: every byte once?"""
    table, head = torch.nn.Embedding(10, 4), torch.nn.Linear(4, 10, bias=False)
    head.weight = table.weight
    assert memory.tensor_bytes(torch.nn.ModuleList([table, head])) == 160
    x = torch.zeros(8, 4)
    assert memory.tensor_bytes([x, x.t(), x[2:], x[:3]]) == 128
    assert memory.tensor_bytes([x[:3], x[2:5]]) == 5 * 16
    assert memory.tensor_bytes(torch.zeros(1, 4).expand(1000, 4)) == 16
    assert memory.tensor_bytes({"a": torch.zeros(3, dtype=torch.int8), "b": [torch.zeros(2)]}) == 11
    assert memory.tensor_bytes(torch.zeros(0)) == 0
    assert memory.tensor_bytes(torch.zeros(5, device="meta")) == 20
    assert memory.tensor_bytes(torch.nn.BatchNorm1d(2)) == 4 * 2 * 4 + 8  # buffers as well
    with pytest.raises(CourseError, match="not int"):
        memory.tensor_bytes([3])


@pytest.mark.parametrize("way", ["high water", "sampled"])
def test_peak_sees_memory_that_is_gone_again(way, monkeypatch):
    """Is a buffer of 200 MB, freed before the function ends, found, and hardly anything else?"""
    if way == "sampled":
        monkeypatch.setattr(memory, "_reset_high_water", lambda: False)
    elif not memory._reset_high_water():
        pytest.skip("the system does not let its high-water mark be reset")

    def work():
        total = 0.0
        held = torch.ones(50_000_000)
        for _ in range(3):  # long enough for the sampling thread to look
            total += held.sum().item()
        return total

    peak = memory.peak(work)
    assert peak.result == 150_000_000
    assert 190e6 < peak.extra_bytes < 260e6, peak
    assert peak.peak_bytes > peak.extra_bytes
    assert memory.peak(lambda: None).extra_bytes < 50e6  # the mark was set back


def test_peak_lets_errors_through(monkeypatch):
    """Does an error inside the function come out, and the sampling thread end?"""
    import threading

    monkeypatch.setattr(memory, "_reset_high_water", lambda: False)
    before = threading.active_count()
    with pytest.raises(ZeroDivisionError):
        memory.peak_bytes(lambda: 1 / 0)
    assert threading.active_count() == before


# Counters

MODES = [torch.inference_mode, torch.no_grad, torch.enable_grad]


@pytest.mark.parametrize("mode", MODES, ids=lambda m: m.__name__)
def test_count_by_hand(mode):
    """An embedding and two linear layers, in every gradient mode: the same, and as on paper?"""
    layers = torch.nn.Sequential(
        torch.nn.Embedding(100, 16),
        torch.nn.Linear(16, 32, bias=False),
        torch.nn.Linear(32, 100, bias=False),
    )
    with mode():
        work = count(lambda: layers(torch.tensor([[1, 2, 3]])))
    products = 16 * 32 + 32 * 100
    assert work.flops == 2 * 3 * products
    assert work.weight_bytes_read == 4 * products
    # Rows of the table, then both products read weights and inputs, in float32.
    assert work.bytes_read == 4 * (3 * 16 + products + 3 * 16 + 3 * 32)
    assert work.bytes_written == 4 * (3 * 16 + 3 * 32 + 3 * 100)
    assert (work.calls, work.matmuls) == (3, 2)
    assert work.result.shape == (1, 3, 100)


@pytest.mark.parametrize("mode", MODES, ids=lambda m: m.__name__)
def test_count_flops_equal_torch(mode, tiny):
    """On a Llama with attention, are the FLOPs those of torch's own counter?"""
    ids = torch.randint(0, 97, (2, 7))
    with mode():
        work = count(lambda: tiny(ids))
        with FlopCounterMode(display=False) as torch_counter:
            tiny(ids)
    assert work.flops == torch_counter.get_total_flops()


def test_count_sees_the_backward_pass():
    """Does training count forward and backward products, as torch's counter does?"""
    layer, x = torch.nn.Linear(8, 4), torch.randn(3, 8, requires_grad=True)
    assert count(lambda: layer(x).sum().backward()).flops == 3 * (2 * 3 * 8 * 4)


def test_count_matrix_times_vector():
    """Are products that torch's counter leaves out counted as well?"""
    matrix, vector = torch.randn(6, 5), torch.randn(5)
    assert count(lambda: matrix @ vector).flops == 2 * 6 * 5
    assert count(lambda: vector @ vector).flops == 2 * 5
    assert count(lambda: torch.bmm(torch.ones(2, 3, 4), torch.ones(2, 4, 5))).flops == 240


def test_each_token_reads_all_weights(tiny):
    """Do four tokens with the cache read four times all matrices, and without it no fewer?"""
    from llmcourse.decode.generate import generate_cached, generate_plain

    matrices = memory.tensor_bytes([w for w in tiny.parameters() if w.ndim == 2])
    for generate in (generate_cached, generate_plain):
        work = count(lambda generate=generate: generate(tiny, [1, 2, 3], max_tokens=4))
        assert len(work.result) == 4
        assert work.weight_bytes_read == 4 * matrices
    plain_flops = count(lambda: generate_plain(tiny, [1, 2, 3], max_tokens=4)).flops
    assert count(lambda: generate_cached(tiny, [1, 2, 3], max_tokens=4)).flops < plain_flops


def test_count_weights_in_buffers():
    """Are weights that are no parameters counted once they are pointed out?"""
    weight, x = torch.randn(6, 5), torch.randn(2, 5)
    assert count(lambda: x @ weight.t()).weight_bytes_read == 0
    assert count(lambda: x @ weight.t(), weights=[weight]).weight_bytes_read == 4 * 30
    assert count(lambda: x @ x.t(), weights=[weight]).weight_bytes_read == 0


def test_count_packed_int8():
    """Is the int8 product of PyTorch counted at one byte a weight?"""
    x = torch.randn(2, 32, dtype=torch.bfloat16)
    weight, scales = torch.ones(16, 32, dtype=torch.int8), torch.ones(16, dtype=torch.bfloat16)
    work = count(lambda: torch._weight_int8pack_mm(x, weight, scales), weights=[weight])
    assert work.flops == 2 * 2 * 32 * 16 and work.weight_bytes_read == 16 * 32


def test_views_move_nothing():
    """Do reshapes, transposes, slices and reservations cost nothing, and copies what they copy?"""
    x = torch.ones(4, 6)
    views = count(lambda: (x.t(), x[1:], x.view(24), x.expand(2, 4, 6), torch.empty(100)))
    assert (views.calls, views.bytes_read, views.bytes_written) == (0, 0, 0)
    copy = count(lambda: x.t().contiguous())
    assert (copy.calls, copy.bytes_read, copy.bytes_written) == (1, 96, 96)
    into = torch.zeros(4, 6)
    assert count(lambda: into.copy_(x)).bytes_read == 96  # what is overwritten is not read
    assert count(lambda: into.add_(x)).bytes_read == 192  # here it is
    assert count(lambda: x.sum()).bytes_read == 96
    assert count(lambda: x + torch.ones(1).expand(4, 6)).bytes_read == 96 + 4


def test_count_table_names_the_largest():
    """Does the table list the operation that moved the most first?"""
    work = count(lambda: torch.ones(100, 100) @ torch.ones(100, 100))
    assert work.table().rows[0][0] == "mm" and "2.00 MFLOP" in work._repr_html_()


# Roofline


def test_limit_by_hand():
    """30 GB/s over 0.5 GB a token: 60 tokens/s, GB being 1e9 bytes and not 2**30?"""
    assert roofline.limit_tokens_per_s(500_000_000, 30) == 60
    assert roofline.achieved_gb_per_s(500_000_000, 60) == 30
    for wrong in ((0, 30), (5, 0), (-1, 3)):
        with pytest.raises(CourseError, match="above zero"):
            roofline.limit_tokens_per_s(*wrong)


def test_bandwidth_arithmetic(monkeypatch):
    """With passes of 1, 1 and 2 s over 1 MB: a read moves 1 MB, a copy 2, spread as timed?"""
    monkeypatch.setattr(roofline, "_passes", lambda *_: [1.0, 1.0, 2.0])
    found = roofline.bandwidth(buffer_bytes=1_000_000)
    assert found.read_gb_per_s == 0.001 and found.copy_gb_per_s == 0.002
    assert found.read_spread == (0.0005, 0.001) and found.copy_spread == (0.001, 0.002)
    assert "GB/s" in repr(found) and json.dumps(found.to_dict())


def test_bandwidth_really_measures():
    """Is what comes out positive and ordered, and the number of threads put back?"""
    before = torch.get_num_threads()
    other = 2 if before == 1 else 1
    found = roofline.bandwidth(seconds=0.02, threads=other, buffer_bytes=2**22)
    assert found.threads == other and torch.get_num_threads() == before
    assert 0 < found.read_spread[0] <= found.read_gb_per_s <= found.read_spread[1]
    assert roofline.compute_peak(seconds=0.01, size=64, threads=other) > 0
    assert torch.get_num_threads() == before


def test_bandwidth_buffer_is_no_zero_page(monkeypatch):
    """Is the buffer filled? (Pages of zeros are one page, and would be read from the cache.)"""
    seen = []
    monkeypatch.setattr(roofline, "_passes", lambda fn, *_: [seen.append(fn()) or 1.0])
    roofline.bandwidth(buffer_bytes=400)
    assert seen[0].item() == 100


def test_bandwidth_buffer_outgrows_the_cache():
    """Is the buffer at least four last-level caches (or a gigabyte, beside a giant one)?"""
    size = roofline._buffer_bytes("cpu")
    assert size >= 2**28
    assert size >= 4 * roofline.last_level_cache_bytes() or size == 2**30
    assert [roofline._size(text) for text in ("32K", "2M", "1G", "7")] == [2**15, 2**21, 2**30, 7]


def test_passes_warm_up_and_stop():
    """One warm-up pass, three at least, then until the time is used?"""
    clock = Clock()
    assert roofline._passes(clock.run([9, 1, 2, 3, 4]), 0, "cpu", clock) == [1, 2, 3]
    assert roofline._passes(clock.run([9] + [1] * 20), 5, "cpu", clock) == [1] * 5


def test_bandwidth_without_the_device():
    """Is a missing GPU (or absurd buffer) one clear sentence?"""
    with pytest.raises(CourseError, match="Measuring bandwidth needs"):
        roofline.bandwidth(buffer_bytes=2**60)


def test_roofline_ridge():
    """100 GFLOP/s and 20 GB/s: below 5 FLOP a byte the memory limits, above it arithmetic?"""
    machine = roofline.Roofline(gb_per_s=20, gflop_per_s=100)
    assert machine.ridge_flop_per_byte == 5
    assert machine.attainable_gflop_per_s(0.5) == 10
    assert machine.attainable_gflop_per_s(50) == 100


# Quality


def uniform(ids):
    """A model that finds all of 50 tokens equally likely."""
    return torch.zeros(*ids.shape, 50)


def test_perplexity_of_ignorance():
    """Is the perplexity of a uniform guess among 50 tokens 50, however the text is cut?"""
    for window in (2, 16, 64):
        found = quality.perplexity(uniform, list(range(50)) * 4, window=window, progress=False)
        assert found.value == pytest.approx(50, rel=1e-5)
        assert found.n == 200 // window * (window - 1)


def test_perplexity_by_definition(tiny):
    """Does it equal exp of the mean -log p of every token after its window's first, in float64?"""
    ids = torch.randint(0, 97, (50,))
    losses = []
    for start in range(0, 48, 12):  # the rest of 2 tokens is no full window
        piece = ids[start : start + 12]
        p = tiny(piece[None])[0].double().softmax(-1)
        losses.append([-math.log(p[i, piece[i + 1]].item()) for i in range(11)])
    means = [sum(row) / 11 for row in losses]
    found = quality.perplexity(tiny, ids, window=12, progress=False)
    assert found.value == pytest.approx(math.exp(sum(means) / 4), rel=1e-5)
    assert found.samples == pytest.approx(means, rel=1e-4)
    # The interval, written out: t for 3 degrees of freedom is 3.182.
    mean = sum(means) / 4
    error = math.sqrt(sum((m - mean) ** 2 for m in means) / 3 / 4)
    assert found.low == pytest.approx(math.exp(mean - 3.182 * error), rel=1e-5)
    assert found.high == pytest.approx(math.exp(mean + 3.182 * error), rel=1e-5)


def test_perplexity_edges():
    """One short window: no interval; transformers' kind of output: read; no text: refused?"""
    found = quality.perplexity(lambda ids: SimpleNamespace(logits=uniform(ids)), [1, 2, 3])
    assert found.n == 2 and math.isnan(found.low) and "no interval" in repr(found)
    for ids, window in (([1], 512), ([1, 2, 3], 1)):
        with pytest.raises(CourseError, match="first is not scored"):
            quality.perplexity(uniform, ids, window=window)


@pytest.mark.parametrize("windows", [4, 8, 40])
def test_t_interval_covers(windows):
    """Over 4,000 normal samples, is the true mean inside in 95 %? (Fails once in 16,000.)"""
    generator = random.Random(windows)
    hits = 0
    for _ in range(4000):
        _, low, high = quality._mean_interval([generator.gauss(3, 2) for _ in range(windows)])
        hits += low <= 3 <= high
    assert abs(hits / 4000 - 0.95) < 4 * math.sqrt(0.95 * 0.05 / 4000)


def test_t_points_equal_the_integral():
    """Does the density of Student's t, integrated numerically to t95, give 0.95?"""
    for v in (1, 2, 5, 10, 30, 31, 60, 500):
        top, steps = quality.t95(v), 20_000
        x = (torch.arange(steps, dtype=torch.float64) + 0.5) * (top / steps)
        log_c = math.lgamma((v + 1) / 2) - math.lgamma(v / 2) - math.log(v * math.pi) / 2
        mass = 2 * math.exp(log_c) * ((1 + x * x / v) ** (-(v + 1) / 2)).sum() * top / steps
        assert mass.item() == pytest.approx(0.95, abs=1e-4), v


def test_wilson_by_hand():
    """Are the bounds the roots of |p - p0| = z √(p0(1-p0)/n), which is how Wilson found them?"""
    for successes, n in ((0, 20), (1, 20), (45, 60), (917, 1000), (60, 60)):
        p = successes / n
        for p0 in quality.wilson(successes, n):
            assert (p - p0) ** 2 == pytest.approx(1.959964**2 * p0 * (1 - p0) / n, abs=1e-12)
    assert quality.wilson(0, 10)[0] == 0 and 1 - 1e-12 < quality.wilson(10, 10)[1] <= 1
    with pytest.raises(CourseError, match="no share"):
        quality.wilson(3, 2)


class Letters:
    """A tokenizer of words: known ones are one token, "seem" falls into two."""

    words = ("the", "key", "keys", "cabinet", "is", "are", "se", "em")

    def encode(self, text):
        split = text.replace("seem", "se em").split()
        return [self.words.index(word) for word in split]


@pytest.fixture
def bigram():
    """Log-probabilities of the next word given the last one, and the model that has them."""
    torch.manual_seed(1)
    table = torch.randn(8, 8, dtype=torch.float64).log_softmax(-1)
    seen = []

    def model(ids):
        seen.append(tuple(ids.shape))
        return table[ids]

    model.table, model.seen = table, seen
    return model


def pair(prefix, right, wrong, number="singular"):
    return SimpleNamespace(prefix=prefix, right=right, wrong=wrong, number=number)


def test_agreement_by_hand(bigram):
    """Is a verb of two tokens scored by both, and each margin log P(right) - log P(wrong)?"""
    pairs = [
        pair("the key", "is", "are"),
        pair("the keys", "are", "is", "plural"),
        pair("the keys the cabinet ", " seem", "is", "plural"),
    ]
    found = quality.agreement_accuracy(bigram, Letters(), pairs, progress=False)
    t, w = bigram.table, {word: i for i, word in enumerate(Letters.words)}
    margins = [
        t[w["key"], w["is"]] - t[w["key"], w["are"]],
        t[w["keys"], w["are"]] - t[w["keys"], w["is"]],
        t[w["cabinet"], w["se"]] + t[w["se"], w["em"]] - t[w["cabinet"], w["is"]],
    ]
    hits = [float(margin > 0) for margin in margins]
    assert found.margin.samples == pytest.approx([m.item() for m in margins], rel=1e-5)
    assert found.samples == tuple(hits) and found.value == sum(hits) / 3
    assert (found.low, found.high) == quality.wilson(int(sum(hits)), 3)
    assert found.by_group == {"singular": hits[0], "plural": (hits[1] + hits[2]) / 2}
    assert json.dumps(plain(found))


def test_agreement_batches_equal_lengths_without_repeats(bigram):
    """Do prefixes of one length share a batch, and right and wrong one reading of their prefix?"""
    pairs = [pair("the key", "is", "are"), pair("the keys", "are", "is"), pair("key", "is", "are")]
    quality.agreement_accuracy(bigram, Letters(), pairs, progress=False)
    assert sorted(bigram.seen) == [(1, 1), (2, 2)]
    bigram.seen.clear()
    quality.agreement_accuracy(bigram, Letters(), pairs, batch=1, progress=False)
    assert sorted(bigram.seen) == [(1, 1), (1, 2), (1, 2)]


def test_agreement_tie_is_no_success():
    """Does a model without an opinion get nothing right?"""
    found = quality.agreement_accuracy(uniform, Letters(), [pair("the key", "is", "are")])
    assert found.value == 0 and found.margin.value == 0


def test_agreement_refuses_what_it_cannot_score(bigram):
    """No pairs, and a verb that fuses with its prefix: one clear sentence each?"""
    with pytest.raises(CourseError, match="at least one pair"):
        quality.agreement_accuracy(bigram, Letters(), [])
    fusing = SimpleNamespace(encode=lambda text: [len(text)])
    with pytest.raises(CourseError, match="joins 'is' to 'the key'"):
        quality.agreement_accuracy(bigram, fusing, [pair("the key", "is", "are")])


def test_paired_difference_is_tighter():
    """Windows of very different hardness, one model always 2 % worse: does pairing see it?"""
    base = [3.0, 3.5, 2.6, 3.9, 3.1]
    noise = [0.001, -0.001, 0.002, -0.002, 0.0]
    worse = [x + 0.02 + e for x, e in zip(base, noise, strict=True)]

    def estimate(samples):
        mean, low, high = (math.exp(x) for x in quality._mean_interval(samples))
        return Estimate(mean, low, high, 500, samples=tuple(samples), log=True)

    a, b = estimate(worse), estimate(base)
    assert a.low < b.high  # the separate intervals overlap
    ratio, gap = quality.paired_ratio(a, b), quality.paired_difference(a, b)
    # By hand: mean 0.02, standard error 0.00158/√5, t for 4 is 2.776.
    half = 2.776 * math.sqrt(1e-5 / 4) / math.sqrt(5)
    assert ratio.value == pytest.approx(math.exp(0.02), rel=1e-9)
    assert ratio.low == pytest.approx(math.exp(0.02 - half), rel=1e-6)
    assert gap.value == pytest.approx(a.value - b.value, rel=1e-9)
    assert 0 < gap.low < gap.value < gap.high
    assert quality.paired_difference(b, a).value == pytest.approx(-gap.value)


def test_paired_difference_of_accuracies():
    """Is it the plain mean of differences, here (1 + 0 + 0 - 1 + 1) / 5?"""
    a = Estimate(0.6, 0, 1, 5, samples=(1.0, 1.0, 0.0, 0.0, 1.0))
    b = Estimate(0.4, 0, 1, 5, samples=(0.0, 1.0, 0.0, 1.0, 0.0))
    assert quality.paired_difference(a, b).value == pytest.approx(0.2)
    with pytest.raises(CourseError, match="same items"):
        quality.paired_difference(a, Estimate(0.4, 0, 1, 4, samples=(0.0,) * 4))
    with pytest.raises(CourseError, match="for perplexities"):
        quality.paired_ratio(a, b)


def test_estimate_reads_well_and_comes_back():
    """Digits by the width of the interval; JSON and back without loss?"""
    shown = repr(Estimate(27.0123, 25.91, 28.24, 4088, unit="tokens"))
    assert shown == "27.0 (25.9 to 28.2, 95 %, n = 4,088 tokens)"
    assert repr(Estimate(0.91666, 0.88, 0.94, 400)) == "0.917 (0.880 to 0.940, 95 %, n = 400)"
    assert repr(Estimate(127787, 110000, 140000, 9)) == "127,787 (110,000 to 140,000, 95 %, n = 9)"
    found = Estimate(2.0, math.nan, math.nan, 3, "one", "tokens")
    back = Estimate.from_dict(json.loads(json.dumps(plain(found))))
    assert repr(back) == repr(found) == "2 (no interval, n = 3 tokens)"
    assert float(found) == 2.0


@pytest.mark.real
@pytest.mark.slow
def test_real_perplexity_and_agreement(real):
    """On the real model: two windows of the held-out text, against F.cross_entropy in one go?"""
    from llmcourse.data import agreement, datasets

    model, tokenizer = real
    ids = tokenizer.encode(datasets.held_out_text())[:256]
    with torch.inference_mode():
        logits = model(torch.tensor(ids).view(2, 128))
    expected = F.cross_entropy(
        logits[:, :-1].flatten(0, 1), torch.tensor(ids).view(2, 128)[:, 1:].flatten()
    )
    found = quality.perplexity(model, ids, window=128, progress=False)
    assert found.value == pytest.approx(expected.exp().item(), rel=1e-4)
    right = quality.agreement_accuracy(model, tokenizer, agreement.pairs(40), progress=False)
    assert right.low > 0.5, "no better than chance"


# Results


def notebook(*outputs):
    cells = [{"cell_type": "markdown", "source": "x"}]
    cells += [{"cell_type": "code", "outputs": list(each)} for each in outputs]
    return json.dumps({"nbformat": 4, "cells": cells})


def test_read_results_merges_in_order(tmp_path):
    """Several outputs, other MIME types between them, a name twice: the latest wins?"""
    path = tmp_path / "x.ipynb"
    first = {"output_type": "display_data", "data": {MIME: {"a": 1, "b": {"c": [2]}}}}
    stream = {"output_type": "stream", "text": "recorded: a = 9"}
    second = {"output_type": "execute_result", "data": {MIME: {"a": 3}, "text/plain": "…"}}
    path.write_text(notebook([first, stream], [], [second]), encoding="utf-8")
    assert read_results(path) == {"a": 3, "b": {"c": [2]}}


def test_read_results_names_what_is_wrong(tmp_path):
    """A missing file, text that is no JSON, JSON that is no notebook: one sentence each?"""
    with pytest.raises(CourseError, match="There is no notebook"):
        read_results(tmp_path / "none.ipynb")
    for text in ("{", "[]", '{"worksheets": []}'):
        (tmp_path / "bad.ipynb").write_text(text)
        with pytest.raises(CourseError, match="is not a Jupyter notebook"):
            read_results(tmp_path / "bad.ipynb")


def test_plain_takes_what_a_notebook_has():
    """Tensors, NumPy, our types, nan become plain JSON, anything else is refused by name?"""
    times = TokenTimes([7, 8], 0.5, [0.25])
    assert plain(times) == {
        "tokens": 2, "ttft_s": 0.5, "tokens_per_s": 4.0, "tokens_per_s_median": 4.0,
    }  # fmt: skip
    assert plain(torch.tensor(2.5)) == 2.5 and plain(torch.tensor([[1, 2]])) == [[1, 2]]
    assert plain(torch.ones(3).numpy()) == [1.0, 1.0, 1.0]
    assert plain(torch.ones(1).numpy()[0]) == 1.0 and plain({1: (True, None)}) == {
        "1": [True, None]
    }
    assert plain([math.nan, math.inf, 1]) == [None, None, 1]
    assert plain(Estimate(1.0, 0.5, 1.5, 9))["n"] == 9
    with pytest.raises(CourseError, match="speed is a function"):
        record(speed=lambda: 1)


def test_record_in_a_kernel_comes_back(tmp_path):
    """Executed in a real kernel and saved: does the file hold what was recorded?"""
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    cells = [
        "from llmcourse.measure.results import record\n"
        "from llmcourse.measure.quality import Estimate\n"
        "record(rate=5.5, name='cache')",
        "record(rate=6, quality=Estimate(27.0, 26.0, 28.0, 8))",
    ]
    made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in cells])
    nbclient.NotebookClient(made, timeout=60).execute()
    nbformat.write(made, tmp_path / "run.ipynb")
    found = read_results(tmp_path / "run.ipynb")
    assert found["rate"] == 6 and found["name"] == "cache"
    assert found["quality"] == {"value": 27.0, "low": 26.0, "high": 28.0, "n": 8}
    assert made.cells[0].outputs[0]["data"]["text/plain"] == 'recorded: rate = 5.5, name = "cache"'


def test_record_outside_a_notebook_prints(capsys):
    """In a plain script, is the text there to be seen?"""
    record(rate=5.5)
    assert capsys.readouterr().out == "recorded: rate = 5.5\n"


# Tables and the package's door


def test_table_is_accessible_and_escaped():
    """Caption, column and row headers, escaped text, no literal black or white?"""
    html = Table("Times <now>", ("run", "s"), (("a & b", "<1>"),), ("note",))._repr_html_()
    assert "<caption" in html and "Times &lt;now&gt;</caption>" in html
    assert html.count('scope="col"') == 2 and html.count('scope="row"') == 1
    assert "a &amp; b" in html and "&lt;1&gt;" in html and "<li>note</li>" in html
    assert "var(--jp-" in html
    assert not any(word in html for word in ("white", "black", "#fff", "#000"))


def test_table_aligns_words_left_and_figures_right():
    """Do figures, and their column's head, stand right and in one line, and words left?"""
    rows = (
        ("1 core", "22.8 ms to 38.6 ms", "It sat.", "–", "none", "−3", ""),
        ("2 cores", "9 ms", "She ran 3 km.", "–", "+0.4", "n/a", ""),
    )
    html = Table("t", ("", "time", "said", "gap", "gain", "loss", "left"), rows)._repr_html_()
    found = re.findall(r'<t[hd][^>]* style="([^"]*)"', html)
    right = [False, True, False, False, True, True, False]
    assert ["text-align:right;white-space:nowrap" in style for style in found] == 3 * right
    assert ["text-align:left" in style for style in found] == 3 * [not r for r in right]
    assert Table("empty", ("a", "b"), ())._repr_html_().count("text-align:left") == 3


def test_numbers_read_well():
    """Three digits, units one would say, no exponents?"""
    assert [number_text(x) for x in (5.412, 15.24, 150.4, 1204, 0.0312, 99.96, 9.996)] == [
        "5.41", "15.2", "150", "1,204", "0.0312", "100", "10.0",
    ]  # fmt: skip
    assert [seconds_text(x) for x in (1.53, 0.0204, 0.00031, 5e-8)] == [
        "1.53 s", "20.4 ms", "310 µs", "50.0 ns",
    ]  # fmt: skip
    assert [bytes_text(x) for x in (538e6, 23040, 12, 1.2e12)] == [
        "538 MB", "23.0 kB", "12 B", "1.20 TB",
    ]  # fmt: skip


def test_import_is_light_and_names_are_there():
    """Does `import llmcourse.measure` leave torch alone, and does every promised name exist?"""
    code = (
        "import sys, llmcourse.measure, llmcourse.measure.scoreboard, llmcourse.measure.results;"
        "assert not {'torch', 'matplotlib', 'IPython'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    for name in measure.__all__:
        assert getattr(measure, name).__name__ == name
    with pytest.raises(AttributeError):
        _ = measure.nonsense
