/* The selective scan on a CPU: forward and backward, float32, ISO C and vector types alone.
 *
 *     h_t = exp(dt_t A) h_{t-1} + (dt_t x_t) B_t        y_t = sum_n C_{t,n} h_{t,n} + D x_t
 *
 * A vector holds one number of each of LANES neighbouring channels, so no sum runs across lanes
 * but those over channels in the gradients of B and C, which are made once per chunk. Time is
 * walked in chunks of CHUNK steps; within one, states are the outer loop and steps the inner, so
 * that everything a loop touches lies in the first-level cache.
 *
 * This file is compiled once per instruction set with another VARIANT (see build.py), always
 * without fast-math: exp2_lanes rounds by adding and subtracting a large number.
 */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#ifndef VARIANT
#define VARIANT baseline
#define WITH_CHOICE
#endif
#define PASTE_(a, b) a##_##b
#define PASTE(a, b) PASTE_(a, b)
#ifdef _WIN32
#define EXPORT __declspec(dllexport)
#else
#define EXPORT __attribute__((visibility("default")))
#endif

#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX2__)
#define LANES 8
#else
#define LANES 4
#endif
#define CHUNK 64 /* steps between two kept states; cpu_scan.py knows it too */
#define PART 128 /* channels of one call, a multiple of every LANES; likewise */

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef int32_t mask __attribute__((vector_size(4 * LANES)));
typedef uint32_t word __attribute__((vector_size(4 * LANES)));

/* One array of (batch, channel or state, step); strides in elements. */
struct sequence {
    float *data;
    int64_t batch, row, step;
};

/* All that a call needs. "padded" is the number of channels rounded up to 16; what lies beyond the
 * channels is zero on entry. Rows of "parts" hold the sums over one part's channels. */
struct scan {
    int64_t channels, padded, states, length;
    struct sequence x, dt, B, C, y; /* y: out in forward, its adjoint in backward */
    const float *A;                 /* (states, padded) */
    const float *D;                 /* (padded) */
    float *state;                   /* (batch, states, padded): h forward, its adjoint backward */
    float *starts;                  /* (batch, chunks, states, padded), or NULL: not kept */
    struct sequence x_bar, dt_bar;  /* from here on: backward alone */
    float *A_bar;                   /* (batch, states, padded), zero on entry */
    float *D_bar;                   /* (batch, padded), zero on entry */
    float *B_bar, *C_bar;           /* (batch, parts, states, length) */
};

static inline vec load(const float *p) {
    vec v;
    memcpy(&v, p, sizeof v);
    return v;
}

static inline void store(float *p, vec v) { memcpy(p, &v, sizeof v); }

static inline vec spread(float value) { return (vec){0} + value; }

/* 2^z: z = k + f with k whole and |f| <= 1/2; a minimax polynomial of degree 6 for 2^f (2e-9); k by
 * the exponent's bits. Below the normal numbers 0, above them infinity; NaN stays NaN. */
static inline vec exp2_lanes(vec z) {
    const float magic = 12582912.0f; /* 1.5 x 2^23: adding it rounds to a whole number */
    vec shifted = z + magic;
    vec f = z - (shifted - magic);
    vec p = spread(1.5345812e-4f);
    p = p * f + 1.3399931e-3f;
    p = p * f + 9.6184891e-3f;
    p = p * f + 5.5503286e-2f;
    p = p * f + 2.4022646e-1f;
    p = p * f + 6.9314718e-1f;
    p = p * f + 1.0f;
    vec power = (vec)(((word)shifted + 127u) << 23);
    word value = (word)(p * power);
    word small = (word)(z < spread(-126.0f)), large = (word)(z >= spread(127.5f));
    return (vec)((value & ~(small | large)) | (large & 0x7f800000u));
}

static const float LOG2_E = 1.44269504f;

/* steps x LANES of a sequence into out; lanes beyond "valid" become zero. */
static inline void gather(const struct sequence *s, int64_t batch, int64_t channel, int64_t valid,
                          int64_t step, int64_t steps, vec *restrict out) {
    const float *p = s->data + batch * s->batch + channel * s->row + step * s->step;
    if (s->row == 1 && valid == LANES) {
        for (int64_t t = 0; t < steps; t++) out[t] = load(p + t * s->step);
        return;
    }
    if (valid < LANES)
        for (int64_t t = 0; t < steps; t++) out[t] = (vec){0};
    for (int64_t i = 0; i < valid; i++)
        for (int64_t t = 0; t < steps; t++) out[t][i] = p[i * s->row + t * s->step];
}

static inline void scatter(const struct sequence *s, int64_t batch, int64_t channel, int64_t valid,
                           int64_t step, int64_t steps, const vec *restrict in) {
    float *p = s->data + batch * s->batch + channel * s->row + step * s->step;
    if (s->row == 1 && valid == LANES) {
        for (int64_t t = 0; t < steps; t++) store(p + t * s->step, in[t]);
        return;
    }
    for (int64_t i = 0; i < valid; i++)
        for (int64_t t = 0; t < steps; t++) p[i * s->row + t * s->step] = in[t][i];
}

static inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

/* Channels [first, last) of one batch item; first is a multiple of PART. */
EXPORT void PASTE(contourcast_scan_forward, VARIANT)(const struct scan *s, int64_t batch,
                                                     int64_t first, int64_t last) {
    const int64_t chunks = (s->length + CHUNK - 1) / CHUNK;
    vec x[CHUNK], dt[CHUNK], u[CHUNK], y[CHUNK];
    for (int64_t chunk = 0; chunk < chunks; chunk++) {
        const int64_t from = chunk * CHUNK, steps = least(CHUNK, s->length - from);
        const float *B = s->B.data + batch * s->B.batch + from * s->B.step;
        const float *C = s->C.data + batch * s->C.batch + from * s->C.step;
        for (int64_t c = first; c < last; c += LANES) {
            const int64_t valid = least(LANES, last - c);
            gather(&s->x, batch, c, valid, from, steps, x);
            gather(&s->dt, batch, c, valid, from, steps, dt);
            const vec D = load(s->D + c);
            for (int64_t t = 0; t < steps; t++) {
                u[t] = dt[t] * x[t];
                y[t] = D * x[t];
            }
            for (int64_t n = 0; n < s->states; n++) {
                float *state = s->state + (batch * s->states + n) * s->padded + c;
                const vec A = load(s->A + n * s->padded + c) * LOG2_E;
                vec h = load(state);
                if (s->starts)
                    store(s->starts + ((batch * chunks + chunk) * s->states + n) * s->padded + c,
                          h);
                for (int64_t t = 0; t < steps; t++) {
                    h = exp2_lanes(dt[t] * A) * h +
                        u[t] * B[n * s->B.row + t * s->B.step];
                    y[t] += h * C[n * s->C.row + t * s->C.step];
                }
                store(state, h);
            }
            scatter(&s->y, batch, c, valid, from, steps, y);
        }
    }
}

/* The sum of a vector's lanes, as a tree. */
static inline float across(vec v) {
    float part[LANES];
    memcpy(part, &v, sizeof v);
    for (int width = LANES / 2; width > 0; width /= 2)
        for (int i = 0; i < width; i++) part[i] += part[i + width];
    return part[0];
}

/* The same channels' gradients; "g" is the adjoint of h. Returns -1 when memory is short. */
EXPORT int PASTE(contourcast_scan_backward, VARIANT)(const struct scan *s, int64_t batch,
                                                     int64_t first, int64_t last) {
    const int64_t chunks = (s->length + CHUNK - 1) / CHUNK;
    const int64_t parts = (s->channels + PART - 1) / PART;
    const int64_t sums = s->states * CHUNK;
    float *B_sums = malloc((size_t)(2 * sums) * sizeof(vec)), *C_sums = B_sums + sums * LANES;
    vec x[CHUNK], dt[CHUNK], u[CHUNK], y_bar[CHUNK]; /* u: dt x */
    vec a[CHUNK], h[CHUNK + 1], gB[CHUNK], wA[CHUNK];
    if (!B_sums) return -1;
    for (int64_t chunk = chunks - 1; chunk >= 0; chunk--) {
        const int64_t from = chunk * CHUNK, steps = least(CHUNK, s->length - from);
        const float *B = s->B.data + batch * s->B.batch + from * s->B.step;
        const float *C = s->C.data + batch * s->C.batch + from * s->C.step;
        memset(B_sums, 0, (size_t)(2 * sums) * sizeof(vec));
        for (int64_t c = first; c < last; c += LANES) {
            const int64_t valid = least(LANES, last - c);
            gather(&s->x, batch, c, valid, from, steps, x);
            gather(&s->dt, batch, c, valid, from, steps, dt);
            gather(&s->y, batch, c, valid, from, steps, y_bar);
            for (int64_t t = 0; t < steps; t++) {
                u[t] = dt[t] * x[t];
                gB[t] = wA[t] = (vec){0};
            }
            for (int64_t n = 0; n < s->states; n++) {
                const int64_t row = (batch * s->states + n) * s->padded + c;
                const vec A = load(s->A + n * s->padded + c), A2 = A * LOG2_E;
                const float *B_n = B + n * s->B.row, *C_n = C + n * s->C.row;
                float *B_sum = B_sums + n * CHUNK * LANES, *C_sum = C_sums + n * CHUNK * LANES;
                h[0] = load(s->starts + ((batch * chunks + chunk) * s->states + n) * s->padded + c);
                for (int64_t t = 0; t < steps; t++) {
                    a[t] = exp2_lanes(dt[t] * A2);
                    h[t + 1] = a[t] * h[t] + u[t] * B_n[t * s->B.step];
                }
                vec g = load(s->state + row), A_bar = {0};
                for (int64_t t = steps - 1; t >= 0; t--) {
                    g += y_bar[t] * C_n[t * s->C.step];
                    store(C_sum + t * LANES, load(C_sum + t * LANES) + y_bar[t] * h[t + 1]);
                    store(B_sum + t * LANES, load(B_sum + t * LANES) + g * u[t]);
                    gB[t] += g * B_n[t * s->B.step];
                    g *= a[t];
                    const vec w = g * h[t];
                    wA[t] += w * A;
                    A_bar += w * dt[t];
                }
                store(s->state + row, g);
                store(s->A_bar + row, load(s->A_bar + row) + A_bar);
            }
            const vec D = load(s->D + c);
            vec D_bar = {0};
            for (int64_t t = 0; t < steps; t++) {
                D_bar += y_bar[t] * x[t];
                wA[t] += x[t] * gB[t];
                gB[t] = dt[t] * gB[t] + D * y_bar[t];
            }
            float *D_sum = s->D_bar + batch * s->padded + c;
            store(D_sum, load(D_sum) + D_bar);
            scatter(&s->x_bar, batch, c, valid, from, steps, gB);
            scatter(&s->dt_bar, batch, c, valid, from, steps, wA);
        }
        for (int64_t n = 0; n < s->states; n++) {
            const int64_t row = ((batch * parts + first / PART) * s->states + n) * s->length + from;
            for (int64_t t = 0; t < steps; t++) {
                s->B_bar[row + t] = across(load(B_sums + (n * CHUNK + t) * LANES));
                s->C_bar[row + t] = across(load(C_sums + (n * CHUNK + t) * LANES));
            }
        }
    }
    free(B_sums);
    return 0;
}

/* 2^z of an array, so that a test can look at it; a multiple of 16 numbers. */
EXPORT void PASTE(contourcast_exp2, VARIANT)(const float *z, float *out, int64_t count) {
    for (int64_t i = 0; i < count; i += LANES) store(out + i, exp2_lanes(load(z + i)));
}

#ifdef WITH_CHOICE
/* Whether this processor runs the variants: bit 0 avx2, bit 1 avx512. */
EXPORT int contourcast_scan_runs(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_cpu_init();
    int avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    int avx512 = avx2 && __builtin_cpu_supports("avx512f");
    return (avx2 ? 1 : 0) | (avx512 ? 2 : 0);
#else
    return 0;
#endif
}
#endif
