/* An engine that costs nothing to ask: it speaks as vLLM does, and thinks nothing. One thread, any number of ports.
 *
 *     engine PORT...
 *
 * Each port is a replica. A stream gets its first token at once, and one more each `interval_us` (`GET /set?interval_us=N`);
 * with 0 each stream that is open gets one token per turn of the loop, as in a batch, and as fast as it is read. Streams
 * of another pace are cut off when it is set.
 */

#include "loop.h"

#define HEAD_MOST 65536
#define EVENTS 1024
#define TEXT 65536

enum { MISSING, IDLE, WRITING, WAITING };

typedef struct conn {
    int fd;
    char *in;
    size_t have, room;
    char *out; /* what the socket did not take */
    size_t out_have, out_sent;
    int state, made, wanted, usage, prompt_tokens;
    int64_t due;
    struct conn *before, *after; /* in the list of its state */
} conn;

/* Streams in the order in which they are due. All have one interval, so who is put at the end is due last. */
typedef struct {
    conn *first, *last;
    long count;
} list;

static int epoll;
static list ready, paced;
static int64_t interval_ns;
static int pace_changed;
static long requests, tokens, opened, closed;

static void append(list *to, conn *c) {
    c->before = to->last;
    c->after = NULL;
    if (to->last) to->last->after = c;
    else to->first = c;
    to->last = c;
    to->count++;
}

static void take(list *from, conn *c) {
    if (c->before) c->before->after = c->after;
    else from->first = c->after;
    if (c->after) c->after->before = c->before;
    else from->last = c->before;
    from->count--;
}

static void leave_list(conn *c) {
    if (c->state == WRITING) take(&ready, c);
    if (c->state == WAITING) take(&paced, c);
    c->state = IDLE;
}

static void drop(conn *c) {
    leave_list(c);
    close(c->fd);
    free(c->in);
    free(c->out);
    free(c);
    closed++;
}

/* 0 if the connection is gone. What does not fit now is kept, and nothing more is made until it is out. */
static int put(conn *c, const char *bytes, size_t size) {
    ssize_t sent = 0;
    if (!c->out_have) {
        sent = send(c->fd, bytes, size, MSG_NOSIGNAL);
        if (sent < 0 && errno != EAGAIN) return 0;
        if (sent < 0) sent = 0;
        if ((size_t)sent == size) return 1;
        watch(epoll, EPOLL_CTL_MOD, c->fd, EPOLLIN | EPOLLOUT, c);
    }
    c->out = realloc(c->out, c->out_have + size - sent);
    if (!c->out) fail("realloc");
    memcpy(c->out + c->out_have, bytes + sent, size - sent);
    c->out_have += size - sent;
    return 1;
}

static int flush(conn *c) {
    while (c->out_sent < c->out_have) {
        ssize_t sent = send(c->fd, c->out + c->out_sent, c->out_have - c->out_sent, MSG_NOSIGNAL);
        if (sent < 0) return errno == EAGAIN;
        c->out_sent += sent;
    }
    c->out_have = c->out_sent = 0;
    watch(epoll, EPOLL_CTL_MOD, c->fd, EPOLLIN, c);
    return 1;
}

static int answer(conn *c, int status, const char *kind, const char *body) {
    char text[TEXT];
    int size = snprintf(text, sizeof text, "HTTP/1.1 %d %s\r\ncontent-type: %s\r\ncontent-length: %zu\r\n\r\n%s", status,
                        status == 200 ? "OK" : "Error", kind, strlen(body), body);
    return put(c, text, size);
}

/* --- answers --- */

#define HEAD_OF(kind) "{\"id\":\"chatcmpl-5f0c6a1e9b7d4e52a3c8\",\"object\":\"" kind "\",\"created\":1750000000,\"model\":\"bench\","

static size_t add_chunk(char *to, const char *payload) {
    size_t size = strlen(payload);
    return sprintf(to, "%zx\r\ndata: %s\n\n\r\n", size + 8, payload);
}

static size_t add_delta(char *to, const char *delta, const char *finish) {
    char payload[512];
    snprintf(payload, sizeof payload,
             HEAD_OF("chat.completion.chunk") "\"choices\":[{\"index\":0,\"delta\":{%s},\"logprobs\":null,"
             "\"finish_reason\":%s}]}", delta, finish);
    return add_chunk(to, payload);
}

/* The next token of a stream, with what goes before the first and after the last. */
static int step(conn *c) {
    char text[4096], delta[64];
    size_t size = 0;
    if (!c->made) {
        size += sprintf(text, "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
                              "transfer-encoding: chunked\r\n\r\n");
        size += add_delta(text + size, "\"role\":\"assistant\",\"content\":\"\"", "null");
    }
    int last = c->made + 1 == c->wanted;
    sprintf(delta, "\"content\":\" w%d\"", c->made);
    size += add_delta(text + size, delta, last ? "\"length\"" : "null");
    c->made++;
    tokens++;
    if (last) {
        if (c->usage) {
            char payload[512];
            snprintf(payload, sizeof payload,
                     HEAD_OF("chat.completion.chunk") "\"choices\":[],\"usage\":{\"prompt_tokens\":%d,"
                     "\"total_tokens\":%d,\"completion_tokens\":%d}}",
                     c->prompt_tokens, c->prompt_tokens + c->made, c->made);
            size += add_chunk(text + size, payload);
        }
        size += add_chunk(text + size, "[DONE]");
        size += sprintf(text + size, "0\r\n\r\n");
    }
    leave_list(c);
    if (!put(c, text, size)) return 0;
    if (last) return 1;
    if (interval_ns) {
        c->due = (c->made == 1 ? now_ns() : c->due) + interval_ns;
        c->state = WAITING;
        append(&paced, c);
    } else if (!c->out_have) {
        c->state = WRITING;
        append(&ready, c);
    }
    return 1;
}

static int whole(conn *c) {
    char text[TEXT / 4], body[TEXT / 2];
    size_t size = 0;
    int most = c->wanted < 2000 ? c->wanted : 2000; /* " w1999" has six letters */
    for (int number = 0; number < most; number++) size += sprintf(text + size, " w%d", number);
    snprintf(body, sizeof body,
             HEAD_OF("chat.completion") "\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"%s\"},"
             "\"logprobs\":null,\"finish_reason\":\"length\"}],\"usage\":{\"prompt_tokens\":%d,\"total_tokens\":%d,"
             "\"completion_tokens\":%d}}", text, c->prompt_tokens, c->prompt_tokens + c->wanted, c->wanted);
    tokens += c->wanted;
    return answer(c, 200, "application/json", body);
}

/* --- requests --- */

/* The number or word behind a name in the JSON, with or without blanks; NULL where there is none. */
static const char *member(const char *body, size_t size, const char *name) {
    const char *at = memmem(body, size, name, strlen(name));
    if (!at) return NULL;
    at += strlen(name);
    while (*at == ' ' || *at == ':') at++;
    return at;
}

/* Options stand at either end of a body, and long prompts between: who looks only there need not read those. */
#define EDGE 4096

static const char *option(const char *body, size_t size, const char *name) {
    if (size <= 2 * EDGE) return member(body, size, name);
    const char *found = member(body, EDGE, name);
    return found ? found : member(body + size - EDGE, EDGE, name);
}

static int complete(conn *c, const char *body, size_t size) {
    const char *most = option(body, size, "\"max_tokens\""), *stream = option(body, size, "\"stream\"");
    if (!most) most = option(body, size, "\"max_completion_tokens\""); /* some routers write it so */
    requests++;
    c->made = 0;
    c->wanted = most && atoi(most) > 0 ? atoi(most) : 16;
    c->prompt_tokens = size / 6 + 1;
    c->usage = option(body, size, "\"include_usage\"") != NULL;
    return stream && *stream == 't' ? step(c) : whole(c);
}

static int serve(conn *c, const char *head, const char *body, size_t size) {
    char text[512];
    const char *path = strchr(head, ' ');
    if (!path++) return 0; /* not our language: some routers try gRPC first */
    if (!strncmp(path, "/v1/chat/completions", 20)) return complete(c, body, size);
    if (!strncmp(path, "/v1/models", 10))
        return answer(c, 200, "application/json", "{\"object\":\"list\",\"data\":[{\"id\":\"bench\",\"object\":\"model\","
                      "\"created\":0,\"owned_by\":\"bench\",\"max_model_len\":1000000}]}");
    if (!strncmp(path, "/metrics", 8))
        return answer(c, 200, "text/plain; version=0.0.4", "# TYPE vllm:num_requests_running gauge\n"
                      "vllm:num_requests_running{model_name=\"bench\"} 1\n# TYPE vllm:num_requests_waiting gauge\n"
                      "vllm:num_requests_waiting{model_name=\"bench\"} 0\n# TYPE vllm:kv_cache_usage_perc gauge\n"
                      "vllm:kv_cache_usage_perc{model_name=\"bench\"} 0.1\n");
    if (!strncmp(path, "/set?interval_us=", 17)) {
        interval_ns = atoll(path + 17) * 1000;
        pace_changed = 1;
    }
    if (!strncmp(path, "/counts", 7) || !strncmp(path, "/set?", 5)) {
        snprintf(text, sizeof text, "{\"requests\":%ld,\"tokens\":%ld,\"connections\":%ld,\"streams\":%ld}", requests,
                 tokens, opened - closed, ready.count + paced.count);
        return answer(c, 200, "application/json", text);
    }
    return answer(c, 200, "application/json", "{}"); /* /health, and whoever hands in traces */
}

/* How much of what has come is a whole request; 0: none yet, -1: nothing that we know. */
static long whole_request(conn *c, char **body, size_t *size) {
    char *end = memmem(c->in, c->have, "\r\n\r\n", 4);
    if (!end) return c->have < HEAD_MOST ? 0 : -1;
    *body = end + 4;
    *size = 0;
    end[2] = 0; /* for strcasestr */
    char *length = strcasestr(c->in, "\r\ncontent-length:");
    int chunked = strcasestr(c->in, "\r\ntransfer-encoding:") != NULL;
    end[2] = '\r';
    if (chunked) return -1;
    if (length) *size = strtoul(length + 17, NULL, 10);
    size_t all = *body - c->in + *size;
    if (all + 1 > c->room) {
        size_t before = *body - c->in;
        c->room = all + 1;
        c->in = realloc(c->in, c->room);
        if (!c->in) fail("realloc");
        *body = c->in + before;
    }
    return c->have >= all ? (long)all : 0;
}

static int received(conn *c) {
    for (;;) {
        if (c->have + 1 >= c->room) {
            c->room = c->room ? c->room * 2 : 4096;
            c->in = realloc(c->in, c->room);
            if (!c->in) fail("realloc");
        }
        size_t asked = c->room - c->have - 1;
        ssize_t got = recv(c->fd, c->in + c->have, asked, 0);
        if (got < 0) return errno == EAGAIN;
        if (got == 0) return 0;
        c->have += got;
        c->in[c->have] = 0;
        char *body;
        size_t size;
        long used = whole_request(c, &body, &size);
        if (used < 0) return 0;
        if (used) {
            if (!serve(c, c->in, body, size)) return 0;
            memmove(c->in, c->in + used, c->have - used);
            c->have -= used;
        }
        if ((size_t)got < asked) return 1;
    }
}

static void greet(int listener) {
    for (;;) {
        int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK);
        if (fd < 0) return;
        conn *c = calloc(1, sizeof *c);
        if (!c) fail("calloc");
        c->fd = fd;
        c->state = IDLE;
        at_once(fd);
        watch(epoll, EPOLL_CTL_ADD, fd, EPOLLIN, c);
        opened++;
    }
}

static int turn(conn *c, uint32_t events) {
    if (events & (EPOLLERR | EPOLLHUP)) return 0;
    if (events & EPOLLOUT) {
        if (!flush(c)) return 0;
        if (!c->out_have && c->state == IDLE && c->made && c->made < c->wanted && !interval_ns) {
            c->state = WRITING;
            append(&ready, c);
        }
    }
    return events & EPOLLIN ? received(c) : 1;
}

static void make_tokens(void) {
    int64_t now = now_ns();
    if (pace_changed) /* or one that is due in an hour would keep those behind it waiting */
        while (paced.first) drop(paced.first);
    pace_changed = 0;
    while (paced.first && paced.first->due <= now) {
        conn *c = paced.first;
        if (!step(c)) drop(c);
    }
    for (long left = ready.count; left > 0 && ready.first; left--) {
        conn *c = ready.first;
        if (!step(c)) drop(c);
    }
}

int main(int count, char **words) {
    struct epoll_event events[EVENTS];
    int listeners[count];
    follow_parent();
    epoll = epoll_create1(0);
    for (int each = 1; each < count; each++) {
        struct sockaddr_in at = loopback(atoi(words[each]));
        int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), yes = 1;
        setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
        if (bind(fd, (void *)&at, sizeof at) || listen(fd, 4096)) fail(words[each]);
        listeners[each] = fd;
        watch(epoll, EPOLL_CTL_ADD, fd, EPOLLIN, &listeners[each]);
    }
    for (;;) {
        int64_t until = ready.count ? 0 : paced.first ? paced.first->due : NEVER;
        int happened = await_events(epoll, events, EVENTS, until);
        for (int each = 0; each < happened; each++) {
            void *what = events[each].data.ptr;
            if (what >= (void *)listeners && what < (void *)(listeners + count)) greet(*(int *)what);
            else if (!turn(what, events[each].events)) drop(what);
        }
        make_tokens();
    }
}
