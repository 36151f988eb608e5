/* Matrix products on the processor's matrix unit (AMX), which multiplies bf16 and sums in fp32, for operands stored as
 * fp32 or bf16. Compiled only into the variant of the kernels for processors that have one.
 *
 * An fp32 number is h + m + l, bf16 parts of falling size (tile_pack.h), and a product of two is summed as
 * lh + mh + mm + hm + hl and then hh, each of which is exact. What is left out, lm + ml + ll, is at most 2^-24 of the
 * product: fp32's own rounding of it. Sums of 128 products are rounded some ten times, where a plain sum is rounded at
 * each. So results are closer to exact than those of products computed in fp32 (this is not TF32, which keeps 11 bits
 * of a number). Where an operand holds NaN or an infinity, results that it enters are not finite. Operands, products
 * and sums below 2^-126 count as 0. Sums run in an order that the summed dimension alone determines. */
#ifndef HV_CPU_TILE_PRODUCT_H
#define HV_CPU_TILE_PRODUCT_H

#include <stddef.h>

#include "core/tensor/tensor.h"

/* Whether a product of these operands, m by n with k products in each sum, is worth the packing. */
bool hv_tile_product_suits(const hv_tensor *a, const hv_tensor *b, int64_t m, int64_t n, int64_t k);

/* Bytes of scratch for results of up to m rows and n columns. */
size_t hv_tile_product_scratch(int64_t m, int64_t n);

/* c = alpha a b + beta c with the conventions of HV_KERNEL(product); c is not read where beta is 0. */
void hv_tile_product(float alpha, hv_tensor a, bool transpose_a, hv_tensor b, bool transpose_b, float beta, float *c,
                     int64_t ldc, void *scratch);

#endif
