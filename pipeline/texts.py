"""Plain text as a corpus: a file becomes one row of Parquet, in the directory of the run that reads it.

Invariants: only a file of this machine that is not Parquet, and is not called so, is taken for text; the row's place is
named by its content, so the same text is the same corpus.
"""

from __future__ import annotations

import io
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
from blake3 import blake3

from configs.schema import Corpus, Job
from pipeline.directory import RunDirectory
from pipeline.errors import CorpusError
from pipeline.objects import is_url, local_path

_TEXTS = "_job/texts"


def with_texts(job: Job, directory: RunDirectory) -> Job:
    """The job with each plain text file of its corpus replaced by one row of Parquet in the run's directory, named by
    its file. Raises ``CorpusError`` for one that is neither Parquet nor UTF-8."""
    given = (job.corpus.path,) if isinstance(job.corpus.path, str) else job.corpus.path
    texts = [path for path in given if _is_text(path)]
    if not texts:
        return job
    names = Counter(local_path(path).name for path in texts)
    paths = []
    for path in given:
        if path in texts:
            short = local_path(path).name
            path = _as_parquet(path, short if names[short] == 1 else path, job.corpus, directory)
        paths.append(path)
    return job.model_copy(update={"corpus": job.corpus.model_copy(update={"path": tuple(paths)})})


def _is_text(path: str) -> bool:
    """Whether a corpus path names a file of this machine that is not Parquet and does not mean to be."""
    if is_url(path) or not local_path(path).is_file() or local_path(path).suffix.lower() in (".parquet", ".pq"):
        return False
    with local_path(path).open("rb") as file:
        return file.read(4) != b"PAR1"


def _as_parquet(path: str, name: str, corpus: Corpus, directory: RunDirectory) -> str:
    """Where the row is."""
    content = local_path(path).read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CorpusError(
            f"corpus.path: {path!r}: neither Parquet nor UTF-8 text: byte 0x{content[error.start]:02x} at "
            f"{error.start}; allowed: a Parquet file, a directory of them, a URL, or a file of plain text"
        ) from error
    row = {corpus.text: [text]} | ({} if corpus.id is None else {corpus.id: [name]})
    buffer = io.BytesIO()
    pq.write_table(pa.table(row), buffer)
    target = f"{_TEXTS}/{blake3(buffer.getvalue()).hexdigest()[:16]}/{local_path(path).name}"
    directory.create(target, buffer.getvalue())
    return f"{directory.url.rstrip('/')}/{target}"
