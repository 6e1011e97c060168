// What src/sys takes for granted of the kernel on this machine, whose own headers do not go with the C library's: compiled, never run.
#include <linux/types.h>
#include <stddef.h>
#include <asm/signal.h>

_Static_assert(sizeof(struct sigaction) == 32, "sigaction: four words");
_Static_assert(sizeof(sigset_t) == 8, "a set of signals: one word");
