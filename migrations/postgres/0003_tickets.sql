-- Tickets: of each its SHA-256 only. Times are milliseconds since 1970, UTC.

CREATE TABLE tickets (
    id          text COLLATE "C" NOT NULL PRIMARY KEY,
    principal   text COLLATE "C" NOT NULL,
    -- With what its owner was known when it was made.
    credential  text   NOT NULL,
    -- Until when it can be used first.
    expires_at  bigint NOT NULL,
    -- Its first use: when, a fingerprint of the request, by which attempt, and the run that it is for from then on.
    used_at     bigint,
    request     text,
    claim       text,
    run_id      text,
    erase_after bigint NOT NULL
);

CREATE INDEX tickets_unused ON tickets (principal, expires_at) WHERE used_at IS NULL;
CREATE INDEX tickets_over ON tickets (erase_after);
