#include "core/hybridvla/action_tokens.h"

/* numpy's linspace: start + i · step with the last edge exact. */
static double edge(int32_t i, int32_t bins) {
  return i == bins - 1 ? 1.0 : -1.0 + i * (2.0 / (bins - 1));
}

int32_t hv_action_token(double action, int32_t base, int32_t bins) {
  if (!(action > -1.0)) action = -1.0;
  if (action > 1.0) action = 1.0;
  /* A guess from the uniform spacing, then made exact: edges and actions are rounded numbers. */
  int32_t n = 1 + (int32_t)((action + 1.0) * 0.5 * (bins - 1));
  while (n < bins && edge(n, bins) <= action) n++;
  while (n > 1 && edge(n - 1, bins) > action) n--;
  return base - n;
}

double hv_action_from_token(int32_t token, int32_t base, int32_t bins) {
  int32_t bin = base - token - 1;
  if (bin < 0) bin = 0;
  if (bin > bins - 2) bin = bins - 2;
  return (edge(bin, bins) + edge(bin + 1, bins)) / 2;
}
