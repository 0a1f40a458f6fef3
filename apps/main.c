/* main.c - the program: finds the subcommand, parses its flags, runs it. */
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "commands.h"
#include "report.h"

static const command *const commands[] = {&command_run, &command_chat, &command_tokenize, &command_eval, &command_inspect, &command_bench};
#define N_COMMANDS (sizeof commands / sizeof *commands)

/* A standard stream that is closed would be reused by the next file that is opened, and text would go there.  In its place stands
 * /dev/null, opened so that every use fails as it would have. */
static void hold_standard_streams(void)
{
    for (int fd = 0; fd <= 2; fd++)
        if (fcntl(fd, F_GETFD) < 0 && open("/dev/null", fd == 0 ? O_WRONLY : O_RDONLY) != fd) _exit(EXIT_FAILED);
}

static void print_overview(void)
{
    printf("spillway - long-context language models with the KV cache in host memory\n\nUsage:\n  spillway COMMAND [options]\n"
           "  spillway COMMAND --help\n  spillway --version\n\nCommands:\n");
    for (size_t i = 0; i < N_COMMANDS; i++) printf("  %-10s %s\n", commands[i]->name, commands[i]->summary);
    printf("\nA model is a GGUF file, as it is. Text goes to standard output; progress, statistics, warnings and errors go to\n"
           "standard error.\n\nEnvironment:\n"
           "  SPILLWAY_ISA=ref|scalar|avx2|avx512|neon   forces the kernels that are used\n"
           "  SPILLWAY_CACHE=off                         measures the machine each time and keeps nothing of it\n\n"
           "Examples:\n  spillway run -m model.gguf -f book.txt -p 'What is this about?'\n  spillway chat -m model.gguf\n"
           "  spillway inspect model.gguf\n\n"
           "Exit codes:\n  0    done\n  1    failed: one line on standard error says why\n  2    the command line is wrong\n"
           "  130  interrupted by Ctrl-C, after a clean end\n");
}

static int complain_command(const char *name)
{
    const char *best = NULL;
    int least = 3;
    for (size_t i = 0; i < N_COMMANDS; i++) {
        int distance = options_distance(name, commands[i]->name);
        if (distance < least) least = distance, best = commands[i]->name;
    }
    const char *what = name[0] == '-' ? "option" : "command";
    if (best) report_error(NULL, "unknown %s '%s': did you mean %s?", what, name, best);
    else report_error(NULL, "unknown %s '%s': 'spillway --help' lists those that there are", what, name);
    return EXIT_USAGE;
}

static int run_command(const command *c, int argc, char **argv)
{
    options o;
    parse_result parsed = options_parse(&o, c, argc, argv);
    if (parsed == PARSE_BAD) return EXIT_USAGE;
    if (parsed == PARSE_HELP) return report_finish(c->name);
    return c->main(&o);
}

int main(int argc, char **argv)
{
    hold_standard_streams();
    signal(SIGPIPE, SIG_IGN);
    if (argc < 2) {
        report_error(NULL, "no command given: 'spillway --help' lists them");
        return EXIT_USAGE;
    }
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0 || strcmp(argv[1], "help") == 0) {
        print_overview();
        return report_finish(NULL);
    }
    if (strcmp(argv[1], "--version") == 0) {
        printf("spillway %s\n", spw_version());
        return report_finish(NULL);
    }
    for (size_t i = 0; i < N_COMMANDS; i++)
        if (strcmp(argv[1], commands[i]->name) == 0) return run_command(commands[i], argc - 2, argv + 2);
    return complain_command(argv[1]);
}
