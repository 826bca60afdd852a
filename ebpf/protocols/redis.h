/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * redis.h - the Redis serialization protocol, versions 2 and 3, as a resumable parser.
 *
 * Handles: commands as arrays of bulk strings and as inline commands, every type of reply at
 * any depth of nesting, attributes, and push frames between replies.
 * Keeps of a command its name, of a command with subcommands theirs too, and SELECT's index;
 * of a reply an error's text. All other arguments and all values are passed over by number.
 * Leaves out: streamed strings and aggregates, which no server sends; and what follows a command
 * after which replies don't answer commands one by one any more (pub/sub, MONITOR, replication).
 *
 * Here: what stands between messages, and which state is whose. The work is done in redis_*.h.
 */
#ifndef WIRESPAN_REDIS_H
#define WIRESPAN_REDIS_H

#include "redis_command.h"
#include "redis_detect.h"
#include "redis_reply.h"

/* stream.skip has come to 0. */
static __always_inline enum step redis_passed(struct talk *t, struct stream *s,
					      struct flow_record *r)
{
	(void)t;
	(void)r;
	s->state = s->next;
	return STEP_AGAIN;
}

/* Between messages. */
static __always_inline enum step redis_start(struct stream *s, struct window *w)
{
	__u8 c = window_byte(w, w->pos), second = window_byte(w, w->pos + 1);

	if (!window_left(w))
		return STEP_MORE;
	if (s->response) {
		if (c != '>')
			return STEP_BEGIN;
		s->flags = REDIS_IS_PUSH;
		s->number = 1;
		s->state = REDIS_ELEMENT;
		return STEP_AGAIN;
	}
	if (redis_is_blank(c)) {
		w->pos++;
		return STEP_AGAIN;
	}
	if (c != '*')
		return STEP_BEGIN;
	/* a command of no words gets no reply */
	if (window_left(w) < 2)
		return STEP_MORE;
	if (second != '0' && second != '-')
		return STEP_BEGIN;
	s->next = STATE_START;
	s->state = REDIS_LINE;
	return STEP_AGAIN;
}

static __always_inline enum step redis_step(struct talk *t, struct stream *s, struct flow_record *r,
					    struct window *w)
{
	enum step step;

	switch (s->state) {
	case STATE_START:
		return redis_start(s, w);
	case REDIS_FIRST:
		if (!s->response)
			return redis_command(t, s, r, w);
		/* an array could as well be a command, if the directions were mistaken */
		if (redis_is_type(window_byte(w, w->pos)) &&
		    !(t->old && window_byte(w, w->pos) == '*'))
			t->sure = 1;
		s->number = 1;
		s->head = 0;
		s->state = REDIS_ELEMENT;
		fallthrough;
	case REDIS_ELEMENT:
		step = redis_element(s, w);
		break;
	case REDIS_ERROR:
		step = redis_error(s, r, w);
		break;
	case REDIS_TAIL:
		if (window_left(w) < 2)
			return STEP_MORE;
		if ((window_load(w, w->pos) & 0xffff) != ('\r' | '\n' << 8))
			return STEP_INVALID;
		w->pos += 2;
		if (s->response)
			return redis_element_end(s);
		s->state = REDIS_BULK;
		return --s->number ? STEP_AGAIN : redis_request_end(s);
	case REDIS_BULK:
		return redis_bulk(s, w);
	case REDIS_NAME:
		step = redis_name(s, r, w);
		if (step != STEP_AGAIN || s->state != REDIS_KEEP)
			return step;
		fallthrough;
	case REDIS_KEEP:
		return redis_keep(s, r, w);
	case REDIS_LINE:
		step = window_line(s, w);
		break;
	case REDIS_INLINE:
		return redis_inline(s, w);
	case REDIS_WORDS:
		return redis_words(s, r, w);
	default:
		return STEP_INVALID;
	}
	/* what needs no further byte is done at once: there may be none */
	if (step == STEP_AGAIN && s->state == REDIS_ELEMENT_END)
		return redis_element_end(s);
	return step;
}

#endif
