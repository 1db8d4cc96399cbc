// Compiled into Gloo's event loop: an epoll_wait that gives its core away for a moment while nothing comes of its
// answers.
//
// The loop leaves a socket's news to its next round while another thread holds the socket's lock. That round comes at
// once, and so on until the scheduler lets the other thread go on: of three ranks on two cores, three million rounds in
// ten seconds, 22 % of all samples. A loop that receives something needs longer between two rounds than one that finds
// a lock, and is left alone.
#pragma once

#include <sys/epoll.h>
#include <time.h>

__attribute__((used)) static const char patience[] = PATIENCE;  // for the library to tell that this is in it

static inline long long patient_now_ns() {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * 1000000000LL + now.tv_nsec;
}

static inline int patient_epoll_wait(int epoll, struct epoll_event* events, int most, int timeout_ms) {
  static thread_local long long answered_ns;  // when the last answer was given
  static thread_local int in_vain;            // answers in a row that were of no use
  in_vain = patient_now_ns() - answered_ns < 5000 ? in_vain + 1 : 0;
  if (in_vain > 4) {
    const struct timespec moment = {0, 1000};  // and what the kernel adds to it, some 50 microseconds
    nanosleep(&moment, nullptr);
  }
  int count = epoll_wait(epoll, events, most, 0);
  if (count == 0) {
    in_vain = 0;
    count = epoll_wait(epoll, events, most, timeout_ms);
  }
  answered_ns = patient_now_ns();
  return count;
}

#define epoll_wait patient_epoll_wait
