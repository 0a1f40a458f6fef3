/* kern_avx2_q8.c - sealing rows into bytes and attention over them for AVX2 (kern_q8.h says what is rounded).
 *
 * Bytes are extended to 16 bits and multiplied by integers of 16 bits, two products to a sum: with queries as they are, and with the weights of two rows, whose values
 * are interleaved.  (vpmaddubsw takes bytes, but its sums of two products do not fit.)  Scores of three queries or more: eight rows are transposed in registers, so that a
 * lane is a position and nothing is folded.  One or two queries, or a few rows that share a scale: the tree over the lanes.  All sums are exact: every way gives the same
 * bits.
 * Bounds: memory for few queries (2 * n * dim bytes), else 2 / 16 of vpmaddwd and vpaddd per query, position and element: on Zen 4 such a pair takes 0.63 cycles. */
#include "kern_avx2.h"
#include "kern_q8.h"

#include <string.h>

enum {
    STEP = 32,      /* elements of a query of which the even and the odd ones are apart */
    LANE_GROUP = 8, /* queries per register tile where a lane is a position */
    FEW = 2,        /* queries up to which the tree over lanes is cheaper */
    FEW_ROWS = 8,   /* rows of one scale, likewise */
};

/* ---- sealing --------------------------------------------------------------------------------------------------------- */

/* Sixteen halves; infinities and what is not a number become the largest. */
KERN_INLINE __m256i halves(const kern_f16 *p)
{
    __m256i h = _mm256_loadu_si256((const __m256i *)(const void *)p), low = _mm256_set1_epi16(0x7fff);
    return _mm256_or_si256(_mm256_andnot_si256(low, h), _mm256_min_epu16(_mm256_and_si256(h, low), _mm256_set1_epi16(0x7bff)));
}

KERN_INLINE __m256i magnitudes(const kern_f16 *p)
{
    return _mm256_and_si256(halves(p), _mm256_set1_epi16(0x7fff));
}

KERN_INLINE __m256 lower_floats(__m256i h)
{
    return _mm256_cvtph_ps(_mm256_castsi256_si128(h));
}

KERN_INLINE __m256 upper_floats(__m256i h)
{
    return _mm256_cvtph_ps(_mm256_extracti128_si256(h, 1));
}

/* 127 / most, 0 where that is 0. */
KERN_INLINE __m256 inverse_of(__m256 most)
{
    return _mm256_and_ps(_mm256_div_ps(_mm256_set1_ps(127), most), _mm256_cmp_ps(most, _mm256_setzero_ps(), _CMP_GT_OQ));
}

KERN_INLINE void store_bytes(int8_t *out, __m256i h, __m256 lower, __m256 upper)
{
    __m256i a = _mm256_cvtps_epi32(_mm256_mul_ps(lower_floats(h), lower)), b = _mm256_cvtps_epi32(_mm256_mul_ps(upper_floats(h), upper));
    __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(a, b), 0xd8);
    __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    _mm_storeu_si128((__m128i *)(void *)out, bytes);
}

static void quantise(const kern_f16 *rows, size_t n_rows, size_t dim, int8_t *out, float *k_scale, float *v_scale)
{
    const size_t width = 2 * dim;
    const __m256 steps = _mm256_set1_ps(127);
    for (size_t d = 0; d < dim; d += KERN_LANES) {
        __m256i most = _mm256_setzero_si256();
        for (size_t i = 0; i < n_rows; i++) most = _mm256_max_epu16(most, magnitudes(rows + i * width + d));
        __m256 lower = lower_floats(most), upper = upper_floats(most);
        _mm256_storeu_ps(k_scale + d, _mm256_div_ps(lower, steps));
        _mm256_storeu_ps(k_scale + d + AVX2_LANES, _mm256_div_ps(upper, steps));
        lower = inverse_of(lower), upper = inverse_of(upper);
        for (size_t i = 0; i < n_rows; i++) store_bytes(out + i * width + d, halves(rows + i * width + d), lower, upper);
    }
    for (size_t i = 0; i < n_rows; i++) {
        const kern_f16 *v = rows + i * width + dim;
        __m256i most = _mm256_setzero_si256();
        for (size_t d = 0; d < dim; d += KERN_LANES) most = _mm256_max_epu16(most, magnitudes(v + d));
        /* vphminposuw finds the least of eight. */
        __m128i least = _mm_xor_si128(_mm_max_epu16(_mm256_castsi256_si128(most), _mm256_extracti128_si256(most, 1)), _mm_set1_epi16(-1));
        __m128i largest = _mm_xor_si128(_mm_minpos_epu16(least), _mm_set1_epi16(-1));
        __m256 size = _mm256_broadcastss_ps(_mm_cvtph_ps(largest)), inverse = inverse_of(size);
        v_scale[i] = _mm256_cvtss_f32(_mm256_div_ps(size, steps));
        for (size_t d = 0; d < dim; d += KERN_LANES) store_bytes(out + i * width + dim + d, halves(v + d), inverse, inverse);
    }
}

/* ---- queries as integers --------------------------------------------------------------------------------------------- */

/* One tile for one block of queries. */
typedef struct tile_step {
    const kern_attend_args *a;
    q8_work *w;
    q8_walk *walk;
    const kern_tile *t;
    size_t q0; /* the block's first query */
    kern_hint hint;
} tile_step;

/* Weights of KERN_GROUP queries; a lane is two positions.  step 0: all are zero. */
typedef struct tile_weights {
    _Alignas(32) int32_t pairs[KERN_GROUP][KERN_TILE / 2];
    float step[KERN_GROUP];
} tile_weights;

/* Rounds sixteen floats to integers of 16 bits, which they fit. */
KERN_INLINE __m256i rounded(__m256 lower, __m256 upper)
{
    return _mm256_permute4x64_epi64(_mm256_packs_epi32(_mm256_cvtps_epi32(lower), _mm256_cvtps_epi32(upper)), 0xd8);
}

/* Sixteen elements of a query as integers. */
KERN_INLINE __m256i query_words(const float *q, const float *k_scale, __m256 inverse)
{
    __m256 x = avx2_within_floats(_mm256_mul_ps(_mm256_loadu_ps(q), _mm256_loadu_ps(k_scale)));
    __m256 y = avx2_within_floats(_mm256_mul_ps(_mm256_loadu_ps(q + AVX2_LANES), _mm256_loadu_ps(k_scale + AVX2_LANES)));
    return rounded(_mm256_mul_ps(x, inverse), _mm256_mul_ps(y, inverse));
}

/* The n queries of the block for rows of one k_scale.  Of each STEP elements first the even ones, then the odd ones, as even_words and odd_words have them; zero behind
 * the last.  All maxima first: a query's division waits, the next query's maximum does not. */
static void prepare(const tile_step *st, size_t n, const float *k_scale)
{
    const size_t dim = st->a->dim;
    const __m256 sign = _mm256_set1_ps(-0.0f);
    const __m256i low = _mm256_set1_epi32(0xffff);
    float inverse[Q8_BLOCK];
    for (size_t i = 0; i < n; i++) {
        const float *q = st->a->q + (st->q0 + i) * st->a->q_stride;
        __m256 most[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
        for (size_t d = 0; d < dim; d += KERN_LANES)
            KERN_UNROLL for (size_t k = 0; k < 2; k++) {
                __m256 x = _mm256_mul_ps(_mm256_loadu_ps(q + d + k * AVX2_LANES), _mm256_loadu_ps(k_scale + d + k * AVX2_LANES));
                most[k] = _mm256_max_ps(most[k], _mm256_andnot_ps(sign, x));
            }
        float largest = avx2_largest(_mm256_min_ps(_mm256_max_ps(most[0], most[1]), _mm256_set1_ps(FLT_MAX)));
        inverse[i] = largest >= KERN_Q8_LEAST ? KERN_Q8_MOST / largest : 0;
        st->w->step[i] = largest >= KERN_Q8_LEAST ? largest / KERN_Q8_MOST : 0;
    }
    for (size_t i = 0; i < n; i++) {
        const float *q = st->a->q + (st->q0 + i) * st->a->q_stride;
        int16_t *out = st->w->q + i * st->w->q_stride;
        __m256 inv = _mm256_set1_ps(inverse[i]);
        for (size_t d = 0; d < dim; d += STEP) {
            __m256i x = query_words(q + d, k_scale + d, inv), y = _mm256_setzero_si256();
            if (d + KERN_LANES < dim) y = query_words(q + d + KERN_LANES, k_scale + d + KERN_LANES, inv);
            __m256i even = _mm256_packus_epi32(_mm256_and_si256(x, low), _mm256_and_si256(y, low));
            __m256i odd = _mm256_packus_epi32(_mm256_srli_epi32(x, 16), _mm256_srli_epi32(y, 16));
            _mm256_storeu_si256((__m256i *)(void *)(out + d), _mm256_permute4x64_epi64(even, 0xd8));
            _mm256_storeu_si256((__m256i *)(void *)(out + d + KERN_LANES), _mm256_permute4x64_epi64(odd, 0xd8));
        }
    }
}

/* Each pair of n <= LANE_GROUP queries from i on eight times, for lanes_group: for each quad of elements the even ones of every query, then the odd ones.  They lie behind
 * the integers themselves, where kern_attend_scratch leaves room: of its (256 + 128 dim) words, dim at least 64, scores, quads and integers take 2048 + 32 q_stride, and these 32 dim. */
KERN_INLINE __m256i *spread_pairs(const q8_work *w)
{
    return (__m256i *)(void *)(w->q + Q8_BLOCK * w->q_stride);
}

static void spread(const q8_work *w, size_t dim, size_t i, size_t n)
{
    enum { PAIRS = STEP / 2 };
    for (size_t g = 0; g < n; g++) {
        const int16_t *q = w->q + (i + g) * w->q_stride;
        __m256i *out = spread_pairs(w) + g;
        int32_t pairs[PAIRS];
        for (size_t d = 0; d < dim; d += STEP) {
            memcpy(pairs, q + d, sizeof pairs);
            for (size_t e = 0; e < PAIRS / 2; e++, out += 2 * n) {
                _mm256_storeu_si256(out, _mm256_set1_epi32(pairs[e]));
                _mm256_storeu_si256(out + n, _mm256_set1_epi32(pairs[PAIRS / 2 + e]));
            }
        }
    }
}

/* q8_ask_lines for pairs of lines, of the same row where dim is a multiple of 64: half the instructions. */
KERN_INLINE void ask_pairs(q8_ask *c, const int n, kern_hint hint)
{
    enum { LINE = 64 };
    if (!c->at) {
        return; /* braces: clang takes the pragma below for the end of what an if has */
    }
    KERN_UNROLL for (int i = 0; i < n; i++) {
        if (hint == KERN_HINT_T0) _mm_prefetch((const void *)c->at, _MM_HINT_T0), _mm_prefetch((const void *)(c->at + LINE), _MM_HINT_T0);
        else _mm_prefetch((const void *)c->at, _MM_HINT_T1), _mm_prefetch((const void *)(c->at + LINE), _MM_HINT_T1);
        c->at += 2 * LINE;
        if (c->at < c->end) continue;
        if (c->next < c->last) c->next++;
        c->at = *c->next;
        c->end = c->at + c->row_bytes;
    }
}

/* ---- scores ---------------------------------------------------------------------------------------------------------- */

/* avx2_fold8 for integers. */
KERN_INLINE __m256i fold8(__m256i *v)
{
    KERN_UNROLL for (int i = 0; i < 4; i++)
        v[i] = _mm256_add_epi32(_mm256_blend_epi32(v[i], v[i + 4], 0xf0), _mm256_permute2x128_si256(v[i], v[i + 4], 0x21));
    KERN_UNROLL for (int i = 0; i < 2; i++) {
        __m256d cross = _mm256_shuffle_pd(_mm256_castsi256_pd(v[i]), _mm256_castsi256_pd(v[i + 2]), 0x5);
        v[i] = _mm256_add_epi32(_mm256_blend_epi32(v[i], v[i + 2], 0xcc), _mm256_castpd_si256(cross));
    }
    return _mm256_add_epi32(_mm256_blend_epi32(v[0], v[1], 0xaa), _mm256_shuffle_epi32(_mm256_blend_epi32(v[0], v[1], 0x55), 0xb1));
}

/* Bytes 0, 2, 4, ... and 1, 3, 5, ... of a vector: one instruction each, without a move between lanes. */
KERN_INLINE __m256i even_words(__m256i x)
{
    return _mm256_maddubs_epi16(_mm256_set1_epi16(1), x);
}

KERN_INLINE __m256i odd_words(__m256i x)
{
    return _mm256_srai_epi16(x, 8);
}

KERN_INLINE __m256i add_products(__m256i sum, __m256i a, __m256i b)
{
    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(a, b));
    AVX2_KEPT(sum);
    return sum;
}

KERN_INLINE __m256i words_at(const int16_t *p)
{
    return _mm256_loadu_si256((const __m256i *)(const void *)p);
}

/* Where a register tile of n_t rows that is to score row t starts: all its rows are the tile's.  It may score some again, or some beyond the end of a run, which are
 * written again later or not seen. */
KERN_INLINE uint32_t first_of(uint32_t t, const int n_t)
{
    const uint32_t last = KERN_TILE - (uint32_t)n_t;
    return t < last ? t : last;
}

/* n_t scores of n_q queries from i on, for rows from `first` on, to those of them that are scores from t on. */
KERN_INLINE void keep_scores(const tile_step *st, size_t i, uint32_t first, uint32_t t, __m256i sums, __m256 step, const int n_q, const int n_t)
{
    float *s = st->w->s + i * KERN_TILE + first, part[AVX2_LANES];
    __m256 x = avx2_within_floats(_mm256_mul_ps(_mm256_cvtepi32_ps(sums), step));
    if (first == t && n_t == AVX2_LANES) {
        _mm256_storeu_ps(s, x);
    } else if (first == t && n_t == AVX2_LANES / 2) {
        _mm_storeu_ps(s, _mm256_castps256_ps128(x));
        _mm_storeu_ps(s + KERN_TILE, _mm256_extractf128_ps(x, 1));
    } else {
        _mm256_storeu_ps(part, x);
        for (int g = 0; g < n_q; g++)
            for (int k = (int)(t - first); k < n_t; k++) s[g * KERN_TILE + k] = part[g * n_t + k];
    }
}

/* Scores of n_q queries from i on for the rows [from, to), by the tree over lanes.  The last vector of K may reach into V: the query is zero there. */
KERN_INLINE void tree_group(const tile_step *st, q8_ask *asked, size_t i, uint32_t from, uint32_t to, const int n_q)
{
    const int n_t = n_q == 3 ? 2 : AVX2_LANES / n_q;
    const size_t dim = st->a->dim, stride = st->w->q_stride;
    const int16_t *q = st->w->q + i * stride;
    const kern_hint hint = st->hint;
    q8_ask ask = *asked;
    float steps[AVX2_LANES] = {0};
    for (int g = 0; g < n_q; g++)
        for (int k = 0; k < n_t; k++) steps[g * n_t + k] = st->w->step[i + (size_t)g];
    __m256 step = _mm256_loadu_ps(steps);
    for (uint32_t t = from; t < to; t += (uint32_t)n_t) {
        const uint32_t first = first_of(t, n_t);
        const unsigned char *const *row = st->t->rows + first;
        __m256i acc[AVX2_LANES];
        KERN_UNROLL for (int k = 0; k < AVX2_LANES; k++) acc[k] = _mm256_setzero_si256();
        for (size_t d = 0; d < dim; d += STEP) {
            if (n_t > 2 || d % (2 * STEP) == 0) ask_pairs(&ask, (n_t + 3) / 4, hint);
            KERN_UNROLL for (int k = 0; k < n_t; k++) {
                __m256i x = _mm256_loadu_si256((const __m256i *)(const void *)(row[k] + d)), even = even_words(x), odd = odd_words(x);
                KERN_UNROLL for (int g = 0; g < n_q; g++) {
                    const int16_t *v = q + (size_t)g * stride + d;
                    acc[g * n_t + k] = add_products(acc[g * n_t + k], even, words_at(v));
                    acc[g * n_t + k] = add_products(acc[g * n_t + k], odd, words_at(v + KERN_LANES));
                }
            }
        }
        keep_scores(st, i, first, t, fold8(acc), step, n_q, n_t);
    }
    *asked = ask;
}

KERN_INLINE __m256i two_rows(const unsigned char *first, const unsigned char *second)
{
    __m256i x = _mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)(const void *)first));
    return _mm256_inserti128_si256(x, _mm_loadu_si128((const __m128i *)(const void *)second), 1);
}

/* Sixteen elements of eight rows: lane i of k[e] is quad e of row i. */
KERN_INLINE void quads_of_rows(const unsigned char *const *row, size_t d, __m256i *k)
{
    __m256i x[4]; /* 128-bit part b of x[j]: row 4 b + j */
    KERN_UNROLL for (int j = 0; j < 4; j++) x[j] = two_rows(row[j] + d, row[j + 4] + d);
    __m256i a = _mm256_unpacklo_epi32(x[0], x[1]), b = _mm256_unpackhi_epi32(x[0], x[1]);
    __m256i c = _mm256_unpacklo_epi32(x[2], x[3]), e = _mm256_unpackhi_epi32(x[2], x[3]);
    k[0] = _mm256_unpacklo_epi64(a, c);
    k[1] = _mm256_unpackhi_epi64(a, c);
    k[2] = _mm256_unpacklo_epi64(b, e);
    k[3] = _mm256_unpackhi_epi64(b, e);
}

/* The same with a row in each lane. */
KERN_INLINE void lanes_group(const tile_step *st, q8_ask *asked, size_t i, uint32_t from, uint32_t to, const int n_q)
{
    const size_t dim = st->a->dim;
    const kern_hint hint = st->hint;
    q8_ask ask = *asked;
    for (uint32_t t = from; t < to; t += AVX2_LANES) {
        const uint32_t first = first_of(t, AVX2_LANES);
        const unsigned char *const *row = st->t->rows + first;
        const __m256i *q = spread_pairs(st->w);
        __m256i acc[LANE_GROUP];
        KERN_UNROLL for (int g = 0; g < n_q; g++) acc[g] = _mm256_setzero_si256();
        for (size_t d = 0; d < dim; d += KERN_LANES, q += 4 * 2 * n_q) {
            __m256i k[4];
            quads_of_rows(row, d, k);
            ask_pairs(&ask, 1, hint);
            KERN_UNROLL for (int e = 0; e < 4; e++) {
                __m256i even = even_words(k[e]), odd = odd_words(k[e]);
                KERN_UNROLL for (int g = 0; g < n_q; g++) {
                    acc[g] = add_products(acc[g], even, _mm256_loadu_si256(q + e * 2 * n_q + g));
                    acc[g] = add_products(acc[g], odd, _mm256_loadu_si256(q + (e * 2 + 1) * n_q + g));
                }
            }
        }
        KERN_UNROLL for (int g = 0; g < n_q; g++) {
            __m256 step = _mm256_set1_ps(st->w->step[i + (size_t)g]);
            keep_scores(st, i + (size_t)g, first, t, acc[g], step, 1, AVX2_LANES);
        }
    }
    *asked = ask;
}

/* ---- weights --------------------------------------------------------------------------------------------------------- */

/* Query q0 + i has a score, top, larger than any before: what it has is scaled to that. */
static void raise_maximum(const tile_step *st, size_t i, float top)
{
    float *m = &st->w->w.m[st->q0 + i], *o = st->a->o + (st->q0 + i) * st->a->o_stride;
    if (*m > -INFINITY) { /* else it has nothing */
        __m256 c = avx2_exp(_mm256_set1_ps(*m - top));
        for (size_t d = 0; d < st->a->dim; d += AVX2_LANES) _mm256_storeu_ps(o + d, _mm256_mul_ps(c, _mm256_loadu_ps(o + d)));
        st->w->w.l[st->q0 + i] *= _mm256_cvtss_f32(c);
    }
    *m = top;
}

enum { ABREAST = 4 }; /* vectors of exponentials at once */

/* p = p * r + c for all, and only then the next: what waits in the scheduler is then not one vector's chain alone. */
KERN_INLINE void horner(__m256 *p, const __m256 *r, float c)
{
    KERN_UNROLL for (int v = 0; v < ABREAST; v++) p[v] = _mm256_fmadd_ps(p[v], r[v], _mm256_set1_ps(c));
    __asm__("" : "+x"(p[0]), "+x"(p[1]), "+x"(p[2]), "+x"(p[3]));
}

/* avx2_exp of vectors in step. */
KERN_INLINE void exp_abreast(__m256 *x)
{
    const __m256 least = _mm256_set1_ps(KERN_EXP_MIN);
    __m256 r[ABREAST], p[ABREAST], scale[ABREAST];
    KERN_UNROLL for (int v = 0; v < ABREAST; v++) {
        __m256 d = _mm256_max_ps(x[v], least);
        __m256 n = _mm256_round_ps(_mm256_mul_ps(d, _mm256_set1_ps(KERN_LOG2E)), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
        __m256i power = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
        scale[v] = _mm256_and_ps(_mm256_cmp_ps(x[v], least, _CMP_GE_OQ), _mm256_castsi256_ps(power));
        r[v] = _mm256_fnmadd_ps(n, _mm256_set1_ps(KERN_LN2_LOW), _mm256_fnmadd_ps(n, _mm256_set1_ps(KERN_LN2_HIGH), d));
        p[v] = _mm256_set1_ps(KERN_EXP_C7);
    }
    horner(p, r, KERN_EXP_C6);
    horner(p, r, KERN_EXP_C5);
    horner(p, r, KERN_EXP_C4);
    horner(p, r, KERN_EXP_C3);
    horner(p, r, 0.5f);
    horner(p, r, 1.0f);
    horner(p, r, 1.0f);
    KERN_UNROLL for (int v = 0; v < ABREAST; v++) x[v] = _mm256_mul_ps(p[v], scale[v]);
}

/* Exponentials of KERN_TILE scores times v_scale to s, the largest of them to *largest; returns the sum of exponentials. */
static float exponentials(float *s, const float *v_scale, float max, float *largest)
{
    __m256 base = _mm256_set1_ps(max), sum[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()}, most = sum[0];
    for (size_t t = 0; t < KERN_TILE; t += ABREAST * AVX2_LANES) {
        __m256 x[ABREAST];
        KERN_UNROLL for (size_t v = 0; v < ABREAST; v++) x[v] = _mm256_sub_ps(_mm256_loadu_ps(s + t + v * AVX2_LANES), base);
        exp_abreast(x);
        KERN_UNROLL for (size_t v = 0; v < ABREAST; v++) {
            sum[v % 2] = _mm256_add_ps(sum[v % 2], x[v]);
            x[v] = _mm256_mul_ps(x[v], _mm256_loadu_ps(v_scale + t + v * AVX2_LANES));
            most = _mm256_max_ps(most, x[v]);
            _mm256_storeu_ps(s + t + v * AVX2_LANES, x[v]);
        }
    }
    *largest = avx2_largest(most);
    return avx2_fold(sum[0], sum[1]);
}

/* The weights of a tile, the largest being `largest`, as integers up to most; returns their sum. */
static int32_t to_integers(const float *w, float largest, float most, int32_t *pairs)
{
    __m256 inverse = _mm256_set1_ps(most / largest);
    __m256i sum = _mm256_setzero_si256();
    KERN_UNROLL for (size_t t = 0; t < KERN_TILE; t += KERN_LANES) {
        __m256 x = _mm256_mul_ps(_mm256_loadu_ps(w + t), inverse), y = _mm256_mul_ps(_mm256_loadu_ps(w + t + AVX2_LANES), inverse);
        __m256i integers = rounded(x, y);
        sum = _mm256_add_epi32(sum, _mm256_madd_epi16(integers, _mm256_set1_epi16(1)));
        _mm256_store_si256((__m256i *)(void *)(pairs + t / 2), integers);
    }
    __m128i half = _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
    half = _mm_add_epi32(half, _mm_unpackhi_epi64(half, half));
    return _mm_cvtsi128_si32(_mm_add_epi32(half, _mm_shuffle_epi32(half, 1)));
}

/* Scores to weights for n_q queries from i on, of which query g sees the first n[g] of the tile, maybe none.  Step by step for all of them, so that one waits for
 * its maximum while another computes. */
static void soften_group(const tile_step *st, size_t i, const uint32_t *n, tile_weights *p, size_t n_q)
{
    float *s = st->w->s + i * KERN_TILE, *m = &st->w->w.m[st->q0 + i], *l = &st->w->w.l[st->q0 + i], largest[KERN_GROUP], top[KERN_GROUP];
    for (size_t g = 0; g < n_q; g++) {
        float *sg = s + g * KERN_TILE;
        for (uint32_t t = n[g]; t < KERN_TILE; t++) sg[t] = -INFINITY;
        __m256 most = _mm256_loadu_ps(sg);
        KERN_UNROLL for (size_t t = AVX2_LANES; t < KERN_TILE; t += AVX2_LANES) most = _mm256_max_ps(most, _mm256_loadu_ps(sg + t));
        top[g] = avx2_largest(most);
    }
    for (size_t g = 0; g < n_q; g++)
        if (top[g] > m[g]) raise_maximum(st, i + g, top[g]);
    for (size_t g = 0; g < n_q; g++) l[g] += exponentials(s + g * KERN_TILE, st->walk->v_scale + st->t->base, m[g], &largest[g]);
    for (size_t g = 0; g < n_q; g++) {
        const float *w = s + g * KERN_TILE;
        if (largest[g] < KERN_Q8_LEAST) {
            memset(p->pairs[g], 0, sizeof p->pairs[g]);
            p->step[g] = 0;
            continue;
        }
        p->step[g] = largest[g] / KERN_Q8_BYTE;
        if (to_integers(w, largest[g], KERN_Q8_BYTE, p->pairs[g]) >= KERN_Q8_FLAT) continue;
        p->step[g] = largest[g] / KERN_Q8_MOST;
        to_integers(w, largest[g], KERN_Q8_MOST, p->pairs[g]);
    }
}

/* ---- values ---------------------------------------------------------------------------------------------------------- */

KERN_INLINE __m256i bytes_at(const unsigned char *p)
{
    return _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(const void *)p));
}

/* o += step * sums for n_v times sixteen elements from d on, of n_q queries from i on; the first n rows (rounded up to 8) of the tile. */
KERN_INLINE void value_block(const tile_step *st, q8_ask *ask, const tile_weights *p, size_t i, size_t d, uint32_t n, const int n_q, const int n_v)
{
    __m256i lower[2 * KERN_GROUP], upper[2 * KERN_GROUP]; /* elements 0-3 and 8-11; 4-7 and 12-15 */
    const unsigned char *const *row = st->t->rows, *const *end = row + n;
    const int32_t *pairs = &p->pairs[0][0];
    const size_t at = st->a->dim + d;
    KERN_UNROLL for (int k = 0; k < n_q * n_v; k++) lower[k] = upper[k] = _mm256_setzero_si256();
    for (; row < end; row += 8, pairs += 4) {
        ask_pairs(ask, n_v, st->hint);
        KERN_UNROLL for (int j = 0; j < 4; j++) {
            const unsigned char *first = row[2 * j] + at, *second = row[2 * j + 1] + at;
            KERN_UNROLL for (int v = 0; v < n_v; v++) {
                __m256i a = bytes_at(first + v * KERN_LANES), b = bytes_at(second + v * KERN_LANES);
                __m256i x = _mm256_unpacklo_epi16(a, b), y = _mm256_unpackhi_epi16(a, b);
                KERN_UNROLL for (int g = 0; g < n_q; g++) {
                    __m256i w = _mm256_set1_epi32(pairs[g * (KERN_TILE / 2) + j]);
                    lower[g * n_v + v] = add_products(lower[g * n_v + v], w, x);
                    upper[g * n_v + v] = add_products(upper[g * n_v + v], w, y);
                }
            }
        }
    }
    KERN_UNROLL for (int g = 0; g < n_q; g++) {
        if (!(p->step[g] > 0)) continue;
        float *o = st->a->o + (st->q0 + i + (size_t)g) * st->a->o_stride + d;
        __m256 step = _mm256_set1_ps(p->step[g]);
        KERN_UNROLL for (int v = 0; v < n_v; v++, o += KERN_LANES) {
            __m256i l = lower[g * n_v + v], u = upper[g * n_v + v];
            __m256 x = _mm256_cvtepi32_ps(_mm256_permute2x128_si256(l, u, 0x20)), y = _mm256_cvtepi32_ps(_mm256_permute2x128_si256(l, u, 0x31));
            _mm256_storeu_ps(o, _mm256_fmadd_ps(x, step, _mm256_loadu_ps(o)));
            _mm256_storeu_ps(o + AVX2_LANES, _mm256_fmadd_ps(y, step, _mm256_loadu_ps(o + AVX2_LANES)));
        }
    }
}

/* ---- a tile, a call -------------------------------------------------------------------------------------------------- */

KERN_INLINE void attend_group(const tile_step *st, q8_ask *asked, size_t i, const int n_q)
{
    tile_weights p;
    uint32_t n[KERN_GROUP], most = 0;
    for (size_t g = 0; g < (size_t)n_q; g++) {
        n[g] = kern_tile_valid(st->a, st->t, st->q0 + i + g);
        most = n[g] > most ? n[g] : most;
    }
    soften_group(st, i, n, &p, (size_t)n_q);
    q8_ask ask = *asked;
    size_t d = 0, dim = most ? st->a->dim : 0;
    for (; d + 2 * KERN_LANES <= dim && n_q <= 2; d += 2 * KERN_LANES) value_block(st, &ask, &p, i, d, most, n_q, 2);
    for (; d < dim; d += KERN_LANES) value_block(st, &ask, &p, i, d, most, n_q, 1);
    *asked = ask;
}

/* Scores of the block's n queries for the rows [from, to), whose k_scale the queries are prepared for. */
static void score_by_tree(const tile_step *st, q8_ask *ask, size_t n, uint32_t from, uint32_t to)
{
    size_t i = 0;
    q8_ask none = {.at = NULL};
    for (; i + KERN_GROUP <= n; i += KERN_GROUP) tree_group(st, i ? &none : ask, i, from, to, KERN_GROUP);
    if (i) ask = &none;
    if (n - i == 3) tree_group(st, ask, i, from, to, 3);
    if (n - i == 2) tree_group(st, ask, i, from, to, 2);
    if (n - i == 1) tree_group(st, ask, i, from, to, 1);
}

/* is_spread: whether the first queries of the block are. */
static void score_in_lanes(const tile_step *st, q8_ask *ask, size_t n, uint32_t from, uint32_t to, bool is_spread)
{
    q8_ask none = {.at = NULL};
    for (size_t i = 0; i < n; i += LANE_GROUP, ask = &none) {
        size_t n_q = kern_min_size(n - i, LANE_GROUP);
        if (i || !is_spread) spread(st->w, st->a->dim, i, n_q);
        switch (n_q) {
        case 1: lanes_group(st, ask, i, from, to, 1); break;
        case 2: lanes_group(st, ask, i, from, to, 2); break;
        case 3: lanes_group(st, ask, i, from, to, 3); break;
        case 4: lanes_group(st, ask, i, from, to, 4); break;
        case 5: lanes_group(st, ask, i, from, to, 5); break;
        case 6: lanes_group(st, ask, i, from, to, 6); break;
        case 7: lanes_group(st, ask, i, from, to, 7); break;
        default: lanes_group(st, ask, i, from, to, LANE_GROUP);
        }
    }
}

/* The tile's part of the block's n queries.  is_spread: whether they are, for the run that they are prepared for. */
static void attend_tile(const tile_step *st, q8_ask ask, size_t n, bool *is_spread)
{
    q8_ask none = {.at = NULL};
    uint32_t end, base = st->t->base, last = base + st->t->n;
    for (uint32_t at = base; at < last; at = end) {
        uint32_t run = st->walk->run;
        const float *k_scale = q8_walk_run(st->walk, st->t, at, &end);
        if (at == 0 || st->walk->run != run) {
            prepare(st, n, k_scale);
            *is_spread = false;
        }
        if (n <= FEW || end - at <= FEW_ROWS) {
            score_by_tree(st, &ask, n, at - base, end - base);
            continue;
        }
        score_in_lanes(st, &ask, n, at - base, end - base, *is_spread);
        *is_spread = n <= LANE_GROUP;
    }
    size_t i = 0;
    for (; i + KERN_GROUP <= n; i += KERN_GROUP) attend_group(st, i ? &none : &ask, i, KERN_GROUP);
    if (i) ask = none;
    if (n - i == 3) attend_group(st, &ask, i, 3);
    if (n - i == 2) attend_group(st, &ask, i, 2);
    if (n - i == 1) attend_group(st, &ask, i, 1);
}

static void finish(const kern_attend_args *a, const kern_attend_work *w)
{
    for (size_t i = 0; i < a->n_q; i++) {
        a->lse[i] = w->l[i] > 0 ? kern_attend_lse(w->m[i], w->l[i]) : -INFINITY;
        if (!(w->l[i] > 0)) continue;
        __m256 l = _mm256_set1_ps(w->l[i]);
        float *o = a->o + i * a->o_stride;
        for (size_t d = 0; d < a->dim; d += AVX2_LANES) _mm256_storeu_ps(o + d, _mm256_div_ps(_mm256_loadu_ps(o + d), l));
    }
}

static void attend_q8(const kern_attend_args *a)
{
    kern_hint hint = a->tuning ? a->tuning->hint : KERN_TUNING_DEFAULT.hint;
    q8_work w;
    q8_walk walk;
    kern_tile t;
    q8_work_begin(&w, a);
    q8_walk_begin(&walk, a);
    if (hint != KERN_HINT_NONE) kern_walk_touch(&walk.rows, a);
    for (size_t q0 = 0; q0 < a->n_q; q0 += Q8_BLOCK) {
        size_t n = kern_min_size(Q8_BLOCK, a->n_q - q0);
        bool is_spread = false;
        walk.rows.base = walk.run = 0;
        for (kern_walk_next(&walk.rows, &t); t.n; kern_walk_next(&walk.rows, &t)) {
            tile_step st = {.a = a, .w = &w, .walk = &walk, .t = &t, .q0 = q0, .hint = hint};
            attend_tile(&st, q8_ask_begin(&walk, &t, hint != KERN_HINT_NONE && q0 == 0), n, &is_spread);
        }
    }
    finish(a, &w.w);
}

void kern_fill_avx2_q8(kern_table *t)
{
    t->quantise_q8 = quantise;
    t->attend_q8 = attend_q8;
}
