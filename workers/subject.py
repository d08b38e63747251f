"""What a task is about, as fields of the log lines around it (``logs.bound``)."""

from __future__ import annotations

from workers.messages import Ask, Encode


def subject(task: object) -> dict[str, object]:
    """The document of a chunk, the documents of a batch; of a task of another kind nothing."""
    match task:
        case Encode(document=document):
            return {"document": document}
        case Ask(queries=queries):
            return {"document": ", ".join(dict.fromkeys(query.document for query in queries))}
    return {}
