-- What each model call cost: one row for every call that was sent, also of runs that were cancelled or broke. A number
-- that nobody knows is NULL; `estimated` says that the gateway counted because the provider did not.

CREATE TABLE model_calls (
    run_id              TEXT    NOT NULL,
    round               INTEGER NOT NULL,
    model               TEXT    NOT NULL,
    input_tokens        INTEGER,
    output_tokens       INTEGER,
    cached_input_tokens INTEGER,
    reasoning_tokens    INTEGER,
    estimated           INTEGER NOT NULL,
    ended_at            INTEGER NOT NULL,
    PRIMARY KEY (run_id, round, model),
    FOREIGN KEY (run_id) REFERENCES runs (id) ON DELETE CASCADE
) STRICT, WITHOUT ROWID;
