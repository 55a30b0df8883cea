-- What a ticket is bound to, as JSON; NULL in rows of older versions, whose tickets are bound to nothing.

ALTER TABLE tickets ADD COLUMN binding text;
