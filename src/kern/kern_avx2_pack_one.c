/* kern_avx2_pack_one.c - one row of activations, split into bytes, times a panel of packed weights of 4 to 6 bits with AVX2: the bits of pack.h's formula.
 *
 * Bytes of weights, unsigned, times bytes of activations by vpmaddubsw, which adds two products in 16 bits; so do sums over as many quads as cannot overflow (limits below).
 * These are widened by vpmaddwd, whose factors also bring sums of different weight together.  Beside 16-bit activations (kern_avx2_pack.c) as many products are needed,
 * but weights need not become 16-bit integers, and that is what one row is bound by. */
#include "kern_avx2_pack.h"
#include "kern_pack_ask.h"

/* sum += the sums of two products each, over the quads of a block; the first of them starts it. */
KERN_INLINE void add_bytes(__m256i *sum, __m256i weights, __m256i x, bool first)
{
    __m256i products = _mm256_maddubs_epi16(weights, x);
    *sum = first ? products : _mm256_add_epi16(*sum, products);
    AVX2_KEPT(*sum);
}

/* What the sums over a block of pairs come to: of high bytes, and of low ones times the first and times the last 16 columns' weights. */
KERN_INLINE __m256i put_together(__m256i high, __m256i low, __m256i beyond, const pack_alone_pairs *x)
{
    __m256i s = _mm256_add_epi32(_mm256_madd_epi16(high, int_at(x->by[0])), _mm256_madd_epi16(low, int_at(x->by[1])));
    return _mm256_add_epi32(s, _mm256_madd_epi16(beyond, int_at(x->by[2])));
}

/* A block of weights of 4 bits times pairs.  16 bits hold 8 sums of 15 * 128 * 2. */
KERN_INLINE void sum_nibbles(uint32_t type, const uint8_t *p, const pack_alone_pairs *x, __m256i *sum)
{
    __m256i high[HALVES], low[HALVES], beyond[HALVES];
    KERN_UNROLL for (int q = 0; q < 4; q++) {
        __m256i x0 = int_at(x->high + 4 * q), x1 = int_at(x->high + 16 + 4 * q), x_low = int_at(x->low + 4 * q);
        KERN_UNROLL for (int h = 0; h < HALVES; h++) {
            __m256i w = vector_at(p + 64 * q + 32 * h);
            AVX2_KEPT(w);
            __m256i u0 = quad_of(type, w, w, q), u1 = quad_of(type, w, w, q + 4);
            add_bytes(&high[h], u0, x0, q == 0);
            add_bytes(&low[h], u0, x_low, q == 0);
            add_bytes(&high[h], u1, x1, false);
            add_bytes(&beyond[h], u1, x_low, q == 0);
        }
    }
    KERN_UNROLL for (int h = 0; h < HALVES; h++) sum[h] = put_together(high[h], low[h], beyond[h], x);
}

/* Of 5 bits.  16 bits hold 4 sums of 31 * 128 * 2.  One half of the outputs after the other: registers are short, loads are not. */
KERN_INLINE void sum_fives(uint32_t type, const uint8_t *p, const pack_alone_pairs *x, __m256i *sum)
{
    KERN_UNROLL for (int h = 0; h < HALVES; h++) {
        __m256i high0, high1, low, beyond, more = vector_at(p + 256 + 32 * h);
        AVX2_KEPT(more);
        __asm__("" : "+r"(x)); /* or gcc keeps the other half's activations on the stack */
        KERN_UNROLL for (int q = 0; q < 4; q++) {
            __m256i x0 = int_at(x->high + 4 * q), x1 = int_at(x->high + 16 + 4 * q), x_low = int_at(x->low + 4 * q);
            __m256i w = vector_at(p + 64 * q + 32 * h);
            AVX2_KEPT(w);
            __m256i u0 = quad_of(type, w, more, q), u1 = quad_of(type, w, more, q + 4);
            add_bytes(&high0, u0, x0, q == 0);
            add_bytes(&low, u0, x_low, q == 0);
            add_bytes(&high1, u1, x1, q == 0);
            add_bytes(&beyond, u1, x_low, q == 0);
        }
        sum[h] = _mm256_add_epi32(put_together(high0, low, beyond, x), _mm256_madd_epi16(high1, int_at(x->by[0])));
    }
}

/* Half a block of 6 bits, part 0 or 1, times words.  16 bits hold 2 sums of 63 * 128 * 2. */
KERN_INLINE void sum_sixes(uint32_t type, const uint8_t *p, const pack_alone_words *x, int part, __m256i *sum)
{
    const __m256i by_256 = _mm256_set1_epi16(256), by_1 = _mm256_set1_epi16(1);
    __m256i more[HALVES], high[HALVES], low[HALVES];
    KERN_UNROLL for (int h = 0; h < HALVES; h++) more[h] = vector_at(p + 256 + 64 * part + 32 * h);
    KERN_UNROLL for (int q = 0; q < 4; q++) {
        __m256i x_high = int_at(x->high + 16 * part + 4 * q), x_low = int_at(x->low + 16 * part + 4 * q);
        KERN_UNROLL for (int h = 0; h < HALVES; h++) {
            __m256i u = quad_of(type, vector_at(p + 64 * q + 32 * h), more[h], 4 * part + q);
            AVX2_KEPT(u);
            add_bytes(&high[h], u, x_high, q % 2 == 0);
            add_bytes(&low[h], u, x_low, q % 2 == 0);
            if (q % 2 == 0) continue;
            __m256i both = _mm256_add_epi32(_mm256_madd_epi16(high[h], by_256), _mm256_madd_epi16(low[h], by_1));
            sum[h] = q == 1 ? both : _mm256_add_epi32(sum[h], both);
            AVX2_KEPT(sum[h]);
        }
    }
}

/* Where a block's scales come from: p is at those of its super-block. */
typedef struct scale_source {
    const uint8_t *p;
    const scales *super;
    size_t b;
} scale_source;

/* Of outputs half h, when the sums are there: scales loaded before would take registers from them. */
KERN_INLINE scales scales_after(uint32_t type, scale_source c, __m256i *sum, size_t h)
{
    __asm__("" : "+r"(c.p), "+x"(*sum));
    return load_scales(type, c.p, &c.super[h], c.b, h);
}

KERN_INLINE void add_words(uint32_t type, const uint8_t *p, scale_source c, const pack_alone_words *x, __m256 *s)
{
    KERN_UNROLL for (int part = 0; part < 2; part++) {
        __m256i sum[HALVES], unbias = _mm256_srai_epi32(int_at(&x->whole.unbias_of[part]), 7 - pack_bias_bits(type));
        sum_sixes(type, p, x, part, sum);
        KERN_UNROLL for (size_t h = 0; h < HALVES; h++) {
            scales by = scales_after(type, c, &sum[h], h);
            s[h] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(_mm256_add_epi32(sum[h], unbias)), part ? by.d2 : by.d, s[h]);
        }
    }
}

KERN_INLINE void add_pairs(uint32_t type, const uint8_t *p, scale_source c, const pack_alone_pairs *x, __m256 *s)
{
    __m256i sum[HALVES];
    if (pack_has_fifth_bits(type)) sum_fives(type, p, x, sum);
    else sum_nibbles(type, p, x, sum);
    KERN_UNROLL for (size_t h = 0; h < HALVES; h++) {
        scales by = scales_after(type, c, &sum[h], h);
        if (pack_bias_bits(type)) sum[h] = _mm256_add_epi32(sum[h], int_at(&x->unbias));
        s[h] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum[h]), by.d, s[h]);
        if (!pack_has_minima(type)) continue;
        s[h] = has_supers(type) ? _mm256_fnmadd_ps(by.m, float_at(&x->sum), s[h]) : _mm256_fmadd_ps(by.m, float_at(&x->sum), s[h]);
    }
}

KERN_INLINE void one(uint32_t type, const uint8_t *p, size_t n_blocks, const uint8_t *x, const kern_tuning *tuning, float *out)
{
    const size_t quad_bytes = pack_quad_bytes(type), step = pack_step_bytes(PACK_WHOLE, pack_kind_of(type), 1);
    const uint8_t *scales_at = p + n_blocks * quad_bytes;
    kern_ask ask = kern_ask_from(p, tuning);
    ask.again = false;
    __m256 y[HALVES];
    KERN_UNROLL for (int h = 0; h < HALVES; h++) y[h] = _mm256_setzero_ps();
    for (size_t left = n_blocks; left;) {
        const size_t n = kern_min_size(left, PACK_SUPER);
        __m256 s[HALVES];
        scales super[HALVES];
        KERN_UNROLL for (size_t h = 0; h < HALVES; h++) s[h] = _mm256_setzero_ps(), super[h] = load_super(type, scales_at, 0, h);
        for (size_t b = 0; b < n; b++, p += quad_bytes, x += step) {
            kern_ask_on(&ask, quad_bytes, pack_scale_bytes(type));
            const scale_source c = {scales_at, super, b};
            if (pack_kind_of(type) == PACK_WORDS) add_words(type, p, c, (const pack_alone_words *)(const void *)x, s);
            else add_pairs(type, p, c, (const pack_alone_pairs *)(const void *)x, s);
        }
        KERN_UNROLL for (int h = 0; h < HALVES; h++) y[h] = _mm256_fmadd_ps(s[h], float_at(x - step), y[h]);
        scales_at += n * pack_scale_bytes(type);
        left -= n;
    }
    KERN_UNROLL for (int h = 0; h < HALVES; h++) _mm256_storeu_ps(out + 8 * h, y[h]);
}

void avx2_pack_one(uint32_t type, const uint8_t *panel, size_t n_blocks, const void *x, const kern_tuning *tuning, float *y)
{
    switch (type) {
    case QUANT_Q4_0: one(QUANT_Q4_0, panel, n_blocks, x, tuning, y); break;
    case QUANT_Q4_1: one(QUANT_Q4_1, panel, n_blocks, x, tuning, y); break;
    case QUANT_Q4_K: one(QUANT_Q4_K, panel, n_blocks, x, tuning, y); break;
    case QUANT_Q5_0: one(QUANT_Q5_0, panel, n_blocks, x, tuning, y); break;
    case QUANT_Q5_1: one(QUANT_Q5_1, panel, n_blocks, x, tuning, y); break;
    case QUANT_Q5_K: one(QUANT_Q5_K, panel, n_blocks, x, tuning, y); break;
    default: one(QUANT_Q6_K, panel, n_blocks, x, tuning, y);
    }
}
