"""The folder of a job, which is consistent at any moment, whatever kills the process.

    OUT/journal.jsonl            the job, and which of its shards are done
    OUT/vectors/part-N.parquet   a shard, complete
    OUT/rejected.jsonl           rows that could not be encoded, and why
    OUT/partial/                 shards that are being written

A shard becomes done in four steps, each on disk before the next: its file in `partial`, its lines in `rejected.jsonl`,
its name in `vectors`, its line in the journal. What comes after the last line of the journal counts as not done: it is
cleared away when the job resumes.
"""

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from m3_runtime.bulk.job import BulkJob, difference
from m3_runtime.bulk.journal import Complete, Journal, ShardDone, writing
from m3_runtime.bulk.shards import ShardDraft
from m3_runtime.errors import InputError
from m3_runtime.io.atomic import flush, flush_folder, put_in_place
from m3_runtime.io.rows import BadRow

JOURNAL, VECTORS, REJECTED, PARTIAL = "journal.jsonl", "vectors", "rejected.jsonl", "partial"
_NAME = re.compile(r"part-(\d{8,})\.parquet")


class JobFolder:
    """A job's folder, open for this process alone."""

    def __init__(self, out: Path, journal: Journal) -> None:
        self._out, self._journal = out, journal
        self._shards = {entry.index: entry for entry in journal.text.shards}
        self._rejected_bytes = max((entry.rejected_bytes for entry in journal.text.shards), default=0)
        self.complete = journal.text.complete

    @classmethod
    @contextmanager
    def open(cls, out: Path, job: BulkJob) -> Iterator["JobFolder"]:
        """Begin a job's folder, or resume it. Where all is done nothing has to be writable.

        Raises:
            InputError: the folder holds something else, or another job, or a shard in it was changed.
            BulkError: another process is at work on it, or it cannot be written.
        """
        if out.exists() and not out.is_dir():
            raise InputError(f"{str(out)!r} is not a folder; choose another name")
        if out.is_dir() and any(out.iterdir()) and not (out / JOURNAL).is_file():
            raise InputError(f"{str(out)!r} is not empty and has no {JOURNAL}; choose another folder")
        with writing(out):
            out.mkdir(parents=True, exist_ok=True)
        with Journal.open(out / JOURNAL) as journal:
            if (begun := journal.text.job) is None:
                journal.add(job)
            elif (differs := difference(begun, job)) is not None:
                raise InputError(
                    f"{str(out)!r} holds another job ({differs}); give the same command, or choose another folder"
                )
            folder = cls(out, journal)
            folder._recover()
            yield folder

    @property
    def shards(self) -> tuple[ShardDone, ...]:
        """The shards that are done, in order."""
        return tuple(self._shards[index] for index in sorted(self._shards))

    @property
    def done(self) -> frozenset[int]:
        """Indices of the shards that are done."""
        return frozenset(self._shards)

    def taken_away(self) -> int:
        """How many finished shards are no longer in the folder: moving or deleting them is allowed."""
        return sum(entry.rows > 0 and not self._part(entry.index).exists() for entry in self.shards)

    @property
    def partial(self) -> Path:
        """The folder in which shards are written until they are complete."""
        return self._out / PARTIAL

    def commit(self, draft: ShardDraft) -> None:
        """Make a draft a shard.

        Raises:
            BulkError: something cannot be written.
        """
        self._reject(draft.bad)
        part, size_bytes = self._part(draft.counts.index), 0
        if draft.path is not None:
            with writing(part):
                size_bytes = draft.path.stat().st_size
                put_in_place(draft.path, part)
        entry = ShardDone(**vars(draft.counts), size_bytes=size_bytes, rejected_bytes=self._rejected_bytes)
        self._journal.add(entry)
        self._shards[entry.index] = entry

    @property
    def parts(self) -> list[Path]:
        """The files of the shards that are done and in the folder, in order."""
        return [path for path in map(self._part, sorted(self._shards)) if path.exists()]

    def finish(self, repeated_ids: int = 0, repeated_id: str = "") -> Complete:
        """Write down that nothing is left, and how many rows have an id that a row before them has.

        Raises:
            BulkError: the journal cannot be written.
        """
        shutil.rmtree(self.partial, ignore_errors=True)
        if self.complete is None:
            self.complete = Complete(len(self._shards), repeated_ids, repeated_id)
            self._journal.add(self.complete)
        return self.complete

    def _recover(self) -> None:
        """Check what is there, and clear away what came after the last line of the journal."""
        self._check_rejected()
        if self._journal.is_read_only:
            for path in self.parts:
                self._check_part(path)
            return
        vectors, rejected = self._out / VECTORS, self._out / REJECTED
        with writing(self._out):
            if self.partial.exists():
                shutil.rmtree(self.partial)
            if self.complete is None:
                self.partial.mkdir()
            vectors.mkdir(exist_ok=True)
            with rejected.open("ab") as file:
                if file.tell() > self._rejected_bytes:
                    file.truncate(self._rejected_bytes)
                    flush(file)
            for path in vectors.iterdir():
                self._check_part(path)
            flush_folder(vectors)
            flush_folder(self._out)

    def _check_rejected(self) -> None:
        path = self._out / REJECTED
        if (path.stat().st_size if path.exists() else 0) < self._rejected_bytes:
            raise InputError(f"{str(path)!r} is shorter than the journal says; put it back, or begin in another folder")

    def _check_part(self, path: Path) -> None:
        if (found := _NAME.fullmatch(path.name)) is None:
            return  # not one of ours
        if (entry := self._shards.get(int(found[1]))) is None:
            path.unlink()
        elif path.stat().st_size != entry.size_bytes:
            raise InputError(
                f"{str(path)!r} has {path.stat().st_size} bytes, the journal says {entry.size_bytes}: it was changed; "
                "put it back, or begin in another folder"
            )

    def _reject(self, bad: tuple[BadRow, ...]) -> None:
        if not bad:
            return
        lines = [json.dumps({"place": row.place, "reason": row.reason}, ensure_ascii=False) for row in bad]
        data = "".join(line + "\n" for line in lines).encode("utf-8", "backslashreplace")
        path = self._out / REJECTED
        with writing(path), path.open("ab") as file:
            file.write(data)
            flush(file)
        self._rejected_bytes += len(data)

    def _part(self, index: int) -> Path:
        return self._out / VECTORS / f"part-{index:08d}.parquet"
