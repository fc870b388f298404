/* A library for LD_PRELOAD whose clock jumps and whose disk is slow; both are off until a process asks for them. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static double jump_at; /* seconds of CLOCK_MONOTONIC */
static long jump_by;   /* seconds; 0 for a clock that does not jump */
static long delay;     /* microseconds before every operation that a disk does; 0 for none */

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

void chaos_configure(double at, long by, long microseconds) {
  jump_at = at;
  jump_by = by;
  delay = microseconds;
}

static long find_offset(void) {
  struct timespec now;
  if (!jump_by) return 0;
  REAL(clock_gettime)(CLOCK_MONOTONIC, &now);
  return now.tv_sec + now.tv_nsec * 1e-9 >= jump_at ? jump_by : 0;
}

int clock_gettime(clockid_t clock, struct timespec *value) {
  static __typeof__(&clock_gettime) real;
  if (!real) real = REAL(clock_gettime);
  int result = real(clock, value);
  if (clock == CLOCK_REALTIME && result == 0) value->tv_sec += find_offset();
  return result;
}

time_t time(time_t *value) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  if (value) *value = now.tv_sec;
  return now.tv_sec;
}

int gettimeofday(struct timeval *value, void *zone) {
  int result = REAL(gettimeofday)(value, zone);
  if (result == 0) value->tv_sec += find_offset();
  return result;
}

static void wait_for_disk(void) {
  if (delay) usleep(delay);
}

ssize_t write(int file, const void *data, size_t bytes) {
  static __typeof__(&write) real;
  struct stat status;
  if (!real) real = REAL(write);
  if (delay && fstat(file, &status) == 0 && S_ISREG(status.st_mode)) wait_for_disk();
  return real(file, data, bytes);
}

int fsync(int file) {
  wait_for_disk();
  return REAL(fsync)(file);
}

int rename(const char *from, const char *to) {
  wait_for_disk();
  return REAL(rename)(from, to);
}
