/* quant.c - the table of GGUF's weight types.  A type is known here exactly if kern_ref_quant.c can dequantise it. */
#include "quant.h"

static const quant_info infos[QUANT_TYPES] = {
    [QUANT_F32] = {"F32", 1, 4},
    [QUANT_F16] = {"F16", 1, 2},
    [QUANT_Q4_0] = {"Q4_0", 32, 2 + 16},
    [QUANT_Q4_1] = {"Q4_1", 32, 2 + 2 + 16},
    [QUANT_Q5_0] = {"Q5_0", 32, 2 + 4 + 16},
    [QUANT_Q5_1] = {"Q5_1", 32, 2 + 2 + 4 + 16},
    [QUANT_Q8_0] = {"Q8_0", 32, 2 + 32},
    [QUANT_Q2_K] = {"Q2_K", 256, 16 + 64 + 2 + 2},
    [QUANT_Q3_K] = {"Q3_K", 256, 32 + 64 + 12 + 2},
    [QUANT_Q4_K] = {"Q4_K", 256, 2 + 2 + 12 + 128},
    [QUANT_Q5_K] = {"Q5_K", 256, 2 + 2 + 12 + 32 + 128},
    [QUANT_Q6_K] = {"Q6_K", 256, 128 + 64 + 16 + 2},
    [QUANT_IQ4_NL] = {"IQ4_NL", 32, 2 + 16},
    [QUANT_IQ4_XS] = {"IQ4_XS", 256, 2 + 2 + 4 + 128},
    [QUANT_BF16] = {"BF16", 1, 2},
    [QUANT_MXFP4] = {"MXFP4", 32, 1 + 16},
};

const quant_info *quant_get(uint32_t type)
{
    return type < QUANT_TYPES && infos[type].name ? &infos[type] : NULL;
}

const char *quant_ggml_name(uint32_t type)
{
    /* 4, 5, 31 to 33 and 36 to 38 were withdrawn, but old files still hold them. */
    static const char *const names[] = {
        [0] = "F32",      [1] = "F16",      [2] = "Q4_0",      [3] = "Q4_1",      [4] = "Q4_2",      [5] = "Q4_3",      [6] = "Q5_0",
        [7] = "Q5_1",     [8] = "Q8_0",     [9] = "Q8_1",      [10] = "Q2_K",     [11] = "Q3_K",     [12] = "Q4_K",     [13] = "Q5_K",
        [14] = "Q6_K",    [15] = "Q8_K",    [16] = "IQ2_XXS",  [17] = "IQ2_XS",   [18] = "IQ3_XXS",  [19] = "IQ1_S",    [20] = "IQ4_NL",
        [21] = "IQ3_S",   [22] = "IQ2_S",   [23] = "IQ4_XS",   [24] = "I8",       [25] = "I16",      [26] = "I32",      [27] = "I64",
        [28] = "F64",     [29] = "IQ1_M",   [30] = "BF16",     [31] = "Q4_0_4_4", [32] = "Q4_0_4_8", [33] = "Q4_0_8_8", [34] = "TQ1_0",
        [35] = "TQ2_0",   [36] = "IQ4_NL_4_4", [37] = "IQ4_NL_4_8", [38] = "IQ4_NL_8_8", [39] = "MXFP4", [40] = "NVFP4", [41] = "Q1_0",
    };
    return type < sizeof names / sizeof names[0] ? names[type] : NULL;
}

bool quant_bytes(uint32_t type, uint64_t n_elems, uint64_t *bytes)
{
    const quant_info *info = quant_get(type);
    if (!info || n_elems % info->block_elems) return false;
    uint64_t n_blocks = n_elems / info->block_elems;
    if (n_blocks > UINT64_MAX / info->block_bytes) return false;
    *bytes = n_blocks * info->block_bytes;
    return true;
}
