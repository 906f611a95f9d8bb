"""Uploaded files in the database, and the output of batches, which has no content of its own."""

from dataclasses import asdict
from secrets import token_hex

from sqlalchemy import and_, delete, insert, or_, select
from sqlalchemy import func as sql

from safelight.service.batches.stored_file import INPUT_PURPOSE, StoredFile
from safelight.service.database.tables import files
from safelight.service.errors import FileMissing, TooManyFiles
from safelight.service.jobs.job_table import JobDatabase

LOCK = "files"  # of uploads, of which one is kept at a time
UPLOAD_SECONDS = 60.0  # of a use of the database with a file
MAX_FILENAME = 255


COLUMNS = tuple(files.c[name] for name in StoredFile.__dataclass_fields__)


class FileStore:
    """The files in a database. Every method raises `JobsUnavailable` if that cannot be used.

    Args:
        database: Of the jobs.
        max_bytes: Most bytes of one caller's files.
    """

    def __init__(self, database: JobDatabase, max_bytes: int):
        self._database = database
        self._max_bytes = max_bytes

    async def add(self, caller: str, filename: str, content: bytes, seconds: float) -> StoredFile:
        """Keep an uploaded file for some seconds. Raises `TooManyFiles`."""
        now = self._database.clock()
        file = StoredFile(
            id=f"file-{token_hex(12)}",
            caller=caller,
            filename=filename[:MAX_FILENAME],
            purpose=INPUT_PURPOSE,
            num_bytes=len(content),
            created=now,
            expires=now + seconds,
            batch=None,
        )
        async with self._database.writing(LOCK, UPLOAD_SECONDS) as connection:
            is_kept = files.c.caller == caller, files.c.expires > now, files.c.content.is_not(None)
            query = select(sql.sum(files.c.num_bytes)).where(*is_kept)
            if int(await connection.scalar(query) or 0) + len(content) > self._max_bytes:
                raise TooManyFiles(
                    f"Your files may have {self._max_bytes:,} bytes in all (max_files_bytes); delete some."
                )
            await connection.execute(insert(files).values(**asdict(file), content=content))
        return file

    async def get(self, file_id: str, caller: str) -> StoredFile:
        """A file of this caller. Raises `FileMissing`."""
        is_file = files.c.id == file_id, files.c.caller == caller, files.c.expires > self._database.clock()
        async with self._database.reading() as connection:
            row = (await connection.execute(select(*COLUMNS).where(*is_file))).mappings().first()
        if row is None:
            raise FileMissing()
        return StoredFile.from_row(row)

    async def content(self, file: StoredFile) -> bytes:
        """The bytes of an uploaded file. Raises `FileMissing`."""
        async with self._database.writing(seconds=UPLOAD_SECONDS) as connection:
            content = await connection.scalar(select(files.c.content).where(files.c.id == file.id))
        if content is None:
            raise FileMissing()
        return bytes(content)

    async def list_page(
        self, caller: str, limit: int, after: str | None, purpose: str | None, is_ascending: bool
    ) -> tuple[list[StoredFile], bool]:
        """Files of a caller by age, and whether there are more.

        Args:
            caller: Whose.
            limit: How many at most.
            after: The file before them.
            purpose: Only files with this one.
            is_ascending: Whether the oldest come first.

        Raises:
            FileMissing: There is no file `after`.
        """
        where = [files.c.caller == caller, files.c.expires > self._database.clock()]
        if purpose is not None:
            where.append(files.c.purpose == purpose)
        if after is not None:
            last = await self.get(after, caller)
            created, file_id = files.c.created, files.c.id
            is_beyond = created > last.created if is_ascending else created < last.created
            is_next = file_id > last.id if is_ascending else file_id < last.id
            where.append(or_(is_beyond, and_(created == last.created, is_next)))
        order = [files.c.created, files.c.id] if is_ascending else [files.c.created.desc(), files.c.id.desc()]
        async with self._database.reading() as connection:
            query = select(*COLUMNS).where(*where).order_by(*order).limit(limit + 1)
            rows = (await connection.execute(query)).mappings().all()
        return [StoredFile.from_row(row) for row in rows[:limit]], len(rows) > limit

    async def delete(self, file_id: str, caller: str) -> None:
        """Delete a file of this caller. Raises `FileMissing`."""
        file = await self.get(file_id, caller)
        async with self._database.writing() as connection:
            await connection.execute(delete(files).where(files.c.id == file.id))

    async def sweep(self) -> None:
        """Delete the files whose time is over."""
        async with self._database.writing() as connection:
            await connection.execute(delete(files).where(files.c.expires <= self._database.clock()))
