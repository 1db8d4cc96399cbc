// Compiled into Horovod's controller: collectives of MPI that, after some looks, wait by sleeping.
//
// Ranks that negotiate wait for the last one to wake up. Open MPI waits by asking again at once, or by yielding in
// between: four ranks on two cores did so 200,000 times a second, a fifth of which is left (in data operations, which
// are not changed). Asking for 30 microseconds before the first sleep costs such ranks a fifth more processor time than
// 32 looks do. Where each rank has a core and the network is fast, a wait is longer by one sleep for each of its hops; one
// of long standing by half a millisecond.
#pragma once

#define OMPI_SKIP_MPICXX  // as in Horovod, whose own line comes too late when mpi.h is read here
#include <mpi.h>
#include <time.h>

__attribute__((used)) static const char patience[] = PATIENCE;  // for the library to tell that this is in it

static inline int patient_wait(int status, MPI_Request* request) {
  for (int done = 0, looks = 0; status == MPI_SUCCESS;) {
    status = MPI_Test(request, &done, MPI_STATUS_IGNORE);
    if (done) break;
    if (++looks > 32) {
      // And what the kernel adds to it, some 50 microseconds. The longer it has waited, the longer it sleeps: a rank
      // that has something for the others waits until they have it too.
      const struct timespec moment = {0, 1000L * (looks < 532 ? looks - 32 : 500)};
      nanosleep(&moment, nullptr);
    }
  }
  return status;
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

static inline int patient_barrier(MPI_Comm comm) {
  MPI_Request request;
  return patient_wait(MPI_Ibarrier(comm, &request), &request);
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

static inline int patient_gatherv(const void* from, int sent, MPI_Datatype type, void* to, const int* counts,
                                  const int* places, MPI_Datatype to_type, int root, MPI_Comm comm) {
  MPI_Request request;
  return patient_wait(MPI_Igatherv(from, sent, type, to, counts, places, to_type, root, comm, &request), &request);
}

#define MPI_Allgather patient_allgather
#define MPI_Allreduce patient_allreduce
#define MPI_Barrier patient_barrier
#define MPI_Bcast patient_bcast
#define MPI_Gather patient_gather
#define MPI_Gatherv patient_gatherv
