-- Files that runs made; their bytes are elsewhere. There is no foreign key to the session on purpose: a record must outlive
-- it until the bytes are erased, or nobody would know of them. Times are milliseconds since 1970, UTC.

CREATE TABLE artifacts (
    id          TEXT    NOT NULL PRIMARY KEY,
    principal   TEXT    NOT NULL,
    -- NULL: of a run that is not stored, or of a session that was erased.
    session_id  TEXT,
    run_id      TEXT    NOT NULL,
    name        TEXT    NOT NULL,
    media_type  TEXT    NOT NULL,
    size        INTEGER NOT NULL,
    sha256      TEXT    NOT NULL,
    created_at  INTEGER NOT NULL,
    -- 1: the bytes are there and may be shown. 0: they are being written, or are to be erased.
    ready       INTEGER NOT NULL,
    -- When the bytes are to be erased, and then the record; NULL: as long as the session is kept.
    erase_after INTEGER
) STRICT, WITHOUT ROWID;

CREATE INDEX artifacts_of_session ON artifacts (principal, session_id) WHERE session_id IS NOT NULL;
CREATE INDEX artifacts_due ON artifacts (erase_after, id) WHERE erase_after IS NOT NULL;

-- However a session goes, its files are due with it. One that is still being written stays pending until nobody can be
-- writing it any more, so that its bytes do not come after their erasing.
CREATE TRIGGER artifacts_orphaned BEFORE DELETE ON sessions BEGIN
    UPDATE artifacts
    SET session_id = NULL, ready = 0, erase_after = CASE ready WHEN 1 THEN 0 ELSE erase_after END
    WHERE principal = OLD.principal AND session_id = OLD.id;
END;
