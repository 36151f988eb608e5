/* HV_HOST_DEVICE, in front of functions that C and CUDA kernels share. */
#ifndef HV_BASE_HOST_DEVICE_H
#define HV_BASE_HOST_DEVICE_H

#ifdef __CUDACC__
#define HV_HOST_DEVICE __host__ __device__
#else
#define HV_HOST_DEVICE
#endif

#endif
