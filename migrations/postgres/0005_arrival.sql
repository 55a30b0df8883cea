-- The order in which runs asked for their session, by this database: the clocks of gateways differ, and with them the ids
-- of runs. Rows from before have none and come first.

CREATE SEQUENCE runs_arrival;
ALTER TABLE runs ADD COLUMN arrival bigint;
ALTER TABLE runs ALTER COLUMN arrival SET DEFAULT nextval('runs_arrival');
