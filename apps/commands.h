/* commands.h - the subcommands, one file each. */
#ifndef SPW_APP_COMMANDS_H
#define SPW_APP_COMMANDS_H

#include "options.h"

extern const command command_run, command_chat, command_tokenize, command_eval, command_inspect, command_bench;

#endif
