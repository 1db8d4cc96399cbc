"""What is compiled into Gloo's event loop, in a loop of its own."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

import hvd_llm

HEADER = Path(hvd_llm.__file__).with_name("patience") / "gloo.h"
PROGRAM = """
#include <cstdio>
#include <sys/resource.h>
#include <unistd.h>

int main() {
  int ends[2], right = 0;
  if (pipe(ends) || write(ends[1], "x", 1) != 1) return 1;
  const int epoll = epoll_create1(0);
  struct epoll_event event = {EPOLLIN, {}};
  if (epoll_ctl(epoll, EPOLL_CTL_ADD, ends[0], &event)) return 1;
  for (int round = 0; round < 100; round++) right += epoll_wait(epoll, &event, 1, 1000) == 1;
  struct rusage used;
  getrusage(RUSAGE_SELF, &used);
  char byte;
  if (read(ends[0], &byte, 1) != 1) return 1;
  printf("%d %ld %d", right, used.ru_nvcsw, epoll_wait(epoll, &event, 1, 10));
}
"""


def test_it_gives_way_where_answers_come_at_once(tmp_path):
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if not compiler:
        pytest.skip("needs a C++ compiler")
    (tmp_path / "loop.cc").write_text(PROGRAM)
    command = [compiler, "-Wall", "-Werror", "-include", HEADER, tmp_path / "loop.cc", "-o", tmp_path / "loop"]
    subprocess.run(command, check=True)
    said = subprocess.run([tmp_path / "loop"], capture_output=True, text=True, check=True).stdout
    answered, gave_way, silent = map(int, said.split())
    assert answered == 100
    assert gave_way >= 90
    assert silent == 0
