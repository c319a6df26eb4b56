// One step of a Llama on packed weights: a team of threads runs `Engine::forward` side by side, each
// taking its part of every matrix, with a barrier where one operator needs all of the one before.
#include "layout.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace {

using Clock = std::chrono::steady_clock;

inline void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

// Spin for 0.1 ms, then give the core away: on a busy machine the one we wait for may be queued behind
// us, and the kernel moves it to where somebody sleeps. Returns the nanoseconds after the spinning.
template <class Ready> int64_t wait_until(Ready ready) {
    for (int i = 0; i < 64; i++, pause()) if (ready()) return 0;
    const auto start = Clock::now();
    const auto waited = [&] { return (Clock::now() - start).count(); };
    while (waited() < 100000)
        for (int i = 0; i < 64; i++, pause()) if (ready()) return 0;
    while (!ready()) std::this_thread::sleep_for(std::chrono::microseconds(20));
    return waited();
}

// Threads that stay. `run` gives all of them one job; `sync` and `share` are for use inside it.
class Team {
  public:
    explicit Team(int size) : members_(size) {}
    ~Team() {
        { std::lock_guard<std::mutex> lock(mutex_); stop_ = true; wake_.notify_all(); }
        for (Member& m : members_) if (m.thread.joinable()) m.thread.join();
    }
    // Not in the constructor: if the system gives no more threads, those that run must be let go.
    void start() {
        for (int t = 1; t < size(); t++) members_[t].thread = std::thread([this, t] { work(t); });
    }
    int size() const { return members_.size(); }
    int active(int t) const { return members_[t].active; }

    // job(context, t) on threads 0..active-1, thread 0 being the caller. Returns the nanoseconds for
    // which the caller had to sleep: what a busy machine cost it.
    int64_t run(int active, void (*job)(void*, int), void* context) {
        job_ = job, context_ = context;
        members_[0].active = active, members_[0].slept = 0;
        for (int t = 0; t < active; t++) {  // some may have sat out the last rounds
            members_[t].phase = members_[0].phase.load();
            members_[t].taken[0] = members_[t].taken[1] = 0;
        }
        if (active > 1) {
            round_ = ((round_ >> 8) + 1) << 8 | active;
            if (sleepers_) { std::lock_guard<std::mutex> lock(mutex_); wake_.notify_all(); }
        }
        job(context, 0);
        sync(0);
        return members_[0].slept;
    }

    // Wait until all have come here.
    void sync(int t) {
        Member& me = members_[t];
        const int64_t phase = me.phase.load(std::memory_order_relaxed) + 1;
        me.taken[phase & 1].store(0, std::memory_order_relaxed);  // nobody uses that one any more
        me.phase.store(phase, std::memory_order_release);
        for (int u = 0; u < me.active; u++)
            me.slept += wait_until(
                [&] { return members_[u].phase.load(std::memory_order_acquire) >= phase; });
    }

    // body(i) for i < count, `grain` at a time: first from the thread's own share, then from what
    // others have not begun, so that one that was interrupted holds up a grain only.
    template <class Body> void share(int t, int64_t count, int grain, Body body) {
        const int64_t phase = members_[t].phase.load(std::memory_order_relaxed);
        const int64_t grains = (count + grain - 1) / grain, active = members_[t].active;
        for (int k = 0; k < active; k++) {
            const int64_t u = (t + k) % active, begin = grains * u / active * grain;
            const int64_t end = std::min(count, grains * (u + 1) / active * grain);
            std::atomic<int>& taken = members_[u].taken[phase & 1];
            for (int64_t i; (i = begin + taken.fetch_add(grain, std::memory_order_relaxed)) < end;)
                for (int64_t last = std::min(i + grain, end); i < last; i++) body((int)i);
        }
    }

  private:
    struct alignas(64) Member {
        std::atomic<int64_t> phase{0};  // barriers passed
        std::atomic<int> taken[2] = {{0}, {0}};
        int active = 1;                 // how many take part: each reads its own copy
        int64_t slept = 0;
        std::thread thread;
    };

    void work(int t) {
        for (int64_t seen = 0, now;; seen = now) {
            for (int i = 0; i < 4000 && round_ == seen; i++) pause();
            if (round_ == seen) {
                std::unique_lock<std::mutex> lock(mutex_);
                sleepers_++;
                wake_.wait(lock, [&] { return stop_ || round_ != seen; });
                sleepers_--;
            }
            if (stop_) return;
            now = round_;
            if (t >= (now & 255)) continue;
            members_[t].active = now & 255;
            job_(context_, t);
            sync(t);
        }
    }

    std::vector<Member> members_;
    void (*job_)(void*, int) = nullptr;
    void* context_ = nullptr;
    std::atomic<int64_t> round_{0};  // count of rounds, and in the lowest 8 bits how many take part
    std::atomic<int> sleepers_{0};
    std::mutex mutex_;
    std::condition_variable wake_;
    std::atomic<bool> stop_{false};
};

int up(int n, int to) { return (n + to - 1) / to * to; }

// Zeroed memory at a cache line; a large block takes no memory until it is touched.
struct Arena {
    template <class T> T* take(int64_t n) {
        blocks.emplace_back(std::calloc(n * sizeof(T) + 64, 1), std::free);
        if (!blocks.back()) throw std::bad_alloc();
        return (T*)(((uintptr_t)blocks.back().get() + 63) & ~(uintptr_t)63);
    }
    Acts acts(int64_t tokens, int n) {
        const int cols = up(n, kGroup);
        return {take<int8_t>(tokens * cols), take<float>(tokens * cols / kGroup),
                take<float>(tokens * cols / kGroup), cols, nullptr};
    }
    std::vector<std::unique_ptr<void, void (*)(void*)>> blocks;
};

struct Found {  // the greatest logit so far; of equal ones the first, as argmax has it
    float logit = -INFINITY; int id = 0;
    void keep(Found other) {
        if (other.logit > logit || (other.logit == logit && other.id < id)) *this = other;
    }
};

constexpr int kBlock = 128;      // tokens of a prompt that go through together
constexpr int kLogitBlock = 16;  // and of those, through the head

class Engine {
  public:
    Engine(const Model& model, const Operators& operators, int threads)
        : m(model), op(operators), team(threads) {
        for (int t = 0; t < threads; t++)
            desks.push_back({arena.acts(1, m.hidden), arena.acts(1, width), arena.take<float>(x_step),
                             arena.take<float>(each * D), arena.take<float>(2 * D),
                             arena.take<float>(width), arena.take<float>(4 * kRows * kBlock),
                             arena.take<float>(m.hidden / kGroup + 1), {}, {}});
        team.start();
    }

    // Read n tokens behind what is in the cache, and write the logits (wanted, V) of the last `wanted`
    // of them. If none are wanted, returns the likeliest next token.
    int read(const int32_t* ids, int n, int wanted, float* to) {
        for (int at = 0; at < n; at += kBlock) {
            tokens = std::min(kBlock, n - at), first_id = ids + at;
            first_wanted = std::max(0, n - wanted - at), out = to;
            last = at + tokens == n, greedy = wanted == 0;
            run();
            length += tokens;
            to += (int64_t)std::max(0, tokens - first_wanted) * m.vocab;
        }
        return winner;
    }

    State state{};

  private:
    // Where another program keeps a core busy, a team waits for the member that shares it. If the
    // caller slept for an eighth of the time, steps go solo for a while, and that while doubles until
    // the team, tried again, is the faster one.
    void run() {
        const auto start = Clock::now();
        const bool together = team.size() > 1 && solo_left == 0;
        const double slept = team.run(together ? team.size() : 1, [](void* self, int t) {
            static_cast<Engine*>(self)->forward(t);
        }, this);
        const double took = (Clock::now() - start).count();
        (together ? state.team_steps : state.solo_steps)++;
        if (tokens > 1 || team.size() == 1) return;
        if (!together) {
            solo_ns = solo_ns ? solo_ns + (took - solo_ns) / 8 : took;
            if (--solo_left == 0) team_ns = 0;
            return;
        }
        team_ns = team_ns ? team_ns + (took - team_ns) / 8 : took;
        slept_ns += (slept - slept_ns) / 8;
        if (slept_ns > team_ns / 8 && (solo_ns == 0 || team_ns > solo_ns)) {
            patience = solo_ns ? std::min(2 * patience, 256) : 4;
            solo_left = patience;
        } else if (slept_ns < team_ns / 32) patience = 4;
    }

    // ---- One step: `tokens` tokens through all layers ----------------------------------------------
    void forward(int t) {
        if (t == 0) mark = Clock::now();
        team.share(t, tokens, 1, [&](int i) { embed(first_id[i], x + i * x_step); });
        done(t, kHead);
        for (int n = 0; n < m.num_layers; n++) {
            const Layer& layer = m.layers[n];
            matmul(t, layer.qkv, normed(t, layer.attention_norm), qkv, qkv_step, false);
            done(t, kQkv);
            matmul(t, layer.o, attention(t, n), x, x_step, true);
            done(t, kO);
            feed_forward(t, layer, normed(t, layer.ffn_norm));
            done(t, kGateUp);
            matmul(t, layer.down, ffn_acts, x, x_step, true);
            done(t, kDown);
        }
        if (!greedy) all_logits(t);
        else if (last) best(t);
        count(t, kHead);
    }

    // Thread 0 keeps the time: what has passed since the last mark was spent on `part`.
    void count(int t, Part part) {
        if (t != 0) return;
        const auto now = Clock::now();
        state.spent[part] += (now - mark).count(), mark = now;
    }
    void done(int t, Part part) { count(t, part), team.sync(t), count(t, kWaiting); }

    // body(tile, stride, count) for the tiles of a matrix, four at a time, a quarter of it apart.
    template <class Body> void for_units(int t, const Linear& w, int grain, Body body) {
        const int tiles = up(w.high.rows, kRows) / kRows, quarter = (tiles + 3) / 4;
        team.share(t, quarter, grain,
                   [&](int i) { body(i, quarter, (tiles - i + quarter - 1) / quarter); });
    }

    void multiply(const Linear& w, int tile, int stride, int count, const Acts& in, int of, float* y,
                  int64_t next, int64_t step, bool add) const {
        op.matmul(w.high, tile, stride, count, in, of, y, next, step, add, nullptr);
        if (w.low.codes) op.matmul(w.low, tile, stride, count, in, of, y, next, step, true, nullptr);
    }

    void matmul(int t, const Linear& w, const Acts& in, float* y, int64_t step, bool add) {
        for_units(t, w, 1, [&](int tile, int stride, int count) {
            multiply(w, tile, stride, count, in, tokens, y + tile * kRows, stride * kRows, step, add);
        });
    }

    // RMSNorm and int8. A single token is done by every thread for itself: cheaper than a barrier.
    const Acts& normed(int t, const float* weight) {
        Desk& desk = desks[t];
        const auto norm = [&](int i, const Acts& to, int at) {
            op.rms_norm(x + i * x_step, weight, m.eps, m.hidden, desk.x);
            op.quantize(desk.x, m.hidden, to, at);
        };
        if (tokens == 1) return norm(0, desk.normed, 0), desk.normed;
        team.share(t, tokens, 1, [&](int i) { norm(i, normed_acts, i); });
        team.sync(t);
        return normed_acts;
    }

    // The four tiles of a unit are 32 rows of gate and the same of up: whoever has them finishes 32
    // values, a whole group, and no barrier is needed.
    void feed_forward(int t, const Layer& layer, const Acts& in) {
        float* y = desks[t].gate_up;
        const int groups = ffn_acts.cols / kGroup;
        for_units(t, layer.gate_up, 1, [&](int unit, int stride, int count) {
            multiply(layer.gate_up, unit, stride, count, in, tokens, y, kRows, 4 * kRows, false);
            for (int i = 0; i < tokens; i++) {
                float h[kGroup];
                op.swiglu(y + i * 4 * kRows, y + i * 4 * kRows + kGroup, kGroup, h);
                op.quantize(h, kGroup, {ffn_acts.q + (int64_t)i * ffn_acts.cols + unit * kGroup,
                                        ffn_acts.scale + i * groups + unit,
                                        ffn_acts.sum + i * groups + unit, kGroup, nullptr}, 0);
            }
        });
    }

    // ---- Attention -------------------------------------------------------------------------------
    // Turn pair (d, d + head_dim / 2) of new position i by its angle.
    void rotate(const float* in, int i, float scale, float* to) const {
        const int half = m.head_dim / 2;
        const float *cosines = m.turns + (int64_t)(length + i) * m.head_dim, *sines = cosines + half;
        for (int d = 0; d < half; d++) {
            to[d] = (in[d] * cosines[d] - in[half + d] * sines[d]) * scale;
            to[half + d] = (in[half + d] * cosines[d] + in[d] * sines[d]) * scale;
        }
    }

    // The keys and values of a chunk lie together for all layers and heads, in the order of their use.
    Chunk cache(int layer, int g, int chunk) const {
        uint16_t* at = kept + (((int64_t)chunk * m.num_layers + layer) * m.kv_heads + g) * 2 * kChunk * D;
        return {at, at + kChunk * D};
    }

    void append(int t, int layer, int i, int g) {
        float *k = desks[t].kv, *v = k + D;
        const float* row = qkv + i * qkv_step + width + g * m.head_dim;
        rotate(row, i, 1, k);
        std::copy_n(row + m.kv_heads * m.head_dim, m.head_dim, v);
        op.store(cache(layer, g, (length + i) / kChunk), (length + i) % kChunk, D, k, v);
    }

    // A softmax over chunks begin..end of the cache, for token i and all queries that share head g;
    // it is left unfinished in `parts`, row `slot`.
    void attend(int t, int layer, int i, int g, int begin, int end, int slot) {
        float* q = desks[t].q;
        Softmax state[kMaxGroup];
        for (int r = 0; r < each; r++) {
            rotate(qkv + i * qkv_step + (g * each + r) * m.head_dim, i,
                   1 / std::sqrt((float)m.head_dim), q + r * D);
            float* part = parts + ((int64_t)slot * m.heads + g * each + r) * part_step;
            std::fill_n(part, part_step, 0.f);
            state[r] = {-INFINITY, 0, part + 2};
        }
        for (int c = begin; c < end; c++)
            op.attend(cache(layer, g, c), std::min(length + i + 1 - c * kChunk, kChunk), D, q, each, state);
        for (int r = 0; r < each; r++) state[r].o[-2] = state[r].max, state[r].o[-1] = state[r].sum;
    }

    // Put `count` parts from `slot` on together for all heads, as int8: o = Σ e^max o / Σ e^max sum.
    void merge(int t, int slot, int count, const Acts& to, int at) {
        const int64_t step = m.heads * part_step;
        for (int h = 0; h < m.heads; h++) {
            const float* part = parts + slot * step + h * part_step;
            float most = -INFINITY, sum = 0, *o = desks[t].o + h * m.head_dim;
            for (int c = 0; c < count; c++) most = std::max(most, part[c * step]);
            std::fill_n(o, m.head_dim, 0.f);
            for (int c = 0; c < count; c++) {
                const float weight = std::exp(part[c * step] - most);
                sum += weight * part[c * step + 1];
                for (int d = 0; d < m.head_dim; d++) o[d] += weight * part[c * step + 2 + d];
            }
            for (int d = 0; d < m.head_dim; d++) o[d] /= sum;
        }
        op.quantize(desks[t].o, width, to, at);
    }

    // One token: the threads share the chunks of the cache, and every thread puts the parts together
    // for itself (Flash-Decoding). Many tokens: the threads share them.
    const Acts& attention(int t, int layer) {
        const int G = m.kv_heads;
        if (tokens == 1) {
            const int chunks = length / kChunk + 1;
            team.share(t, G * chunks, 1, [&](int item) {
                const int g = item % G, chunk = item / G;
                if (chunk == chunks - 1) append(t, layer, 0, g);
                attend(t, layer, 0, g, chunk, chunk + 1, chunk);
            });
            done(t, kAttention);
            merge(t, 0, chunks, desks[t].attention, 0);
            count(t, kAttention);
            return desks[t].attention;
        }
        team.share(t, tokens * G, 1, [&](int item) { append(t, layer, item / G, item % G); });
        done(t, kAttention);
        team.share(t, tokens * G, 1, [&](int item) {
            attend(t, layer, item / G, item % G, 0, (length + item / G) / kChunk + 1, item / G);
        });
        done(t, kAttention);
        team.share(t, tokens, 1, [&](int i) { merge(t, i, 1, attention_acts, i); });
        done(t, kAttention);
        return attention_acts;
    }

    // ---- Embedding and head ------------------------------------------------------------------------
    void embed(int id, float* to) const {  // one row, out of its tile
        std::fill_n(to, x_step, 0.f);
        for (const Matrix* w : {&m.embedding.high, &m.embedding.low})
            for (int c = 0; w->codes && c < m.hidden; c++) {
                const int64_t group = c / kGroup, i = c % kGroup, r = id % kRows;
                const int64_t block = id / kRows * (w->cols / kGroup / w->groups) + group / w->groups;
                const uint8_t byte = w->codes[block * w->code_step + group % w->groups * 256 +
                                              i % 16 / 4 * 64 + r * 4 + i % 4];
                const uint16_t* halves = (const uint16_t*)(w->scales + block * w->scale_step) + r;
                const float scale = from_half(halves[0]);
                to[c] += w->factor * scale * (i < 16 ? byte & 15 : byte >> 4) +
                         (w->mins ? from_half(halves[kRows]) : w->ratio * scale);
            }
    }

    // The likeliest token. Of an 8-bit head the high half alone is multiplied first, at half the bytes.
    // What a low half l (0..15) would add to a row, Σ scale (l - 7.5) x, is a sum of hundreds of small
    // terms, of variance 255/12 Σ (scale |x|)² if l is as good as random. Only rows that 5.5 standard
    // deviations could lift over the best one, lowered by as much, get their low half too. That is a
    // bet, not a proof: one row in 50 million differs by more.
    void best(int t) {
        const float far = 5.5f * std::sqrt(255.f / 12);
        Desk& desk = desks[t];
        op.rms_norm(x + (tokens - 1) * x_step, m.norm, m.eps, m.hidden, desk.x);
        op.quantize(desk.x, m.hidden, desk.normed, 0);
        std::fill_n(desk.energy, desk.normed.cols / kGroup, 0.f);
        for (int i = 0; i < m.hidden; i++) desk.energy[i / kGroup] += desk.x[i] * desk.x[i];
        desk.normed.energy = desk.energy;
        desk.coarse = desk.exact = Found();
        const bool two = m.head.low.codes;
        for_units(t, m.head, 4, [&](int first, int stride, int count) {
            op.matmul(m.head.high, first, stride, count, desk.normed, 1, logits + first * kRows,
                      stride * kRows, 0, false, two ? spread + first * kRows : nullptr);
            for (int k = 0; k < count; k++) look(desk.coarse, first + k * stride);
        });
        team.sync(t);
        if (two) {
            const Found coarse = best_of_all(t, &Desk::coarse);
            const float lower = coarse.logit - far * spread[coarse.id];
            team.share(t, logit_step / kRows, 64, [&](int tile) {
                float* y = logits + tile * kRows;
                if (op.reach(y, spread + tile * kRows, far) < lower) return;
                op.matmul(m.head.low, tile, 0, 1, desk.normed, 1, y, 0, 0, true, nullptr);
                look(desk.exact, tile);
            });
            team.sync(t);
        }
        if (t == 0) winner = best_of_all(t, two ? &Desk::exact : &Desk::coarse).id;
    }

    void look(Found& found, int tile) const {
        const float* y = logits + tile * kRows;
        if (op.reach(y, y, 0) < found.logit) return;
        for (int r = 0; r < std::min(kRows, m.vocab - tile * kRows); r++)
            found.keep({y[r], tile * kRows + r});
    }

    void all_logits(int t) {
        for (int at = first_wanted; at < tokens; at += kLogitBlock) {
            const int count = std::min(kLogitBlock, tokens - at);
            team.share(t, count, 1, [&](int i) {
                op.rms_norm(x + (at + i) * x_step, m.norm, m.eps, m.hidden, desks[t].x);
                op.quantize(desks[t].x, m.hidden, normed_acts, i);
            });
            team.sync(t);
            for_units(t, m.head, 4, [&](int tile, int stride, int n) {
                multiply(m.head, tile, stride, n, normed_acts, count, logits + tile * kRows,
                         stride * kRows, logit_step, false);
            });
            team.sync(t);
            team.share(t, count, 1, [&](int i) {
                std::copy_n(logits + i * logit_step, m.vocab, out + (at - first_wanted + i) * (int64_t)m.vocab);
            });
            team.sync(t);
        }
    }

    struct Desk {  // what a thread keeps for itself
        Acts normed, attention;
        float *x, *q, *kv, *o, *gate_up, *energy;
        Found coarse, exact;
    };

    Found best_of_all(int t, Found Desk::* which) const {
        Found found;
        for (int u = 0; u < team.active(t); u++) found.keep(desks[u].*which);
        return found;
    }

    const Model m;
    const Operators& op;
    Team team;
    Arena arena;
    const int D = up(m.head_dim, 16), width = m.heads * m.head_dim, each = m.heads / m.kv_heads;
    const int64_t room = up(m.context, kChunk), x_step = up(m.hidden, kRows), part_step = D + 2;
    const int64_t qkv_step = up(width + 2 * m.kv_heads * m.head_dim, kRows), logit_step = up(m.vocab, kRows);
    uint16_t* const kept = arena.take<uint16_t>(2 * m.num_layers * m.kv_heads * room * D);
    float* const x = arena.take<float>(kBlock * x_step);
    float* const qkv = arena.take<float>(kBlock * qkv_step);
    float* const parts = arena.take<float>(std::max<int64_t>(kBlock, room / kChunk) * m.heads * part_step);
    float* const logits = arena.take<float>(kLogitBlock * logit_step);
    float* const spread = arena.take<float>(logit_step);
    const Acts normed_acts = arena.acts(kBlock, m.hidden), attention_acts = arena.acts(kBlock, width);
    const Acts ffn_acts = arena.acts(kBlock, m.ffn);
    std::vector<Desk> desks;

    // The step under way: its tokens, from which on logits are wanted, and whether it ends the text.
    int tokens = 0, first_wanted = 0, winner = 0;
    bool last = false, greedy = false;
    const int32_t* first_id = nullptr;
    float* out = nullptr;
    int& length = state.length;
    int solo_left = 0, patience = 4;
    Clock::time_point mark;
    double solo_ns = 0, team_ns = 0, slept_ns = 0;  // smoothed, of a step
};

}  // namespace

// ---- What Python calls -----------------------------------------------------------------------------
extern "C" {
extern const Operators operators_plain;
#if defined(__x86_64__)
extern const Operators operators_avx2, operators_avx512;
#endif

// The table for an instruction set; null for one that this processor does not have.
const Operators* find_operators(const char* name) {
    const auto is = [&](const char* other) { return std::strcmp(name, other) == 0; };
#if defined(__x86_64__)
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (is("avx2") && avx2) return &operators_avx2;
    if (is("avx512") && avx2 && __builtin_cpu_supports("avx512vnni") &&
        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl"))
        return &operators_avx512;
#endif
    return is("plain") ? &operators_plain : nullptr;
}

// The weights that `model` points to must outlive the engine. Null if there is no memory, or no thread.
void* engine_new(const Model* model, const Operators* op, int threads) {
    try { return new Engine(*model, *op, threads); } catch (...) { return nullptr; }
}
void engine_free(void* engine) { delete static_cast<Engine*>(engine); }

// See Engine::read. The caller has checked the ids, and that they fit the context.
int engine_read(void* engine, const int32_t* ids, int n, int wanted, float* out) {
    return static_cast<Engine*>(engine)->read(ids, n, wanted, out);
}

// Up to n greedy tokens after `id`, which is not yet in the cache; stops behind one of `ends`.
int engine_generate(void* engine, int32_t id, int n, const int32_t* ends, int num_ends, int32_t* out) {
    for (int i = 0; i < n; i++) {
        out[i] = id = engine_read(engine, &id, 1, 0, nullptr);
        if (std::find(ends, ends + num_ends, id) != ends + num_ends) return i + 1;
    }
    return n;
}

State* engine_state(void* engine) { return &static_cast<Engine*>(engine)->state; }
}
