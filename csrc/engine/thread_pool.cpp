#include "engine/thread_pool.hpp"

#include <unistd.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace symboliclight {
namespace {

constexpr int BEFORE_YIELD = 2000, BEFORE_SLEEP = 40000;  // turns: about 50 microseconds, and a millisecond or more

void pause(int turn) {
    if (turn >= BEFORE_YIELD && turn % 64 == 0) std::this_thread::yield();  // somebody else may need this core
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

}  // namespace

void Pool::start() {
    for (auto& thread : threads_) thread.detach();  // after a fork: handles of threads that the parent has
    threads_.clear();
    arrived_ = 0;
    process_ = getpid();
    for (int i = 1; i < size_; ++i) threads_.emplace_back([this, i, seen = call_.load()] { work(i, seen); });
}

void Pool::stop() {
    if (threads_.empty()) return;
    if (process_ != getpid()) {
        for (auto& thread : threads_) thread.detach();
        return;
    }
    {
        std::lock_guard lock(mutex_);
        stopping_ = true;
        ++call_;
    }
    wake_.notify_all();
    for (auto& thread : threads_) thread.join();
}

void Pool::run(void (*f)(void*, int), void* argument) {
    if (size_ == 1) return f(argument, 0);
    if (process_ != getpid()) start();
    f_ = f;
    argument_ = argument;
    {
        std::lock_guard lock(mutex_);
        ++call_;
    }
    wake_.notify_all();
    f(argument, 0);
    sync();
}

void Pool::sync() {
    if (size_ == 1) return;
    unsigned phase = phase_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) == size_ - 1) {
        arrived_.store(0, std::memory_order_relaxed);
        phase_.store(phase + 1, std::memory_order_release);
        return;
    }
    for (int turn = 0; phase_.load(std::memory_order_acquire) == phase; ++turn) pause(turn);
}

void Pool::work(int thread, unsigned seen) {
    for (;;) {
        for (int turn = 0; call_.load(std::memory_order_acquire) == seen && turn < BEFORE_SLEEP; ++turn) pause(turn);
        if (call_.load(std::memory_order_acquire) == seen) {
            std::unique_lock lock(mutex_);
            wake_.wait(lock, [&] { return call_.load() != seen; });
        }
        seen = call_;
        if (stopping_) return;
        f_(argument_, thread);
        sync();
    }
}

}  // namespace symboliclight
