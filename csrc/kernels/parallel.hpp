// Work sharing: the caller and helper threads take items one by one.
#pragma once

#include <cstdint>

namespace symboliclight {

// f(context, item) for 0 <= item < items on at most `threads` threads; returns when all are done.
void share(int64_t items, int threads, void (*f)(void*, int64_t), void* context);

// f(item) for every item. Items write to places of their own, so the number of threads cannot change a result.
template <class F>
void parallel_for(int64_t items, int threads, F f) {
    share(items, threads, [](void* context, int64_t item) { (*static_cast<F*>(context))(item); }, &f);
}

}  // namespace symboliclight
