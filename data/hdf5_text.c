/* Strings and integers in HDF5, in any of the forms that writers choose. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "data/hdf5_internal.h"

enum { MAX_STRINGS = 1 << 24 };

/* Strings of either kind in memory, as H5Dread and H5Aread fill them. */
typedef struct string_block {
  hid_t type; /* in memory */
  bool variable;
  size_t size; /* of one fixed string, or of a reference to one of variable length */
  size_t count;
  uint8_t *data; /* [count, size] */
} string_block;

static hv_status prepare_block(hv_hdf5 *file, const char *object, hid_t stored, hid_t space, string_block *block) {
  *block = (string_block){.type = -1, .size = 1};
  if (H5Tget_class(stored) != H5T_STRING) return hv_hdf5_bad(file, object, "is not text; strings are expected");
  hssize_t count = H5Sget_simple_extent_npoints(space);
  if (count < 0 || count > MAX_STRINGS) return hv_hdf5_bad(file, object, "holds too many strings");
  block->count = (size_t)count;
  block->variable = H5Tis_variable_str(stored) > 0;
  block->type = H5Tcopy(block->variable ? file->reference : stored);
  block->size = block->variable ? hv_hdf5_reference_size(file) : H5Tget_size(stored);
  if (block->type < 0 || block->size == 0) return hv_hdf5_error(file, object, "its string type cannot be read");
  return HV_OK;
}

static void free_block(string_block *block) {
  if (block->type >= 0) H5Tclose(block->type);
  free(block->data);
}

/* String i, without its padding; *out is freed by the caller. */
static hv_status copy_string(const hv_hdf5 *file, const char *object, const string_block *block, size_t i, char **out) {
  if (block->variable) return hv_hdf5_heap_text(file, object, block->data + i * block->size, out);
  const char *text = (const char *)block->data + i * block->size;
  size_t length = strnlen(text, block->size);
  if (H5Tget_strpad(block->type) == H5T_STR_SPACEPAD) {
    while (length > 0 && text[length - 1] == ' ') length--;
  }
  *out = strndup(text, length);
  return *out ? HV_OK : hv_error_memory(object);
}

static hv_status read_strings(hv_hdf5 *file, const char *object, hid_t dataset, hv_string_list *out) {
  hv_status status = HV_OK;
  string_block block = {.type = -1};
  hid_t type = H5Dget_type(dataset), space = H5Dget_space(dataset);
  if (type < 0 || space < 0) {
    status = hv_hdf5_error(file, object, "its type and shape cannot be read");
    goto done;
  }
  if (H5Sget_simple_extent_ndims(space) > 1) {
    status = hv_hdf5_bad(file, object, "has several dimensions; a list of strings is expected");
    goto done;
  }
  HV_CHECK(prepare_block(file, object, type, space, &block));
  block.data = calloc(block.count + 1, block.size);
  if (!block.data) {
    status = hv_error_memory(object);
    goto done;
  }
  HV_CHECK(hv_hdf5_check_chunks(file, object, dataset, false));
  if (H5Dread(dataset, block.type, H5S_ALL, H5S_ALL, H5P_DEFAULT, block.data) < 0) {
    status = hv_hdf5_error(file, object, "cannot be read");
    goto done;
  }
  for (size_t i = 0; i < block.count && !status; i++) {
    char *text;
    status = copy_string(file, object, &block, i, &text);
    if (!status) {
      status = hv_string_list_append(out, text);
      free(text);
    }
  }
done:
  free_block(&block);
  if (space >= 0) H5Sclose(space);
  if (type >= 0) H5Tclose(type);
  return status;
}

hv_status hv_hdf5_read_strings(hv_hdf5 *file, const char *dataset, hv_string_list *out) {
  *out = (hv_string_list){0};
  hid_t id = -1;
  hv_hdf5_enter();
  hv_status status = hv_hdf5_open_dataset(file, dataset, &id);
  if (!status) status = read_strings(file, dataset, id, out);
  if (id >= 0) H5Dclose(id);
  hv_hdf5_leave();
  if (status) hv_string_list_free(out);
  return status;
}

/* An open attribute with its type and space; id is -1 if there is none. Closed with close_attribute. */
typedef struct attribute {
  hid_t id, type, space;
} attribute;

static hv_status open_attribute(hv_hdf5 *file, const char *object, const char *name, attribute *out) {
  *out = (attribute){-1, -1, -1};
  htri_t exists = H5Aexists_by_name(file->id, object, name, file->access);
  if (exists < 0) return hv_hdf5_error(file, object, "attribute %s cannot be looked up", name);
  if (!exists) return HV_OK;
  out->id = H5Aopen_by_name(file->id, object, name, H5P_DEFAULT, file->access);
  if (out->id < 0) return hv_hdf5_error(file, object, "attribute %s cannot be opened", name);
  out->type = H5Aget_type(out->id);
  out->space = H5Aget_space(out->id);
  if (out->type < 0 || out->space < 0) return hv_hdf5_error(file, object, "attribute %s cannot be opened", name);
  return HV_OK;
}

static void close_attribute(attribute *attr) {
  if (attr->space >= 0) H5Sclose(attr->space);
  if (attr->type >= 0) H5Tclose(attr->type);
  if (attr->id >= 0) H5Aclose(attr->id);
}

hv_status hv_hdf5_attribute_text(hv_hdf5 *file, const char *object, const char *name, char **out) {
  *out = NULL;
  attribute attr;
  string_block block = {.type = -1};
  char label[512]; /* for errors */
  snprintf(label, sizeof label, "%s: attribute %s", object, name);
  hv_hdf5_enter();
  hv_status status = HV_OK;
  HV_CHECK(open_attribute(file, object, name, &attr));
  if (attr.id < 0) goto done;
  if (H5Tget_class(attr.type) != H5T_STRING || H5Sget_simple_extent_npoints(attr.space) != 1) {
    status = hv_hdf5_bad(file, label, "is not one string");
    goto done;
  }
  HV_CHECK(prepare_block(file, label, attr.type, attr.space, &block));
  block.data = calloc(1, block.size);
  if (!block.data) {
    status = hv_error_memory(name);
    goto done;
  }
  if (H5Aread(attr.id, block.type, block.data) < 0) {
    status = hv_hdf5_error(file, label, "cannot be read");
    goto done;
  }
  status = copy_string(file, label, &block, 0, out);
done:
  free_block(&block);
  close_attribute(&attr);
  hv_hdf5_leave();
  return status;
}

hv_status hv_hdf5_attribute_integer(hv_hdf5 *file, const char *object, const char *name, bool *present, int64_t *out) {
  *present = false;
  *out = 0;
  attribute attr;
  hv_hdf5_enter();
  hv_status status = HV_OK;
  HV_CHECK(open_attribute(file, object, name, &attr));
  if (attr.id < 0) goto done;
  if (H5Tget_class(attr.type) != H5T_INTEGER || H5Sget_simple_extent_npoints(attr.space) != 1) {
    status = hv_hdf5_bad(file, object, "attribute %s is not one integer", name);
    goto done;
  }
  if (H5Aread(attr.id, H5T_NATIVE_INT64, out) < 0) {
    status = hv_hdf5_error(file, object, "attribute %s cannot be read", name);
    goto done;
  }
  *present = true;
done:
  close_attribute(&attr);
  hv_hdf5_leave();
  return status;
}
