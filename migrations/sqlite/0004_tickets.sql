-- Tickets: of each its SHA-256 only. Times are milliseconds since 1970, UTC.

CREATE TABLE tickets (
    id          TEXT    NOT NULL PRIMARY KEY,
    principal   TEXT    NOT NULL,
    -- With what its owner was known when it was made.
    credential  TEXT    NOT NULL,
    -- Until when it can be used first.
    expires_at  INTEGER NOT NULL,
    -- Its first use: when, a fingerprint of the request, and the run that it is for from then on.
    used_at     INTEGER,
    request     TEXT,
    run_id      TEXT,
    erase_after INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE INDEX tickets_unused ON tickets (principal, expires_at) WHERE used_at IS NULL;
CREATE INDEX tickets_over ON tickets (erase_after);
