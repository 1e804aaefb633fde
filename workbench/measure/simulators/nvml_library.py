"""A library that stands for NVIDIA's ``libnvidia-ml.so.1``: the counter and the power of its boards
come from a file that a test writes."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

SOURCE = r"""
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
/* The file of $PLAYED_NVML has a line a board: energy in mJ, power in mW; -1: not supported. */
enum { OK = 0, INVALID = 2, NOT_SUPPORTED = 3, LOST = 15 };
static int board(long at, long long *energy, long long *power) {
  FILE *file = fopen(getenv("PLAYED_NVML"), "r");
  if (!file) return LOST;
  int found = INVALID;
  for (long i = 0; i <= at && fscanf(file, "%lld %lld", energy, power) == 2; i++)
    if (i == at) found = OK;
  fclose(file);
  return found;
}
int nvmlInit_v2(void) { return OK; }
int nvmlInitWithFlags(unsigned int flags) { return OK; }
int nvmlShutdown(void) { return OK; }
const char *nvmlErrorString(int code) { return code == LOST ? "GPU is lost" : "Not Supported"; }
int nvmlDeviceGetCount_v2(unsigned int *count) {
  long long energy, power;
  for (*count = 0; board(*count, &energy, &power) == OK; ++*count) {}
  return OK;
}
int nvmlDeviceGetHandleByIndex_v2(unsigned int index, void **device) {
  *device = (void *)(long)(index + 1);
  return OK;
}
int nvmlDeviceGetHandleByUUID(const char *uuid, void **device) {
  *device = (void *)(atol(uuid + strlen("GPU-")) + 1);
  return OK;
}
int nvmlDeviceGetUUID(void *device, char *uuid, unsigned int length) {
  snprintf(uuid, length, "GPU-%ld", (long)device - 1);
  return OK;
}
int nvmlDeviceGetName(void *device, char *name, unsigned int length) {
  snprintf(name, length, "Played GPU");
  return OK;
}
int nvmlDeviceGetMemoryInfo(void *device, unsigned long long *info) {
  info[0] = info[1] = 1ull << 30;
  info[2] = 0;
  return OK;
}
int nvmlDeviceGetTotalEnergyConsumption(void *device, unsigned long long *mj) {
  long long energy, power;
  int code = board((long)device - 1, &energy, &power);
  *mj = energy;
  return code == OK && energy < 0 ? NOT_SUPPORTED : code;
}
int nvmlDeviceGetPowerUsage(void *device, unsigned int *mw) {
  long long energy, power;
  int code = board((long)device - 1, &energy, &power);
  *mw = power;
  return code == OK && power < 0 ? NOT_SUPPORTED : code;
}
"""
FILE_VARIABLE = "PLAYED_NVML"


def compiler_here() -> bool:
    return shutil.which("cc") is not None


def build_nvml(folder: Path) -> Path:
    """Compile it; a process that is started with ``LD_LIBRARY_PATH`` = the folder that is returned,
    and ``PLAYED_NVML`` = the file of its boards, has these GPUs."""
    (folder / "nvml.c").write_text(SOURCE)
    subprocess.run(
        ["cc", "-shared", "-fPIC", "-w", "-o", folder / "libnvidia-ml.so.1", folder / "nvml.c"],
        check=True,
    )
    return folder
