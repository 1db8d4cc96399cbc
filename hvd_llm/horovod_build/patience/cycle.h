// Compiled into Horovod's background thread: its sleep between two looks for new operations ends when there is one.
//
// A look is a collective of all ranks. Ten milliseconds apart, they cost four ranks on two cores a tenth of a training
// step, most of it in vain, and still each round of a compressor waited for the next one. With `horovod_wake` a look
// comes when something was handed to Horovod, then every millisecond while this rank has something that others have not,
// and HOROVOD_CYCLE_TIME is how long the next one is put off otherwise. Where nobody calls it, Horovod sleeps as ever,
// but while something waits for its start, or for a group to be made.
#pragma once

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>

__attribute__((used)) static const char patience[] = PATIENCE;  // for the library to tell that this is in it

static std::mutex patient_mutex;
static std::condition_variable patient_news;
static bool patient_awake = false;  // something came since the last sleep
static bool patient_told = false;   // whether anybody tells

static void patient_wake(bool told) {
  {
    std::lock_guard<std::mutex> guard(patient_mutex);
    patient_awake = true;
    patient_told |= told;
  }
  patient_news.notify_one();
}

extern "C" __attribute__((visibility("default"))) void horovod_wake() { patient_wake(true); }

template <class Queue>
struct PatientQueue : Queue {  // it may look at what is protected there
  static bool empty(Queue& queue) {
    std::lock_guard<std::mutex> guard(queue.*&PatientQueue::mutex_);
    return (queue.*&PatientQueue::tensor_table_).empty();
  }
};

template <class State>
static void patient_sleep(std::chrono::nanoseconds duration, State& state) {
  bool waiting = false;  // for ranks that have not handed over what this one has
  for (auto id : state.process_set_table.Ids()) {
    auto& set = state.process_set_table.Get(id);
    waiting |= set.initialization_done && !PatientQueue<decltype(set.tensor_queue)>::empty(set.tensor_queue);
  }
  std::unique_lock<std::mutex> lock(patient_mutex);
  if (waiting && patient_told) duration = std::min(duration, std::chrono::nanoseconds(1000000));
  patient_news.wait_for(lock, duration, [] { return patient_awake; });
  patient_awake = false;
}

// Whoever else sleeps in this file does so in milliseconds: those who start Horovod, make groups or end them, which that
// thread is to do.
template <class State>
static void patient_sleep(std::chrono::milliseconds duration, State&) {
  patient_wake(false);
  std::this_thread::sleep_for(duration);
}

#define sleep_for(duration) yield(), patient_sleep(duration, horovod_global)
