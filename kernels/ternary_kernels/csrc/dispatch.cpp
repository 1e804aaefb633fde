// See dispatch.h.
#include "dispatch.h"

#include <atomic>
#include <cstring>

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#endif
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(__APPLE__)
#include <sys/sysctl.h>
#endif

extern const tk::Kernels tk_table_plain, tk_table_tile_model;
#if defined(__x86_64__)
extern const tk::Kernels tk_table_amx, tk_table_avx512vbmi, tk_table_avx512vnni, tk_table_avxvnni,
    tk_table_avx2;
#elif defined(__aarch64__)
extern const tk::Kernels tk_table_neon;
#endif

namespace tk {
namespace {

#if defined(__x86_64__)
struct Features {
  bool avx2 = false, avxvnni = false, avx512vnni = false, avx512vbmi = false, amx = false;
};

bool bit(unsigned word, int index) { return (word >> index) & 1; }

Features features() {
  Features f;
  unsigned a, b, c, d, d7;
  if (!__get_cpuid(1, &a, &b, &c, &d) || !bit(c, 27)) return f;  // OSXSAVE
  const bool fma = bit(c, 12), f16c = bit(c, 29);
  unsigned state, high;
  asm volatile("xgetbv" : "=a"(state), "=d"(high) : "c"(0));
  const bool ymm = (state & 0x06) == 0x06, zmm = (state & 0xe6) == 0xe6;
  unsigned b7, c7, a71 = 0;
  if (!__get_cpuid_count(7, 0, &a, &b7, &c7, &d7)) return f;
  if (a >= 1) __get_cpuid_count(7, 1, &a71, &b, &c, &d);
  f.avx2 = ymm && fma && f16c && bit(b7, 5);
  f.avxvnni = f.avx2 && bit(a71, 4);
  f.avx512vnni =
      f.avx2 && zmm && bit(b7, 16) && bit(b7, 17) && bit(b7, 30) && bit(b7, 31) && bit(c7, 11);
  f.avx512vbmi = f.avx512vnni && bit(c7, 1) && bit(c7, 6);  // and VBMI2, which came with it
  // amx_bf16, amx_tile, amx_int8, and a system that keeps tiles (XCR0).
  f.amx = f.avx512vbmi && bit(d7, 22) && bit(d7, 24) && bit(d7, 25) && (state & 0x60000) == 0x60000;
  return f;
}

// Linux gives the eight kilobytes of tiles to those processes that ask, and may say no.
const char* tiles_refused() {
#if defined(__linux__)
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM
  if (syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0) return "";
  return errno == ENOSPC ? "a thread's alternative signal stack has no room for its tiles"
                         : "the system refuses it (arch_prctl ARCH_REQ_XCOMP_PERM)";
#else
  return "the system has no way to ask for its tiles that is known here";
#endif
}
#elif defined(__aarch64__)
bool has_dot_product() {
#if defined(__linux__)
  return (getauxval(AT_HWCAP) >> 20) & 1;  // HWCAP_ASIMDDP
#else
  int value = 0;
  size_t size = sizeof value;
  return sysctlbyname("hw.optional.arm.FEAT_DotProd", &value, &size, nullptr, 0) == 0 && value;
#endif
}
#endif

struct Available {
  const Kernels* list[8] = {};
  const char* refused = "";
  Available() {
    int n = 0;
#if defined(__x86_64__)
    const Features f = features();
    if (f.amx) refused = tiles_refused();
    if (f.amx && !*refused) list[n++] = &tk_table_amx;
    if (f.avx512vbmi) list[n++] = &tk_table_avx512vbmi;
    if (f.avx512vnni) list[n++] = &tk_table_avx512vnni;
    if (f.avxvnni) list[n++] = &tk_table_avxvnni;
    if (f.avx2) list[n++] = &tk_table_avx2;
#elif defined(__aarch64__)
    if (has_dot_product()) list[n++] = &tk_table_neon;
#endif
    list[n++] = &tk_table_plain;
    list[n] = &tk_table_tile_model;
  }
};

const Available& available() {
  static const Available found;
  return found;
}

std::atomic<const Kernels*> chosen{nullptr};

}  // namespace

const Kernels* const* available_kernels() { return available().list; }

const char* tile_unit_refused() { return available().refused; }

const Kernels& kernels() {
  const Kernels* k = chosen.load(std::memory_order_acquire);
  return k ? *k : *available().list[0];
}

bool force_kernels(const char* name) {
  for (const Kernels* const* k = available_kernels(); *k; ++k)
    if (std::strcmp((*k)->name, name) == 0) {
      chosen.store(*k, std::memory_order_release);
      return true;
    }
  return false;
}

}  // namespace tk
