/* The commit that a program was built from. (Its version is HVLA_VERSION, which the build defines.) */
#ifndef HV_BASE_BUILD_COMMIT_H
#define HV_BASE_BUILD_COMMIT_H

/* The commit in 12 digits, with "-dirty" behind it if files were changed; "unknown" if the sources are no git clone.
 * Looked up anew in every build (core/base/build_commit.cmake). */
const char *hv_build_commit(void);

#endif
