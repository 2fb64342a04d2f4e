// The simulated device's memory, what is counted of it, and how PyTorch asks for a device; see device.cpp.
#pragma once

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/GeneratorForPrivateuseone.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <new>
#include <set>

namespace {

constexpr auto DEVICE = c10::DeviceType::PrivateUse1;
constexpr size_t HEADER = 64;  // bytes before a block, which hold its size and keep its alignment

enum Event : int { WAIT = 0, TO_DEVICE = 1 };
using Listener = void (*)(int event);

std::atomic<int64_t> waits{0}, to_device{0}, live{0}, peak{0}, allocations{0}, fails_at{0};
std::atomic<Listener> listener{nullptr};

void tell(Event event) {
  (event == WAIT ? waits : to_device)++;
  if (Listener listening = listener.load()) listening(event);
}

struct Memory final : c10::Allocator {
  static void release(void* block) {
    live -= static_cast<int64_t>(*static_cast<size_t*>(block));
    std::free(block);
  }
  c10::DataPtr allocate(size_t bytes) override {
    const int64_t number = ++allocations;
    TORCH_CHECK_WITH(OutOfMemoryError, number != fails_at.load(), "The simulated device is out of memory, as told");
    char* block = static_cast<char*>(std::aligned_alloc(HEADER, (bytes + HEADER - 1) / HEADER * HEADER + HEADER));
    if (block == nullptr) throw std::bad_alloc();
    *reinterpret_cast<size_t*>(block) = bytes;
    const int64_t now = live += static_cast<int64_t>(bytes);
    for (int64_t most = peak.load(); now > most && !peak.compare_exchange_weak(most, now);) {}
    return {block + HEADER, block, &release, c10::Device(DEVICE, 0)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return nullptr; }
  void copy_data(void* to, const void* from, size_t bytes) const override { std::memcpy(to, from, bytes); }
};
Memory memory;
REGISTER_ALLOCATOR(DEVICE, &memory);

struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return DEVICE; }
  c10::Device getDevice() const override { return {DEVICE, 0}; }
  c10::Device exchangeDevice(c10::Device) const override { return getDevice(); }
  void setDevice(c10::Device) const override {}
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
  c10::Stream getStream(c10::Device) const override { return c10::Stream(c10::Stream::DEFAULT, getDevice()); }
  c10::Stream getDefaultStream(c10::Device) const override { return c10::Stream(c10::Stream::DEFAULT, getDevice()); }
  c10::Stream exchangeStream(c10::Stream stream) const override { return stream; }
  void record(void**, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void*, const c10::DeviceIndex) const noexcept override {}
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

std::mutex pinning;
std::set<const void*> pinned;  // memory of the CPU that the device copies to while the host goes on

struct Pinned final : c10::Allocator {
  static void release(void* block) {
    std::lock_guard<std::mutex> lock(pinning);
    pinned.erase(block);
    std::free(block);
  }
  c10::DataPtr allocate(size_t bytes) override {
    void* block = std::malloc(bytes ? bytes : 1);
    if (block == nullptr) throw std::bad_alloc();
    std::lock_guard<std::mutex> lock(pinning);
    pinned.insert(block);
    return {block, block, &release, c10::Device(c10::DeviceType::CPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, size_t bytes) const override { std::memcpy(to, from, bytes); }
};
Pinned pinned_memory;

bool is_pinned(const void* data) {
  std::lock_guard<std::mutex> lock(pinning);
  return pinned.count(data) > 0;
}

struct Hooks final : at::PrivateUse1HooksInterface {
  void init() const override {}
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  bool isPinnedPtr(const void* data) const override { return is_pinned(data); }
  c10::Allocator* getPinnedMemoryAllocator() const override { return &pinned_memory; }
  at::Generator getNewGenerator(c10::DeviceIndex) const override { return at::make_generator<at::CPUGeneratorImpl>(); }
  const at::Generator& getDefaultGenerator(c10::DeviceIndex) const override {
    static const at::Generator generator = getNewGenerator(0);
    return generator;
  }
};
const bool registered = (at::RegisterPrivateUse1HooksInterface(new Hooks()), true);

}  // namespace
