/* Load for anything that speaks the OpenAI format: one thread, and whatever comes back is checked.
 *
 *     load PORT REQUESTS [--connections N] [--seconds S] [--each N] [--rate R --seed N] [--tokens N] [--interval-us N]
 *                        [--ramp S] [--patience S] [--hold]
 *
 * REQUESTS is a file of requests as they stand on the wire, each behind a line with its length; they are sent in turn.
 *
 *   closed loop   each connection sends its next request when it has its answer: for S seconds, or N times with --each
 *   open loop     --rate: arrivals of a Poisson process, drawn before the start. A request counts from the time it was
 *                 meant to be sent, also if no connection was free then: a server that stalls makes its own tail longer,
 *                 not its exam easier
 *   streams       --tokens N: each answer has to be a stream of the tokens w0 w1 ... in order, then [DONE]
 *   held          --hold: open all, say so in a line, and leave when the input ends
 *
 * What was found is one object of JSON on the last line.
 */

#include <math.h>
#include <sys/resource.h>

#include "loop.h"

#define EVENTS 1024
#define READ 65536
#define HEAD_MOST 16384
#define LINE_MOST 4096

/* --- histograms: 64 steps for each doubling, so a figure is off by no more than 1.6 % --- */

#define STEPS 64

typedef struct {
    uint64_t at[60 * STEPS], count;
    int64_t most;
} histogram;

static void add(histogram *h, int64_t value) {
    if (value < 1) value = 1;
    int doubling = 63 - __builtin_clzll(value), shift = doubling - 6;
    int step = (shift >= 0 ? value >> shift : value << -shift) & (STEPS - 1);
    h->at[(doubling * STEPS + step) % (60 * STEPS)]++;
    h->count++;
    if (value > h->most) h->most = value;
}

/* In microseconds: the upper end of the step in which the value of this rank is. */
static double rank(const histogram *h, double part) {
    uint64_t wanted = ceil(h->count * part), seen = 0;
    for (int index = 0; index < 60 * STEPS; index++) {
        seen += h->at[index];
        if (seen >= wanted && seen) {
            double upper = ldexp(1.0 + (index % STEPS + 1.0) / STEPS, index / STEPS);
            return (upper < h->most ? upper : h->most) / 1e3;
        }
    }
    return 0;
}

static void print_histogram(const char *name, const histogram *h) {
    printf(",\"%s\":{\"count\":%lu,\"p50\":%.1f,\"p90\":%.1f,\"p99\":%.1f,\"p999\":%.1f,\"most\":%.1f}", name, h->count,
           rank(h, .5), rank(h, .9), rank(h, .99), rank(h, .999), h->most / 1e3);
}

/* --- what is asked for, and what was found --- */

static int port, connections = 1, tokens_wanted, hold;
static long each;
static double seconds = 3, rate, ramp_s, patience_s = 10;
static int64_t interval_ns;
static uint64_t dice = 0x9E3779B97F4A7C15ULL;

typedef struct {
    const char *bytes;
    size_t size;
} request;
static request *requests;
static long request_count, next_request;

static long answered, refused, broken, unfinished, reconnected, tokens, reads, held, first_status;
static char first_wrong[256];
static histogram latency, first_token, gap_error, late;

/* --- connections --- */

enum { OFF, READY, SENDING, HEAD, BODY, CHUNK_SIZE, CHUNK, CHUNK_END, TRAILER };

typedef struct {
    int fd, state, fresh, wants_out, status, closes, event_stream, token, done, wrong, was_held;
    long sent_requests;
    const request *what;
    size_t sent;
    int64_t meant, token_at, left;
    char head[HEAD_MOST];
    int head_size;
    char line[LINE_MOST];
    int line_size;
} conn;

static conn *all, **free_ones;
static long free_count, open_count;
static int epoll, over;
static int64_t *schedule;
static long schedule_size, schedule_next;

static void next_for(conn *c);
static void start(conn *c, int64_t meant);

static void wrong(conn *c, const char *what) {
    if (!c->wrong && !*first_wrong) snprintf(first_wrong, sizeof first_wrong, "%s (status %d)", what, c->status);
    c->wrong = 1;
}

static void hang_up(conn *c) {
    if (c->fd >= 0) close(c->fd);
    c->fd = -1;
}

static void dial(conn *c) {
    struct sockaddr_in to = loopback(port);
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    if (c->fd < 0) fail("socket");
    at_once(c->fd);
    c->fresh = c->wants_out = 1;
    if (connect(c->fd, (void *)&to, sizeof to) && errno != EINPROGRESS) fail("connect");
    watch(epoll, EPOLL_CTL_ADD, c->fd, EPOLLIN | EPOLLOUT, c);
}

static void want_out(conn *c, int wants) {
    if (c->wants_out == wants) return;
    c->wants_out = wants;
    watch(epoll, EPOLL_CTL_MOD, c->fd, EPOLLIN | (wants ? EPOLLOUT : 0), c);
}

/* An exchange is over. */
static void ended(conn *c) {
    int64_t took = now_ns() - c->meant;
    c->state = READY;
    open_count--;
    if (c->status != 200 && c->status) {
        refused++;
        if (!first_status) first_status = c->status;
    } else if (c->wrong) broken++;
    else {
        answered++;
        add(&latency, took);
    }
    if (c->closes || c->wrong) hang_up(c);
    next_for(c);
}

static void broke(conn *c, const char *what) {
    wrong(c, what);
    c->status = 0;
    ended(c);
}

static void push(conn *c) {
    while (c->sent < c->what->size) {
        ssize_t sent = send(c->fd, c->what->bytes + c->sent, c->what->size - c->sent, MSG_NOSIGNAL);
        if (sent < 0 && errno == EAGAIN) return want_out(c, 1);
        if (sent < 0) return; /* reading tells why */
        c->sent += sent;
    }
    want_out(c, 0);
    if (c->state == SENDING) c->state = HEAD;
}

static void start(conn *c, int64_t meant) {
    c->meant = meant;
    c->what = &requests[next_request++ % request_count];
    c->sent = 0;
    c->sent_requests++;
    c->status = c->closes = c->event_stream = c->token = c->done = c->wrong = 0;
    c->head_size = c->line_size = 0;
    c->state = SENDING;
    open_count++;
    if (c->fd < 0) return dial(c); /* sent when it is there */
    c->fresh = 0;
    push(c);
}

/* The closed loop goes on; the open one takes what is due, or waits. */
static void next_for(conn *c) {
    int64_t now = now_ns();
    if (rate) {
        if (schedule_next < schedule_size && schedule[schedule_next] <= now) {
            add(&late, now - schedule[schedule_next]);
            start(c, schedule[schedule_next++]);
        } else free_ones[free_count++] = c;
    } else if (!over && !hold && (!each || c->sent_requests < each)) start(c, now);
    else c->state = OFF;
}

/* --- answers --- */

static void token(conn *c, int number, int64_t now) {
    if (number != c->token) return wrong(c, "a token is not in its order");
    if (number == 0) add(&first_token, now - c->meant);
    else if (interval_ns) {
        int64_t off = now - c->token_at - interval_ns;
        add(&gap_error, off < 0 ? -off : off);
    }
    c->token_at = now;
    c->token++;
    tokens++;
    if (hold && !c->was_held) {
        c->was_held = 1;
        held++;
    }
}

static void line(conn *c, const char *text, int size, int64_t now) {
    if (size < 6 || memcmp(text, "data: ", 6)) return;
    if (size >= 12 && !memcmp(text + 6, "[DONE]", 6)) {
        c->done = 1;
        return;
    }
    const char *at = memmem(text, size, "\"content\":", 10), *end = text + size;
    if (!at) return;
    for (at += 10; at < end && *at == ' '; at++) {}
    if (end - at > 4 && !memcmp(at, "\" w", 3)) token(c, atoi(at + 3), now);
}

static void body(conn *c, const char *bytes, size_t size, int64_t now) {
    if (!c->event_stream) return;
    while (size) {
        const char *stop = memchr(bytes, '\n', size);
        size_t part = stop ? (size_t)(stop - bytes) : size;
        if (stop && !c->line_size) line(c, bytes, part, now);
        else if (c->line_size + part < LINE_MOST) {
            memcpy(c->line + c->line_size, bytes, part);
            c->line_size += part;
            c->line[c->line_size] = 0;
            if (stop) line(c, c->line, c->line_size, now);
        } else wrong(c, "a line is too long");
        if (!stop) return;
        c->line_size = 0;
        bytes += part + 1;
        size -= part + 1;
    }
}

static void whole(conn *c) {
    if (c->status == 200 && tokens_wanted && (c->token != tokens_wanted || !c->done)) wrong(c, "a stream is not complete");
    ended(c);
}

static void head(conn *c) {
    c->head[c->head_size] = 0;
    c->status = atoi(c->head + 9);
    char *length = strcasestr(c->head, "\r\ncontent-length:");
    c->closes = strcasestr(c->head, "\r\nconnection: close") != NULL;
    c->event_stream = strcasestr(c->head, "\r\ncontent-type: text/event-stream") != NULL;
    if (tokens_wanted && !c->event_stream) wrong(c, "an answer is not a stream");
    if (strcasestr(c->head, "\r\ntransfer-encoding:")) c->state = CHUNK_SIZE;
    else {
        c->state = BODY;
        c->left = length ? atoll(length + 17) : 0;
    }
    c->left = c->state == BODY ? c->left : 0;
}

/* One step through what has come. How much of it was used; whoever is READY afterwards has seen the end. */
static size_t feed(conn *c, const char *bytes, size_t size, int64_t now) {
    size_t used = 1;
    switch (c->state) {
    case SENDING: /* an answer to half a request is one, too */
    case HEAD:
        if (c->head_size + 1 >= HEAD_MOST) {
            wrong(c, "a head is too long");
            whole(c);
            return size;
        }
        c->head[c->head_size++] = *bytes;
        if (*bytes == '\n' && c->head_size > 3 && !memcmp(c->head + c->head_size - 4, "\r\n\r\n", 4)) {
            head(c);
            if (c->state == BODY && !c->left) whole(c);
        }
        break;
    case BODY:
    case CHUNK:
        used = (int64_t)size < c->left ? size : (size_t)c->left;
        c->left -= used;
        body(c, bytes, used, now);
        if (!c->left && c->state == CHUNK) {
            c->state = CHUNK_END;
            c->left = 2;
        } else if (!c->left) whole(c);
        break;
    case CHUNK_END:
        if (!--c->left) c->state = CHUNK_SIZE;
        break;
    case CHUNK_SIZE:
        if (*bytes == '\n') {
            c->state = c->left ? CHUNK : TRAILER;
        } else if (*bytes != '\r') {
            int digit = *bytes <= '9' ? *bytes - '0' : (*bytes | 32) - 'a' + 10;
            if (digit < 0 || digit > 15) wrong(c, "a chunk has no size");
            c->left = c->left * 16 + digit;
        }
        break;
    case TRAILER: /* none is expected: the line is empty */
        if (*bytes == '\n') whole(c);
        break;
    default:
        wrong(c, "more came than was asked for");
        hang_up(c);
        return size;
    }
    return used;
}

static void read_all(conn *c) {
    static char bytes[READ];
    for (;;) {
        ssize_t got = recv(c->fd, bytes, sizeof bytes, 0);
        if (got < 0 && errno == EAGAIN) return;
        if (got <= 0) {
            int asked = c->state == SENDING || c->state == HEAD;
            hang_up(c);
            if (c->state <= READY) return;
            if (asked && !c->head_size && !c->fresh) { /* closed while it was idle: that is allowed */
                reconnected++;
                c->sent = 0;
                c->state = SENDING;
                return dial(c);
            }
            return broke(c, got ? "a connection broke" : "a connection was closed");
        }
        int64_t now = now_ns();
        reads++;
        for (size_t used = 0; used < (size_t)got && c->fd >= 0;) used += feed(c, bytes + used, got - used, now);
        if (c->fd < 0 || got < (ssize_t)sizeof bytes) return;
    }
}

static void happened(conn *c, uint32_t events) {
    if (c->fd < 0) return;
    if (events & EPOLLOUT && c->state == SENDING) push(c);
    else if (events & EPOLLOUT) want_out(c, 0);
    if (events & (EPOLLIN | EPOLLERR | EPOLLHUP)) read_all(c);
}

/* --- the run --- */

static double random_part(void) {
    dice ^= dice << 13;
    dice ^= dice >> 7;
    dice ^= dice << 17;
    return ((dice >> 11) + 0.5) / 9007199254740992.0;
}

static void draw_schedule(int64_t begin) {
    long room = rate * seconds * 1.5 + 1000;
    double at = 0;
    schedule = malloc(room * sizeof *schedule);
    while (schedule_size < room && (at -= log(random_part()) / rate) < seconds)
        schedule[schedule_size++] = begin + (int64_t)(at * SECOND);
}

static void read_requests(const char *path) {
    FILE *file = fopen(path, "rb");
    size_t size;
    if (!file) fail(path);
    while (fscanf(file, "%zu", &size) == 1 && fgetc(file) == '\n') {
        char *bytes = malloc(size);
        if (!bytes || fread(bytes, 1, size, file) != size) fail(path);
        requests = realloc(requests, (request_count + 1) * sizeof *requests);
        requests[request_count++] = (request){bytes, size};
    }
    fclose(file);
    if (!request_count) exit(2);
}

static void options(int count, char **words) {
    port = atoi(words[1]);
    read_requests(words[2]);
    for (int at = 3; at < count; at++) {
        const char *name = words[at];
        if (!strcmp(name, "--hold")) {
            hold = 1;
            continue;
        }
        if (++at == count) exit(2);
        double value = atof(words[at]);
        if (!strcmp(name, "--connections")) connections = value;
        else if (!strcmp(name, "--seconds")) seconds = value;
        else if (!strcmp(name, "--each")) each = value;
        else if (!strcmp(name, "--rate")) rate = value;
        else if (!strcmp(name, "--seed")) dice ^= (uint64_t)value * 0x2545F4914F6CDD1DULL;
        else if (!strcmp(name, "--tokens")) tokens_wanted = value;
        else if (!strcmp(name, "--interval-us")) interval_ns = value * 1000;
        else if (!strcmp(name, "--ramp")) ramp_s = value;
        else if (!strcmp(name, "--patience")) patience_s = value;
        else {
            fprintf(stderr, "%s?\n", name);
            exit(2);
        }
    }
}

static void wait_for_input_to_end(void) {
    char byte;
    printf("%ld\n", held);
    fflush(stdout);
    while (read(0, &byte, 1) > 0) {}
}

static void report(double took) {
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    double cpu = used.ru_utime.tv_sec + used.ru_stime.tv_sec + (used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6;
    printf("{\"seconds\":%.6f,\"cpu_s\":%.4f,\"answered\":%ld,\"refused\":%ld,\"broken\":%ld,\"unfinished\":%ld,"
           "\"reconnected\":%ld,\"tokens\":%ld,\"reads\":%ld,\"held\":%ld,\"first_status\":%ld,\"first_wrong\":\"%s\"",
           took, cpu, answered, refused, broken, unfinished, reconnected, tokens, reads, held, first_status, first_wrong);
    print_histogram("latency_us", &latency);
    print_histogram("first_token_us", &first_token);
    print_histogram("gap_error_us", &gap_error);
    print_histogram("late_us", &late);
    printf("}\n");
}

int main(int count, char **words) {
    struct epoll_event events[EVENTS];
    if (count < 3) exit(2);
    follow_parent();
    options(count, words);
    epoll = epoll_create1(0);
    all = calloc(connections, sizeof *all);
    free_ones = calloc(connections, sizeof *free_ones);
    if (!all || !free_ones) fail("calloc");
    for (int at = 0; at < connections; at++) all[at].fd = -1;
    for (int at = connections; rate && at--;) free_ones[free_count++] = &all[at];
    int64_t begin = now_ns(), end = begin + (int64_t)(seconds * SECOND), last = end + (int64_t)(patience_s * SECOND);
    int started = rate ? connections : 0;
    if (rate) draw_schedule(begin);
    for (;;) {
        int64_t now = now_ns(), until = last;
        over = now >= end && !each;
        while (started < connections && !over) {
            int64_t at = begin + (int64_t)(ramp_s * SECOND * started / connections);
            if (at > now) {
                until = at;
                break;
            }
            start(&all[started++], now);
        }
        while (rate && free_count && schedule_next < schedule_size && schedule[schedule_next] <= now) {
            add(&late, now - schedule[schedule_next]);
            start(free_ones[--free_count], schedule[schedule_next++]);
        }
        if (rate && free_count && schedule_next < schedule_size) until = schedule[schedule_next];
        if (!rate && !each && !hold && now < end && end < until) until = end;
        int all_started = rate ? schedule_next == schedule_size : started == connections || over;
        if (now >= last || (all_started && (hold ? held + refused + broken == connections : !open_count && (rate || each || over))))
            break;
        int seen = await_events(epoll, events, EVENTS, until);
        for (int at = 0; at < seen; at++) happened(events[at].data.ptr, events[at].events);
    }
    double took = (now_ns() - begin) / (double)SECOND;
    unfinished = hold ? connections - held : open_count + (rate ? schedule_size - schedule_next : 0);
    if (hold) wait_for_input_to_end();
    report(took);
}
