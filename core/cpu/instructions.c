#include "core/cpu/instructions.h"

#include <stdlib.h>
#include <string.h>

#ifdef HV_CPU_X86_VARIANTS
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

static bool has_avx512(void) {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

/* Whether the processor has the instructions and Linux lets this process use the tiles. A process must ask for them,
 * since only then their 8 KiB are saved with each thread. */
static bool has_amx(void) {
  enum { BF16_BIT = 22, TILE_BIT = 24, ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 };
  unsigned eax, ebx, ecx, edx;
  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return false;
  if (!(edx >> BF16_BIT & 1) || !(edx >> TILE_BIT & 1)) return false;
  return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
}

hv_cpu_instructions hv_cpu_instructions_detect(void) {
  if (!has_avx512()) return HV_CPU_BASELINE;
  return has_amx() ? HV_CPU_AMX : HV_CPU_AVX512;
}
#else
hv_cpu_instructions hv_cpu_instructions_detect(void) {
  return HV_CPU_BASELINE;
}
#endif

hv_status hv_cpu_instructions_limit(hv_cpu_instructions most, hv_cpu_instructions *out) {
  static const char *const names[] = {[HV_CPU_BASELINE] = "baseline", [HV_CPU_AVX512] = "avx512", [HV_CPU_AMX] = "amx"};
  const char *wanted = getenv("HVLA_CPU_INSTRUCTIONS");
  *out = most;
  if (!wanted || !*wanted) return HV_OK;
  for (int i = 0; i <= HV_CPU_AMX; i++) {
    if (strcmp(wanted, names[i]) != 0) continue;
    if ((hv_cpu_instructions)i < most) *out = (hv_cpu_instructions)i;
    return HV_OK;
  }
  return hv_error(HV_ERR_INPUT, "HVLA_CPU_INSTRUCTIONS is \"%s\"; it must be baseline, avx512 or amx", wanted);
}
