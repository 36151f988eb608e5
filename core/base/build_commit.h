/* Which state of the sources a program was built from; HVLA_VERSION, which the build defines, is its version. */
#ifndef HV_BASE_BUILD_COMMIT_H
#define HV_BASE_BUILD_COMMIT_H

/* The commit in 12 digits, "-dirty" behind it where files were changed; "unknown" where the sources are no git clone.
 * Asked for whenever something is built (core/base/build_commit.cmake). */
const char *hv_build_commit(void);

#endif
