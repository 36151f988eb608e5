#include "core/base/nearest.h"

#include <limits.h>
#include <string.h>

enum { LONGEST = 127 };

static int min_int(int a, int b) {
  return a < b ? a : b;
}

int hv_edit_distance(const char *a, const char *b) {
  size_t n = strlen(a), m = strlen(b);
  if (n > LONGEST || m > LONGEST) return INT_MAX;
  int rows[3][LONGEST + 1];
  for (size_t j = 0; j <= m; j++) rows[0][j] = (int)j;
  for (size_t i = 1; i <= n; i++) {
    int *row = rows[i % 3];
    const int *up = rows[(i + 2) % 3], *up2 = rows[(i + 1) % 3];
    row[0] = (int)i;
    for (size_t j = 1; j <= m; j++) {
      row[j] = min_int(min_int(up[j], row[j - 1]) + 1, up[j - 1] + (a[i - 1] != b[j - 1]));
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1]) row[j] = min_int(row[j], up2[j - 2] + 1);
    }
  }
  return rows[n % 3][m];
}

void hv_nearest_offer(hv_nearest *nearest, const char *candidate) {
  int distance = hv_edit_distance(nearest->name, candidate);
  size_t length = strlen(nearest->name);
  int limit = length < 6 ? 2 : (int)(length / 3);
  /* A name of one or two letters is within two edits of every other short one. */
  if (distance > limit || (size_t)distance >= length) return;
  if (!nearest->best || distance < nearest->distance) {
    nearest->best = candidate;
    nearest->distance = distance;
  }
}
