/* What the engine and the load generator share: a clock, sockets on loopback, and waiting for them to the microsecond. */

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define SECOND 1000000000LL
#define NEVER INT64_MAX

static inline int64_t now_ns(void) {
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return at.tv_sec * SECOND + at.tv_nsec;
}

static inline void fail(const char *what) {
    perror(what);
    exit(1);
}

/* Gone with whoever started us, however that ended. */
static inline void follow_parent(void) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    signal(SIGPIPE, SIG_IGN);
}

static inline struct sockaddr_in loopback(int port) {
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port)};
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return to;
}

static inline void at_once(int fd) {
    int yes = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
}

static inline void watch(int epoll, int operation, int fd, uint32_t events, void *what) {
    struct epoll_event event = {.events = events, .data.ptr = what};
    if (epoll_ctl(epoll, operation, fd, &event)) fail("epoll_ctl");
}

/* Until something happens or it is `until`. epoll_wait knows whole milliseconds only, and would bunch what is paced. */
static inline int await_events(int epoll, struct epoll_event *events, int room, int64_t until) {
    int64_t left = until - now_ns();
    if (left < 0) left = 0;
    struct timespec wait = {left / SECOND, left % SECOND};
    int count = syscall(SYS_epoll_pwait2, epoll, events, room, until == NEVER ? NULL : &wait, NULL, 0);
    if (count < 0 && errno != EINTR) fail("epoll_pwait2");
    return count < 0 ? 0 : count;
}
