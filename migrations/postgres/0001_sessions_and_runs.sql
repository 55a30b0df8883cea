-- Sessions, their messages, runs, and the gateways that run them. Times are milliseconds since 1970, UTC, but for leases,
-- which go by this database's clock. Bodies are JSON as TEXT: jsonb would refuse U+0000 even escaped, and text keeps what
-- was written. Ids are ordered by their bytes, whatever the database's language.

CREATE TABLE sessions (
    principal     text COLLATE "C" NOT NULL,
    id            text COLLATE "C" NOT NULL,
    user_id       text   NOT NULL,
    agent         text   NOT NULL,
    metadata      text   NOT NULL,
    message_count bigint NOT NULL,
    -- Changes with every turn and is never the same again, so that a commit can tell the session it read.
    version       bigint NOT NULL,
    created_at    bigint NOT NULL,
    updated_at    bigint NOT NULL,
    PRIMARY KEY (principal, id)
);

CREATE INDEX sessions_newest ON sessions (principal, created_at DESC, id DESC);
CREATE INDEX sessions_idle ON sessions (updated_at);

CREATE TABLE messages (
    principal  text COLLATE "C" NOT NULL,
    session_id text COLLATE "C" NOT NULL,
    seq        bigint NOT NULL,
    run_id     text   NOT NULL,
    status     text   NOT NULL,
    created_at bigint NOT NULL,
    body       text   NOT NULL,
    PRIMARY KEY (principal, session_id, seq),
    FOREIGN KEY (principal, session_id) REFERENCES sessions (principal, id) ON DELETE CASCADE
);

CREATE TABLE runs (
    id          text COLLATE "C" NOT NULL PRIMARY KEY,
    principal   text COLLATE "C" NOT NULL,
    session_id  text COLLATE "C" NOT NULL,
    agent       text   NOT NULL,
    model       text   NOT NULL,
    metadata    text   NOT NULL,
    created_at  bigint NOT NULL,
    idem_key    text COLLATE "C",
    fingerprint text,
    -- Whether its key still means this run: while it is running or completed, for a day.
    binds       boolean NOT NULL,
    status      text   NOT NULL,
    -- Which gateway runs it.
    replica     text   NOT NULL,
    -- Whether it has its session, as long as it is running; otherwise it waits for it.
    holds       boolean NOT NULL,
    -- Whether it waits before those that came earlier: it is to interrupt what holds the session.
    front       boolean NOT NULL,
    ended_at    bigint,
    last_seq    bigint,
    usage       text,
    error       text,
    done        text,
    FOREIGN KEY (principal, session_id) REFERENCES sessions (principal, id) ON DELETE CASCADE
);

-- Two holders of a session, or two runs of a key, cannot be, whoever races whom.
CREATE UNIQUE INDEX runs_one_holder ON runs (principal, session_id) WHERE status = 'running' AND holds;
CREATE UNIQUE INDEX runs_one_of_key ON runs (principal, idem_key) WHERE binds;
CREATE INDEX runs_of_session ON runs (principal, session_id);
CREATE INDEX runs_by_key ON runs (principal, idem_key, created_at DESC) WHERE idem_key IS NOT NULL;
CREATE INDEX runs_running ON runs (replica) WHERE status = 'running';

-- What each model call cost: one row for every call that was sent, also of runs that were cancelled or broke. A number
-- that nobody knows is NULL; `estimated` says that the gateway counted because the provider did not.
CREATE TABLE model_calls (
    run_id              text COLLATE "C" NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
    round               integer NOT NULL,
    model               text    NOT NULL,
    input_tokens        bigint,
    output_tokens       bigint,
    cached_input_tokens bigint,
    reasoning_tokens    bigint,
    estimated           boolean NOT NULL,
    ended_at            bigint  NOT NULL,
    PRIMARY KEY (run_id, round, model)
);

-- The gateways that live: each says so every few seconds. The runs of one that has not for the length of a lease are dead.
CREATE TABLE replicas (
    id      text COLLATE "C" NOT NULL PRIMARY KEY,
    seen_at timestamptz NOT NULL
);
