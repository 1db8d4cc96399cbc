// Compiled into Horovod's controller: collectives of MPI that, after some looks, wait by sleeping.
//
// Ranks that negotiate wait for the last one to wake up. Open MPI waits by asking again at once, or by yielding in
// between: four ranks on two cores did so 200,000 times a second, a fifth of which is left. It cost a seventh of the
// time of their tests, and Linux 6.18 has answered it by giving other threads, its own among them, no core for minutes.
#pragma once

#include <mpi.h>
#include <time.h>

static inline int patient_wait(int started, MPI_Request* request) {
  int done = 0, looks = 0;
  while (started == MPI_SUCCESS && !done) {
    started = MPI_Test(request, &done, MPI_STATUS_IGNORE);
    if (!done && ++looks > 32) {
      const struct timespec moment = {0, 1000};  // and what the kernel adds to it, some 50 microseconds
      nanosleep(&moment, nullptr);
    }
  }
  return started;
}

static inline int patient_allreduce(const void* from, void* to, int count, MPI_Datatype type, MPI_Op op, MPI_Comm comm) {
  MPI_Request request;
  return patient_wait(MPI_Iallreduce(from, to, count, type, op, comm, &request), &request);
}

static inline int patient_allgather(const void* from, int sent, MPI_Datatype type, void* to, int count,
                                    MPI_Datatype to_type, MPI_Comm comm) {
  MPI_Request request;
  return patient_wait(MPI_Iallgather(from, sent, type, to, count, to_type, comm, &request), &request);
}

static inline int patient_bcast(void* buffer, int count, MPI_Datatype type, int root, MPI_Comm comm) {
  MPI_Request request;
  return patient_wait(MPI_Ibcast(buffer, count, type, root, comm, &request), &request);
}

static inline int patient_gather(const void* from, int sent, MPI_Datatype type, void* to, int count,
                                 MPI_Datatype to_type, int root, MPI_Comm comm) {
  MPI_Request request;
  return patient_wait(MPI_Igather(from, sent, type, to, count, to_type, root, comm, &request), &request);
}

#define MPI_Allgather patient_allgather
#define MPI_Allreduce patient_allreduce
#define MPI_Bcast patient_bcast
#define MPI_Gather patient_gather
