// Work for the threads of XLA's pool, of which any number may be free.

#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <thread>

#include "xla/ffi/api/c_api.h"

namespace {

class Team {
 public:
  // f(part) for every part, on as many threads as are free.
  static void each(const XLA_FFI_CallFrame* frame, int parts, std::function<void(int)> f) {
    auto work = std::make_shared<Parts>();
    work->parts = parts;
    work->f = std::move(f);
    int threads = std::min(parts, size(frame));
    for (int i = 1; i < threads; i++) schedule(frame, [work] { work->run(); });
    work->run();
    for (int spin = 0; work->done.load(std::memory_order_acquire) < parts; spin++) pause(spin);
  }
  // f(member, members, meet) on up to `wanted` threads at once; meet() waits for all of them. Threads that have not
  // arrived after `patience` are busy elsewhere: they are shut out, and the work is divided among those present.
  template <class F>
  static void together(const XLA_FFI_CallFrame* frame, int wanted, std::chrono::microseconds patience, F f) {
    auto work = std::make_shared<Meeting>();
    wanted = std::min(wanted, size(frame));
    auto body = [work, f](int member, int members) { f(member, members, [&] { work->meet(members); }); };
    work->f = body;
    for (int i = 1; i < wanted; i++) schedule(frame, [work] { work->join(); });
    auto until = std::chrono::steady_clock::now() + patience;
    for (int spin = 0; work->present.load() < wanted && std::chrono::steady_clock::now() < until; spin++) pause(spin);
    int members = work->present.exchange(CLOSED);
    work->members.store(members, std::memory_order_release);
    body(0, members);
    for (int spin = 0; work->left.load(std::memory_order_acquire) < members - 1; spin++) pause(spin);
    work->f = nullptr;
  }

 private:
  static constexpr int CLOSED = -1;
  struct Parts {
    std::atomic<int> next{0}, done{0};
    int parts;
    std::function<void(int)> f;
    void run() {
      for (int part; (part = next.fetch_add(1)) < parts;) {
        f(part);
        done.fetch_add(1, std::memory_order_release);
      }
    }
  };
  struct Meeting {
    std::atomic<int> present{1}, members{0}, left{0}, arrived{0}, round{0};
    std::function<void(int, int)> f;
    void join() {
      int seen = present.load();
      do {
        if (seen == CLOSED) return;
      } while (!present.compare_exchange_weak(seen, seen + 1));
      for (int spin = 0; members.load(std::memory_order_acquire) == 0; spin++) pause(spin);
      f(seen, members.load());
      left.fetch_add(1, std::memory_order_release);
    }
    void meet(int of) {
      int now = round.load(std::memory_order_relaxed);
      if (arrived.fetch_add(1, std::memory_order_acq_rel) == of - 1) {
        arrived.store(0, std::memory_order_relaxed);
        round.store(now + 1, std::memory_order_release);
      } else {
        for (int spin = 0; round.load(std::memory_order_acquire) == now; spin++) pause(spin);
      }
    }
  };
  static void pause(int spin) {
    if (spin < 4096) {
#if defined(__x86_64__)
      __builtin_ia32_pause();
#endif
    } else {
      std::this_thread::yield();
    }
  }
  static int size(const XLA_FFI_CallFrame* frame) {
    int64_t threads = 1;
    XLA_FFI_ThreadPool_NumThreads_Args args{XLA_FFI_ThreadPool_NumThreads_Args_STRUCT_SIZE, nullptr, frame->ctx, &threads};
    if (ignore(frame, frame->api->XLA_FFI_ThreadPool_NumThreads(&args))) return 1;
    return static_cast<int>(std::max<int64_t>(threads, 1));
  }
  static void schedule(const XLA_FFI_CallFrame* frame, std::function<void()> task) {
    auto* data = new std::function<void()>(std::move(task));
    XLA_FFI_ThreadPool_Schedule_Args args{XLA_FFI_ThreadPool_Schedule_Args_STRUCT_SIZE, nullptr, frame->ctx,
                                          [](void* data) {
                                            std::unique_ptr<std::function<void()>> task(
                                                static_cast<std::function<void()>*>(data));
                                            (*task)();
                                          },
                                          data};
    if (ignore(frame, frame->api->XLA_FFI_ThreadPool_Schedule(&args))) delete data;
  }
  static bool ignore(const XLA_FFI_CallFrame* frame, XLA_FFI_Error* error) {
    if (!error) return false;
    XLA_FFI_Error_Destroy_Args args{XLA_FFI_Error_Destroy_Args_STRUCT_SIZE, nullptr, error};
    frame->api->XLA_FFI_Error_Destroy(&args);
    return true;
  }
};

}  // namespace
