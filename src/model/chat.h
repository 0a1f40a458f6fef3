/* chat.h - chat templates by fingerprint.  Public: spw_chat_render, spw_chat_templates, spw_vocab_chat_template. */
#ifndef SPW_CHAT_H
#define SPW_CHAT_H

/* Name for the text of a Jinja template: a known one, "unknown", or "" for NULL. */
const char *chat_fingerprint(const char *jinja);

#endif
