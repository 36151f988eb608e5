# cmake -DSOURCE=DIRECTORY -DOUT=FILE -P build_commit.cmake: writes the C source of hv_build_commit(), but only if it
# changes, so that a build of the same commit links nothing again.
set(commit unknown)
find_program(GIT git)
if(GIT AND EXISTS ${SOURCE}/.git)
  execute_process(COMMAND ${GIT} -C ${SOURCE} describe --always --exclude=* --abbrev=12 --dirty
    OUTPUT_VARIABLE answer OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET RESULT_VARIABLE failed)
  if(NOT failed AND answer MATCHES "^[0-9a-f]+(-dirty)?$")
    set(commit ${answer})
  endif()
endif()
file(CONFIGURE OUTPUT ${OUT} @ONLY CONTENT [[
#include "core/base/build_commit.h"

const char *hv_build_commit(void) {
  return "@commit@";
}
]])
