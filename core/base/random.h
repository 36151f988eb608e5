/* Random draws as functions: the value at (seed, domain, step, sample, branch, element) never depends on the order of
 * drawing, on the number of ranks or threads, or on the device. Philox 4x32-10 (Salmon et al. 2011); C and CUDA include
 * this header and get the same bits: it uses + − × fma sqrt and its own polynomials only, and must be compiled without
 * contraction (-ffp-contract=off, nvcc -fmad=false).
 */
#ifndef HV_BASE_RANDOM_H
#define HV_BASE_RANDOM_H

#include <stdint.h>

#endif
