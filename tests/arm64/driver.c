// CLONE_INTO and CALL, the machine code of src/sys, stand above. Ends with 0 if they do what they say.
#define _GNU_SOURCE
#include <asm/unistd.h>
#include <errno.h>
#include <linux/sched.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

pid_t getpid(void);
pid_t getppid(void);

// What src/sys takes for granted of the kernel on this machine; layout.c has the rest.
_Static_assert(sizeof(struct clone_args) == 88, "clone_args: 11 words of 64 bits");
_Static_assert(offsetof(struct clone_args, exit_signal) == 32 && offsetof(struct clone_args, stack) == 40, "clone_args: order");
_Static_assert(offsetof(struct clone_args, cgroup) == 80, "clone_args: order");
_Static_assert(sizeof(void *) == 8 && sizeof(long) == 8, "64 bits");

static long call(long number, unsigned long a, unsigned long b, unsigned long c, unsigned long d)
{
    register long x8 __asm__("x8") = number;
    register unsigned long x0 __asm__("x0") = a;
    register unsigned long x1 __asm__("x1") = b;
    register unsigned long x2 __asm__("x2") = c;
    register unsigned long x3 __asm__("x3") = d;
    register unsigned long x4 __asm__("x4") = 0;
    __asm__ volatile(CALL : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4) : "memory");
    return (long)x0;
}

// `noinline`: a copy of the label `2` in each place where it is wanted would do too, but one is easier to read in a debugger.
__attribute__((noinline)) static long clone_into(long number, const void *first, unsigned long second, void *argument, int (*child)(void *))
{
    register long x8 __asm__("x8") = number;
    register const void *x0 __asm__("x0") = first;
    register unsigned long x1 __asm__("x1") = second;
    register void *x20 __asm__("x20") = argument;
    register int (*x21)(void *) __asm__("x21") = child;
    __asm__ volatile(CLONE_INTO : "+r"(x0) : "r"(x8), "r"(x1), "r"(x20), "r"(x21) : "memory");
    return (long)x0;
}

static unsigned char stack[65536] __attribute__((aligned(16)));

struct plan {
    unsigned word;
    long parent;
};

// Ends with which of its expectations failed, as a bit; 64 if none.
static int child(void *argument)
{
    struct plan *plan = argument;
    int here;
    unsigned char *place = (unsigned char *)&here;
    long ended = 64;
    if (plan->word != 0x5e1f57a7)
        ended = 1;
    else if (place < stack || place >= stack + sizeof stack)
        ended = 2;
    // Our caller's frame: the outermost.
    else if (*(uintptr_t *)__builtin_frame_address(0) != 0)
        ended = 3;
    else if (((uintptr_t)__builtin_frame_address(0) & 15) != 0)
        ended = 4;
    else if (call(__NR_getppid, 0, 0, 0, 0) != plan->parent)
        ended = 5;
    call(__NR_exit_group, (unsigned long)ended, 0, 0, 0);
    __builtin_trap();
}

static void must(int right, const char *what)
{
    if (!right) {
        printf("wrong: %s\n", what);
        exit(1);
    }
}

int main(void)
{
    must(call(__NR_getpid, 0, 0, 0, 0) == getpid(), "a system call's answer");
    must(call(__NR_close, (unsigned long)-1, 0, 0, 0) == -EBADF, "an error is a negative number");
    must(call(__NR_dup3, 1, 77, 02000000, 0) == 77, "three arguments");
    must(call(__NR_fcntl, 77, 1, 0, 0) == 1, "the third argument came through");
    unsigned long limit[2] = {0, 0};
    must(call(__NR_prlimit64, 0, 7, 0, (unsigned long)limit) == 0 && limit[0] > 0, "the fourth argument came through");

    // clone3 in the way that cannot be: the parent's way out, with the error. (The emulator knows no clone3: that is one.)
    struct plan plan = {0x5e1f57a7, getpid()};
    struct clone_args nonsense;
    memset(&nonsense, 0xff, sizeof nonsense);
    long answer = clone_into(__NR_clone3, &nonsense, sizeof nonsense, &plan, child);
    must(answer == -ENOSYS || answer == -EINVAL, "an error of clone3");

    // The older call takes the stack in the second register: all that is different is who reads the arguments.
    unsigned long flags = CLONE_VM | CLONE_VFORK | SIGCHLD;
    answer = clone_into(__NR_clone, (const void *)flags, (unsigned long)(stack + sizeof stack), &plan, child);
    must(answer > 0, "a child");
    int status = 0;
    must(waitpid((pid_t)answer, &status, 0) == answer && WIFEXITED(status), "the child ends by itself");
    if (WEXITSTATUS(status) != 64)
        printf("wrong: expectation %d of the child\n", WEXITSTATUS(status));
    must(WEXITSTATUS(status) == 64, "what the child found");
    puts("all is right");
    return 0;
}
