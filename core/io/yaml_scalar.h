/* How YAML 1.2's core schema reads a plain scalar; shared by the parser and the formatter. */
#ifndef HV_IO_YAML_SCALAR_H
#define HV_IO_YAML_SCALAR_H

#include <stddef.h>

typedef enum hv_yaml_type {
  HV_YAML_STRING,
  HV_YAML_NULL,
  HV_YAML_TRUE,
  HV_YAML_FALSE,
  HV_YAML_INTEGER, /* decimal, 0x… or 0o… */
  HV_YAML_REAL,
  HV_YAML_NON_FINITE, /* .inf, .nan */
} hv_yaml_type;

hv_yaml_type hv_yaml_scalar_type(const char *text);

#endif
