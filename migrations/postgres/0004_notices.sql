-- Notices between gateways: a run that is to stop, and a session that was erased. They go through the database, because
-- the relay may be away.

ALTER TABLE runs ADD COLUMN stop_requested boolean NOT NULL DEFAULT false;

CREATE INDEX runs_to_stop ON runs (replica) WHERE status = 'running' AND stop_requested;

-- One row for every gateway that has to forget the runs of an erased session, and one for the relay (replica is NULL). A
-- row goes when that is done, and with its gateway.
CREATE TABLE erasures (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    principal  text COLLATE "C" NOT NULL,
    session_id text COLLATE "C" NOT NULL,
    replica    text COLLATE "C" REFERENCES replicas (id) ON DELETE CASCADE,
    runs       text[] NOT NULL,
    erased_at  timestamptz NOT NULL DEFAULT clock_timestamp()
);

CREATE INDEX erasures_of_session ON erasures (principal, session_id);
CREATE INDEX erasures_of_replica ON erasures (replica);
