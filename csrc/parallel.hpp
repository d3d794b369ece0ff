// Work sharing on the OpenMP team that torch uses too, so that the two never compete for cores.
#pragma once

#include <cstdint>

namespace symboliclight {

extern bool forked;  // OpenMP threads do not survive fork: a forked child runs everything on its own thread

// f(item) for every item. Items write to places of their own, so the number of threads cannot change a result.
template <class F>
void parallel_for(int64_t items, int threads, F f) {
    (void)threads;
#pragma omp parallel for schedule(dynamic) num_threads(threads) if (threads > 1 && items > 1 && !forked)
    for (int64_t item = 0; item < items; ++item) f(item);
}

}  // namespace symboliclight
