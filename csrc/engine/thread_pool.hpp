// A team of threads for work of microseconds: they spin between the phases of a token and sleep when no call comes.
#pragma once

#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace symboliclight {

class Pool {
  public:
    static constexpr int SLOTS = 8;

    explicit Pool(int threads) : size_(threads), taken_(new Taken[threads]()) {}
    ~Pool() { stop(); }
    Pool(const Pool&) = delete;

    int size() const { return size_; }
    // f(argument, thread) on every thread, the caller as thread 0; returns when all are done. One call at a time.
    void run(void (*f)(void*, int), void* argument);
    // Waits until all threads of the running call are here.
    void sync();
    // How much of `thread`'s share of work `slot` is taken, for phases of even and odd number; 0 before a call.
    std::atomic<int64_t>& taken(int thread, int64_t odd, int64_t slot) { return taken_[thread].by_phase[odd][slot]; }

  private:
    void start();
    void stop();
    void work(int thread, unsigned seen);

    struct alignas(64) Taken {  // in cache lines of their own
        std::atomic<int64_t> by_phase[2][SLOTS];
    };

    const int size_;
    const std::unique_ptr<Taken[]> taken_;
    long process_ = 0;  // threads do not survive fork: a child starts its own
    std::vector<std::thread> threads_;
    void (*f_)(void*, int) = nullptr;
    void* argument_ = nullptr;
    alignas(64) std::atomic<unsigned> call_{0};  // each in a cache line of its own
    alignas(64) std::atomic<int> arrived_{0};
    alignas(64) std::atomic<unsigned> phase_{0};
    std::atomic<bool> stopping_{false};
    std::mutex mutex_;
    std::condition_variable wake_;
};

}  // namespace symboliclight
