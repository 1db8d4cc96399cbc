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
RANKS = """
#include <cstdio>
#include <ctime>
#include <unistd.h>

int main(int count, char** words) {
  MPI_Init(&count, &words);
  int rank, total = 0, all[2] = {0, 0};
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Barrier(MPI_COMM_WORLD);
  const clock_t start = clock();
  if (rank == 1) sleep(1);
  const int mine = rank + 1;
  MPI_Allreduce(&mine, &total, 1, MPI_INT, MPI_SUM, MPI_COMM_WORLD);
  const clock_t spent = clock() - start;
  MPI_Gather(&mine, 1, MPI_INT, all, 1, MPI_INT, 0, MPI_COMM_WORLD);
  if (rank == 0) printf("%d %d %d %ld\\n", total, all[0], all[1], spent * 1000 / CLOCKS_PER_SEC);
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


def test_a_rank_that_waits_in_mpi_sleeps(tmp_path):
    environment = selftest.local_environment(os.environ)
    real, mpirun = (shutil.which(name, path=environment["PATH"]) for name in ("mpicxx", "mpirun"))
    if not real or not mpirun:
        pytest.skip("needs MPI's compiler and launcher")
    program = build(tmp_path, "mpi/mpi_controller.cc", RANKS, real=real)
    words = [mpirun, "-np", "2", "--oversubscribe", program]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    total, first, second, spent_ms = map(int, done.stdout.split())
    assert (total, first, second) == (3, 1, 2)
    assert spent_ms < 400, "it asked again and again through the second that the other one was late"
    assert compiler.impatient(program) == ["common/operations.cc", "gloo/transport/tcp/loop.cc"]
