/* Connections from one address, at a rate that no interpreter reaches: flood PORT RATE, until standard input says more.
 *
 * Each is reset as soon as it is made, so that no port has to wait (TIME_WAIT).  What was done is told as JSON.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { BATCH = 64 };

static double now(void) {
    struct timespec found;
    clock_gettime(CLOCK_MONOTONIC, &found);
    return found.tv_sec + found.tv_nsec / 1e9;
}

static struct sockaddr_in address(const char *host, int port) {
    struct sockaddr_in made = {.sin_family = AF_INET, .sin_port = htons(port)};
    inet_pton(AF_INET, host, &made.sin_addr);
    return made;
}

int main(int count, char **words) {
    if (count != 3)
        return 2;
    struct sockaddr_in to = address("127.0.0.1", atoi(words[1])), from = address("127.1.1.1", 0);
    double rate = atof(words[2]), began = now(), seconds = 0;
    long tried = 0, connected = 0;
    struct linger reset = {1, 0};
    struct pollfd word = {.fd = 0, .events = POLLIN};
    puts("at work");
    fflush(stdout);
    struct timespec ahead = {0};
    while (ppoll(&word, 1, &ahead, NULL) == 0) {
        int socks[BATCH];
        for (int i = 0; i < BATCH; i++) {
            socks[i] = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
            setsockopt(socks[i], SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
            bind(socks[i], (struct sockaddr *)&from, sizeof from);
            connect(socks[i], (struct sockaddr *)&to, sizeof to);
        }
        for (int i = 0; i < BATCH; i++) {
            struct sockaddr_in peer;
            socklen_t size = sizeof peer;
            connected += getpeername(socks[i], (struct sockaddr *)&peer, &size) == 0;
            close(socks[i]);
        }
        tried += BATCH;
        seconds = now() - began;
        double left = tried / rate - seconds;
        ahead.tv_sec = left > 0 ? left : 0;
        ahead.tv_nsec = left > 0 ? (left - ahead.tv_sec) * 1e9 : 0;
    }
    printf("{\"tried\": %ld, \"connected\": %ld, \"per_second\": %.0f, \"tried_per_second\": %.0f}\n", tried, connected,
           connected / seconds, tried / seconds);
    return 0;
}
