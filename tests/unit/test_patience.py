"""What is compiled into Horovod, in programs of its own."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from hvd_llm.horovod_build import compiler, selftest

LOOP = """
#include <cstdio>
#include <ctime>
#include <sys/resource.h>
#include <sys/timerfd.h>
#include <unistd.h>

static long naps() {
  struct rusage used;
  getrusage(RUSAGE_THREAD, &used);
  return used.ru_nvcsw;
}

static double seconds() {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec + now.tv_nsec * 1e-9;
}

static void work() {
  for (double start = seconds(); seconds() - start < 20e-6;) {}
}

int main() {
  int ends[2];
  char byte;
  if (pipe(ends) || write(ends[1], "x", 1) != 1) return 1;
  const int epoll = epoll_create1(0);
  struct epoll_event event = {EPOLLIN, {}};
  if (epoll_ctl(epoll, EPOLL_CTL_ADD, ends[0], &event)) return 1;

  int answers = 0;
  long before = naps();
  for (int round = 0; round < 4; round++) answers += epoll_wait(epoll, &event, 1, 1000) == 1;
  printf("%ld naps at first\\n", naps() - before);

  before = naps();
  for (int round = 0; round < 100; round++) answers += epoll_wait(epoll, &event, 1, 1000) == 1;
  printf("%ld naps in vain\\n", naps() - before);

  before = naps();
  for (int round = 0; round < 100; round++) {
    work();
    answers += epoll_wait(epoll, &event, 1, 1000) == 1;
  }
  printf("%d answers\\n%ld naps at work\\n", answers, naps() - before);

  if (read(ends[0], &byte, 1) != 1) return 1;
  double start = seconds();
  printf("%d silent\\n", epoll_wait(epoll, &event, 1, 20));
  printf("%d ms\\n", static_cast<int>((seconds() - start) * 1000));

  const int timer = timerfd_create(CLOCK_MONOTONIC, 0);
  const struct itimerspec soon = {{0, 0}, {0, 20000000}};
  if (epoll_ctl(epoll, EPOLL_CTL_ADD, timer, &event) || timerfd_settime(timer, 0, &soon, nullptr)) return 1;
  printf("%d meanwhile\\n", epoll_wait(epoll, &event, 1, 10000));
}
"""
CYCLE = """
#include <cstdio>
#include <map>
#include <set>

struct Queue {
 protected:
  std::mutex mutex_;
  std::map<int, int> tensor_table_;

 public:
  void add() { tensor_table_[0] = 0; }
};

struct Set {
  bool initialization_done = true;
  Queue tensor_queue;
};

struct Table {
  Set only;
  std::set<int> Ids() { return {0}; }
  Set& Get(int) { return only; }
};

struct {
  Table process_set_table;
} horovod_global;

static int slept(int most_ms) {  // in milliseconds, as the background thread sleeps
  auto began = std::chrono::steady_clock::now();
  std::this_thread::sleep_for(std::chrono::nanoseconds(most_ms * 1000000LL));
  return (std::chrono::steady_clock::now() - began) / std::chrono::milliseconds(1);
}

static int slept_until(void (*what)()) {
  std::thread other([what] {
    timespec soon = {0, 20000000};
    nanosleep(&soon, nullptr);
    what();
  });
  int found = slept(5000);
  other.join();
  return found;
}

int main() {
  Set& set = horovod_global.process_set_table.only;
  printf("%d idle\\n", slept(50));
  printf("%d group\\n", slept_until([] { std::this_thread::sleep_for(std::chrono::milliseconds(1)); }));
  set.tensor_queue.add();
  printf("%d untold\\n", slept(50));
  printf("%d told\\n", slept_until(horovod_wake));
  horovod_wake();
  printf("%d before\\n", slept(5000));
  printf("%d pending\\n", slept(5000));
  set.initialization_done = false;
  printf("%d strange\\n", slept(50));
}
"""
RANKS = """
#include <cstdio>
#include <ctime>
#include <sys/resource.h>
#include <unistd.h>

static long naps() {
  struct rusage used;
  getrusage(RUSAGE_THREAD, &used);
  return used.ru_nvcsw;
}

int main(int count, char** words) {
  MPI_Init(&count, &words);
  int rank, total = 0, all[2] = {0, 0};
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Barrier(MPI_COMM_WORLD);
  const clock_t start = clock();
  const long before = naps();
  if (rank == 1) sleep(1);
  const int mine = rank + 1;
  MPI_Allreduce(&mine, &total, 1, MPI_INT, MPI_SUM, MPI_COMM_WORLD);
  const clock_t spent = clock() - start;
  const long slept = naps() - before;
  MPI_Gather(&mine, 1, MPI_INT, all, 1, MPI_INT, 0, MPI_COMM_WORLD);
  if (rank == 0) printf("%d %d %d %ld %ld\\n", total, all[0], all[1], spent * 1000 / CLOCKS_PER_SEC, slept);
  MPI_Finalize();
}
"""


def build(folder: Path, source: str, program: str, *options: str, real: str) -> Path:
    """Compile a program in the place of one of Horovod's files, as that one would be."""
    (folder / source).parent.mkdir(parents=True)
    (folder / source).write_text(program)
    compiler.write(folder / "g++", real, standard=17)
    subprocess.run([folder / "g++", "-Wall", *options, folder / source, "-o", folder / "program"], check=True)
    return folder / "program"


def test_gloos_loop_gives_way_while_nothing_comes_of_its_answers(tmp_path):
    real = shutil.which(os.environ.get("CXX", "g++"))
    if not real:
        pytest.skip("needs a C++ compiler")
    program = build(tmp_path, "gloo/transport/tcp/loop.cc", LOOP, "-Werror", real=real)
    said = subprocess.run([program], capture_output=True, text=True, check=True).stdout.splitlines()
    found = {" ".join(words): int(value) for value, *words in map(str.split, said)}
    assert found["answers"] == 204
    assert found["naps at first"] == 0
    assert found["naps in vain"] >= 80  # a program that loses its core between two answers has not asked at once
    assert found["naps at work"] <= 5
    assert found["silent"] == 0
    assert found["ms"] >= 19
    assert found["meanwhile"] == 1
    assert compiler.impatient(program) == ["common/operations.cc", "mpi/mpi_controller.cc"]


def test_horovods_thread_sleeps_until_there_is_something(tmp_path):
    real = shutil.which(os.environ.get("CXX", "g++"))
    if not real:
        pytest.skip("needs a C++ compiler")
    program = build(tmp_path, "common/operations.cc", CYCLE, "-Werror", "-pthread", real=real)
    said = subprocess.run([program], capture_output=True, text=True, check=True).stdout.splitlines()
    found = {what: int(ms) for ms, what in map(str.split, said)}
    for whole in ("idle", "untold", "strange"):  # nobody ever told it; what it has is of a group that is not ready
        assert found[whole] >= 50, found
    for ended, most in {
        "group": 1000,
        "told": 1000,
        "before": 200,
        "pending": 200,
    }.items():  # one ms, on a busy machine
        assert found[ended] < most, found
    assert compiler.impatient(program) == ["mpi/mpi_controller.cc", "gloo/transport/tcp/loop.cc"]


def test_a_rank_that_waits_in_mpi_sleeps(tmp_path):
    environment = selftest.local_environment(os.environ)
    real, mpirun = (shutil.which(name, path=environment["PATH"]) for name in ("mpicxx", "mpirun"))
    if not real or not mpirun:
        pytest.skip("needs MPI's compiler and launcher")
    program = build(tmp_path, "mpi/mpi_controller.cc", RANKS, real=real)
    words = [mpirun, "-np", "2", "--oversubscribe", program]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    total, first, second, spent_ms, naps = map(int, done.stdout.split())
    assert (total, first, second) == (3, 1, 2)
    assert spent_ms < 400, "it asked again and again through the second that the other one was late"
    assert 500 < naps < 6000, "2,000 if each sleep is longer than the one before, 17,000 if not"
    assert compiler.impatient(program) == ["common/operations.cc", "gloo/transport/tcp/loop.cc"]
