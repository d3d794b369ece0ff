#include "kernels/parallel.hpp"

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>

#if defined(__unix__) || defined(__APPLE__)
#include <dlfcn.h>
#include <pthread.h>
#endif

namespace symboliclight {
namespace {

struct Job {
    void (*f)(void*, int64_t);
    void* context;
    int64_t items;
    std::atomic<int64_t> next{0};
    int wanted;      // helpers that may still join; under the team's mutex, as is
    int inside = 0;  // helpers at work

    void work() {
        for (int64_t item; (item = next.fetch_add(1, std::memory_order_relaxed)) < items;) f(context, item);
    }
};

// Unlike a barrier, the end of a job waits only for helpers that took part: one that the system has not yet given a
// core, because other programs or torch's spinning threads hold it, delays nobody.
class Team {
public:
    void run(Job& mine) {
        std::unique_lock lock(mutex);
        if (job) {  // another thread's job has the helpers
            lock.unlock();
            return mine.work();
        }
        for (; helpers < mine.wanted; ++helpers) std::thread([this] { help(); }).detach();
        job = &mine;
        lock.unlock();
        mine.wanted == 1 ? come.notify_one() : come.notify_all();
        mine.work();
        lock.lock();
        job = nullptr;
        left.wait(lock, [&] { return mine.inside == 0; });
    }

private:
    void help() {
        std::unique_lock lock(mutex);
        for (;;) {
            come.wait(lock, [&] { return job && job->wanted > 0; });
            Job& theirs = *job;
            --theirs.wanted;
            ++theirs.inside;
            lock.unlock();
            theirs.work();
            lock.lock();
            if (--theirs.inside == 0) left.notify_one();
        }
    }

    std::mutex mutex;
    std::condition_variable come, left;
    Job* job = nullptr;
    int helpers = 0;
};

// Never destroyed: helpers wait on it until the process ends. A forked child has no helpers and starts its own team.
Team* team = new Team;

// The threads of the OpenMP that torch brings, if it is GNU's. After each product they spin for a while in wait of the
// next: helpers of our own would have to share a core with them, and these begin at once. None of them survive a fork.
using Parallel = void (*)(void (*)(void*), void*, unsigned, unsigned);
Parallel openmp = [] {
#if defined(__unix__) || defined(__APPLE__)
    pthread_atfork(nullptr, nullptr, [] { team = new Team, openmp = nullptr; });
    return reinterpret_cast<Parallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
#else
    return nullptr;
#endif
}();

}  // namespace

void share(int64_t items, int threads, void (*f)(void*, int64_t), void* context) {
    Job job{f, context, items, {}, int(threads < items ? threads : items) - 1};
    if (job.wanted <= 0) job.work();
    else if (openmp) openmp([](void* mine) { static_cast<Job*>(mine)->work(); }, &job, unsigned(job.wanted + 1), 0);
    else team->run(job);
}

}  // namespace symboliclight
