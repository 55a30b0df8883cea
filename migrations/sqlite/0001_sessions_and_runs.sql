-- Sessions, their messages, and runs. Times are milliseconds since 1970, UTC; bodies are JSON.

CREATE TABLE sessions (
    principal     TEXT    NOT NULL,
    id            TEXT    NOT NULL,
    user_id       TEXT    NOT NULL,
    agent         TEXT    NOT NULL,
    metadata      TEXT    NOT NULL,
    message_count INTEGER NOT NULL,
    -- Changes with every turn and is never the same again, so that a commit can tell the session it read.
    version       INTEGER NOT NULL,
    created_at    INTEGER NOT NULL,
    updated_at    INTEGER NOT NULL,
    PRIMARY KEY (principal, id)
) STRICT, WITHOUT ROWID;

CREATE INDEX sessions_newest ON sessions (principal, created_at DESC, id DESC);
CREATE INDEX sessions_idle ON sessions (updated_at);

CREATE TABLE messages (
    principal  TEXT    NOT NULL,
    session_id TEXT    NOT NULL,
    seq        INTEGER NOT NULL,
    run_id     TEXT    NOT NULL,
    status     TEXT    NOT NULL,
    created_at INTEGER NOT NULL,
    body       TEXT    NOT NULL,
    PRIMARY KEY (principal, session_id, seq),
    FOREIGN KEY (principal, session_id) REFERENCES sessions (principal, id) ON DELETE CASCADE
) STRICT, WITHOUT ROWID;

CREATE TABLE runs (
    id          TEXT    NOT NULL PRIMARY KEY,
    principal   TEXT    NOT NULL,
    session_id  TEXT    NOT NULL,
    agent       TEXT    NOT NULL,
    model       TEXT    NOT NULL,
    metadata    TEXT    NOT NULL,
    created_at  INTEGER NOT NULL,
    idem_key    TEXT,
    fingerprint TEXT,
    status      TEXT    NOT NULL,
    ended_at    INTEGER,
    last_seq    INTEGER,
    usage       TEXT,
    error       TEXT,
    done        TEXT,
    FOREIGN KEY (principal, session_id) REFERENCES sessions (principal, id) ON DELETE CASCADE
) STRICT, WITHOUT ROWID;

CREATE INDEX runs_of_session ON runs (principal, session_id);
CREATE INDEX runs_by_key ON runs (principal, idem_key, created_at DESC) WHERE idem_key IS NOT NULL;
CREATE INDEX runs_running ON runs (status) WHERE status = 'running';
