-- Files that runs made; their bytes are elsewhere. There is no foreign key to the session on purpose: a record must outlive
-- it until the bytes are erased, or nobody would know of them. Times are milliseconds since 1970, UTC.

CREATE TABLE artifacts (
    id          text COLLATE "C" NOT NULL PRIMARY KEY,
    principal   text COLLATE "C" NOT NULL,
    -- NULL: of a run that is not stored, or of a session that was erased.
    session_id  text COLLATE "C",
    run_id      text    NOT NULL,
    name        text    NOT NULL,
    media_type  text    NOT NULL,
    size        bigint  NOT NULL,
    sha256      text    NOT NULL,
    created_at  bigint  NOT NULL,
    -- True: the bytes are there and may be shown. False: they are being written, or are to be erased.
    ready       boolean NOT NULL,
    -- When the bytes are to be erased, and then the record; NULL: as long as the session is kept.
    erase_after bigint
);

CREATE INDEX artifacts_of_session ON artifacts (principal, session_id) WHERE session_id IS NOT NULL;
CREATE INDEX artifacts_due ON artifacts (erase_after, id) WHERE erase_after IS NOT NULL;

-- However a session goes, its files are due with it. One that is still being written stays pending until nobody can be
-- writing it any more, so that its bytes do not come after their erasing. The session's row is locked before this is done,
-- and whoever announces a file locks it too, so none is announced unseen.
CREATE FUNCTION orphan_artifacts() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE artifacts
    SET session_id = NULL, ready = false, erase_after = CASE WHEN ready THEN 0 ELSE erase_after END
    WHERE principal = OLD.principal AND session_id = OLD.id;
    RETURN OLD;
END
$$;

CREATE TRIGGER artifacts_orphaned BEFORE DELETE ON sessions FOR EACH ROW EXECUTE FUNCTION orphan_artifacts();
