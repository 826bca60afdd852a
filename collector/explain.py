"""Why each span of a trace hangs where it does, in words.

Pure: no sockets, files, threads or clocks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from collector.model import CLOCK_SKEW, EVIDENCE, EVIDENCE_STREAM, UNRESOLVED
from collector.waterfall import Json, Node, printable, tree, walk

WIRESPAN_SCOPE = "wirespan"

# By `wirespan.link.evidence`; {0} is the parent, {1} the thread if it is known.
REASONS: Mapping[str, str] = {
    "thread": "sent{1} while that thread had only this one request in hand: {0}",
    "loop": "sent{1} in the turn of its event loop in which {0} was the last message received, "
    "with no other request that could have been meant",
    "connect": "sent over a connection that was opened while {0} was being served",
    "context": "sent from the Python context (contextvars) in which {0} was being served",
    "goroutine": "sent by the goroutine that was serving {0}, or by one it started",
    "queue": "sent{1}, which had taken this work from a thread pool's queue, where it was put for "
    "{0}",
    "checkout": "sent over a connection that the thread that was serving {0} had taken from its "
    "pool",
    "wakeup": "sent{1}, which was woken by the thread that was serving {0}",
    "async": "sent from the Node.js async context in which {0} was being served",
    "content": "a proxy's request with the same method and target as {0}, the only one in the "
    "process that could have been its cause",
    EVIDENCE_STREAM: "the other end of the same exchange as {0}: the sequence numbers of the "
    "byte stream are the same on both sides",
    "traceparent": "the request carried a trace context header that names {0} as its parent",
}


def explain(trace: Json) -> Iterator[str]:
    """Tell for each span, from top to bottom, what says that its parent is its parent."""
    roots = tree(trace)
    spans = {node.span_id: node for _, node, _ in walk(roots)}
    yield f"trace {trace['traceID']}: {len(spans)} span{'' if len(spans) == 1 else 's'}"
    for depth, node, _ in walk(roots):
        indent = "  " * min(depth, 20)
        yield ""
        yield f"{indent}{_name(node)}  [{node.span_id}]"
        parent = spans.get(node.parent_id)
        for line in _reasons(node, parent if parent is not node else None):
            yield f"{indent}  {line}"


def _reasons(node: Node, parent: Node | None) -> Iterator[str]:
    evidence = str(node.tags.get(EVIDENCE, ""))
    if parent is not None:
        yield _parent(node, parent, evidence)
    elif node.parent_id:
        yield _missing(node, evidence)
    else:
        yield _root(node)
    skew = node.tags.get(CLOCK_SKEW)
    if isinstance(skew, int) and skew:
        yield (
            f"its times were moved by {abs(skew) / 1e6:.3f} ms "
            f"{'forward' if skew > 0 else 'back'}: its host's clock differs from the root's"
        )


def _parent(node: Node, parent: Node, evidence: str) -> str:
    above = _name(parent)
    if not evidence:
        if _of_an_sdk(node):
            return f"below {above}: the application's own SDK says so"
        return f"below {above}: whoever sent this span says so, without giving evidence"
    words = REASONS.get(evidence)
    if words is None:
        return f"below {above}: evidence {printable(evidence)!r}, which this version doesn't know"
    thread = node.tags.get("thread.id")
    by = f" by thread {thread}" if isinstance(thread, int) else " by a thread"
    return f"below its parent, evidence {evidence}: " + words.format(above, by)


def _missing(node: Node, evidence: str) -> str:
    what = {
        "traceparent": "the request carried a trace context header that names it, so the caller "
        "has an SDK of its own that exports elsewhere, or later",
        EVIDENCE_STREAM: "it is the client side of the same exchange, on a host or in a process "
        "whose spans have not come here",
    }.get(evidence, "it was not stored: lost, filtered, or not ended yet")
    return f"its parent {node.parent_id} is not here: {what}"


def _root(node: Node) -> str:
    unresolved = node.tags.get(UNRESOLVED)
    if unresolved:
        return (
            f"a root: the span of its client, {printable(str(unresolved))}, never came from any "
            "tracer, so the caller is on a host or in a process that is not traced"
        )
    if _of_an_sdk(node):
        return "a root: the application's own SDK began this trace with it, and names no parent"
    if node.kind in ("server", "consumer"):
        return (
            "a root: nothing traced sent this request, and it carried no trace context header "
            "that is honoured"
        )
    if node.kind in ("client", "producer"):
        return (
            "a root: nothing shows for which request this call was made. A process of its own "
            "accord makes such calls (timers, jobs, command-line clients); else there was not "
            "enough evidence, and no parent beats a wrong parent"
        )
    return "a root: it came without a parent"


def _of_an_sdk(node: Node) -> bool:
    return bool(node.tags.get("otel.scope.name", WIRESPAN_SCOPE) != WIRESPAN_SCOPE)


def _name(node: Node) -> str:
    kind = f" ({node.kind})" if node.kind else ""
    return f"{printable(node.service)} {printable(node.name)}{kind}"
