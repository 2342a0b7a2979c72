/* Resolves names as programs do, with getaddrinfo of the C library it is linked with, and prints for each:
 * the name, its addresses (or why there is none), and the milliseconds it took. Fails if a name has no address. */
#include <arpa/inet.h>
#include <netdb.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

static double milliseconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1e3 + now.tv_nsec / 1e6;
}

static int resolve(const char *name) {
    struct addrinfo hints, *found = NULL;
    memset(&hints, 0, sizeof hints);
    hints.ai_family = AF_UNSPEC; /* both queries, as everything that can speak IPv6 asks */
    hints.ai_socktype = SOCK_STREAM;
    double begun = milliseconds();
    int error = getaddrinfo(name, NULL, &hints, &found);
    double took = milliseconds() - begun;
    printf("%s", name);
    if (error)
        printf(" error: %s", gai_strerror(error));
    for (struct addrinfo *entry = found; entry; entry = entry->ai_next) {
        char text[INET6_ADDRSTRLEN];
        const void *address = entry->ai_family == AF_INET ? (const void *)&((struct sockaddr_in *)entry->ai_addr)->sin_addr
                                                          : (const void *)&((struct sockaddr_in6 *)entry->ai_addr)->sin6_addr;
        printf(" %s", inet_ntop(entry->ai_family, address, text, sizeof text));
    }
    printf(" %.1f\n", took);
    if (found)
        freeaddrinfo(found);
    return error != 0;
}

int main(int count, char **names) {
    int failed = 0;
    for (int index = 1; index < count; index++)
        failed |= resolve(names[index]);
    return failed;
}
